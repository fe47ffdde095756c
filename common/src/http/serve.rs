//! The accept loop: plain or TLS, HTTP/1.1 and HTTP/2, every wait and size bounded, drained at the end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::stall::StallLimit;
use super::{Request, Response};
use crate::shutdown::Shutdown;

/// The answer to a request in clear on a TLS port.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
Connection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// Bytes of such a request that are read before the connection is closed.
const PLAIN_HTTP_READ: usize = 64 * 1024;
/// Time for all of that.
const PLAIN_HTTP_TIME: Duration = Duration::from_secs(2);

/// What a client may take of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections served at once; more wait in the listen queue.
    pub connections: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for a whole request head. A connection without a request for so long is closed too.
    pub head: Duration,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// HTTP/2 streams of a connection at once.
    pub streams: u32,
    /// Time that a write may stand still because the client does not read.
    pub write: Duration,
    /// Time for open requests to finish once the program is to end.
    pub drain: Duration,
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The certificate chain it presented, its own first; empty without TLS or certificate. What
    /// the chain proves is up to the [`ServerConfig`]'s verifier and the handler.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// A TLS configuration that is read anew for every connection, so that certificates can be
/// exchanged while serving.
pub type Tls = Arc<ArcSwap<ServerConfig>>;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            head_bytes: 64 * 1024,
            headers: 100,
            streams: 100,
            write: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// Listens on an address written the way Go writes it: `:9400` is every address of both families.
///
/// The error names the address and what to do.
pub fn listen(address: &str) -> Result<TcpListener, String> {
    let candidates: Vec<SocketAddr> = match address.strip_prefix(':') {
        Some(port) => {
            let port = port
                .parse()
                .map_err(|_| format!("{address:?} is not a listen address: {port:?} is not a port"))?;
            vec![SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))]
        }
        None => vec![address.parse().map_err(|_| {
            format!("{address:?} is not a listen address: write it like :9400, 127.0.0.1:9400 or [::1]:9400")
        })?],
    };
    let mut failure = None;
    for candidate in candidates {
        match bind(candidate) {
            Ok(listener) => return Ok(listener),
            // Only a host without IPv6 is a reason to try IPv4: a port in use is in use.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(format!(
                    "cannot listen on {address}: the port is in use by another program; end it or choose another port"
                ));
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(format!(
        "cannot listen on {address}: {}",
        failure.map_or_else(String::new, |error| error.to_string())
    ))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Serves until `shutdown`, then lets open requests finish.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Tls>,
    limits: Limits,
    handler: H,
    mut shutdown: Shutdown,
) where
    H: Fn(Request, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let server = Arc::new(connection_builder(&limits));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut ended = pin!(shutdown.wait());
    loop {
        let accepted = tokio::select! {
            () = &mut ended => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, address, slot)) = accepted else { continue };
        let tls = tls.as_ref().map(|config| TlsAcceptor::from(config.load_full()));
        let (server, handler) = (Arc::clone(&server), handler.clone());
        let (handshake, write) = (limits.handshake, limits.write);
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            let _slot = slot;
            match tls {
                None => {
                    let peer = Peer { address, certificates: Vec::new() };
                    drive(&server, StallLimit::new(stream, write), handler, peer, watcher).await;
                }
                Some(acceptor) => {
                    let Some(stream) = refuse_plain_http(stream, handshake).await else { return };
                    let Some(stream) = shake_hands(&acceptor, stream, address, handshake).await else {
                        return;
                    };
                    let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let certificates =
                        presented.iter().map(|certificate| certificate.clone().into_owned()).collect();
                    let peer = Peer { address, certificates };
                    drive(&server, StallLimit::new(stream, write), handler, peer, watcher).await;
                }
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections still open after {:?}: closing them", limits.drain);
    }
}

fn connection_builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(limits.headers)
        .max_buf_size(limits.head_bytes.max(8192));
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(limits.head))
        .keep_alive_timeout(limits.head);
    server
}

/// The next connection and its place. `None` after an error that another try may not have.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Answers are single writes: waiting to fill a segment only delays them.
            let _ = stream.set_nodelay(true);
            Some((stream, address, slot))
        }
        Err(error) => {
            tracing::warn!("cannot accept a connection: {error}; trying again in 100 ms");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Tells a client that speaks HTTP where TLS is spoken, as Go's servers do, and gives the stream
/// back if it speaks anything else. A handshake begins with byte 22, a request with a letter.
async fn refuse_plain_http(mut stream: TcpStream, limit: Duration) -> Option<TcpStream> {
    let mut first = [0];
    let peeked = tokio::time::timeout(limit, stream.peek(&mut first)).await;
    if !matches!(peeked, Ok(Ok(1))) {
        return None;
    }
    if !first[0].is_ascii_uppercase() {
        return Some(stream);
    }
    let answered = async {
        stream.write_all(PLAIN_HTTP_ANSWER).await?;
        stream.shutdown().await?;
        // Closing with the request unread would reset the connection under the answer.
        let mut request = [0; 1024];
        let mut left = PLAIN_HTTP_READ;
        while left > 0 {
            match stream.read(&mut request).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // However it ends, the connection is over.
    let _ = tokio::time::timeout(PLAIN_HTTP_TIME, answered).await;
    None
}

async fn shake_hands(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    limit: Duration,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    match tokio::time::timeout(limit, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!("TLS handshake with {address} failed: {error}");
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake with {address} took longer than {limit:?}");
            None
        }
    }
}

/// Serves one connection to its end.
async fn drive<I, H, F>(
    server: &auto::Builder<TokioExecutor>,
    stream: I,
    handler: H,
    peer: Peer,
    watcher: hyper_util::server::graceful::Watcher,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request, Arc<Peer>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let address = peer.address;
    let peer = Arc::new(peer);
    let service = service_fn(move |request| {
        let answer = handler(request, Arc::clone(&peer));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = server.serve_connection(TokioIo::new(stream), service);
    // A peer that ends a connection early is its own business, so this is no warning: the
    // aggregation layer cancels four of its five parallel checks each time.
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!("connection of {address} ended: {error}");
    }
}

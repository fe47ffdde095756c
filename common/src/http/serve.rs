//! The accept loop: plain or TLS, HTTP/1.1 and HTTP/2, every wait and size bounded, drained at the end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::idle::{Activity, Peers};
use super::stall::StallLimit;
use super::{Request, Response};
use crate::shutdown::Shutdown;

/// Bytes of bodies that an HTTP/2 client may send before anybody reads them.
const H2_WINDOW: u32 = 65_535;
/// Time for a connection to end after it was told to.
const CLOSING: Duration = Duration::from_secs(5);
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
    /// … of one address; further ones are closed at once.
    pub connections_of_peer: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for a whole request head, the first one's counted from the connection's first moment.
    pub head: Duration,
    /// Time that a connection may do nothing between requests. Pings are nothing.
    pub idle: Duration,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// HTTP/2 streams of a connection at once.
    pub streams: u32,
    /// HTTP/2 is spoken. Which protocols are offered is the [`ServerConfig`]'s to say.
    pub http2: bool,
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
            connections_of_peer: 128,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(180),
            head_bytes: 64 * 1024,
            headers: 100,
            streams: 100,
            http2: true,
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
    let peers = Peers::new(limits.connections_of_peer);
    let mut full = false;
    let (ending, _) = watch::channel(false);
    let mut ended = pin!(shutdown.wait());
    loop {
        let accepted = tokio::select! {
            () = &mut ended => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, address, slot)) = accepted else { continue };
        let Some(place) = peers.enter(address.ip()) else {
            if !std::mem::replace(&mut full, true) {
                tracing::warn!(
                    "{} has {} connections: further ones of one address are closed",
                    address.ip(),
                    limits.connections_of_peer
                );
            }
            continue;
        };
        let tls = tls.as_ref().map(|config| TlsAcceptor::from(config.load_full()));
        let (server, handler) = (Arc::clone(&server), handler.clone());
        let (handshake, write) = (limits.handshake, limits.write);
        let watcher = Patience { head: limits.head, idle: limits.idle, ending: ending.subscribe() };
        tokio::spawn(async move {
            let _held = (slot, place);
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
    ending.send_replace(true);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    if tokio::time::timeout(limits.drain, slots.acquire_many(all)).await.is_err() {
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
        // Requests here have no bodies.
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(limits.head))
        .keep_alive_timeout(limits.head);
    if limits.http2 { server } else { server.http1_only() }
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
    mut watcher: Patience,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request, Arc<Peer>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let address = peer.address;
    let peer = Arc::new(peer);
    let activity = Activity::new(Instant::now());
    let requests = activity.clone();
    let service = service_fn(move |request| {
        let in_flight = requests.begin();
        let answer = handler(request, Arc::clone(&peer));
        async move {
            let answer = answer.await;
            drop(in_flight);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = watcher.runs_out(&activity) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            // Requests in flight may finish; one that does nothing has nothing to finish.
            let closing = CLOSING.min(watcher.head);
            let patience = async {
                loop {
                    tokio::time::sleep(closing).await;
                    if activity.left(Instant::now(), closing, closing).is_none() {
                        return;
                    }
                }
            };
            tokio::select! {
                ended = connection => ended,
                () = patience => {
                    tracing::debug!("connection of {address} closed: it did nothing");
                    return;
                }
            }
        }
    };
    // A peer that ends a connection early is its own business, so this is no warning: the
    // aggregation layer cancels four of its five parallel checks each time.
    if let Err(error) = ended {
        tracing::debug!("connection of {address} ended: {error}");
    }
}

/// How long a connection is kept.
struct Patience {
    head: Duration,
    idle: Duration,
    /// The program is to end.
    ending: watch::Receiver<bool>,
}

impl Patience {
    /// Returns once the connection has done nothing for too long, or the program is to end.
    async fn runs_out(&mut self, activity: &Activity) {
        let idle = async {
            while let Some(left) = activity.left(Instant::now(), self.head, self.idle) {
                tokio::time::sleep(left).await;
            }
        };
        tokio::select! {
            () = idle => {}
            _ = self.ending.wait_for(|ending| *ending) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::respond::text;
    use crate::shutdown::{Trigger, channel};
    use http::StatusCode;

    /// A server with these limits, and what ends it.
    async fn server(limits: Limits) -> (SocketAddr, Trigger) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = |_, _| async { text(StatusCode::OK, "ok") };
        let (trigger, shutdown) = channel();
        tokio::spawn(serve(listener, None, limits, handler, shutdown));
        (address, trigger)
    }

    fn short() -> Limits {
        let limit = Duration::from_millis(50);
        Limits { connections: 2, connections_of_peer: 2, head: limit, idle: limit, ..Limits::default() }
    }

    /// Reads until the server ends the connection.
    async fn to_end(stream: &mut TcpStream) -> Vec<u8> {
        let mut read = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut read).await;
        read
    }

    #[tokio::test]
    async fn connections_that_say_nothing_give_their_places_back() {
        let (address, _trigger) = server(short()).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        // The preface of HTTP/2 and nothing more.
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        assert!(to_end(&mut silent).await.is_empty());
        to_end(&mut idle).await;
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        // And one that has asked may not stay for ever either.
        let answer = to_end(&mut third).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let day = Duration::from_secs(86_400);
        let (address, _trigger) =
            server(Limits { connections_of_peer: 1, head: day, idle: day, ..short() }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut byte = [0];
        first.read_exact(&mut byte).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(to_end(&mut second).await.is_empty());
    }
}

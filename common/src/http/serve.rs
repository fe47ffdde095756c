//! The accept loop: plain or TLS, HTTP/1.1 and HTTP/2, every wait and size bounded, drained at the end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connection::Server;
use super::limited::Limited;
use super::places::{Capacity, Places};
use super::{Request, Response};
use crate::shutdown::Shutdown;

/// Connections that have lost their place and are not closed yet.
const CLOSING: usize = 64;

/// Limits on what clients take of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections served at once. A further one takes the place of another, see [`Handler::trusts`].
    pub connections: usize,
    /// … of them kept for clients whose certificate is verified, or whose address was served before.
    pub reserved: usize,
    /// Connections of one address that are not kept; a further one takes the place of its oldest.
    pub connections_of_peer: usize,
    /// Addresses that had a request answered are kept, not those of verified certificates alone.
    pub keep_answered: bool,
    /// Requests under way at once, until their answers are written: of clients with a verified
    /// certificate, and again of all others. Further ones are answered 429.
    pub requests: usize,
    /// Bytes of answers that are not written yet; an answer that exceeds them becomes a 429.
    pub unsent: usize,
    /// Timeout of a TLS handshake.
    pub handshake: Duration,
    /// Timeout of a request's whole head; the first one's begins with the connection.
    pub head: Duration,
    /// … of a client that is neither verified nor known.
    pub unproven_head: Duration,
    /// Time that a connection may do nothing between requests. Pings count as nothing.
    pub idle: Duration,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// HTTP/2 streams of a connection at once.
    pub streams: u32,
    /// … of a client that is neither verified nor known.
    pub unproven_streams: u32,
    /// HTTP/2 is served. The [`ServerConfig`] decides which protocols are offered.
    pub http2: bool,
    /// Time that a write, or an HTTP/2 stream, may stand still because the client does not read.
    pub write: Duration,
    /// Time to go on accepting connections once the program is to end.
    pub shutdown_delay: Duration,
    /// Time for open requests to finish after that.
    pub drain: Duration,
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// The certificate chain it presented, its own first; empty without TLS or certificate. The
    /// [`ServerConfig`]'s verifier and the handler decide what the chain proves.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request.
    fn answer(self: Arc<Self>, request: Request, peer: Arc<Peer>) -> impl Future<Output = Response> + Send;

    /// Whether a certificate chain is of a client that is known for certain: its connections are kept
    /// when places run out. Asked once a connection, and again while the answer is no.
    fn trusts(&self, certificates: &[CertificateDer<'static>]) -> bool;

    /// The 429 to a request for which there is no room, for this reason.
    fn overloaded(&self, reason: &str) -> Response;
}

/// A TLS configuration that is read again for every connection, so that certificates can be
/// exchanged while serving.
pub type Tls = Arc<ArcSwap<ServerConfig>>;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            reserved: 64,
            connections_of_peer: 128,
            keep_answered: false,
            requests: 512,
            unsent: 32 * 1024 * 1024,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(30),
            unproven_head: Duration::from_secs(5),
            idle: Duration::from_secs(180),
            head_bytes: 64 * 1024,
            headers: 100,
            streams: 100,
            unproven_streams: 32,
            http2: true,
            write: Duration::from_secs(30),
            shutdown_delay: Duration::ZERO,
            drain: Duration::from_secs(5),
        }
    }
}

impl Limits {
    fn capacity(&self) -> Capacity {
        Capacity {
            connections: self.connections,
            reserved: self.reserved,
            of_address: self.connections_of_peer,
            requests: self.requests,
            unsent: self.unsent,
            keep_answered: self.keep_answered,
        }
    }
}

/// Serves until `shutdown` and [`Limits::shutdown_delay`], then lets open requests finish.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Option<Tls>,
    limits: Limits,
    limited: Arc<Limited>,
    handler: Arc<H>,
    mut shutdown: Shutdown,
) {
    let places = Places::new(limits.capacity(), Arc::clone(&limited));
    // More than there are places: a connection that has lost its own takes a moment to end.
    let all = limits.connections + CLOSING;
    let open = Arc::new(Semaphore::new(all));
    let (ending, _) = watch::channel(false);
    let (delay, drain) = (limits.shutdown_delay, limits.drain);
    let mut ended = pin!(async {
        shutdown.wait().await;
        tokio::time::sleep(delay).await;
    });
    let server = Arc::new(Server { limits, limited, handler, ending: ending.subscribe() });
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = &mut ended => break,
            accepted = accept(&listener, &open, &mut failing) => accepted,
        };
        let Some((stream, address, held)) = accepted else { continue };
        let place = places.enter(address.ip(), Instant::now());
        let (server, tls) = (Arc::clone(&server), tls.as_ref().map(|config| config.load_full()));
        tokio::spawn(async move {
            let mut still_open = place.open();
            let holder = place.holder();
            tokio::select! {
                () = server.serve(stream, address, tls, holder, still_open.clone()) => {}
                // An error: the place was taken away.
                _ = still_open.changed() => tracing::debug!("connection of {address} closed to make room"),
            }
            drop((place, held));
        });
    }
    drop(listener);
    ending.send_replace(true);
    let all = u32::try_from(all).unwrap_or(u32::MAX);
    if tokio::time::timeout(drain, open.acquire_many(all)).await.is_err() {
        tracing::warn!("connections are still open after {drain:?}: closing them");
    }
}

/// The next connection. `None` after an error that another try may not have; `failing`: whether the
/// last try had one, which is logged once.
async fn accept(
    listener: &TcpListener,
    open: &Arc<Semaphore>,
    failing: &mut bool,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let held = Arc::clone(open).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            if std::mem::replace(failing, false) {
                tracing::info!("connections are accepted again");
            }
            // Answers are single writes: waiting to fill a segment only delays them.
            let _ = stream.set_nodelay(true);
            Some((stream, address, held))
        }
        Err(error) => {
            if !std::mem::replace(failing, true) {
                tracing::warn!("cannot accept a connection: {error}; trying every 100 ms");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests;

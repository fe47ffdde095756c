//! Serves one connection from its handshake to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{StatusCode, Version};
use http_body_util::{BodyExt as _, Collected};
use hyper::body::Body as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::answer::{Answer, Held};
use super::idle::Activity;
use super::limited::Limited;
use super::places::Holder;
use super::plain::refuse_plain_http;
use super::serve::{Handler, Limits, Peer};
use super::stall::{Flow, StallLimit};
use super::streams::Streams;
use super::{Request, Response};

/// Bytes of bodies that an HTTP/2 client may send before they are read. Requests here have none.
const H2_WINDOW: u32 = 65_535;
/// Bytes of answers that an HTTP/2 stream of a client that is not kept may have in the connection's
/// own buffer.
const UNPROVEN_BUFFER: usize = 32 * 1024;
/// Time for a connection to end after it was asked to.
const CLOSING: Duration = Duration::from_secs(5);
/// Answers that prove nothing about a client.
const REFUSALS: [StatusCode; 5] = [
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
];

/// State that all connections of a server share.
#[derive(Debug)]
pub(super) struct Server<H> {
    pub(super) limits: Limits,
    pub(super) limited: Arc<Limited>,
    pub(super) handler: Arc<H>,
    /// True once the program is to end.
    pub(super) ending: watch::Receiver<bool>,
}

/// State that the requests of a connection share.
struct Requests<H> {
    handler: Arc<H>,
    peer: Arc<Peer>,
    holder: Holder,
    activity: Activity,
    flow: Flow,
    /// The certificates are trusted.
    trusted: AtomicBool,
}

// === impl Server ===

impl<H: Handler> Server<H> {
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        holder: Holder,
        open: watch::Receiver<()>,
    ) {
        let Some(config) = tls else {
            return self.drive(stream, Peer { address, certificates: Vec::new() }, holder, open).await;
        };
        let limit = self.limits.handshake;
        let Some(stream) = refuse_plain_http(stream, limit).await else { return };
        let Some(stream) = shake_hands(&TlsAcceptor::from(config), stream, address, limit).await else {
            return;
        };
        let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates: Vec<_> =
            presented.iter().map(|certificate| certificate.clone().into_owned()).collect();
        if !certificates.is_empty() && self.handler.trusts(&certificates) {
            holder.verified(Instant::now());
        }
        self.drive(stream, Peer { address, certificates }, holder, open).await;
    }

    /// Speaks HTTP until the end.
    async fn drive<I>(&self, stream: I, peer: Peer, holder: Holder, open: watch::Receiver<()>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let address = peer.address;
        let kept = holder.is_kept();
        let activity = Activity::new(Instant::now());
        let stream = StallLimit::new(stream, self.limits.write, Arc::clone(&self.limited));
        let requests = Arc::new(Requests {
            handler: Arc::clone(&self.handler),
            peer: Arc::new(peer),
            holder,
            activity: activity.clone(),
            flow: stream.flow(),
            trusted: AtomicBool::new(false),
        });
        let service = service_fn(move |request| Arc::clone(&requests).answer(request));
        let builder = self.builder(kept, open);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.runs_out(&activity, self.head(kept)) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // Requests in flight may finish; one that does nothing has nothing to finish.
                let closing = CLOSING.min(self.head(kept));
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
        // A peer that ends a connection early is no fault, so this is not a warning: the aggregation
        // layer cancels four of its five parallel checks each time.
        if let Err(error) = ended {
            tracing::debug!("connection of {address} ended: {error}");
        }
    }

    fn head(&self, kept: bool) -> Duration {
        if kept { self.limits.head } else { self.limits.unproven_head.min(self.limits.head) }
    }

    fn builder(&self, kept: bool, open: watch::Receiver<()>) -> auto::Builder<Streams> {
        let limits = &self.limits;
        let head = self.head(kept);
        let streams = Streams { write: limits.write, open, limited: Arc::clone(&self.limited) };
        let mut builder = auto::Builder::new(streams);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_headers(limits.headers)
            .max_buf_size(limits.head_bytes.max(8192));
        let mut http2 = builder.http2();
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(if kept { limits.streams } else { limits.unproven_streams })
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(limits.head))
            .keep_alive_timeout(limits.head);
        if !kept {
            http2.max_send_buf_size(UNPROVEN_BUFFER);
        }
        if limits.http2 { builder } else { builder.http1_only() }
    }

    /// Returns once the connection has done nothing for too long, or the program is to end.
    async fn runs_out(&self, activity: &Activity, first: Duration) {
        let idle = async {
            while let Some(left) = activity.left(Instant::now(), first, self.limits.idle) {
                tokio::time::sleep(left).await;
            }
        };
        let mut ending = self.ending.clone();
        tokio::select! {
            () = idle => {}
            _ = ending.wait_for(|ending| *ending) => {}
        }
    }
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

// === impl Requests ===

impl<H: Handler> Requests<H> {
    /// Answers a request once the client reads what it asked for before.
    async fn answer(self: Arc<Self>, request: Request) -> Result<http::Response<Answer>, Infallible> {
        let in_flight = self.activity.begin();
        self.flow.moves().await;
        let version = request.version();
        let mut held = Held { underway: self.holder.begin(Instant::now()), _in_flight: in_flight };
        let Some(underway) = &mut held.underway else {
            let refusal = self.handler.overloaded("too many requests are under way");
            return Ok(whole(refusal, version, held).await);
        };
        let mut response = Arc::clone(&self.handler).answer(request, Arc::clone(&self.peer)).await;
        let bytes = response.body().size_hint().exact().unwrap_or_default();
        if underway.hold(usize::try_from(bytes).unwrap_or(usize::MAX), Instant::now()) {
            self.judge(response.status());
        } else {
            response =
                self.handler.overloaded("too many bytes of answers wait for their clients to read them");
        }
        Ok(whole(response, version, held).await)
    }

    /// Takes note of what an answer says of its client.
    fn judge(&self, status: StatusCode) {
        if REFUSALS.contains(&status) {
            return;
        }
        let now = Instant::now();
        self.holder.answered(now);
        let certificates = &self.peer.certificates;
        // The trusted CAs may have become known only now.
        if !certificates.is_empty()
            && !self.trusted.load(Ordering::Relaxed)
            && self.handler.trusts(certificates)
        {
            self.trusted.store(true, Ordering::Relaxed);
            self.holder.verified(now);
        }
    }
}

/// The response with a body that keeps what is held until it is written.
async fn whole(response: Response, version: Version, held: Held) -> http::Response<Answer> {
    let (parts, body) = response.into_parts();
    let Ok(bytes) = body.collect().await.map(Collected::to_bytes);
    http::Response::from_parts(parts, Answer::new(bytes, version, held))
}

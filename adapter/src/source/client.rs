//! Asks one exporter for its page, and reads the answer as it comes.
//!
//! An exporter is asked for the families that are read, and no others: `?name[]=FAMILY&…`, as
//! Prometheus client libraries have it. One that does not know the parameter answers with all of
//! its page; one that refuses it is asked without.
//!
//! A connection is kept for the next scrape, since making one costs more than reading a page. Kept is
//! the stream alone: buffers exist only while an answer is read, so that thousands of connections
//! take little memory.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::response::Parts;
use http::{HeaderValue, Request, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tower::ServiceExt as _;
use tracing::info;

use super::access::Access;
use super::body::{BodyError, BodyReader, Coding, Pool};
use super::page::{Page, Room};
use super::store::Exporter;
use crate::cluster::client::one_line;
use crate::metric::Metrics;
use crate::self_metrics::SelfMetrics;

/// Bytes that are read at once, and so the largest head of an answer.
const READ_BYTES: usize = 16 << 10;
/// Scrapes that are further apart do not keep their connection: servers end one that is idle for five
/// seconds, podgauge's exporter among them.
const KEPT_FOR: Duration = Duration::from_secs(4);
/// A connection is made anew after so long: a certificate may have expired, a name may mean another
/// address.
const OLDEST: Duration = Duration::from_secs(600);
/// How long an answer over a kept connection may be waited for at least before another one is made:
/// whatever lies on the way may have forgotten it …
const REUSED: Duration = Duration::from_millis(400);
/// … and so many times as long as the last answer took. An adapter that is short of CPU makes no further
/// work by giving its connections up.
const PATIENCE: u32 = 4;
/// Answers that may mean that the query is not understood.
const REFUSALS: [StatusCode; 3] = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::URI_TOO_LONG];

/// Asks exporters: what all of them have in common.
#[derive(Debug)]
pub(super) struct Client {
    connector: HttpConnector,
    access: Arc<Access>,
    metrics: Arc<Metrics>,
    /// Asks for the families that are read.
    query: String,
    self_metrics: SelfMetrics,
    buffers: Pool,
    /// Connections that may still be kept.
    keep: Arc<Semaphore>,
}

/// Knowledge of an exporter from one scrape to the next.
#[derive(Debug, Default)]
pub(super) struct Acquaintance {
    asked: Asked,
    /// Waits for the next scrape.
    kept: Option<Kept>,
    /// It ends an answer by closing the connection, maybe only if it is asked to.
    closes: bool,
}

/// The families that an exporter is asked for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The families that are read.
    #[default]
    Families,
    /// Its page: it refused to answer with a part.
    Page,
}

/// A connection to an exporter.
struct Connection {
    stream: Box<dyn Stream>,
    /// The files that TLS was made with; `None`: it is not over TLS.
    tls: Option<Arc<ClientConfig>>,
    made: Instant,
}

/// A connection without a request under way, and its place among those that are kept.
struct Kept {
    connection: Connection,
    place: OwnedSemaphorePermit,
    /// Time that the last answer took.
    took: Duration,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("{0}")]
    NoConnection(String),
    #[error("{0}")]
    NoAnswer(String),
    #[error(
        "answered 401 Unauthorized: its password or token is given by --exporter-username and --exporter-password-file, or --exporter-token-file"
    )]
    Unauthorized,
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the page is encoded ({0:?}), though gzip or plain text was asked for")]
    Encoded(HeaderValue),
    #[error("{0}")]
    Cut(String),
    #[error(transparent)]
    Body(#[from] BodyError),
}

// === impl Acquaintance ===

impl Acquaintance {
    /// A scrape failed: it may be another exporter when it is back. That it closes is still believed, since
    /// that is why a scrape may fail.
    pub(super) fn failed(&mut self) {
        *self = Self { closes: self.closes, ..Self::default() };
    }
}

// === impl Kept ===

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("tls", &self.connection.tls.is_some()).finish_non_exhaustive()
    }
}

// === impl Client ===

impl Client {
    /// `connect_timeout`: the longest time for a connection. `keep`: how many connections may be kept
    /// between scrapes that are `interval` apart.
    pub(super) fn new(
        metrics: Arc<Metrics>,
        self_metrics: SelfMetrics,
        connect_timeout: Duration,
        interval: Duration,
        keep: usize,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect_timeout));
        // TLS is made on top of it.
        connector.enforce_http(false);
        let names: Vec<String> = metrics.family_names().iter().map(|name| format!("name[]={name}")).collect();
        let keep = if interval <= KEPT_FOR { keep.min(Semaphore::MAX_PERMITS) } else { 0 };
        Self {
            connector,
            access: Arc::new(Access::plain()),
            metrics,
            query: names.join("&"),
            self_metrics,
            buffers: Pool::default(),
            keep: Arc::new(Semaphore::new(keep)),
        }
    }

    /// Reaches exporters as this says.
    pub(super) fn reaching(self, access: Arc<Access>) -> Self {
        Self { access, ..self }
    }

    /// Takes the memory of a page that is done with.
    pub(super) fn recycle(&self, page: Page) {
        self.buffers.recycle(page);
    }

    /// The exporter's page, and when it was complete.
    pub(super) async fn page(
        &self,
        exporter: &Exporter,
        known: &mut Acquaintance,
    ) -> Result<(Page, Instant), AskError> {
        let answer = self.ask(exporter, known.asked, known).await;
        let status = match &answer {
            Err(AskError::Status(status)) if known.asked == Asked::Families => *status,
            _ => return answer,
        };
        if !REFUSALS.contains(&status) {
            return answer;
        }
        // On the heap, because it hardly ever happens.
        let whole = Box::pin(self.ask(exporter, Asked::Page, known)).await?;
        known.asked = Asked::Page;
        let target = &exporter.target;
        info!(
            "{target} at {} answers {status} to ?name[]=…: it is asked for its whole page from now on",
            target.url
        );
        Ok(whole)
    }

    async fn ask(
        &self,
        exporter: &Exporter,
        asked: Asked,
        known: &mut Acquaintance,
    ) -> Result<(Page, Instant), AskError> {
        if let Some(Kept { connection, place, took }) = known.kept.take()
            && self.is_current(&connection)
        {
            let patience = (PATIENCE * took).max(REUSED);
            match self.exchange(exporter, asked, (connection, Some(place)), patience, known).await {
                // The exporter may have closed it, or begun anew, since the last scrape.
                Err(AskError::NoAnswer(_)) => {}
                answer => return answer,
            }
        }
        let connection = self.connect(&exporter.target.url).await?;
        let place = (!known.closes).then(|| Arc::clone(&self.keep).try_acquire_owned().ok());
        self.exchange(exporter, asked, (connection, place.flatten()), Duration::MAX, known).await
    }

    /// Whether a connection is made with what the files hold now, and not too long ago.
    fn is_current(&self, connection: &Connection) -> bool {
        let is_of_now = |made| self.access.tls().is_some_and(|now| Arc::ptr_eq(made, &now));
        connection.made.elapsed() < OLDEST && connection.tls.as_ref().is_none_or(is_of_now)
    }

    async fn connect(&self, url: &Uri) -> Result<Connection, AskError> {
        let failed = |error: &(dyn std::error::Error + 'static)| AskError::NoConnection(one_line(error));
        let made = Instant::now();
        let io = self.connector.clone().oneshot(url.clone()).await.map_err(|error| failed(&error))?;
        let io = io.into_inner();
        if url.scheme_str() != Some("https") {
            return Ok(Connection { stream: Box::new(io), tls: None, made });
        }
        let host = url.host().unwrap_or_default();
        let (Some(tls), Some(name)) = (self.access.tls(), self.access.server_name(host)) else {
            return Err(AskError::NoConnection(format!("no TLS to {host}: --exporter-ca-file is not given")));
        };
        let explained = name.to_str().into_owned();
        // On the heap, so that scrapes without TLS do not have the room for it.
        let io = Box::pin(TlsConnector::from(Arc::clone(&tls)).connect(name, io)).await.map_err(|error| {
            self.access.explain(&error, &explained).map_or_else(|| failed(&error), AskError::NoConnection)
        })?;
        Ok(Connection { stream: Box::new(io), tls: Some(tls), made })
    }

    /// Asks for the page and reads it as it comes, its head within `patience`. The connection is kept if
    /// it can be, and has a place.
    async fn exchange(
        &self,
        exporter: &Exporter,
        asked: Asked,
        (Connection { stream, tls, made }, place): (Connection, Option<OwnedSemaphorePermit>),
        patience: Duration,
        known: &mut Acquaintance,
    ) -> Result<(Page, Instant), AskError> {
        let url = &exporter.target.url;
        let explained = |error: &hyper::Error| {
            let explained = self.access.explain(error, url.host().unwrap_or_default());
            explained.unwrap_or_else(|| one_line(error))
        };
        let mut http = http1::Builder::new();
        http.max_buf_size(READ_BYTES);
        let unanswered = |error: hyper::Error| AskError::NoAnswer(explained(&error));
        let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(unanswered)?;
        let request = self.request(url, asked, tls.is_some(), place.is_some());
        let request = request.map_err(|error| AskError::NoConnection(error.to_string()))?;
        let began = Instant::now();
        let exchange = async {
            let response = timeout(patience, sender.send_request(request)).await;
            let response =
                response.map_err(|_| AskError::NoAnswer(format!("no answer within {patience:?}")))?;
            let response = response.map_err(unanswered)?;
            let (head, body) = response.into_parts();
            let coding = coding(&head)?;
            known.closes = !is_delimited(&head);
            let page = self.read(exporter, coding, body, |error| AskError::Cut(explained(&error))).await?;
            // The connection ends its work when nobody can send any more.
            drop(sender);
            Ok::<_, AskError>((page, keeps(&head)))
        };
        let (mut exchange, mut connection) = (pin!(exchange), pin!(connection.without_shutdown()));
        let (page, keeps) = tokio::select! {
            biased;
            // The exporter ended it. What it has received is still to be read.
            _ = &mut connection => return Ok(exchange.await?.0),
            answer = &mut exchange => answer?,
        };
        if let Some(place) = place.filter(|_| keeps)
            && let Ok(parts) = connection.await
            // More than was asked for is nothing to go on with.
            && parts.read_buf.is_empty()
        {
            let connection = Connection { stream: parts.io.into_inner(), tls, made };
            known.kept = Some(Kept { connection, place, took: began.elapsed() });
        }
        Ok(page)
    }

    fn request(
        &self,
        url: &Uri,
        asked: Asked,
        over_tls: bool,
        keep: bool,
    ) -> Result<Request<Empty<Bytes>>, http::Error> {
        let path = url.path_and_query().map_or("/metrics", http::uri::PathAndQuery::as_str);
        let host = url.authority().map_or("", http::uri::Authority::as_str);
        let mut request = Request::get(match asked {
            Asked::Families => with_query(path, &self.query),
            Asked::Page => path.to_owned(),
        })
        .header(header::HOST, host)
        .header(header::ACCEPT, "text/plain;version=0.0.4")
        .header(header::ACCEPT_ENCODING, "gzip")
        .header(header::USER_AGENT, concat!("podgauge-adapter/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())?;
        if !keep {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(authorization) = self.access.authorization(over_tls) {
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    async fn read(
        &self,
        exporter: &Exporter,
        coding: Coding,
        mut body: Incoming,
        failed: impl Fn(hyper::Error) -> AskError,
    ) -> Result<(Page, Instant), AskError> {
        let stored = exporter.state.read().used;
        let room = |used: Room| exporter.share.room(used, std::time::Instant::now());
        let mut reader = BodyReader::new(&self.metrics, room(stored), coding, self.buffers.take());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(&failed)?.into_data() else { continue };
            for piece in reader.pieces(&data) {
                reader.push(piece)?;
                let used = reader.page().used();
                if used.series > stored.series || used.text > stored.text {
                    reader.page().limit(room(used.max(stored)));
                }
                // A long page lets shorter ones pass between any two of its pieces.
                tokio::task::yield_now().await;
            }
        }
        self.self_metrics.page_bytes(reader.received());
        Ok((reader.finish(&self.buffers)?, Instant::now()))
    }
}

/// How a page is encoded.
///
/// # Errors
/// The answer is no page, or encoded in a way that was not asked for.
fn coding(head: &Parts) -> Result<Coding, AskError> {
    match head.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err(AskError::Unauthorized),
        status => return Err(AskError::Status(status)),
    }
    match head.headers.get(header::CONTENT_ENCODING) {
        None => Ok(Coding::Plain),
        Some(value) => Coding::of(value).ok_or_else(|| AskError::Encoded(value.clone())),
    }
}

/// Whether the answer says where it ends.
fn is_delimited(head: &Parts) -> bool {
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name))
}

/// Whether the exporter keeps the connection.
fn keeps(head: &Parts) -> bool {
    let closes = |value: &HeaderValue| {
        let options = value.to_str().unwrap_or("close");
        options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
    };
    let closes = head.headers.get_all(header::CONNECTION).iter().any(closes);
    head.version == Version::HTTP_11 && is_delimited(head) && !closes
}

/// A path with a query, which is added to the one it has.
fn with_query(path: &str, query: &str) -> String {
    let separator = match path.split_once('?') {
        None => "?",
        Some((_, before)) if before.is_empty() || before.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{path}{separator}{query}")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::source::Target;
    use crate::source::body::MAX_PAGE_BYTES;
    use crate::source::budget::Budget;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const ANSWER: &str = "HTTP/1.1 200 OK\r\n\r\n";

    /// The error of scraping an exporter that answers with these bytes and closes.
    async fn refused(answer: Vec<u8>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await.unwrap();
            // The other end may have had enough.
            let _ = stream.write_all(&answer).await;
        });
        let share = Arc::new(Budget::new(1000)).share();
        let exporter = Exporter::new(Target { node: None, url }, share);
        client().page(&exporter, &mut Acquaintance::default()).await.unwrap_err().to_string()
    }

    /// An answer whose body is compressed.
    fn gzip(page: &[u8]) -> Vec<u8> {
        let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n";
        [head.as_slice(), &podgauge_common::http::gzip::compress(page)].concat()
    }

    fn client() -> Client {
        let metrics = Arc::new(Metrics::new(&[]));
        let (limit, interval) = (Duration::from_secs(5), Duration::from_secs(2));
        Client::new(metrics, SelfMetrics::default(), limit, interval, 1)
    }

    #[tokio::test]
    async fn what_is_no_page_is_refused() {
        let large = [ANSWER.as_bytes(), &b"# a comment\n".repeat(MAX_PAGE_BYTES / 12 + 1)].concat();
        let text = |text: &str| text.as_bytes().to_vec();
        for (answer, words) in [
            (large, "the page is larger than 16777216 bytes"),
            (text(&format!("{ANSWER}<html>\n")), "line 1: \"<html>\""),
            (text(&format!("{ANSWER}a 1\nb 12")), "the page ends in the middle of line 2"),
            (
                text("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\na 1\n"),
                "end of file before message length reached",
            ),
            (text("HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nx"), "the page is encoded (\"br\")"),
            (gzip(b"a 1\nb 12"), "the page ends in the middle of line 2"),
            (gzip(b"<html>\n"), "line 1: \"<html>\""),
            (gzip(&b"# a comment\n".repeat(MAX_PAGE_BYTES / 12 + 1)), "expands to more than 16777216 bytes"),
            (gzip(b"a 1\n")[..60].to_vec(), "the compressed page cannot be read"),
            ([gzip(b"a 1\n"), b"more".to_vec()].concat(), "something follows its end"),
            (
                text("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\na 1\n"),
                "the compressed page cannot be read",
            ),
            (text("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), "answered 302 Found"),
            (text("HTTP/1.1 401 Unauthorized\r\n\r\n"), "--exporter-token-file"),
            (text("SSH-2.0-OpenSSH_9.2\r\n"), "invalid HTTP"),
            (text(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(READ_BYTES))), "too large"),
        ] {
            let error = refused(answer).await;
            assert!(error.contains(words), "no {words:?} in {error:?}");
        }
    }

    /// How an exporter of a test answers each request, and whether it then ends the connection.
    struct Answering {
        answer: &'static str,
        ends: bool,
        /// Requests of a connection that it answers; it is silent to further ones.
        answers: usize,
    }

    /// Serves until the test ends, and counts connections and requests.
    async fn serve(answering: Answering) -> (Uri, Arc<[AtomicUsize; 2]>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let counted = Arc::clone(&counts);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                counted[0].fetch_add(1, Ordering::Relaxed);
                for _ in 0..answering.answers {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
                    if head.is_empty() {
                        break;
                    }
                    counted[1].fetch_add(1, Ordering::Relaxed);
                    stream.write_all(answering.answer.as_bytes()).await.unwrap();
                    if answering.ends {
                        stream.shutdown().await.unwrap();
                        break;
                    }
                }
                open.push(stream);
            }
        });
        (url, counts)
    }

    #[tokio::test]
    async fn a_connection_is_kept_if_the_exporter_keeps_it_and_says_where_its_answer_ends() {
        for (name, answer, ends, answers, connections) in [
            ("length", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n", false, 9, 1),
            (
                "chunked",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na 1\n\r\n0\r\n\r\n",
                false,
                9,
                1,
            ),
            ("ends unannounced", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n", true, 9, 3),
            ("no length", "HTTP/1.1 200 OK\r\n\r\na 1\n", true, 9, 3),
            (
                "says that it closes",
                "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 4\r\n\r\na 1\n",
                false,
                1,
                3,
            ),
            ("1.0", "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\na 1\n", false, 1, 3),
            ("more than its length", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\nb 2\n", false, 1, 3),
            ("silent to the second", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n", false, 1, 3),
        ] {
            let (url, counts) = serve(Answering { answer, ends, answers }).await;
            let share = Arc::new(Budget::new(1000)).share();
            let exporter = Exporter::new(Target { node: None, url }, share);
            let (client, mut known) = (client(), Acquaintance::default());
            for _ in 0..3 {
                let answer = client.page(&exporter, &mut known).await;
                assert!(answer.is_ok(), "{name}: {answer:?}");
            }
            let [made, requests] = [0, 1].map(|at| counts[at].load(Ordering::Relaxed));
            assert_eq!((made, requests), (connections, 3), "{name}");
            // The only place is given back.
            drop(known);
            assert_eq!(client.keep.available_permits(), 1, "{name}");
        }
    }

    #[tokio::test]
    async fn an_exporter_that_ends_answers_only_if_asked_to_is_asked_to_after_one_failure() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\na 1\n").await.unwrap();
                if !String::from_utf8(head).unwrap().contains("connection: close") {
                    open.push(stream);
                }
            }
        });
        let exporter = Exporter::new(Target { node: None, url }, Arc::new(Budget::new(1000)).share());
        let (client, mut known) = (client(), Acquaintance::default());
        let first = timeout(Duration::from_millis(300), client.page(&exporter, &mut known)).await;
        assert!(first.is_err(), "the answer has no end");
        known.failed();
        for _ in 0..2 {
            client.page(&exporter, &mut known).await.unwrap();
            assert!(known.kept.is_none());
        }
    }

    #[test]
    fn the_families_are_added_to_the_query_that_is_there() {
        for (path, asked) in [
            ("/metrics", "/metrics?name[]=a"),
            ("/federate?match=b", "/federate?match=b&name[]=a"),
            ("/metrics?", "/metrics?name[]=a"),
            ("/metrics?x=1&", "/metrics?x=1&name[]=a"),
        ] {
            assert_eq!(with_query(path, "name[]=a"), asked);
        }
        let query = client().query;
        assert!(query.starts_with("name[]=DCGM_FI_DEV_BOARD_POWER_WATTS&name[]=D"), "{query}");
        assert!(query.len() < 2000, "{}", query.len());
    }
}

//! Scrapes one exporter: when, within which limits, and what is said about it.
//!
//! An exporter is asked for the families that are read, and no others: `?name[]=FAMILY&…`, as
//! Prometheus client libraries have it. One that does not know the parameter answers with all of
//! its page; one that refuses it is asked without.
//!
//! Each scrape has a connection of its own. A kept one would lie idle almost always, and hold as
//! much memory as everything that is kept of its exporter.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::access::Access;
use super::body::{BodyError, BodyReader, Coding, Pool};
use super::history::Span;
use super::page::{Limit, Page, Room};
use super::schedule::Place;
use super::store::Exporter;
use crate::cluster::client::one_line;
use crate::metric::Metrics;
use crate::self_metrics::SelfMetrics;

/// What is read at once, and so the largest head of an answer, bytes.
const READ_BYTES: usize = 16 << 10;
/// Longest wait for a page, however long the interval is.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Scrapes under way at once, of exporters that answered the last time …
const PARALLEL: usize = 128;
/// … of those that did not …
const PARALLEL_FAILING: usize = 128;
/// … and of those that have taken longer than [`PROMPT`].
const PARALLEL_SLOW: usize = 64;
/// How long a scrape may keep its place from others. However many exporters hang or trickle, the
/// rest waits for them no longer than this.
const PROMPT: Duration = Duration::from_millis(500);
/// Longest wait for the first scrape at an exporter's place. With a longer interval the first one
/// comes before …
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// … spread over this time.
const FIRST_SPREAD: Duration = Duration::from_secs(1);
/// How long no page may be cut before an exporter counts as being within the limits again.
const WITHIN_LIMITS: Duration = Duration::from_secs(600);
/// Answers that may mean that the query is not understood.
const REFUSALS: [StatusCode; 3] = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::URI_TOO_LONG];

/// What all scrapes share.
#[derive(Debug)]
pub struct Scraper {
    connector: HttpConnector,
    access: Arc<Access>,
    metrics: Arc<Metrics>,
    /// Asks for the families that are read.
    query: String,
    self_metrics: SelfMetrics,
    interval: Duration,
    span: Span,
    buffers: Pool,
    answering: Semaphore,
    failing: Semaphore,
    slow: Semaphore,
    /// Notified after each scrape.
    pub progress: Notify,
}

/// Knowledge of an exporter from one scrape to the next.
#[derive(Debug)]
struct Manners {
    asked: Asked,
    /// When its page had more than is kept, last.
    cut: Option<Instant>,
}

/// The families that an exporter is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// The families that are read.
    Families,
    /// Its page: it refused to answer with a part.
    Page,
}

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no answer within {PROMPT:?}, and {PARALLEL_SLOW} other exporters are as slow")]
    Crowded,
    #[error("{0}")]
    Request(String),
    #[error(
        "answered 401 Unauthorized: its password or token is given by --exporter-username and --exporter-password-file, or --exporter-token-file"
    )]
    Unauthorized,
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the page is encoded ({0:?}), though gzip or plain text was asked for")]
    Encoded(HeaderValue),
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl Scraper {
    pub fn new(
        metrics: Arc<Metrics>,
        self_metrics: SelfMetrics,
        interval: Duration,
        window: Duration,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(MAX_TIMEOUT));
        // TLS is made on top of it.
        connector.enforce_http(false);
        let (shortest, longest) = metrics.windows(window);
        let names: Vec<String> = metrics.family_names().iter().map(|name| format!("name[]={name}")).collect();
        Self {
            connector,
            access: Arc::new(Access::plain()),
            metrics,
            query: names.join("&"),
            self_metrics,
            interval,
            span: Span { shortest, ..Span::new(longest, interval) },
            buffers: Pool::default(),
            answering: Semaphore::new(PARALLEL),
            failing: Semaphore::new(PARALLEL_FAILING),
            slow: Semaphore::new(PARALLEL_SLOW),
            progress: Notify::new(),
        }
    }

    /// Reaches exporters as this says.
    #[must_use]
    pub fn reaching(self, access: Arc<Access>) -> Self {
        Self { access, ..self }
    }

    pub fn self_metrics(&self) -> &SelfMetrics {
        &self.self_metrics
    }

    /// Scrapes until the task is ended.
    pub async fn run(self: Arc<Self>, exporter: Arc<Exporter>) {
        let place = Place::of(&exporter.target, self.interval);
        let mut manners = Manners { asked: Asked::Families, cut: None };
        let mut wait = place.wait(SystemTime::now(), Duration::ZERO);
        if wait > FIRST_WAIT {
            wait = place.part_of(FIRST_SPREAD);
        }
        loop {
            tokio::time::sleep(wait).await;
            // On the heap for as long as it takes: most of the time all exporters only wait.
            Box::pin(self.scrape(&exporter, &mut manners)).await;
            // Not right after the one before: a timer may fire a moment too soon.
            wait = place.wait(SystemTime::now(), self.interval / 10);
        }
    }

    async fn scrape(&self, exporter: &Exporter, manners: &mut Manners) {
        let failing = exporter.state.read().failure.is_some();
        let lane = if failing { &self.failing } else { &self.answering };
        let Ok(place) = lane.acquire().await else { return };
        let answer = self.answer(exporter, &mut manners.asked, place).await;
        let target = &exporter.target;
        self.self_metrics.scraped(&target.name(), answer.is_ok());
        match answer {
            Ok((page, at)) => {
                debug!("{target}: {} devices, {} samples dropped", page.devices.len(), page.dropped);
                self.self_metrics.samples_dropped(page.dropped);
                let limit = page.cut.as_ref().map(|cut| cut.limit);
                exporter.share.limited(limit);
                self.report_limit(exporter, &mut manners.cut, limit, at);
                let at = at.into_std();
                let room = exporter.share.room(exporter.state.read().used, at);
                let mut state = exporter.state.write();
                let first = state.answers == 0;
                state.answered(page, at, &self.span, room);
                let used = state.used;
                drop(state);
                exporter.share.room(used, at);
                if failing || first {
                    info!("{target} at {} answers", target.url);
                }
            }
            Err(error) => {
                // It may be another one when it is back.
                manners.asked = Asked::Families;
                let reason = error.to_string();
                let changed = {
                    let mut state = exporter.state.write();
                    let changed = state.failure.is_none();
                    state.failed(reason.clone());
                    changed
                };
                if changed {
                    warn!("{target} at {} cannot be scraped, trying on: {reason}", target.url);
                }
            }
        }
        self.progress.notify_waiters();
    }

    /// Counts a page that a limit cut. Logs when that begins, and when it has not happened for long:
    /// what an exporter may use changes with what others need.
    fn report_limit(
        &self,
        exporter: &Exporter,
        last: &mut Option<Instant>,
        limit: Option<Limit>,
        now: Instant,
    ) {
        let target = &exporter.target;
        if let Some(limit) = limit {
            self.self_metrics.page_cut(&target.name(), limit);
            if last.replace(now).is_none() {
                warn!("{target} at {} has {limit}: pods that this leaves out have no value", target.url);
            }
        } else if last.take_if(|last| now.duration_since(*last) > WITHIN_LIMITS).is_some() {
            info!("{target} at {} is within the limits again", target.url);
        }
    }

    /// The page, within the time there is. `place` is left to others once it takes long.
    async fn answer(
        &self,
        exporter: &Exporter,
        asked: &mut Asked,
        place: SemaphorePermit<'_>,
    ) -> Result<(Page, Instant), ScrapeError> {
        let limit = self.interval.min(MAX_TIMEOUT);
        let deadline = Instant::now() + limit;
        let mut fetch = pin!(self.fetch(exporter, asked));
        if let Ok(answer) = timeout(PROMPT.min(limit), &mut fetch).await {
            return answer;
        }
        drop(place);
        let _slow = self.slow.try_acquire().map_err(|_| ScrapeError::Crowded)?;
        timeout_at(deadline, fetch).await.unwrap_or(Err(ScrapeError::Timeout(limit)))
    }

    async fn fetch(&self, exporter: &Exporter, asked: &mut Asked) -> Result<(Page, Instant), ScrapeError> {
        let answer = self.ask(exporter, *asked).await;
        let status = match &answer {
            Err(ScrapeError::Status(status)) if *asked == Asked::Families => *status,
            _ => return answer,
        };
        if !REFUSALS.contains(&status) {
            return answer;
        }
        // On the heap, because it hardly ever happens.
        let whole = Box::pin(self.ask(exporter, Asked::Page)).await?;
        *asked = Asked::Page;
        let target = &exporter.target;
        info!(
            "{target} at {} answers {status} to ?name[]=…: it is asked for its whole page from now on",
            target.url
        );
        Ok(whole)
    }

    async fn ask(&self, exporter: &Exporter, asked: Asked) -> Result<(Page, Instant), ScrapeError> {
        let url = &exporter.target.url;
        let failed = |error: &(dyn std::error::Error + 'static)| ScrapeError::Request(one_line(error));
        let io = self.connector.clone().oneshot(url.clone()).await.map_err(|error| failed(&error))?;
        let io = io.into_inner();
        if url.scheme_str() != Some("https") {
            return self.exchange(exporter, asked, io, false).await;
        }
        let host = url.host().unwrap_or_default();
        let (Some(tls), Some(name)) = (self.access.tls(), self.access.server_name(host)) else {
            return Err(ScrapeError::Request(format!("no TLS to {host}: --exporter-ca-file is not given")));
        };
        let explained = name.to_str().into_owned();
        // On the heap, so that scrapes without TLS do not have the room for it.
        let io = Box::pin(tls.connect(name, io)).await.map_err(|error| {
            self.access.explain(&error, &explained).map_or_else(|| failed(&error), ScrapeError::Request)
        })?;
        Box::pin(self.exchange(exporter, asked, io, true)).await
    }

    /// Asks for the page and reads it as it comes.
    async fn exchange<S>(
        &self,
        exporter: &Exporter,
        asked: Asked,
        io: S,
        over_tls: bool,
    ) -> Result<(Page, Instant), ScrapeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let url = &exporter.target.url;
        let failed = |error: hyper::Error| {
            let explained = self.access.explain(&error, url.host().unwrap_or_default());
            ScrapeError::Request(explained.unwrap_or_else(|| one_line(&error)))
        };
        let mut http = http1::Builder::new();
        http.max_buf_size(READ_BYTES);
        let (mut sender, connection) = http.handshake(TokioIo::new(io)).await.map_err(failed)?;
        let request = self.request(url, asked, over_tls);
        let request = request.map_err(|error| ScrapeError::Request(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let (head, body) = response.into_parts();
            match head.status {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED => return Err(ScrapeError::Unauthorized),
                status => return Err(ScrapeError::Status(status)),
            }
            let coding = match head.headers.get(header::CONTENT_ENCODING) {
                None => Coding::Plain,
                Some(value) => Coding::of(value).ok_or_else(|| ScrapeError::Encoded(value.clone()))?,
            };
            self.read(exporter, coding, body, failed).await
        };
        let (mut exchange, connection) = (pin!(exchange), pin!(connection));
        tokio::select! {
            answer = &mut exchange => answer,
            // What it has received is still to be read.
            _ = connection => exchange.await,
        }
    }

    fn request(&self, url: &Uri, asked: Asked, over_tls: bool) -> Result<Request<Empty<Bytes>>, http::Error> {
        let path = url.path_and_query().map_or("/metrics", http::uri::PathAndQuery::as_str);
        let host = url.authority().map_or("", http::uri::Authority::as_str);
        let mut request = Request::get(match asked {
            Asked::Families => with_query(path, &self.query),
            Asked::Page => path.to_owned(),
        })
        .header(header::HOST, host)
        .header(header::ACCEPT, "text/plain;version=0.0.4")
        .header(header::ACCEPT_ENCODING, "gzip")
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, concat!("podgauge-adapter/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())?;
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
        failed: impl Fn(hyper::Error) -> ScrapeError,
    ) -> Result<(Page, Instant), ScrapeError> {
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
        let scraper = scraper(Duration::from_secs(5));
        scraper.fetch(&exporter, &mut Asked::Families).await.unwrap_err().to_string()
    }

    /// An answer whose body is compressed.
    fn gzip(page: &[u8]) -> Vec<u8> {
        let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n";
        [head.as_slice(), &podgauge_common::http::gzip::compress(page)].concat()
    }

    fn scraper(interval: Duration) -> Scraper {
        let metrics = Arc::new(Metrics::new(&[]));
        Scraper::new(metrics, SelfMetrics::default(), interval, 12 * interval)
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

    #[tokio::test]
    async fn a_scrape_takes_little_memory_while_it_waits() {
        let target = Target { node: None, url: "http://127.0.0.1:9/metrics".parse().unwrap() };
        let exporter = Exporter::new(target, Arc::new(Budget::new(1000)).share());
        let scraper = scraper(Duration::from_secs(5));
        let mut manners = Manners { asked: Asked::Families, cut: None };
        let size = size_of_val(&scraper.scrape(&exporter, &mut manners));
        assert!(size < 6000, "{size} bytes");
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
        let scraper = scraper(Duration::from_secs(5));
        assert!(
            scraper.query.starts_with("name[]=DCGM_FI_DEV_BOARD_POWER_WATTS&name[]=D"),
            "{}",
            scraper.query
        );
        assert!(scraper.query.len() < 2000, "{}", scraper.query.len());
    }
}

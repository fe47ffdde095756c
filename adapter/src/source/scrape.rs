//! Owns the scraping of one exporter: when, within which limits, and what is said about it.
//!
//! Each scrape has a connection of its own. A kept one would lie idle almost always, and hold as
//! much memory as everything that its exporter told.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::access::Access;
use super::history::Span;
use super::page::{Page, PageError, PageReader};
use super::store::Exporter;
use crate::cluster::client::one_line;
use crate::metric::Metrics;
use crate::self_metrics::SelfMetrics;

/// Largest page that is read, bytes. 8 GPUs with 7 instances and every family are below 2 MB.
pub const MAX_PAGE_BYTES: usize = 16 << 20;
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
/// Time over which the first scrapes after a start are spread.
const FIRST_SPREAD: Duration = Duration::from_secs(1);

/// What all scrapes share.
#[derive(Debug)]
pub struct Scraper {
    connector: HttpConnector,
    access: Arc<Access>,
    metrics: Arc<Metrics>,
    self_metrics: SelfMetrics,
    interval: Duration,
    span: Span,
    /// What each exporter's place in the interval is counted from.
    began: Instant,
    answering: Semaphore,
    failing: Semaphore,
    slow: Semaphore,
    /// Told after each scrape.
    pub progress: Notify,
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
    #[error("the page is larger than {MAX_PAGE_BYTES} bytes")]
    TooLarge,
    #[error("the page is encoded ({0:?}), though plain text was asked for")]
    Encoded(HeaderValue),
    #[error(transparent)]
    Page(#[from] PageError),
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
        // Twice the interval bridges one late scrape, and no missing one.
        let span = Span { window, longest_step: 2 * interval };
        Self {
            connector,
            access: Arc::new(Access::plain()),
            metrics,
            self_metrics,
            interval,
            span,
            began: Instant::now(),
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
        // Each exporter has its own place in the interval, the same after every restart.
        let mut hasher = DefaultHasher::new();
        exporter.target.hash(&mut hasher);
        let place = (hasher.finish() % 1000) as f64 / 1000.0;
        tokio::time::sleep(FIRST_SPREAD.min(self.interval).mul_f64(place)).await;
        let first = Instant::now();
        // On the heap for as long as it takes: most of the time all exporters only wait.
        Box::pin(self.scrape(&exporter)).await;
        let mut ticks = tokio::time::interval_at(self.second(place, first), self.interval);
        // One that took too long finds back to its place.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            Box::pin(self.scrape(&exporter)).await;
        }
    }

    /// When an exporter is due for the second time: at its place, and not right after the first.
    fn second(&self, place: f64, first: Instant) -> Instant {
        let from = first + self.interval / 4;
        let place = self.began + self.interval.mul_f64(place);
        let late = from.saturating_duration_since(place).as_nanos();
        let intervals = late.div_ceil(self.interval.as_nanos().max(1));
        place + self.interval * u32::try_from(intervals).unwrap_or(u32::MAX)
    }

    async fn scrape(&self, exporter: &Exporter) {
        let failing = exporter.state.read().failure.is_some();
        let lane = if failing { &self.failing } else { &self.answering };
        let Ok(place) = lane.acquire().await else { return };
        let answer = self.answer(exporter, place).await;
        let target = &exporter.target;
        self.self_metrics.scraped(&target.name(), answer.is_ok());
        match answer {
            Ok((page, at)) => {
                debug!("{target}: {} devices, {} samples dropped", page.devices.len(), page.dropped);
                self.self_metrics.samples_dropped(page.dropped);
                let mut state = exporter.state.write();
                let first = state.answers == 0;
                state.answered(page, at.into_std(), &self.span);
                drop(state);
                if failing || first {
                    info!("{target} at {} answers", target.url);
                }
            }
            Err(error) => {
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

    /// The page, within the time there is. `place` is left to others once it takes long.
    async fn answer(
        &self,
        exporter: &Exporter,
        place: SemaphorePermit<'_>,
    ) -> Result<(Page, Instant), ScrapeError> {
        let limit = self.interval.min(MAX_TIMEOUT);
        let deadline = Instant::now() + limit;
        let mut fetch = pin!(self.fetch(exporter));
        if let Ok(answer) = timeout(PROMPT.min(limit), &mut fetch).await {
            return answer;
        }
        drop(place);
        let _slow = self.slow.try_acquire().map_err(|_| ScrapeError::Crowded)?;
        timeout_at(deadline, fetch).await.unwrap_or(Err(ScrapeError::Timeout(limit)))
    }

    async fn fetch(&self, exporter: &Exporter) -> Result<(Page, Instant), ScrapeError> {
        let url = &exporter.target.url;
        let failed = |error: &(dyn std::error::Error + 'static)| ScrapeError::Request(one_line(error));
        let io = self.connector.clone().oneshot(url.clone()).await.map_err(|error| failed(&error))?;
        let io = io.into_inner();
        if url.scheme_str() != Some("https") {
            return self.exchange(url, io, false).await;
        }
        let host = url.host().unwrap_or_default();
        let (Some(tls), Some(name)) = (self.access.tls(), self.access.server_name(host)) else {
            return Err(ScrapeError::Request(format!("no TLS to {host}: --exporter-ca-file is not given")));
        };
        let explained = name.to_str().into_owned();
        let io = tls.connect(name, io).await.map_err(|error| {
            self.access.explain(&error, &explained).map_or_else(|| failed(&error), ScrapeError::Request)
        })?;
        self.exchange(url, io, true).await
    }

    /// Asks for the page and reads it as it comes.
    async fn exchange<S>(&self, url: &Uri, io: S, over_tls: bool) -> Result<(Page, Instant), ScrapeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: hyper::Error| {
            let explained = self.access.explain(&error, url.host().unwrap_or_default());
            ScrapeError::Request(explained.unwrap_or_else(|| one_line(&error)))
        };
        let mut http = http1::Builder::new();
        http.read_buf_exact_size(Some(READ_BYTES));
        let (mut sender, connection) = http.handshake(TokioIo::new(io)).await.map_err(failed)?;
        let request = self.request(url, over_tls).map_err(|error| ScrapeError::Request(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let (head, body) = response.into_parts();
            match head.status {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED => return Err(ScrapeError::Unauthorized),
                status => return Err(ScrapeError::Status(status)),
            }
            if let Some(encoding) = head.headers.get(header::CONTENT_ENCODING)
                && encoding != "identity"
            {
                return Err(ScrapeError::Encoded(encoding.clone()));
            }
            self.read(body, failed).await
        };
        let (mut exchange, connection) = (pin!(exchange), pin!(connection));
        tokio::select! {
            answer = &mut exchange => answer,
            // What it has received is still to be read.
            _ = connection => exchange.await,
        }
    }

    fn request(&self, url: &Uri, over_tls: bool) -> Result<Request<Empty<Bytes>>, http::Error> {
        let path = url.path_and_query().map_or("/metrics", http::uri::PathAndQuery::as_str);
        let host = url.authority().map_or("", http::uri::Authority::as_str);
        let mut request = Request::get(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "text/plain;version=0.0.4")
            .header(header::ACCEPT_ENCODING, "identity")
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
        mut body: Incoming,
        failed: impl Fn(hyper::Error) -> ScrapeError,
    ) -> Result<(Page, Instant), ScrapeError> {
        let mut page = PageReader::new(&self.metrics);
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(&failed)?.into_data() else { continue };
            bytes += data.len();
            if bytes > MAX_PAGE_BYTES {
                return Err(ScrapeError::TooLarge);
            }
            page.push(&data)?;
            // A long page lets shorter ones pass between any two of its pieces.
            tokio::task::yield_now().await;
        }
        Ok((page.finish()?, Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Target;
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
        let exporter = Exporter::new(Target { node: None, url });
        scraper(Duration::from_secs(5)).fetch(&exporter).await.unwrap_err().to_string()
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
            (
                text("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\u{8b}"),
                "the page is encoded (\"gzip\")",
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
    async fn each_exporter_has_its_place_in_the_interval() {
        let interval = Duration::from_secs(5);
        let scraper = scraper(interval);
        for (place, begins) in [(0.0, 0.0), (0.3, 0.3), (0.999, 1.0), (0.5, 123.4)] {
            let first = scraper.began + Duration::from_secs_f64(begins);
            let second = scraper.second(place, first);
            let gap = second - first;
            assert!(gap >= interval / 4 && gap < interval * 5 / 4, "{place} {begins}: {gap:?}");
            let offset = (second - scraper.began).as_secs_f64() % 5.0;
            assert!((offset - 5.0 * place).abs() < 1e-6, "{place}: {offset}");
        }
    }
}

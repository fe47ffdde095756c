//! Owns the scraping of one exporter: when, within which limits, and what is said about it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::history::Span;
use super::page::{self, Page};
use super::store::Exporter;
use crate::cluster::client::one_line;
use crate::metric::Metrics;
use crate::self_metrics::SelfMetrics;

/// Largest page that is read, bytes. 8 GPUs with 7 instances and every family are below 2 MB.
pub const MAX_PAGE_BYTES: usize = 16 << 20;
/// Bytes that all pages under way may take together, counted in [`PIECE`]s. Who needs more waits,
/// at most as long as for its page.
const ALL_PAGES_BYTES: usize = 256 << 20;
const PIECE: usize = 64 << 10;
/// Longest wait for a page, however long the interval is.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Scrapes under way at once, of exporters that answered the last time.
const PARALLEL: usize = 128;
/// … and of those that did not: however many hang, they wait for each other alone.
const PARALLEL_FAILING: usize = 32;
/// Time over which the first scrapes after a start are spread.
const FIRST_SPREAD: Duration = Duration::from_secs(1);

/// What all scrapes share.
#[derive(Debug)]
pub struct Scraper {
    client: Client<HttpConnector, Empty<Bytes>>,
    metrics: Arc<Metrics>,
    self_metrics: SelfMetrics,
    interval: Duration,
    span: Span,
    answering: Semaphore,
    failing: Semaphore,
    /// Pieces of memory for pages.
    memory: Semaphore,
    /// Told after each scrape.
    pub progress: Notify,
}

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Request(String),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("the page is larger than {MAX_PAGE_BYTES} bytes")]
    TooLarge,
    #[error("the page is not UTF-8")]
    NotText,
    #[error("the page cannot be read: {0}")]
    Page(#[from] podgauge_common::exposition::parse::ParseError),
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
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(3 * interval.max(MAX_TIMEOUT))
            .pool_max_idle_per_host(1)
            .build(connector);
        // Twice the interval bridges one late scrape, and no missing one.
        let span = Span { window, longest_step: 2 * interval };
        Self {
            client,
            metrics,
            self_metrics,
            interval,
            span,
            answering: Semaphore::new(PARALLEL),
            failing: Semaphore::new(PARALLEL_FAILING),
            memory: Semaphore::new(ALL_PAGES_BYTES / PIECE),
            progress: Notify::new(),
        }
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
        self.scrape(&exporter).await;
        let first = tokio::time::Instant::now() + self.interval.mul_f64(0.5 + place / 2.0);
        let mut ticks = tokio::time::interval_at(first, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.scrape(&exporter).await;
        }
    }

    async fn scrape(&self, exporter: &Exporter) {
        let failing = exporter.state.read().failure.is_some();
        let lane = if failing { &self.failing } else { &self.answering };
        let Ok(_permit) = lane.acquire().await else { return };
        let limit = self.interval.min(MAX_TIMEOUT);
        let answer = tokio::time::timeout(limit, self.fetch(exporter)).await;
        let answer = match answer.unwrap_or(Err(ScrapeError::Timeout(limit))) {
            Ok((bytes, at, _memory)) => self.read(bytes).await.map(|page| (page, at)),
            Err(error) => Err(error),
        };
        let target = &exporter.target;
        self.self_metrics.scraped(&target.name(), answer.is_ok());
        match answer {
            Ok((page, at)) => {
                debug!("{target}: {} devices, {} samples dropped", page.devices.len(), page.dropped);
                self.self_metrics.samples_dropped(page.dropped);
                let mut state = exporter.state.write();
                let first = state.answers == 0;
                state.answered(page, at, &self.span);
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

    async fn fetch(
        &self,
        exporter: &Exporter,
    ) -> Result<(Vec<u8>, Instant, Option<SemaphorePermit<'_>>), ScrapeError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = exporter.target.url.clone();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let agent = concat!("podgauge-adapter/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
        let response =
            self.client.request(request).await.map_err(|error| ScrapeError::Request(one_line(&error)))?;
        if response.status() != StatusCode::OK {
            return Err(ScrapeError::Status(response.status()));
        }
        let (page, memory) = self.collect(response.into_body()).await?;
        Ok((page, Instant::now(), memory))
    }

    /// The whole body in one buffer, and the memory that it takes of all pages'.
    async fn collect(
        &self,
        mut body: Incoming,
    ) -> Result<(Vec<u8>, Option<SemaphorePermit<'_>>), ScrapeError> {
        let mut page = Vec::new();
        let mut memory: Option<SemaphorePermit<'_>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ScrapeError::Request(one_line(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            let needed = page.len() + data.len();
            if needed > MAX_PAGE_BYTES {
                return Err(ScrapeError::TooLarge);
            }
            if needed > page.capacity() {
                // Doubled, in whole pieces: what is taken is what is counted.
                let capacity = needed.max(2 * page.capacity()).next_multiple_of(PIECE).min(MAX_PAGE_BYTES);
                let more = (capacity / PIECE)
                    .saturating_sub(memory.as_ref().map_or(0, SemaphorePermit::num_permits));
                let more = u32::try_from(more).unwrap_or(u32::MAX);
                let taken = self.memory.acquire_many(more).await;
                let taken = taken.map_err(|error| ScrapeError::Request(error.to_string()))?;
                match &mut memory {
                    Some(memory) => memory.merge(taken),
                    None => memory = Some(taken),
                }
                page.reserve_exact(capacity - page.len());
            }
            page.extend_from_slice(&data);
        }
        Ok((page, memory))
    }

    /// Reads a page away from the threads that answer requests: a large one takes a while.
    async fn read(&self, bytes: Vec<u8>) -> Result<Page, ScrapeError> {
        let metrics = Arc::clone(&self.metrics);
        let read = tokio::task::spawn_blocking(move || {
            let text = std::str::from_utf8(&bytes).map_err(|_| ScrapeError::NotText)?;
            Ok(page::read(text, &metrics)?)
        });
        read.await.unwrap_or_else(|error| Err(ScrapeError::Request(error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Target;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_page_takes_its_share_of_memory_and_no_more_than_its_limit() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            for bytes in [3 * PIECE, MAX_PAGE_BYTES + 1] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await.unwrap();
                stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
                // The other end may have had enough.
                let _ = stream.write_all(&vec![b'#'; bytes]).await;
            }
        });
        let seconds = Duration::from_secs;
        let metrics = Arc::new(Metrics::new(&[]));
        let scraper = Scraper::new(metrics, SelfMetrics::default(), seconds(5), seconds(60));
        let exporter = Exporter::new(Target { node: None, url });
        let all = scraper.memory.available_permits();
        let (page, _, memory) = scraper.fetch(&exporter).await.unwrap();
        assert_eq!(page.len(), 3 * PIECE);
        let taken = all - scraper.memory.available_permits();
        assert!((3..=6).contains(&taken), "{taken}");
        drop(memory);
        assert_eq!(scraper.memory.available_permits(), all);
        assert!(scraper.read(page).await.unwrap().devices.is_empty());
        assert!(matches!(scraper.fetch(&exporter).await, Err(ScrapeError::TooLarge)));
        assert_eq!(scraper.memory.available_permits(), all);
    }
}

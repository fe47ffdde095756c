//! Owns the scraping of one exporter: when, within which limits, and what is said about it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{Notify, Semaphore};
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
        let answer = answer.unwrap_or(Err(ScrapeError::Timeout(limit)));
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

    async fn fetch(&self, exporter: &Exporter) -> Result<(Page, Instant), ScrapeError> {
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
        let body = Limited::new(response.into_body(), MAX_PAGE_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ScrapeError::TooLarge
            } else {
                ScrapeError::Request(one_line(error.as_ref()))
            }
        })?;
        let at = Instant::now();
        let bytes = body.to_bytes();
        let text = std::str::from_utf8(&bytes).map_err(|_| ScrapeError::NotText)?;
        Ok((page::read(text, &self.metrics)?, at))
    }
}

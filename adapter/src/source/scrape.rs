//! Scrapes one exporter: when, within which limits, and what is said about it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::access::Access;
use super::client::{Acquaintance, AskError, Client};
use super::history::Span;
use super::page::{Limit, Page};
use super::schedule::Place;
use super::store::Exporter;
use crate::metric::Metrics;
use crate::self_metrics::SelfMetrics;

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

/// What all scrapes share.
#[derive(Debug)]
pub struct Scraper {
    client: Client,
    self_metrics: SelfMetrics,
    interval: Duration,
    span: Span,
    answering: Semaphore,
    failing: Semaphore,
    slow: Semaphore,
    /// Notified after each scrape.
    pub progress: Notify,
}

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no answer within {PROMPT:?}, and {PARALLEL_SLOW} other exporters are as slow")]
    Crowded,
    #[error(transparent)]
    Ask(#[from] AskError),
}

impl Scraper {
    /// `keep`: how many connections are kept from one scrape to the next.
    pub fn new(
        metrics: Arc<Metrics>,
        self_metrics: SelfMetrics,
        interval: Duration,
        window: Duration,
        keep: usize,
    ) -> Self {
        let (shortest, longest) = metrics.windows(window);
        Self {
            client: Client::new(metrics, self_metrics.clone(), MAX_TIMEOUT, interval, keep),
            self_metrics,
            interval,
            span: Span { shortest, ..Span::new(longest, interval) },
            answering: Semaphore::new(PARALLEL),
            failing: Semaphore::new(PARALLEL_FAILING),
            slow: Semaphore::new(PARALLEL_SLOW),
            progress: Notify::new(),
        }
    }

    /// Reaches exporters as this says.
    #[must_use]
    pub fn reaching(self, access: Arc<Access>) -> Self {
        Self { client: self.client.reaching(access), ..self }
    }

    pub fn self_metrics(&self) -> &SelfMetrics {
        &self.self_metrics
    }

    /// Scrapes until the task is ended.
    pub async fn run(self: Arc<Self>, exporter: Arc<Exporter>) {
        let place = Place::of(&exporter.target, self.interval);
        let mut known = Acquaintance::default();
        // When its page had more than is kept, last.
        let mut cut = None;
        let mut wait = place.wait(SystemTime::now(), Duration::ZERO);
        if wait > FIRST_WAIT {
            wait = place.part_of(FIRST_SPREAD);
        }
        loop {
            tokio::time::sleep(wait).await;
            // On the heap for as long as it takes: most of the time all exporters only wait.
            Box::pin(self.scrape(&exporter, &mut known, &mut cut)).await;
            // Not right after the one before: a timer may fire a moment too soon.
            wait = place.wait(SystemTime::now(), self.interval / 10);
        }
    }

    async fn scrape(&self, exporter: &Exporter, known: &mut Acquaintance, cut: &mut Option<Instant>) {
        let failing = exporter.state.read().failure.is_some();
        let lane = if failing { &self.failing } else { &self.answering };
        let Ok(place) = lane.acquire().await else { return };
        let answer = self.answer(exporter, known, place).await;
        let target = &exporter.target;
        self.self_metrics.scraped(&target.name(), answer.is_ok());
        match answer {
            Ok((mut page, at)) => {
                debug!("{target}: {} devices, {} samples dropped", page.devices.len(), page.dropped);
                self.self_metrics.samples_dropped(page.dropped);
                let limit = page.cut.as_ref().map(|cut| cut.limit);
                exporter.share.limited(limit);
                self.report_limit(exporter, cut, limit, at);
                let at = at.into_std();
                let room = exporter.share.room(exporter.state.read().used, at);
                let mut state = exporter.state.write();
                let first = state.answers == 0;
                state.answered(&mut page, at, &self.span, room);
                let used = state.used;
                drop(state);
                self.client.recycle(page);
                exporter.share.room(used, at);
                if failing || first {
                    info!("{target} at {} answers", target.url);
                }
            }
            Err(error) => {
                known.failed();
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
        known: &mut Acquaintance,
        place: SemaphorePermit<'_>,
    ) -> Result<(Page, Instant), ScrapeError> {
        let limit = self.interval.min(MAX_TIMEOUT);
        let deadline = Instant::now() + limit;
        let mut fetch = pin!(self.client.page(exporter, known));
        if let Ok(answer) = timeout(PROMPT.min(limit), &mut fetch).await {
            return Ok(answer?);
        }
        drop(place);
        let _slow = self.slow.try_acquire().map_err(|_| ScrapeError::Crowded)?;
        match timeout_at(deadline, fetch).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ScrapeError::Timeout(limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Target;
    use crate::source::budget::Budget;

    #[tokio::test]
    async fn a_scrape_takes_little_memory_while_it_waits() {
        let target = Target { node: None, url: "http://127.0.0.1:9/metrics".parse().unwrap() };
        let exporter = Exporter::new(target, Arc::new(Budget::new(1000)).share());
        let (metrics, interval) = (Arc::new(Metrics::new(&[])), Duration::from_secs(5));
        let scraper = Scraper::new(metrics, SelfMetrics::default(), interval, 12 * interval, 0);
        let (mut known, mut cut) = (Acquaintance::default(), None);
        let size = size_of_val(&scraper.scrape(&exporter, &mut known, &mut cut));
        assert!(size < 6000, "{size} bytes");
    }
}

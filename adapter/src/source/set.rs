//! Owns the set of exporters: one scraping task each, started and ended as targets come and go.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::Target;
use super::budget::Budget;
use super::retention::RETENTION;
use super::scrape::Scraper;
use super::store::Exporter;
use crate::map::Map;

/// The exporters that are scraped now. Read without a lock.
#[derive(Debug, Default)]
pub struct Published {
    by_node: Map<Arc<str>, Vec<Arc<Exporter>>>,
    /// Those that are believed for every node.
    anywhere: Vec<Arc<Exporter>>,
    /// Those that are scraped no more, and since when: what they said last stands a while.
    gone: Map<Arc<str>, Vec<(Arc<Exporter>, Instant)>>,
}

/// Starts and ends scraping.
#[derive(Debug)]
pub struct ExporterSet {
    scraper: Arc<Scraper>,
    /// The most that may be kept of all of them.
    budget: Arc<Budget>,
    /// Where scraping runs.
    runtime: Handle,
    published: ArcSwap<Published>,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    tasks: HashMap<Target, (Arc<Exporter>, AbortHandle)>,
    /// What is known from exporters that went, for those that come in their place: a rollout gives
    /// each exporter a new address.
    gone: HashMap<Target, (Arc<Exporter>, Instant)>,
}

impl Published {
    /// Those whose samples count for pods of the node. One that went counts for `staleness`.
    pub fn of_node(
        &self,
        node: &str,
        now: Instant,
        staleness: Duration,
    ) -> impl Iterator<Item = &Arc<Exporter>> {
        let stands = move |since: Instant| now.saturating_duration_since(since) <= staleness;
        let gone = self.gone.get(node).into_iter().flatten();
        let gone = gone.filter(move |(_, since)| stands(*since)).map(|(exporter, _)| exporter);
        self.by_node.get(node).into_iter().flatten().chain(&self.anywhere).chain(gone)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Exporter>> {
        self.by_node.values().flatten().chain(&self.anywhere)
    }
}

impl ExporterSet {
    /// Scrapes on the runtime that this is called on.
    pub fn new(scraper: Arc<Scraper>, budget: Budget) -> Self {
        Self::on(Handle::current(), scraper, budget)
    }

    /// Scrapes on that runtime.
    pub fn on(runtime: Handle, scraper: Arc<Scraper>, budget: Budget) -> Self {
        let (published, running) = (ArcSwap::default(), Mutex::default());
        Self { scraper, budget: Arc::new(budget), runtime, published, running }
    }

    /// The most that may be kept of all exporters, and the part in use.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn current(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Makes the targets those that are scraped. What is known from one that stays is kept; what is
    /// known from one that goes is its successor's, the one that comes to the same node and port.
    pub fn set(&self, targets: &[Target]) {
        self.set_at(targets, Instant::now());
    }

    fn set_at(&self, targets: &[Target], now: Instant) {
        let mut running = self.running.lock();
        let Running { tasks, gone } = &mut *running;
        gone.retain(|_, (_, since)| now.saturating_duration_since(*since) < RETENTION);
        tasks.retain(|target, (exporter, task)| {
            let stays = targets.contains(target);
            if !stays {
                info!("{target} at {} is gone", target.url);
                task.abort();
                if !targets.iter().any(|other| other.name() == target.name()) {
                    self.scraper.self_metrics().exporter_gone(&target.name());
                }
                gone.insert(target.clone(), (Arc::clone(exporter), now));
            }
            stays
        });
        for target in targets {
            if tasks.contains_key(target) {
                continue;
            }
            if target.node.is_none() {
                warn!(
                    "{target} is believed for pods of every node: write --exporter-url NODE={} to limit it to one",
                    target.url
                );
            }
            let exporter = match predecessor(gone, target) {
                Some(before) => {
                    let state = before.state.write().hand_over(target);
                    let exporter = Exporter::new(target.clone(), self.budget.share());
                    Arc::new(Exporter { state: state.into(), ..exporter })
                }
                None => Arc::new(Exporter::new(target.clone(), self.budget.share())),
            };
            let task = self.runtime.spawn(Arc::clone(&self.scraper).run(Arc::clone(&exporter)));
            tasks.insert(target.clone(), (exporter, task.abort_handle()));
        }
        let mut published = Published::default();
        let mut exporters: Vec<_> = tasks.iter().map(|(target, (exporter, _))| (target, exporter)).collect();
        exporters.sort_unstable_by_key(|(target, _)| *target);
        for (target, exporter) in exporters {
            match &target.node {
                Some(node) => {
                    published.by_node.entry(Arc::clone(node)).or_default().push(Arc::clone(exporter));
                }
                None => published.anywhere.push(Arc::clone(exporter)),
            }
        }
        for (target, (exporter, since)) in gone {
            if let Some(node) = &target.node {
                published.gone.entry(Arc::clone(node)).or_default().push((Arc::clone(exporter), *since));
            }
        }
        drop(running);
        self.published.store(Arc::new(published));
        self.scraper.progress.notify_waiters();
    }
}

/// Takes the newest of those that went whose place `target` takes.
fn predecessor(
    gone: &mut HashMap<Target, (Arc<Exporter>, Instant)>,
    target: &Target,
) -> Option<Arc<Exporter>> {
    // The very same may have left for a moment.
    let same_place = |other: &Target| {
        other == target
            || target.node.is_some()
                && other.node == target.node
                && other.url.port_u16() == target.url.port_u16()
                && other.url.path() == target.url.path()
    };
    let found = gone.iter().filter(|(other, _)| same_place(other)).max_by_key(|(_, (_, since))| *since);
    let found = found.map(|(other, _)| other.clone())?;
    gone.remove(&found).map(|(exporter, _)| exporter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metrics;
    use crate::self_metrics::SelfMetrics;
    use crate::source::history::Span;
    use crate::source::page::{self, Room};

    const ROOM: Room = Room { series: 1000, text: 100_000 };

    fn target(url: &str) -> Target {
        Target { node: Some("gpu-7".into()), url: url.parse().unwrap() }
    }

    #[tokio::test]
    async fn nothing_is_handed_on_after_ten_minutes() {
        let metrics = Arc::new(Metrics::new(&[]));
        let seconds = Duration::from_secs;
        let known_after = |waited: Duration| {
            let scraper =
                Scraper::new(Arc::clone(&metrics), SelfMetrics::default(), seconds(5), seconds(60), 0);
            let set = ExporterSet::new(Arc::new(scraper), Budget::new(1000));
            let start = Instant::now();
            // Nobody listens there, and nobody is asked before this test ends.
            set.set_at(&[target("http://127.0.0.1:1/metrics")], start);
            let old = set.current().all().next().cloned().unwrap();
            let page = "podgauge_gpu_allocation{UUID=\"a\",namespace=\"n\",pod=\"p\",pod_uid=\"u\"} 1\n";
            let span = Span::new(seconds(60), seconds(5));
            old.state.write().answered(&mut page::read(page, &metrics).unwrap(), start, &span, ROOM);
            set.set_at(&[], start);
            set.set_at(&[target("http://127.0.0.3:1/metrics")], start + waited);
            let new = set.current().all().next().cloned().unwrap();
            new.state.read().pod("n", "p").is_some()
        };
        assert!(known_after(RETENTION - seconds(1)));
        assert!(!known_after(RETENTION));
    }

    #[tokio::test]
    async fn a_rollout_hands_on_what_is_known() {
        let metrics = Arc::new(Metrics::new(&[]));
        let seconds = Duration::from_secs;
        let scraper = Scraper::new(Arc::clone(&metrics), SelfMetrics::default(), seconds(5), seconds(60), 0);
        let set = ExporterSet::new(Arc::new(scraper), Budget::new(1000));
        let count = |at| {
            let published = set.current();
            let of_node: Vec<_> = published.of_node("gpu-7", at, seconds(30)).cloned().collect();
            of_node
        };
        // Nobody listens there, and nobody is asked before this test ends.
        set.set(&[target("http://127.0.0.1:1/metrics")]);
        let [old] = &count(Instant::now())[..] else { panic!() };
        let page = "podgauge_gpu_allocation{UUID=\"a\",namespace=\"n\",pod=\"p\",pod_uid=\"u\"} 1\n";
        let span = Span::new(seconds(60), seconds(5));
        old.state.write().answered(&mut page::read(page, &metrics).unwrap(), Instant::now(), &span, ROOM);
        set.set(&[]);
        assert_eq!(count(Instant::now()).len(), 1, "its last values stand");
        assert_eq!(count(Instant::now() + seconds(31)).len(), 0);
        set.set(&[target("http://127.0.0.2:2/metrics")]);
        assert_eq!(count(Instant::now()).len(), 2, "another port is another exporter");
        set.set(&[target("http://127.0.0.3:1/metrics")]);
        let found = count(Instant::now());
        let new = found.iter().find(|exporter| exporter.target.url.host() == Some("127.0.0.3")).unwrap();
        assert!(new.state.read().pod("n", "p").is_some() && new.state.read().native);
        assert_eq!(new.state.read().answers, 0);
    }
}

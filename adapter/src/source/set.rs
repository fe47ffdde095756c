//! Owns the set of exporters: one scraping task each, started and ended as targets come and go.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::Target;
use super::scrape::Scraper;
use super::store::Exporter;

/// The exporters that are scraped now. Read without a lock.
#[derive(Debug, Default)]
pub struct Published {
    by_node: HashMap<Arc<str>, Vec<Arc<Exporter>>>,
    /// Those that are believed for every node.
    anywhere: Vec<Arc<Exporter>>,
}

/// Starts and ends scraping.
#[derive(Debug)]
pub struct ExporterSet {
    scraper: Arc<Scraper>,
    published: ArcSwap<Published>,
    running: Mutex<HashMap<Target, (Arc<Exporter>, AbortHandle)>>,
}

impl Published {
    /// Those whose samples count for pods of the node.
    pub fn of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Exporter>> {
        self.by_node.get(node).into_iter().flatten().chain(&self.anywhere)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Exporter>> {
        self.by_node.values().flatten().chain(&self.anywhere)
    }
}

impl ExporterSet {
    pub fn new(scraper: Arc<Scraper>) -> Self {
        Self { scraper, published: ArcSwap::default(), running: Mutex::default() }
    }

    pub fn current(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Makes the targets those that are scraped. What is known from one that stays is kept.
    pub fn set(&self, targets: &[Target]) {
        let mut running = self.running.lock();
        running.retain(|target, (_, task)| {
            let stays = targets.contains(target);
            if !stays {
                info!("{target} at {} is gone", target.url);
                task.abort();
                self.scraper.self_metrics().exporter_gone(&target.name());
            }
            stays
        });
        for target in targets {
            if running.contains_key(target) {
                continue;
            }
            if target.node.is_none() {
                warn!(
                    "{target} is believed for pods of every node: write --exporter-url NODE={} to limit it to one",
                    target.url
                );
            }
            let exporter = Arc::new(Exporter::new(target.clone()));
            let task = tokio::spawn(Arc::clone(&self.scraper).run(Arc::clone(&exporter)));
            running.insert(target.clone(), (exporter, task.abort_handle()));
        }
        let mut published = Published::default();
        for (target, (exporter, _)) in running.iter() {
            match &target.node {
                Some(node) => {
                    published.by_node.entry(Arc::clone(node)).or_default().push(Arc::clone(exporter));
                }
                None => published.anywhere.push(Arc::clone(exporter)),
            }
        }
        drop(running);
        self.published.store(Arc::new(published));
        self.scraper.progress.notify_waiters();
    }
}

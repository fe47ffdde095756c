//! Owns what one exporter has told: its state, its devices, and the histories of the pods on them.
//! Written by the exporter's own scraper, read by evaluation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::Target;
use super::history::{History, Span};
use super::page::{self, Page};
use crate::cluster::Selector;
use crate::metric::FamilyId;

/// Observed time that a pod's first answer needs, seconds.
pub const FIRST_ANSWER_SECONDS: f64 = 15.0;
/// How long a pod is remembered that the exporter no longer speaks of: the exporter itself
/// remembers as long.
const RETENTION: Duration = Duration::from_secs(600);

/// An exporter that is scraped.
#[derive(Debug)]
pub struct Exporter {
    pub target: Target,
    pub state: RwLock<ExporterState>,
}

/// What is known from it.
#[derive(Debug, Default)]
pub struct ExporterState {
    /// How messages call it.
    pub name: String,
    /// Scrapes tried; a series that misses one begins a new piece.
    pub scrapes: u64,
    pub answers: u64,
    pub last_answer: Option<Instant>,
    /// Why the newest scrape failed; `None` after an answer.
    pub failure: Option<String>,
    /// It has podgauge's counters and allocations.
    pub native: bool,
    devices: HashMap<Arc<str>, DeviceState>,
    namespaces: HashMap<Box<str>, HashMap<Box<str>, PodSeries>>,
}

/// A device by the newest page.
#[derive(Debug)]
pub struct DeviceState {
    labels: Vec<(&'static str, String)>,
    /// Pods that have a part of it.
    pub pods: usize,
    /// MiB.
    pub memory_total: Option<f64>,
    /// Why its use cannot be attributed.
    pub unavailable: Option<Box<str>>,
    seen: Instant,
}

/// What a pod has on the exporter's node.
#[derive(Debug, Default)]
pub struct PodSeries {
    /// As the exporter gives it.
    pub uid: Option<Box<str>>,
    pub holdings: Vec<Holding>,
}

/// A container's part of a device, with its histories.
#[derive(Debug)]
pub struct Holding {
    pub device: Arc<str>,
    pub container: Box<str>,
    /// The part that it was given; `None` if the exporter knows of no allocation.
    pub allocation: Option<f64>,
    /// The newest answer speaks of it.
    pub present: bool,
    pub seen: Instant,
    /// Seconds for which its use is known, since it began.
    pub observed: f64,
    /// What was observed under the same labels before this pod.
    observed_before: f64,
    /// The next reading is the first of another pod under the same labels.
    replaced: bool,
    /// It has once been observed long enough for an answer.
    pub settled: bool,
    series: Vec<(FamilyId, History)>,
}

// === impl Exporter ===

impl Exporter {
    pub fn new(target: Target) -> Self {
        let state = ExporterState { name: target.to_string(), ..ExporterState::default() };
        Self { target, state: RwLock::new(state) }
    }
}

// === impl ExporterState ===

impl ExporterState {
    /// A scrape failed.
    pub fn failed(&mut self, reason: String) {
        self.scrapes += 1;
        self.failure = Some(reason);
    }

    /// A scrape was answered with `page`, received at `at`.
    pub fn answered(&mut self, page: Page, at: Instant, span: &Span) {
        self.scrapes += 1;
        self.answers += 1;
        let since = self.last_answer.replace(at);
        let step = since.filter(|_| self.failure.is_none()).map(|since| at.saturating_duration_since(since));
        self.failure = None;
        self.native = page.native;
        for pod in self.namespaces.values_mut().flat_map(HashMap::values_mut) {
            pod.holdings.iter_mut().for_each(|holding| holding.present = false);
        }
        self.identify(&page);
        let round = Round { at, scrape: self.scrapes, step, span };
        for device in page.devices {
            self.device(device, &round);
        }
        self.forget(at);
    }

    /// What the exporter says of a pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodSeries> {
        self.namespaces.get(namespace)?.get(name)
    }

    pub fn device_state(&self, device: &str) -> Option<&DeviceState> {
        self.devices.get(device)
    }

    /// Number of series kept.
    pub fn series(&self) -> usize {
        let pods = self.namespaces.values().flat_map(HashMap::values);
        pods.flat_map(|pod| &pod.holdings).map(|holding| holding.series.len()).sum()
    }

    /// Parts what the page says of a pod from what was said of another pod of that name.
    fn identify(&mut self, page: &Page) {
        let mut uids: HashMap<(&str, &str), Option<&str>> = HashMap::new();
        for holding in page.devices.iter().flat_map(|device| &device.holdings) {
            let uid = uids.entry((&holding.namespace, &holding.pod)).or_default();
            *uid = holding.pod_uid.as_deref().or(*uid);
        }
        for ((namespace, name), uid) in uids {
            let pods = self.namespaces.entry(namespace.into()).or_default();
            let pod = pods.entry(name.into()).or_default();
            if pod.uid.as_deref() == uid {
                continue;
            }
            let before = std::mem::replace(&mut pod.uid, uid.map(Into::into));
            if uid.is_none() {
                // Whose the new readings are is told by their time alone; see evaluation.
                continue;
            }
            for holding in &mut pod.holdings {
                // What came before is another pod's, or may be. One that had no UID yet is the same
                // pod as far as anybody knows.
                holding.series.clear();
                if before.is_some() {
                    holding.settled = false;
                    holding.replaced = true;
                }
            }
        }
    }

    fn device(&mut self, device: page::Device, round: &Round<'_>) {
        let key = match self.devices.get_key_value(&*device.key) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(device.key.as_str()),
        };
        let mut pods: Vec<(&str, &str)> =
            device.holdings.iter().map(|h| (h.namespace.as_str(), h.pod.as_str())).collect();
        pods.sort_unstable();
        pods.dedup();
        let state = DeviceState {
            pods: pods.len(),
            memory_total: device.memory_total(),
            labels: device.labels,
            unavailable: device.unavailable.map(Into::into),
            seen: round.at,
        };
        self.devices.insert(Arc::clone(&key), state);
        for holding in device.holdings {
            let pods = self.namespaces.entry(holding.namespace.as_str().into()).or_default();
            pods.entry(holding.pod.as_str().into()).or_default().update(&key, holding, round);
        }
    }

    fn forget(&mut self, now: Instant) {
        let recent = |seen: Instant| now.saturating_duration_since(seen) < RETENTION;
        self.devices.retain(|_, device| recent(device.seen));
        self.namespaces.retain(|_, pods| {
            pods.retain(|_, pod| {
                pod.holdings.retain(|holding| recent(holding.seen));
                !pod.holdings.is_empty()
            });
            !pods.is_empty()
        });
    }
}

/// One answered scrape.
struct Round<'a> {
    at: Instant,
    scrape: u64,
    /// Time since the previous answer, if no scrape failed between.
    step: Option<Duration>,
    span: &'a Span,
}

// === impl DeviceState ===

impl DeviceState {
    /// Whether it is a MIG instance.
    pub fn is_instance(&self) -> bool {
        self.labels.iter().any(|(name, _)| *name == "GPU_I_ID")
    }

    /// Whether its labels meet a `metricLabelSelector`.
    pub fn matches(&self, selector: &Selector) -> bool {
        selector
            .matches(|key| self.labels.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str()))
    }
}

// === impl PodSeries ===

impl PodSeries {
    fn update(&mut self, device: &Arc<str>, from: page::Holding, round: &Round<'_>) {
        let known = self
            .holdings
            .iter()
            .position(|holding| holding.device == *device && *holding.container == *from.container);
        let at = known.unwrap_or_else(|| {
            self.holdings.push(Holding::new(Arc::clone(device), &from.container, round.at));
            self.holdings.len() - 1
        });
        self.holdings[at].update(from, round);
    }
}

// === impl Holding ===

impl Holding {
    fn new(device: Arc<str>, container: &str, seen: Instant) -> Self {
        Self {
            device,
            container: container.into(),
            allocation: None,
            present: true,
            seen,
            observed: 0.0,
            observed_before: 0.0,
            replaced: false,
            settled: false,
            series: Vec::new(),
        }
    }

    /// The history of a family, if the exporter ever gave it for this holding.
    pub fn history(&self, family: FamilyId) -> Option<&History> {
        self.series.iter().find(|(id, _)| *id == family).map(|(_, history)| history)
    }

    /// Seconds observed of this pod, as long as they matter for its first answer.
    pub fn observed_of_pod(&self) -> f64 {
        (self.observed - self.observed_before).max(0.0)
    }

    fn update(&mut self, from: page::Holding, round: &Round<'_>) {
        match from.observed {
            Some(observed) => {
                // A counter that fell began anew: nothing of it is from before.
                if observed < self.observed {
                    self.observed_before = 0.0;
                }
                self.observed = observed;
            }
            // An exporter that does not count, or not for this pod because its use is not known:
            // time between its answers is what is known.
            None if self.seen != round.at => {
                self.observed +=
                    round.step.map_or(0.0, |step| step.min(round.span.longest_step).as_secs_f64());
            }
            None => {}
        }
        if std::mem::take(&mut self.replaced) {
            self.observed_before = self.observed;
        }
        self.settled |= self.observed_of_pod() >= FIRST_ANSWER_SECONDS;
        self.allocation = from.allocation;
        self.present = true;
        self.seen = round.at;
        for (family, reading) in from.readings {
            let at = self.series.iter().position(|(id, _)| *id == family).unwrap_or_else(|| {
                self.series.push((family, History::default()));
                self.series.len() - 1
            });
            self.series[at].1.push(round.at, round.scrape, reading, round.span);
        }
    }
}

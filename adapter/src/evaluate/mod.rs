//! What a pod's number is, and a node's: pure functions of what is known of the pod, its exporter
//! and the time.
//!
//! ```text
//! PodRecord, ExporterState, Metric, Now ─► pod_value ─► Value or Omission
//!                                        ├► evidence ─► what a value is made of, for explain
//!            ExporterState, Metric, Now ─┴► node_value ─► Value or Omission
//! ```

mod choice;
mod devices;
mod evidence;
mod labels;
mod nodes;
pub mod omission;
mod part;
pub mod readiness;
mod recent;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use smallvec::SmallVec;

use choice::{Choice, order};
pub use evidence::{Evidence, evidence};
pub use nodes::{NodeExporter, NodeQuestion, node_value};
pub use omission::Omission;
pub use part::{HeldPart, PartSource, UnknownPart};

use crate::cluster::Selector;
use crate::cluster::pods::{Phase, PodRecord, Second};
use crate::metric::{FamilyId, MEMORY_USED, Metric, USE};
use crate::source::history::History;
use crate::source::joined::Joined;
use crate::source::page::Limit;
use crate::source::store::{
    DeviceState, ExporterState, FIRST_ANSWER_SECONDS, Holding, Owner, PodSeries, ReportedPart,
};

/// The moment of an answer, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: Timestamp,
}

/// `--window` and `--staleness`.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub window: Duration,
    pub staleness: Duration,
}

/// A pod's value in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Value {
    pub value: f64,
    /// When the newest sample in it was received.
    pub at: Instant,
    /// Seconds of the window that it is made of; of several devices the least.
    pub covered: f64,
}

/// Which pod is asked for, and what of its devices.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub metric: &'a Metric,
    /// `metricLabelSelector`: the devices that count.
    pub devices: &'a Selector,
}

impl Now {
    /// Both clocks, read now.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::now() }
    }

    /// The wall clock's time of an instant.
    pub fn wall_time(&self, at: Instant) -> Timestamp {
        let ago = self.instant.saturating_duration_since(at);
        SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| self.wall.checked_sub(ago).ok())
            .unwrap_or(self.wall)
    }

    /// The instant of a time on the wall clock; `None` if it is before what the clock can say, so
    /// before anything that was received.
    fn instant_of(&self, time: Timestamp) -> Option<Instant> {
        let ago = self.wall.duration_since(time);
        match Duration::try_from(ago) {
            Ok(ago) => self.instant.checked_sub(ago),
            // A clock that runs ahead of ours.
            Err(_) => self.instant.checked_add(ago.unsigned_abs()),
        }
    }

    pub(crate) fn age(&self, at: Instant) -> Duration {
        self.instant.saturating_duration_since(at)
    }
}

/// The value of a pod for a metric. `exporters` are those whose word counts for the pod's node.
///
/// # Errors
/// Why the pod has no value and is left out of the answer.
pub fn pod_value(
    question: &Question<'_>,
    pod: &PodRecord,
    exporters: &[&ExporterState],
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    if pod.terminating {
        return Err(Omission::Terminating);
    }
    if matches!(pod.phase, Phase::Succeeded | Phase::Failed) {
        return Err(Omission::Finished(pod.phase));
    }
    let Some(node) = pod.node.as_deref() else { return Err(Omission::NotScheduled) };
    readiness::has_been_ready(pod)?;
    if exporters.is_empty() {
        return Err(Omission::NoExporter { node: node.into() });
    }
    let began = Began::of(pod, now);
    let mut known: SmallVec<[Known<'_>; 1]> =
        exporters.iter().map(|exporter| Known::of(question, pod, exporter, began, now)).collect();
    known.sort_by(|a, b| order(a.exporter, b.exporter));
    let settled = Settled::of(&known, question.metric.formula.family());
    let known_by_uid = known.iter().any(|known| known.by_uid);
    let mut choice = Choice::new(question.metric.window(rules.window));
    for known in &known {
        if !choice.asks(known.exporter) {
            break;
        }
        let value = exporter_value(question, pod, known, settled, rules, now);
        match value {
            Err(Omission::Restarted { .. }) => return value,
            // The next exporter may report no UIDs, and mean the other pod as well.
            Err(Omission::OtherUid { .. }) if !known_by_uid && !choice.has_value() => return value,
            value => choice.add(known.exporter, value, |omission| {
                !known.holdings.is_empty() && (omission.is_of_devices() || known.has_a_part(question.metric))
            }),
        }
    }
    choice.ended(node)
}

/// When the pod or its first container started.
#[derive(Debug, Clone, Copy)]
enum Began {
    NotYet,
    /// Before anything that was received.
    BeforeAll,
    At(Instant),
}

impl Began {
    /// When the pod's first container started.
    fn of(pod: &PodRecord, now: &Now) -> Self {
        Self::at(pod.first_container_started(), now)
    }

    fn at(time: Option<Second>, now: &Now) -> Self {
        match time.map(|time| now.instant_of(time.time())) {
            None => Self::NotYet,
            Some(None) => Self::BeforeAll,
            Some(Some(at)) => Self::At(at),
        }
    }

    /// The time from which readings without a UID are the pod's; `None`: all of them are.
    ///
    /// # Errors
    /// No container has started.
    fn limit(self) -> Result<Option<Instant>, Omission> {
        match self {
            Self::NotYet => Err(Omission::NotStarted),
            Self::BeforeAll => Ok(None),
            Self::At(at) => Ok(Some(at)),
        }
    }
}

/// What one exporter knows of the pod.
struct Known<'a> {
    exporter: &'a ExporterState,
    pod: &'a PodRecord,
    began: Began,
    series: Option<&'a PodSeries>,
    /// By device.
    holdings: Vec<Mine<'a>>,
    /// When the kubelet took the pod up.
    pod_began: Began,
    /// It reports the UID of the pod.
    by_uid: bool,
    /// Its newest page is of another pod of that name.
    another: bool,
    /// It may speak of the pod, which has not begun.
    not_started: bool,
}

/// A holding that is the pod's.
#[derive(Debug, Clone, Copy)]
struct Mine<'a> {
    device: &'a str,
    container: &'a str,
    holding: &'a Holding,
    /// Only what was received since is the pod's.
    not_before: Option<Instant>,
}

impl<'a> Known<'a> {
    fn of(
        question: &Question<'_>,
        pod: &'a PodRecord,
        exporter: &'a ExporterState,
        began: Began,
        now: &Now,
    ) -> Self {
        let series = exporter.pod(question.namespace, question.pod);
        let mut known = Self {
            exporter,
            pod,
            began,
            series,
            holdings: Vec::new(),
            pod_began: Began::at(pod.started, now),
            by_uid: false,
            another: false,
            not_started: false,
        };
        let all = || series.into_iter().flatten();
        // Readings of a device without a UID are of the pod whose UID the newest page has for it.
        let others: Vec<&str> = all()
            .filter(|(_, holding)| holding.present && holding.owner(&pod.uid) == Owner::Another)
            .map(|((device, _), _)| &**device)
            .collect();
        for ((device, container), holding) in all() {
            let mine = |not_before| Mine { device, container, holding, not_before };
            let owner = match holding.owner(&pod.uid) {
                Owner::SinceItBegan if others.contains(&&**device) => Owner::Another,
                owner => owner,
            };
            known.by_uid |= owner == Owner::Surely;
            match (owner, began) {
                (Owner::Surely, _) | (Owner::SinceItBegan, Began::BeforeAll) => {
                    known.holdings.push(mine(None));
                }
                // An earlier page may be of a pod that has left this node.
                (Owner::Another, _) => known.another |= holding.present,
                (Owner::SinceItBegan, Began::NotYet) => known.not_started = true,
                // Last seen before the pod: another's of that name.
                (Owner::SinceItBegan, Began::At(at)) if holding.seen < at => {}
                (Owner::SinceItBegan, Began::At(at)) => known.holdings.push(mine(Some(at))),
            }
        }
        known
    }

    fn no_gpu(&self) -> Omission {
        let fraction = self.pod.grant.as_ref().and_then(|grant| grant.fraction.as_ref());
        Omission::NoGpu {
            exporter: self.exporter.name.clone(),
            unnamed_by: fraction.map(|fraction| fraction.annotation),
        }
    }

    /// The series of all containers on the device of a holding, if they are all the pod's.
    fn joined(&self, mine: &Mine<'_>) -> Option<&'a Joined> {
        let joined = self.series?.joined(mine.device)?;
        (joined.may_be_of(&self.pod.uid) && !joined.is_undated()).then_some(joined)
    }

    /// Whether the pod was last reported to have a part of a device, and the metric is about parts: the
    /// page of an exporter that knows no parts says something else.
    fn has_a_part(&self, metric: &Metric) -> bool {
        let is_part = |mine: &Mine<'_>| {
            let state = self.exporter.device_state(mine.device);
            state.is_some_and(DeviceState::is_shared)
                || match mine.holding.known_part(&self.pod.uid) {
                    Some(part) => part < 1.0,
                    None => mine.holding.part == ReportedPart::Unknown,
                }
        };
        matches!(metric.formula.family(), USE | MEMORY_USED) && self.holdings.iter().any(is_part)
    }

    /// Seconds for which the pod was observed, exact up to those that a first answer needs.
    fn observed(&self) -> f64 {
        let joined = |mine: &Mine<'_>| self.joined(mine).map_or(0.0, Joined::covered);
        let of = |mine: &Mine<'_>| {
            mine.holding.observed_up_to(FIRST_ANSWER_SECONDS, mine.not_before).max(joined(mine))
        };
        self.holdings.iter().map(of).fold(0.0, f64::max)
    }

    /// Seconds of this adapter's own readings of a family of the pod.
    fn read(&self, family: FamilyId) -> f64 {
        let joined = |mine: &Mine<'_>| {
            self.joined(mine).and_then(|joined| joined.history(family)).map_or(0.0, History::covered)
        };
        let of = |mine: &Mine<'_>| mine.holding.read(family, mine.not_before).max(joined(mine));
        self.holdings.iter().map(of).fold(0.0, f64::max)
    }
}

/// Whether there is enough for a pod's first answer, by the exporter that knows most of it: a
/// settled pod stays settled, on any device and whichever exporter reports it.
#[derive(Debug, Clone, Copy)]
struct Settled {
    /// Seconds for which the pod was observed, exact up to those that a first answer needs.
    observed: f64,
    /// An exporter counts them.
    counted: bool,
    /// Seconds of the adapter's own readings of the metric's family.
    read: f64,
}

impl Settled {
    fn of(known: &[Known<'_>], family: FamilyId) -> Self {
        let counts = |mine: &Mine<'_>| mine.holding.counts();
        Self {
            observed: known.iter().map(Known::observed).fold(0.0, f64::max),
            counted: known.iter().flat_map(|known| &known.holdings).any(counts),
            read: known.iter().map(|known| known.read(family)).fold(0.0, f64::max),
        }
    }
}

fn exporter_value(
    question: &Question<'_>,
    pod: &PodRecord,
    known: &Known<'_>,
    settled: Settled,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let exporter = known.exporter;
    within(exporter, exporter.limit_on(question.namespace, question.pod))?;
    let named = pod.grant.as_ref().is_some_and(|grant| grant.cards.is_some());
    if known.holdings.is_empty() && (known.another || known.not_started || !named) {
        let silence = silence(exporter, rules, now);
        return Err(match (known.another, known.not_started) {
            (true, _) => silence.unwrap_or_else(|| Omission::OtherUid { exporter: exporter.name.clone() }),
            (false, true) => Omission::NotStarted,
            (false, false) => silence.unwrap_or_else(|| known.no_gpu()),
        });
    }
    if !pod.ready {
        readiness::not_restarted(pod, &gpu_containers(&known.holdings))?;
    }
    devices::value(question, known, settled, rules, now)
}

/// # Errors
/// A limit keeps something out of what the exporter reports.
fn within(exporter: &ExporterState, limit: Option<Limit>) -> Result<(), Omission> {
    limit.map_or(Ok(()), |limit| Err(Omission::PageLimit { exporter: exporter.name.clone(), limit }))
}

/// Why the exporter's word is old; `None` if it is not.
fn silence(exporter: &ExporterState, rules: &Rules, now: &Now) -> Option<Omission> {
    let failure = exporter.failure.clone();
    match exporter.last_answer {
        None => Some(Omission::ExporterNeverAnswered { exporter: exporter.name.clone(), failure }),
        Some(at) if now.age(at) > rules.staleness => {
            Some(Omission::ExporterSilent { exporter: exporter.name.clone(), seconds: now.age(at).as_secs() })
        }
        Some(_) => None,
    }
}

/// The containers that hold a GPU by the exporter's word; empty if it does not say which.
fn gpu_containers<'a>(holdings: &[Mine<'a>]) -> Vec<&'a str> {
    if holdings.iter().any(|mine| mine.container.is_empty()) {
        return Vec::new();
    }
    holdings.iter().map(|mine| mine.container).collect()
}

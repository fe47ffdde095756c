//! Makes a pod's value of its devices' values.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::labels::DeviceLabels;
use super::nodes::whole_device;
use super::omission::Unproven;
use super::part::Holder;
use super::recent::{Of, Windowed, of_this_pod, together, windowed};
use super::{HeldPart, Known, Mine, Now, Omission, Question, Rules, Settled, Value, silence, within};
use crate::metric::{Aggregation, DEVICE_USE, FamilyId, Formula, MEMORY_USED, Metric, USE};
use crate::source::history::{History, Mean};
use crate::source::recent::Latest;
use crate::source::store::{DeviceState, FIRST_ANSWER_SECONDS, Holding, Place};

const MIB: f64 = 1024.0 * 1024.0;

/// The use of a device up to which it is idle, as a part of one: what is lost in printing.
const IDLE: f64 = 0.001;
/// The exporter's reason that speaks of memory alone.
const NO_PROCESS_MEMORY: &str = "no_process_memory";

/// What a pod has of one device.
pub(super) struct Device<'a> {
    pub(super) key: &'a str,
    /// `None` if no page has it.
    pub(super) state: Option<&'a DeviceState>,
    /// One per container; none for a GPU that an annotation names and the pod does not use.
    pub(super) holdings: &'a [Mine<'a>],
}

/// A pod's devices; mostly one.
pub(super) type Devices<'a> = SmallVec<[Device<'a>; 1]>;

/// What all devices of a pod are measured by.
struct Measure<'a> {
    question: &'a Question<'a>,
    known: &'a Known<'a>,
    settled: Settled,
    rules: &'a Rules,
    now: &'a Now,
}

/// One device's value, and what it is a part of.
pub(super) struct Measured {
    /// Of the family: for use a part of one, else the family's unit.
    pub(super) value: f64,
    /// The part of the device that the pod was given, if it is known.
    pub(super) part: Option<f64>,
    /// MiB.
    pub(super) memory_total: Option<f64>,
    pub(super) at: Instant,
    /// Seconds of the window that the value is made of.
    pub(super) covered: f64,
}

pub(super) fn value(
    question: &Question<'_>,
    known: &Known<'_>,
    settled: Settled,
    rules: &Rules,
    now: &Now,
) -> Result<Value, Omission> {
    let exporter = known.exporter;
    let all = devices(known, rules, now);
    if all.is_empty() {
        return Err(silence(exporter, rules, now).unwrap_or_else(|| known.no_gpu()));
    }
    let is_selected = |device: &&Device<'_>| {
        question.devices.is_empty() || device.state.is_some_and(|state| state.matches(question.devices))
    };
    let measure = Measure { question, known, settled, rules, now };
    let mut measured: SmallVec<[Measured; 2]> = SmallVec::new();
    let (mut of, mut without, mut reason) = (0, 0, None);
    for device in all.iter().filter(is_selected) {
        of += 1;
        match measure.device(device) {
            Ok(device) => measured.push(device),
            Err(omission) => {
                without += 1;
                reason.get_or_insert(omission);
            }
        }
    }
    match reason {
        None if of == 0 => {
            let labels = DeviceLabels::of(question.devices, all.iter().filter_map(|device| device.state));
            return Err(Omission::NoMatchingDevice(labels));
        }
        None => {}
        Some(reason) if of == 1 => return Err(reason),
        Some(reason) => return Err(Omission::Devices { without, of, reason: Box::new(reason) }),
    }
    combine(question.metric, &measured)
        .ok_or_else(|| Omission::NoSuchFamily { family: "total memory".into() })
}

/// The pod's devices: those of the newest page; those of a page a short time ago, because an
/// exporter that just began may not know them yet; those that were allocated to it, however long
/// ago, because a device that got lost is still the pod's; and those that an annotation names.
pub(super) fn devices<'a>(known: &'a Known<'a>, rules: &Rules, now: &Now) -> Devices<'a> {
    let is_held = |Mine { holding, not_before, .. }: &Mine<'_>| {
        holding.present || now.age(holding.seen) <= rules.staleness || holding.outlasts(*not_before)
    };
    let mut devices = Device::all(known);
    devices.retain(|device| device.holdings.iter().any(is_held));
    let grant = known.pod.grant.as_ref();
    for card in grant.and_then(|grant| grant.cards.as_ref()).iter().flat_map(|cards| &cards.cards) {
        // An instance of a GPU has the GPU's UUID, a slash and its number.
        let is_of_card = |key: &str| key.split('/').next() == Some(&*card.uuid);
        if !devices.iter().any(|device| is_of_card(device.key)) {
            devices.push(Device::new(known, &card.uuid, &[]));
        }
    }
    devices
}

impl<'a> Device<'a> {
    fn new(known: &'a Known<'a>, key: &'a str, holdings: &'a [Mine<'a>]) -> Self {
        Self { key, state: known.exporter.device_state(key), holdings }
    }

    /// Every device on which the exporter ever reported a container of the pod.
    pub(super) fn all(known: &'a Known<'a>) -> Devices<'a> {
        let by_device = known.holdings.chunk_by(|a, b| a.device == b.device);
        by_device.map(|holdings| Self::new(known, holdings[0].device, holdings)).collect()
    }

    /// The series of the pod's containers on the device, and since when it is the pod's: of several
    /// containers what they have together. `None` without such a family.
    ///
    /// # Errors
    /// The pod has not started: what there is may be another pod's of that name.
    pub(super) fn series(
        &self,
        known: &Known<'a>,
        family: FamilyId,
    ) -> Result<Option<(&'a History, Option<Instant>)>, Omission> {
        let joined = known.series.and_then(|series| series.joined(self.key));
        match joined.filter(|joined| joined.may_be_of(&known.pod.uid)) {
            Some(joined) => {
                let not_before = if joined.is_undated() { known.began.limit()? } else { None };
                Ok(joined.history(family).map(|history| (history, not_before)))
            }
            None => {
                let of_family = self
                    .holdings
                    .iter()
                    .filter_map(|mine| Some((mine.holding.history(family)?, mine.not_before)));
                Ok(of_family.max_by_key(|(history, _)| history.fresh()))
            }
        }
    }

    /// The mean of a family over the window; `None` without any readings in it. `series`: what
    /// [`series`](Self::series) gives for it.
    pub(super) fn windowed(
        &self,
        known: &Known<'_>,
        family: FamilyId,
        series: Option<(&History, Option<Instant>)>,
        window: Duration,
    ) -> Option<Windowed> {
        let own = || series.and_then(|(history, not_before)| history.mean(window, not_before));
        windowed(self.latest(known, family), series.map(|(history, _)| history), window, own)
    }

    /// The exporter's own sums of the last seconds: of the pod's containers on the device, or of the
    /// device.
    fn latest(&self, known: &Known<'_>, family: FamilyId) -> Option<Latest> {
        let whole = self.state?.recent;
        let of_the_pod = |mine: &Mine<'_>, latest, of| {
            of_this_pod(latest, of, mine.holding, mine.not_before, known.pod_began)
        };
        match family {
            USE => {
                // The sums of some of the page's labels alone are a part of the pod's use. The exporter
                // leaves out those that lack one, and a label without a UID may not be the pod's.
                let is_mine = |container: &str| self.holdings.iter().any(|mine| mine.container == container);
                let lacks = |((device, container), holding): (&Place, &Holding)| {
                    let counts = **device == *self.key && holding.present && holding.counts();
                    counts && (holding.recent.is_none() || !is_mine(container))
                };
                if known.series.into_iter().flatten().any(lacks) {
                    return None;
                }
                let all = self.holdings.iter().filter(|mine| mine.holding.recent.is_some());
                let all: Option<SmallVec<[Latest; 1]>> =
                    all.map(|mine| of_the_pod(mine, mine.holding.recent, Of::Pod)).collect();
                together(&all?, whole.map(|whole| whole.recent.observed))
            }
            DEVICE_USE => self.holdings.iter().find_map(|mine| of_the_pod(mine, whole, Of::Device)),
            _ => None,
        }
    }

    /// The part of the device that the pod was given.
    pub(super) fn part(&self, known: &Known<'a>) -> HeldPart {
        let holder = Holder {
            device: self.key,
            memory_total: self.state.and_then(|state| state.memory_total),
            holdings: self.holdings,
            uid: &known.pod.uid,
            grant: known.pod.grant.as_deref(),
        };
        holder.part()
    }
}

impl Measure<'_> {
    fn device<'d>(&'d self, device: &Device<'d>) -> Result<Measured, Omission> {
        let Self { question, known, .. } = self;
        let exporter = known.exporter;
        let state = device.state;
        let formula = question.metric.formula;
        let shared = state.map_or(0, |state| state.pods as usize);
        let of_a_part = matches!(formula.family(), USE | MEMORY_USED);
        within(exporter, state.and_then(|state| exporter.limit_on_device(state)))?;
        // NVIDIA's exporter gives every pod on a device the whole device's, and either does of what
        // cannot be divided where a page has a copy of it for each pod.
        if shared > 1 && (!exporter.native && of_a_part || matches!(formula, Formula::Sum(_))) {
            return Err(Omission::Shared { pods: shared });
        }
        // What each instance's line repeats would count once per instance.
        if matches!(formula, Formula::Sum(_)) && state.is_some_and(DeviceState::is_instance) {
            return Err(Omission::OfWholeGpu);
        }
        let mean = if device.holdings.is_empty() {
            self.named(device)?
        } else {
            self.mean(device).map_err(|omission| self.better_reason(omission, state))?
        };
        let memory_total = state.and_then(|state| state.memory_total);
        let part = match (formula, device.part(known)) {
            (Formula::Utilization, HeldPart::Unknown(unknown)) => return Err(Omission::PartUnknown(unknown)),
            (_, HeldPart::Known { part, .. }) => Some(part),
            (_, HeldPart::Unknown(_)) => None,
        };
        let Mean { value, at, covered, .. } = mean;
        Ok(Measured { value, part, memory_total, at, covered })
    }

    /// The mean over the window of a device that the pod holds.
    fn mean(&self, device: &Device<'_>) -> Result<Mean, Omission> {
        let Self { question, known, settled, rules, now } = self;
        let exporter = known.exporter;
        let family = question.metric.formula.family();
        let window = question.metric.window(rules.window);
        let series = device.series(known, family)?;
        let found = device.windowed(known, family, series, window);
        if series.is_none() && found.is_none() {
            return Err(self.no_such_family());
        }
        let fresh = found.map(|found| found.mean.at).max(series.and_then(|(history, _)| history.fresh()));
        if let Some(fresh) = fresh
            && now.age(fresh) > rules.staleness
        {
            return Err(silence(exporter, rules, now)
                .unwrap_or(Omission::DeviceStale { seconds: now.age(fresh).as_secs() }));
        }
        let least = first_answer(window);
        if settled.observed < if settled.counted { FIRST_ANSWER_SECONDS } else { least } {
            return Err(Omission::Collecting { observed: settled.observed as u64 });
        }
        match found {
            Some(Windowed { mean, recent }) if (recent && mean.covered >= least) || settled.read >= least => {
                Ok(mean)
            }
            Some(_) => Err(Omission::Reading { needed: least as u64 }),
            None => Err(silence(exporter, rules, now).unwrap_or(Omission::TooFewScrapes)),
        }
    }

    fn no_such_family(&self) -> Omission {
        Omission::NoSuchFamily { family: format!("series for {}", self.question.metric.name).into() }
    }

    /// Why the device of the pod has no value, if its exporter says why.
    fn better_reason(&self, omission: Omission, state: Option<&DeviceState>) -> Omission {
        let shared = state.map_or(0, |state| state.pods as usize);
        let reason = state.and_then(|state| self.unattributed(state));
        match (omission, reason) {
            // A value that is still answered outlives attribution; after that this is the reason.
            (
                Omission::NoSuchFamily { .. }
                | Omission::DeviceStale { .. }
                | Omission::Collecting { .. }
                | Omission::TooFewScrapes,
                Some(reason),
            ) => reason,
            (Omission::NoSuchFamily { .. }, None) if shared > 1 => Omission::Shared { pods: shared },
            (omission, _) => omission,
        }
    }

    /// Why the device's use or memory cannot be attributed, if it cannot.
    fn unattributed(&self, state: &DeviceState) -> Option<Omission> {
        let of_memory = self.question.metric.formula.family() == MEMORY_USED;
        let reason = state.unavailable.as_ref();
        // That memory is not divided says nothing of use.
        let reason = reason.filter(|reason| of_memory || ***reason != *NO_PROCESS_MEMORY)?;
        Some(Omission::AttributionUnavailable { reason: reason.clone() })
    }

    /// The value of a GPU that an annotation gives to the pod and on which the pod has no process: it
    /// used none of it, if the exporter attributes all of the GPU's use to others.
    fn named(&self, device: &Device<'_>) -> Result<Mean, Omission> {
        let Self { question, known, rules, now, .. } = self;
        let exporter = known.exporter;
        let cards = known.pod.grant.as_ref().and_then(|grant| grant.cards.as_ref());
        let unproven = |unproven| {
            let annotation = cards.map_or("", |cards| cards.annotation);
            Omission::NamedGpu { annotation, uuid: device.key.into(), unproven }
        };
        if let Some(silence) = silence(exporter, rules, now) {
            return Err(silence);
        }
        let state = device.state.filter(|state| now.age(state.seen) <= rules.staleness);
        if cards.is_some_and(|cards| cards.of(device.key).any(|card| card.instance)) {
            return Err(unproven(Unproven::Instance));
        }
        let state = state.ok_or_else(|| unproven(Unproven::NotReported))?;
        let owners = state.owners.filter(|_| exporter.native);
        let owners = owners.ok_or_else(|| unproven(Unproven::OwnersUnknown))?;
        if let Some(reason) = self.unattributed(state) {
            return Err(reason);
        }
        if let Some(began) = known.began.limit()?
            && now.age(began).as_secs_f64() < FIRST_ANSWER_SECONDS
        {
            return Err(Omission::Collecting { observed: now.age(began).as_secs() });
        }
        let formula = question.metric.formula;
        let whole = whole_device(exporter, device.key, formula.device_family(), question.metric, rules, now)?;
        match formula.family() {
            // A GPU that works for no owner works for one whose processes the exporter does not see.
            USE if owners < 1.0 && whole.value > IDLE => Err(unproven(Unproven::OwnersUnknown)),
            // Without an owner it is not known how much memory a GPU itself takes.
            MEMORY_USED if owners < 1.0 => Err(unproven(Unproven::OwnersUnknown)),
            USE | MEMORY_USED => Ok(Mean { value: 0.0, ..whole }),
            DEVICE_USE => Ok(whole),
            _ => Err(self.no_such_family()),
        }
    }
}

/// Seconds of its own readings that the adapter needs for a first answer.
pub(super) fn first_answer(window: Duration) -> f64 {
    FIRST_ANSWER_SECONDS.min(window.as_secs_f64())
}

/// A pod's value; `None` where a device's memory is not known.
fn combine(metric: &Metric, devices: &[Measured]) -> Option<Value> {
    let at = devices.iter().map(|device| device.at).max()?;
    let covered = devices.iter().map(|device| device.covered).fold(f64::MAX, f64::min);
    let each: Option<SmallVec<[f64; 2]>> =
        devices.iter().map(|device| device.in_unit(metric.formula)).collect();
    let each = each?;
    let sum = || each.iter().sum::<f64>();
    let value = match (metric.aggregation, metric.formula) {
        (Some(Aggregation::Max), _) => each.iter().copied().fold(f64::MIN, f64::max),
        (None, Formula::MemoryUtilization) => {
            let used: f64 = devices.iter().map(|device| device.value).sum();
            used / devices.iter().filter_map(|device| device.memory_total).sum::<f64>() * 100.0
        }
        (None, Formula::MemoryUsed | Formula::Sum(_)) => sum(),
        (Some(Aggregation::Mean) | None, _) => sum() / each.len() as f64,
    };
    Some(Value { value, at, covered })
}

impl Measured {
    /// Of a whole device, whatever part of it was given to whom.
    pub(super) fn whole(mean: Mean, memory_total: Option<f64>) -> Self {
        let Mean { value, at, covered, .. } = mean;
        Self { value, part: Some(1.0), memory_total, at, covered }
    }

    /// In the metric's unit, for this device alone; `None` where its memory is not known.
    pub(super) fn in_unit(&self, formula: Formula) -> Option<f64> {
        Some(match formula {
            Formula::Utilization => self.value / self.part? * 100.0,
            Formula::UtilizationShare | Formula::DeviceUtilization => self.value * 100.0,
            Formula::MemoryUsed => self.value * MIB,
            Formula::MemoryUtilization => {
                self.memory_total.filter(|total| *total > 0.0).map(|total| self.value / total * 100.0)?
            }
            Formula::Sum(_) => self.value,
            Formula::Mean { scale, .. } => self.value * scale,
        })
    }
}

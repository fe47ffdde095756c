//! Owns what one exporter has told: its state, its devices, and the histories of the pods on them.
//! Written by the exporter's own scraper, read by evaluation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::Target;
use super::budget::Share;
use super::history::{History, Reading, Span};
use super::joined::Joined;
use super::labels::{Labels, MODEL_NAME, selectable};
use super::page::{self, Cut, Limit, Page, Room};
use super::recent::{Latest, Recent};
use crate::cluster::Selector;
use crate::map::Map;
use crate::metric::{FamilyId, USE};
use crate::uid::Uid;

/// Observed time that a pod's first answer needs, seconds.
pub const FIRST_ANSWER_SECONDS: f64 = 15.0;
/// How long an exporter without UIDs may speak of a pod that is gone: a holding that was last seen
/// sooner after a pod's start may be its predecessor's.
const ALLOCATION_LAG: Duration = Duration::from_secs(60);

/// An exporter that is scraped.
#[derive(Debug)]
pub struct Exporter {
    pub target: Target,
    pub state: RwLock<ExporterState>,
    /// Its share of what may be kept of all exporters.
    pub share: Share,
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
    /// When its program started, as its newest page that says so has it.
    started: Option<f64>,
    /// Why the newest scrape failed; `None` after an answer.
    pub failure: Option<String>,
    /// It has podgauge's counters and allocations. An empty page changes nothing of it.
    pub native: bool,
    /// The things that a limit kept out of the newest page.
    pub cut: Option<Cut>,
    /// How much is kept.
    pub used: Room,
    /// Boxed, because half of a map's places are empty.
    pub(super) devices: Map<Arc<str>, Box<DeviceState>>,
    /// … and so are these.
    pub(super) namespaces: Map<Box<str>, Map<Box<str>, Box<PodSeries>>>,
}

/// A device by the newest page.
#[derive(Debug)]
pub struct DeviceState {
    pub(super) labels: Labels,
    /// Pods that have a part of it.
    pub pods: u32,
    /// How many own it, as the exporter counts them: containers, and processes outside every pod as
    /// one. `None`: it does not know.
    pub owners: Option<f64>,
    /// MiB.
    pub memory_total: Option<f64>,
    /// Why its use cannot be attributed.
    pub unavailable: Option<Box<str>>,
    /// A limit kept something of it out.
    pub incomplete: bool,
    pub seen: Instant,
    /// How much anybody used it lately.
    pub recent: Option<Latest>,
    /// Its active and observed seconds, as last read; NaN: none.
    counted: [f64; 2],
    /// Of the whole device, where no single holding has them.
    pub(super) series: Vec<(FamilyId, History)>,
}

/// What pods of one name have on the exporter's node, by device and container. Mostly one.
#[derive(Debug, Default)]
pub struct PodSeries {
    /// Sorted.
    pub(super) holdings: Vec<Placed>,
    /// For each device with several containers: what they have together.
    pub(super) joined: Vec<Joined>,
    /// Some were given up for lack of room.
    pub(super) incomplete: bool,
}

/// Device and container.
pub type Place = (Arc<str>, Box<str>);
pub(super) type Placed = (Place, Holding);

/// A container's part of a device, with its histories.
#[derive(Debug)]
pub struct Holding {
    /// The part that the newest page reports.
    pub part: ReportedPart,
    /// The last size of the part that was reported for the pod with this UID.
    last_part: Option<f64>,
    /// It was allocated, so that it stays the pod's as long as the pod lives.
    pub(super) allocated: bool,
    /// The newest answer speaks of it.
    pub present: bool,
    pub seen: Instant,
    /// The last pod that the exporter named for it.
    pub(super) uid: Option<Uid>,
    /// The newest page named it.
    named: bool,
    /// Some of what is kept came without a UID: whose that is is told by time alone.
    undated: bool,
    /// The counter of seconds for which its use is known, as last read.
    observed: Option<f64>,
    /// What that counter counted, restarts included.
    total: f64,
    /// … of which under another pod.
    total_before: f64,
    /// Another container on the device was seen to be of another pod since the last page.
    passed_on: bool,
    /// How much it used the device lately.
    pub recent: Option<Latest>,
    pub(super) series: Vec<(FamilyId, History)>,
    /// Since when it is the only one of its device; what it says is then said of the device.
    only_since: Option<Instant>,
}

/// The part of a device that a page reports for a container.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum ReportedPart {
    /// The page knows of no allocation.
    #[default]
    Unallocated,
    /// Of one.
    Size(f64),
    /// There is an allocation whose size the exporter does not know.
    Unknown,
}

/// Whose a holding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The pod's, by its UID.
    Surely,
    /// What was received since the pod began is the pod's.
    SinceItBegan,
    Another,
}

// === impl Exporter ===

impl Exporter {
    pub fn new(target: Target, share: Share) -> Self {
        let state = ExporterState { name: target.to_string(), ..ExporterState::default() };
        Self { target, state: RwLock::new(state), share }
    }
}

// === impl ExporterState ===

impl ExporterState {
    /// A scrape failed.
    pub fn failed(&mut self, reason: String) {
        self.scrapes += 1;
        self.failure = Some(reason);
    }

    /// A scrape was answered with `page`, received at `at`. At most `room` is kept of all pages. Nobody
    /// shall read the page after that.
    pub fn answered(&mut self, page: &mut Page, at: Instant, span: &Span, room: Room) {
        self.scrapes += 1;
        self.answers += 1;
        self.last_answer = Some(at);
        self.failure = None;
        self.native = page.native.unwrap_or(self.native);
        if page.started.is_some() && page.started != self.started {
            if self.started.is_some() {
                self.began_again();
            }
            self.started = page.started;
        }
        self.cut = page.cut.take();
        for pod in self.namespaces.values_mut().flat_map(Map::values_mut) {
            pod.holdings.iter_mut().for_each(|(_, holding)| holding.present = false);
        }
        let round = Round { at, scrape: self.scrapes, native: self.native, span };
        for device in &mut page.devices {
            self.device(device, &round);
        }
        self.forget(at, room);
    }

    /// Its counters count from 0 again, and may have passed what they were.
    fn began_again(&mut self) {
        self.scrapes += 1;
        let pods = self.namespaces.values_mut().flat_map(Map::values_mut);
        for (_, holding) in pods.flat_map(|pod| &mut pod.holdings) {
            holding.observed = holding.observed.map(|_| 0.0);
        }
        self.devices.values_mut().for_each(|device| device.counted = [f64::NAN; 2]);
    }

    /// Another exporter takes over what this one knew: every series begins a new piece.
    pub fn hand_over(&mut self, to: &Target) -> Self {
        let mut state = std::mem::take(self);
        state.name = to.to_string();
        state.scrapes += 1;
        state.answers = 0;
        state.failure = None;
        state
    }

    /// What the exporter says of a pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodSeries> {
        self.namespaces.get(namespace)?.get(name).map(|pod| &**pod)
    }

    pub fn device_state(&self, device: &str) -> Option<&DeviceState> {
        self.devices.get(device).map(|state| &**state)
    }

    /// Every device, also those of earlier pages.
    pub fn devices(&self) -> impl Iterator<Item = (&str, &DeviceState)> {
        self.devices.iter().map(|(key, state)| (&**key, &**state))
    }

    /// Every holding, with its device.
    pub fn holdings(&self) -> impl Iterator<Item = (&str, &Holding)> {
        let pods = self.namespaces.values().flat_map(Map::values);
        pods.flat_map(|pod| &**pod).map(|((device, _), holding)| (&**device, holding))
    }

    /// The limit for which something of that pod may be missing.
    pub fn limit_on(&self, namespace: &str, name: &str) -> Option<Limit> {
        let cut = self.cut.as_ref().filter(|cut| cut.concerns(namespace, name)).map(|cut| cut.limit);
        cut.or_else(|| self.pod(namespace, name)?.incomplete.then_some(Limit::Series))
    }

    /// … something of a device.
    pub fn limit_on_device(&self, device: &DeviceState) -> Option<Limit> {
        device.incomplete.then(|| self.cut.as_ref().map_or(Limit::Series, |cut| cut.limit))
    }

    /// … a device.
    pub fn limit_on_node(&self) -> Option<Limit> {
        self.cut.as_ref().filter(|cut| cut.devices).map(|cut| cut.limit)
    }

    /// Number of series kept.
    pub fn series(&self) -> usize {
        let pods = self.namespaces.values().flat_map(Map::values);
        self.holdings().map(|(_, holding)| holding.series.len()).sum::<usize>()
            + pods.flat_map(|pod| &pod.joined).map(Joined::len).sum::<usize>()
            + self.devices.values().map(|device| device.series.len()).sum::<usize>()
    }

    fn device(&mut self, device: &mut page::Device, round: &Round<'_>) {
        let key = match self.devices.get_key_value(&*device.key) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(device.key.as_str()),
        };
        let holdings = &mut device.holdings;
        let only = holdings.len() == 1;
        holdings.sort_unstable_by(|a, b| {
            (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container))
        });
        let mut count = 0;
        for containers in holdings.chunk_by(|a, b| (&a.namespace, &a.pod) == (&b.namespace, &b.pod)) {
            let pods = entry(&mut self.namespaces, &containers[0].namespace);
            entry(pods, &containers[0].pod).join(&key, containers, round);
            count += 1;
        }
        let mut grew = false;
        for holding in holdings {
            let pods = entry(&mut self.namespaces, &holding.namespace);
            let pod = entry(pods, &holding.pod);
            let kept = pod.holding(&key, &holding.container, round.at);
            kept.only_since = only.then(|| kept.only_since.unwrap_or(round.at));
            grew |= kept.update(holding, round);
        }
        let known = self.devices.entry(key).or_insert_with(|| Box::new(DeviceState::new(round.at)));
        known.pods = count;
        known.owners = device.owners;
        known.memory_total = device.memory_total;
        known.incomplete = device.incomplete;
        known.seen = round.at;
        let counted = [device.active, device.observed].map(|seconds| seconds.unwrap_or(f64::NAN));
        if grew || known.counted.map(f64::to_bits) != counted.map(f64::to_bits) {
            known.recent = latest(device.recent, round);
        }
        known.counted = counted;
        push_all(&mut known.series, &device.readings, round);
        // What a holding says from now on is not needed twice.
        let recent = |at: Instant| round.at.saturating_duration_since(at) <= round.span.window;
        known.series.retain(|(_, history)| history.updated().is_some_and(recent));
        // What stays the same keeps its place in memory.
        if known.labels != device.labels {
            known.labels = std::mem::take(&mut device.labels);
        }
        if known.unavailable.as_deref() != device.unavailable.as_deref() {
            known.unavailable = device.unavailable.take().map(Into::into);
        }
    }
}

/// The value under a name, which is copied only when it is new.
fn entry<'m, V: Default>(map: &'m mut Map<Box<str>, V>, name: &str) -> &'m mut V {
    if !map.contains_key(name) {
        map.insert(name.into(), V::default());
    }
    map.get_mut(name).expect("because it was just put there")
}

/// One answered scrape.
pub(super) struct Round<'a> {
    pub(super) at: Instant,
    pub(super) scrape: u64,
    pub(super) native: bool,
    pub(super) span: &'a Span,
}

// === impl PodSeries ===

impl PodSeries {
    /// The holding of that device and container.
    fn holding(&mut self, device: &Arc<str>, container: &str, seen: Instant) -> &mut Holding {
        let place = |((d, c), _): &Placed| (**d).cmp(device).then((**c).cmp(container));
        let at = match self.holdings.binary_search_by(place) {
            Ok(at) => at,
            Err(at) => {
                self.holdings.reserve_exact(1);
                self.holdings.insert(at, ((Arc::clone(device), container.into()), Holding::new(seen)));
                at
            }
        };
        &mut self.holdings[at].1
    }

    /// The series of all containers on a device, if there are or were several.
    pub fn joined(&self, device: &str) -> Option<&Joined> {
        self.joined.iter().find(|joined| *joined.device == *device)
    }

    /// The holdings on a device.
    fn on(&self, device: &str) -> &[Placed] {
        let begin = self.holdings.partition_point(|((known, _), _)| **known < *device);
        let count = self.holdings[begin..].partition_point(|((known, _), _)| **known == *device);
        &self.holdings[begin..begin + count]
    }

    /// Adds a page's readings of several containers on one device to what they have together,
    /// before each of them takes its own.
    fn join(&mut self, device: &Arc<str>, containers: &[page::Holding], round: &Round<'_>) {
        let known = self.on(device);
        let at = self.joined.iter().position(|joined| joined.device == *device);
        if at.is_none()
            && let [only] = containers
            && known.iter().all(|((_, container), _)| **container == *only.container)
        {
            return;
        }
        let only = match known {
            [((_, container), holding)] => Some((&**container, holding)),
            _ => None,
        };
        // What the others have may hide in a sum that one of them began again.
        let began_again: SmallVec<[FamilyId; 2]> = containers
            .iter()
            .flat_map(|page| {
                let same = known.iter().filter(|((_, container), _)| **container == *page.container);
                same.flat_map(|(_, holding)| holding.fallen(page))
            })
            .collect();
        let begun = at.is_none().then(|| Joined::from_only(device, only));
        self.joined.extend(begun);
        let at = at.unwrap_or(self.joined.len() - 1);
        for family in began_again {
            self.joined[at].interrupt(family);
        }
        if self.joined[at].push(containers, round) {
            let on_device = self.holdings.iter_mut().filter(|((known, _), _)| known == device);
            on_device.for_each(|(_, holding)| holding.passed_on = true);
        }
    }
}

impl<'a> IntoIterator for &'a PodSeries {
    type Item = (&'a Place, &'a Holding);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, Placed>, fn(&'a Placed) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.holdings.iter().map(|(place, holding)| (place, holding))
    }
}

// === impl DeviceState ===

impl DeviceState {
    fn new(seen: Instant) -> Self {
        Self {
            labels: Labels::default(),
            pods: 0,
            owners: None,
            memory_total: None,
            unavailable: None,
            incomplete: false,
            seen,
            recent: None,
            counted: [f64::NAN; 2],
            series: Vec::new(),
        }
    }

    /// Whether it is a MIG instance.
    pub fn is_instance(&self) -> bool {
        self.labels.get("GPU_I_ID").is_some()
    }

    /// Whether several own it.
    pub fn is_shared(&self) -> bool {
        self.pods > 1 || self.owners.is_some_and(|owners| owners > 1.0)
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name)
    }

    /// What tells it from other devices.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The history of a family of the whole device, if no single holding stands for it.
    pub fn history(&self, family: FamilyId) -> Option<&History> {
        self.series.iter().find(|(id, _)| *id == family).map(|(_, history)| history)
    }

    /// Whether its labels meet a `metricLabelSelector`, which writes blanks of a model's name as `-`.
    pub fn matches(&self, selector: &Selector) -> bool {
        if selector.is_empty() {
            return true;
        }
        let model = self.labels.get(MODEL_NAME).map(selectable);
        selector.matches(|key| if key == MODEL_NAME { model.as_deref() } else { self.labels.get(key) })
    }
}

// === impl Holding ===

impl Holding {
    fn new(seen: Instant) -> Self {
        Self {
            part: ReportedPart::Unallocated,
            last_part: None,
            allocated: false,
            present: true,
            seen,
            uid: None,
            named: false,
            undated: false,
            observed: None,
            total: 0.0,
            total_before: 0.0,
            passed_on: false,
            recent: None,
            series: Vec::new(),
            only_since: None,
        }
    }

    /// Since when what it says is said of its whole device.
    pub fn only_since(&self) -> Option<Instant> {
        self.only_since
    }

    /// The size of the part, if it was reported for the pod with this UID, or is on the newest page.
    pub fn known_part(&self, uid: &Uid) -> Option<f64> {
        match self.part {
            ReportedPart::Size(part) => Some(part),
            ReportedPart::Unknown | ReportedPart::Unallocated => {
                self.last_part.filter(|_| self.uid.as_ref() == Some(uid))
            }
        }
    }

    /// The last pod that the exporter named for it.
    pub(super) fn uid(&self) -> Option<&Uid> {
        self.uid.as_ref()
    }

    /// Whether some of what is kept came without a UID.
    pub(super) fn is_undated(&self) -> bool {
        self.undated
    }

    pub(super) fn series(&self) -> impl Iterator<Item = (FamilyId, &History)> {
        self.series.iter().map(|(family, history)| (*family, history))
    }

    /// Whether it is the pod's of that UID.
    pub fn owner(&self, uid: &Uid) -> Owner {
        match &self.uid {
            Some(known) if known == uid && !self.undated => Owner::Surely,
            Some(known) if known != uid && self.named => Owner::Another,
            _ => Owner::SinceItBegan,
        }
    }

    /// Whether the pod still has it although the exporter no longer speaks of it. `began`: when
    /// the pod did, if it is the pod's by time alone.
    pub fn outlasts(&self, began: Option<Instant>) -> bool {
        let surely =
            began.is_none_or(|began| began.checked_add(ALLOCATION_LAG).is_some_and(|sure| self.seen >= sure));
        self.allocated && surely
    }

    /// The history of a family, if the exporter ever gave it for this holding.
    pub fn history(&self, family: FamilyId) -> Option<&History> {
        self.series.iter().find(|(id, _)| *id == family).map(|(_, history)| history)
    }

    /// Seconds observed of the pod: by the exporter's counter, or where it counts none, by the
    /// time without gaps for which it told anything. `began` as in [`outlasts`](Self::outlasts).
    pub fn observed(&self, began: Option<Instant>) -> f64 {
        let read = self.series.iter().map(|(_, history)| history.covered()).fold(0.0, f64::max);
        self.since(began, self.counted().max(read))
    }

    /// As [`observed`](Self::observed), but no more exact than telling it from `enough` takes: the
    /// histories are looked at where the counter tells of less.
    pub fn observed_up_to(&self, enough: f64, began: Option<Instant>) -> f64 {
        let counted = self.since(began, self.counted());
        if counted >= enough { counted } else { self.observed(began) }
    }

    /// Seconds of this adapter's own readings of a family of the pod.
    pub fn read(&self, family: FamilyId, began: Option<Instant>) -> f64 {
        self.since(began, self.history(family).map_or(0.0, History::covered))
    }

    /// Whether the exporter counts for how long it observed the pod.
    pub fn counts(&self) -> bool {
        self.observed.is_some()
    }

    /// Seconds that the exporter counted of this holding; of other pods of the same name as well,
    /// unless another one was seen here.
    pub fn counted(&self) -> f64 {
        self.total - self.total_before
    }

    /// Whether the newest page names the pod's UID.
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Whether another pod of the same name was seen to have it before.
    pub fn succeeded(&self) -> bool {
        self.total_before > 0.0
    }

    /// No more seconds than passed since the pod began.
    fn since(&self, began: Option<Instant>, seconds: f64) -> f64 {
        match began {
            Some(began) => seconds.min(self.seen.saturating_duration_since(began).as_secs_f64()),
            None => seconds,
        }
    }

    /// The families whose counter on the page is less than it was.
    fn fallen(&self, from: &page::Holding) -> impl Iterator<Item = FamilyId> {
        let fell = |(family, reading): &(FamilyId, Reading)| {
            self.history(*family).is_some_and(|history| history.fell(*reading))
        };
        from.readings.iter().filter(move |reading| fell(reading)).map(|(family, _)| *family)
    }

    /// Gives whether its counter brought something new.
    fn update(&mut self, from: &page::Holding, round: &Round<'_>) -> bool {
        // Counters that began again may be where they were.
        let fell = || self.fallen(from).any(|family| family == USE);
        let grew = from.observed.is_some() && (from.observed != self.observed || fell());
        if let Some(observed) = from.observed {
            self.total += match self.observed {
                Some(before) if before <= observed => observed - before,
                // It began anew.
                Some(_) => observed,
                None => from.observed_of_its_pod(),
            };
            self.observed = Some(observed);
        }
        if std::mem::take(&mut self.passed_on) {
            self.recent = None;
            self.total_before = self.total;
        }
        if from.pod_uid.is_some() && !self.named {
            // It came without a UID.
            self.recent = None;
        }
        self.named = from.pod_uid.is_some();
        if let Some(uid) = from.pod_uid.as_deref()
            && self.uid.as_ref().is_none_or(|known| *known != *uid)
        {
            // One that had no UID yet is the same pod as far as anybody knows.
            if self.uid.replace(uid.into()).is_some() {
                self.series.clear();
                self.recent = None;
                self.total_before = self.total;
                self.undated = false;
                self.allocated = false;
                self.last_part = None;
            }
        }
        self.undated |= !self.named && !from.readings.is_empty();
        // Without counters of its own an exporter speaks of allocations only.
        self.allocated |= from.allocation.is_some() || from.part_unknown || !round.native;
        self.part = match from.allocation {
            // Both at once contradict each other.
            _ if from.part_unknown => ReportedPart::Unknown,
            Some(part) => ReportedPart::Size(part),
            None => ReportedPart::Unallocated,
        };
        if let ReportedPart::Size(part) = self.part {
            self.last_part = Some(part);
        }
        self.present = true;
        self.seen = round.at;
        if grew {
            self.recent = latest(from.recent, round);
        }
        push_all(&mut self.series, &from.readings, round);
        grew
    }
}

fn latest(recent: Option<Recent>, round: &Round<'_>) -> Option<Latest> {
    recent.map(|recent| Latest { recent, at: round.at })
}

/// Adds a page's readings to the histories of their families.
fn push_all(series: &mut Vec<(FamilyId, History)>, readings: &[(FamilyId, Reading)], round: &Round<'_>) {
    for &(family, reading) in readings {
        let at = series.iter().position(|(id, _)| *id == family).unwrap_or_else(|| {
            series.reserve_exact(1);
            series.push((family, History::default()));
            series.len() - 1
        });
        series[at].1.push(round.at, round.scrape, reading, round.span);
    }
}

//! Owns the state that pages are made from: joins readings with attributions, once per tick.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podgauge_common::exposition::write::Value;

use crate::attribution::allocations::Allocation;
use crate::attribution::confidence::{Confidence, User};
use crate::attribution::{Attribution, Division, Knowledge, Owner, Unavailable, Whose, attribute, user_of};
use crate::gpu::{Credit, DeviceReading, DividedBy, EventCounts, Identity, Readings, Sharing, Slot};
use crate::integrals::{Account, Balance, DeviceLedger, KEPT, Share, Windows};

/// After this long without a new reading GPU values are dropped: they are no measurement any more.
pub(crate) const STALE: Duration = Duration::from_secs(5);

/// Bytes of the unit of memory families.
const MIB: f64 = 1024.0 * 1024.0;

/// Everything accumulated, from which a [`Snapshot`] is taken at any time.
#[derive(Debug)]
pub(crate) struct Node {
    windows: Windows,
    /// By [`Identity::key`].
    devices: HashMap<String, Device>,
    latest: Option<Readings>,
}

/// What is remembered of one device.
#[derive(Debug)]
struct Device {
    windows: Windows,
    ledger: DeviceLedger,
    confidence: Confidence,
    /// When it was last read: a MIG instance may be gone for good.
    seen: Instant,
}

/// What one page says.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) devices: Vec<DeviceSnapshot>,
}

/// What one page says of one GPU.
#[derive(Debug)]
pub(crate) struct DeviceSnapshot {
    pub(crate) identity: Arc<Identity>,
    pub(crate) up: bool,
    /// In the order of the plan's metrics, without utilization.
    pub(crate) values: Vec<Option<Value>>,
    /// In the order of the plan's texts.
    pub(crate) texts: Arc<[Option<String>]>,
    pub(crate) events: EventCounts,
    /// Sent and received.
    pub(crate) nvlink_bytes: Option<[u64; 2]>,
    pub(crate) gpu_utilization: Option<f64>,
    pub(crate) memory_utilization: Option<f64>,
    pub(crate) active_s: f64,
    /// The one allocated pod, whose labels the families carry that cannot be divided.
    pub(crate) owner: Option<Arc<Owner>>,
    pub(crate) utilization: Divided,
    pub(crate) memory: Divided,
    /// The whole device's seconds within the recent window.
    pub(crate) recent: Option<Account>,
    /// The owners that have series, `None` for the one without labels, and their seconds.
    pub(crate) accounts: Vec<(Option<Arc<Owner>>, Balance)>,
    /// `None`: owners are not known.
    pub(crate) owners: Option<usize>,
    pub(crate) allocations: Vec<Allocation>,
    /// Holders of virtual GPUs with processes on it, whose part is not known.
    pub(crate) virtual_gpus: Vec<Allocation>,
    pub(crate) unavailable: Vec<Unavailable>,
    /// False: its utilization is not read at all, and seconds of it say nothing.
    pub(crate) measured: bool,
    /// How its use is divided among owners; `None` while it is not.
    pub(crate) sharing: Option<Sharing>,
    /// UIDs of pods with processes on it.
    uids: Vec<(Arc<Owner>, String)>,
}

/// How a device's value is printed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Divided {
    /// As it is, with the owner's labels or none.
    Whole(Option<Arc<Owner>>),
    /// Each owner's part, in the unit of the family: percent or MiB.
    Parts(Vec<(Arc<Owner>, f64)>),
}

// === impl DeviceSnapshot ===

impl DeviceSnapshot {
    /// The UID of an owner's pod, if it is known.
    pub(crate) fn pod_uid(&self, owner: &Owner) -> Option<&str> {
        let same = |namespace: &str, pod: &str| namespace == owner.namespace && pod == owner.pod;
        let live = self.uids.iter().find(|(live, _)| same(&live.namespace, &live.pod)).map(|(_, uid)| uid);
        let held = || self.allocations.iter().find(|a| same(&a.namespace, &a.pod))?.pod_uid.as_ref();
        live.or_else(held).map(String::as_str)
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn new(windows: Windows) -> Self {
        Self { windows, devices: HashMap::new(), latest: None }
    }

    /// Takes new readings: each slot is credited once, to whom the device belongs now.
    pub(crate) fn learn(&mut self, readings: Readings, knowledge: &Knowledge, now: Instant) {
        for reading in &readings.devices {
            let key = reading.identity.key();
            let new = || Device::new(self.windows, now);
            let device = self.devices.entry(key.to_owned()).or_insert_with(new);
            device.learn(reading, knowledge, now);
        }
        self.devices.retain(|_, device| now.saturating_duration_since(device.seen) < KEPT);
        let devices = readings
            .devices
            .into_iter()
            .map(|device| DeviceReading {
                gpu_slots: Vec::new(),
                loose_samples: Vec::new(),
                memory_slots: Vec::new(),
                ..device
            })
            .collect();
        self.latest = Some(Readings { devices, ..readings });
    }

    /// NVML is gone: nothing is known of any GPU until it is back.
    pub(crate) fn forget_values(&mut self) {
        self.latest = None;
    }

    /// The devices that NVML knew last; `None` if it answers nothing now, or not for all of them.
    pub(crate) fn identities(&self) -> Option<Vec<&Identity>> {
        let readings = self.latest.as_ref()?;
        let known: Vec<&Identity> = readings.devices.iter().map(|device| &*device.identity).collect();
        known.iter().all(|identity| !identity.uuid.is_empty()).then_some(known)
    }

    /// By which plan the newest readings were taken.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.latest.as_ref().map(|readings| readings.generation)
    }

    /// How old the newest readings are.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.latest.as_ref().map(|readings| now.saturating_duration_since(readings.taken_at))
    }

    /// What a page made now says. No devices while nothing is known of them, or not yet whose they
    /// are: a series that begins without its labels would be another series.
    pub(crate) fn snapshot(&mut self, knowledge: &Knowledge, now: Instant) -> Snapshot {
        let nothing = Snapshot { devices: Vec::new() };
        let Some(readings) = &self.latest else { return nothing };
        if matches!(knowledge, Knowledge::Waiting)
            || now.saturating_duration_since(readings.taken_at) >= STALE
        {
            return nothing;
        }
        let devices = readings
            .devices
            .iter()
            .filter_map(|reading| {
                let device = self.devices.get_mut(reading.identity.key())?;
                Some(device.snapshot(reading, knowledge, now))
            })
            .collect();
        Snapshot { devices }
    }
}

// === impl Device ===

impl Device {
    fn new(windows: Windows, now: Instant) -> Self {
        Self {
            windows,
            ledger: DeviceLedger::new(windows, now),
            confidence: Confidence::default(),
            seen: now,
        }
    }

    /// Takes what a tick learned.
    fn learn(&mut self, reading: &DeviceReading, knowledge: &Knowledge, now: Instant) {
        self.seen = now;
        for sample in &reading.loose_samples {
            self.confidence.learn_loose(sample.at, sample.active_s, &user_of(knowledge, &sample.whose));
        }
        let shares: Vec<(Slot, Share)> = reading
            .gpu_slots
            .iter()
            .map(|(slot, credit)| (*slot, self.share(slot, credit, knowledge, now)))
            .collect();
        let division = self.attribute(reading, knowledge, now).utilization;
        self.ledger.credit(shares, &division, now);
        self.ledger.add_memory(&reading.memory_slots, now);
    }

    /// The owners of a slot, should the device be divided.
    fn share(&mut self, slot: &Slot, credit: &Credit, knowledge: &Knowledge, now: Instant) -> Share {
        let (user, candidates) = match credit {
            Credit::Unsampled => return Share::Unknown,
            Credit::Idle => (None, Vec::new()),
            Credit::Of(whose) => (Some(user_of(knowledge, whose)), Vec::new()),
            Credit::Divided(parts) => return self.divided(slot, parts, knowledge, now),
            Credit::Missed(candidates) => {
                let candidates = candidates.iter().filter_map(|whose| match user_of(knowledge, whose) {
                    User::Of(owner) => Some(owner),
                    User::Missed | User::MpsServer | User::Unreadable => None,
                });
                (Some(User::Missed), candidates.collect())
            }
        };
        if let Some(user) = &user {
            self.confidence.learn(slot.end, slot.active_seconds(), user.clone());
        }
        // Time that was not seen makes idle time unknown, too: left in alone it would make all read too low.
        if !self.confidence.counts(now) {
            return Share::Unknown;
        }
        match user {
            None => Share::Idle,
            Some(User::Of(owner)) => Share::Of(owner),
            Some(User::Missed) => Share::Spread(self.confidence.spread(&candidates)),
            // Nobody else's number may rise because of them.
            Some(User::MpsServer | User::Unreadable) => Share::Of(None),
        }
    }

    /// The owners of a slot that the trace divides.
    fn divided(&mut self, slot: &Slot, parts: &[(Whose, f64)], knowledge: &Knowledge, now: Instant) -> Share {
        let users: Vec<(User, f64)> =
            parts.iter().map(|(whose, part)| (user_of(knowledge, whose), *part)).collect();
        for (user, part) in &users {
            self.confidence.learn(slot.end, slot.active_seconds() * part, user.clone());
        }
        if !self.confidence.counts(now) {
            return Share::Unknown;
        }
        let owner = |user| match user {
            User::Of(owner) => owner,
            // Nobody else's number may rise because of them.
            User::Missed | User::MpsServer | User::Unreadable => None,
        };
        Share::Spread(users.into_iter().map(|(user, part)| (owner(user), part)).collect())
    }

    fn attribute(&mut self, reading: &DeviceReading, knowledge: &Knowledge, now: Instant) -> Attribution {
        let undivided = self.confidence.undivided(now);
        let mut attribution = attribute(knowledge, &reading.identity, &reading.processes, undivided);
        if matches!(attribution.utilization, Division::Among(_)) {
            let is_untraced = reading.sharing.is_some_and(|sharing| sharing.by == DividedBy::Nobody);
            attribution.unavailable.extend(if is_untraced {
                Some(Unavailable::NotTraced)
            } else {
                self.confidence.stands_still(now)
            });
        }
        attribution.unavailable.extend(reading.unmeasured.map(Unavailable::Unmeasured));
        attribution
    }

    fn snapshot(&mut self, reading: &DeviceReading, knowledge: &Knowledge, now: Instant) -> DeviceSnapshot {
        let attribution = self.attribute(reading, knowledge, now);
        let ledger = &mut self.ledger;
        // The owners may have changed since the readings: their accounts begin at 0 now.
        ledger.credit([], &attribution.utilization, now);
        let allocations = attribution.allocations.iter().chain(&attribution.virtual_gpus);
        let allocated = allocations.filter_map(|a| Some(((&*a.namespace, &*a.pod), a.pod_uid.as_deref()?)));
        let live = reading.processes.live().map(|(owner, uid)| ((&*owner.namespace, &*owner.pod), uid));
        // One UID for each name, and that which the page has.
        let uids: HashMap<(&str, &str), &str> = live.chain(allocated).collect();
        for ((namespace, pod), uid) in uids {
            ledger.pod_is(namespace, pod, uid);
        }
        let window = self.windows.utilization;
        let up = reading.lost.is_none();
        let is_divided = matches!(attribution.utilization, Division::Among(_));
        let utilization = match &attribution.utilization {
            Division::Whole(owner) => Divided::Whole(owner.clone()),
            Division::Among(owners) => match ledger.parts(owners, now) {
                Some(parts) => Divided::Parts(owners.iter().cloned().zip(parts).collect()),
                None => Divided::Whole(None),
            },
        };
        let memory = match &attribution.memory {
            Division::Whole(owner) => Divided::Whole(owner.clone()),
            Division::Among(owners) => {
                let held = reading.processes.memory.as_deref().unwrap_or_default();
                Divided::Parts(memory_of(owners, held, knowledge))
            }
        };
        DeviceSnapshot {
            up,
            values: reading.values.clone(),
            texts: Arc::clone(&reading.texts),
            events: reading.events.clone(),
            nvlink_bytes: reading.nvlink_bytes,
            gpu_utilization: ledger.gpu.mean(window, now).filter(|_| up),
            memory_utilization: ledger.memory.mean(window, now).filter(|_| up),
            active_s: ledger.active_s,
            recent: ledger.recent(now),
            accounts: ledger.accounts(&attribution.utilization, now),
            owner: attribution.owner,
            utilization,
            memory,
            owners: attribution.owners,
            allocations: attribution.allocations,
            virtual_gpus: attribution.virtual_gpus,
            unavailable: attribution.unavailable,
            measured: reading.unmeasured.is_none(),
            sharing: reading.sharing.filter(|_| is_divided),
            uids: reading.processes.live().map(|(owner, uid)| (Arc::clone(owner), uid.to_owned())).collect(),
            identity: Arc::clone(&reading.identity),
        }
    }
}

/// MiB that each owner's processes hold.
fn memory_of(owners: &[Arc<Owner>], held: &[(Whose, u64)], knowledge: &Knowledge) -> Vec<(Arc<Owner>, f64)> {
    let mut bytes = vec![0u64; owners.len()];
    for (whose, of_process) in held {
        if let User::Of(Some(owner)) = user_of(knowledge, whose)
            && let Some(at) = owners.iter().position(|known| *known == owner)
        {
            bytes[at] = bytes[at].saturating_add(*of_process);
        }
    }
    owners.iter().cloned().zip(bytes.into_iter().map(|bytes| bytes as f64 / MIB)).collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod truth;

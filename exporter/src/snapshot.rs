//! Owns the state that pages are made from: joins readings with attributions, once per tick.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podgauge_common::exposition::write::Value;

use crate::attribution::allocations::Allocation;
use crate::attribution::{Knowledge, Owner, Unavailable, attribute};
use crate::gpu::{DeviceReading, Identity, Readings};
use crate::integrals::{Account, DeviceLedger, KEPT};

/// After this long without a new reading GPU values are dropped: they are no measurement any more.
pub(crate) const STALE: Duration = Duration::from_secs(5);

/// Everything accumulated, from which a [`Snapshot`] is taken at any time.
#[derive(Debug)]
pub(crate) struct Node {
    window: Duration,
    /// By [`Identity::key`].
    ledgers: HashMap<String, DeviceLedger>,
    /// When each was last read: a MIG instance may be gone for good.
    seen: HashMap<String, Instant>,
    latest: Option<Readings>,
}

/// What one page says.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) driver_version: Option<String>,
    pub(crate) devices: Vec<DeviceSnapshot>,
}

/// What one page says of one GPU.
#[derive(Debug)]
pub(crate) struct DeviceSnapshot {
    pub(crate) identity: Arc<Identity>,
    pub(crate) up: bool,
    /// In the order of the plan's metrics, without utilization.
    pub(crate) values: Vec<Option<Value>>,
    pub(crate) gpu_utilization: Option<f64>,
    pub(crate) memory_utilization: Option<f64>,
    pub(crate) active_s: f64,
    /// The printed owner's account.
    pub(crate) account: Account,
    pub(crate) owner: Option<Arc<Owner>>,
    /// Whether owners are known at all.
    pub(crate) owners: Option<usize>,
    pub(crate) allocations: Vec<Allocation>,
    pub(crate) unavailable: Option<Unavailable>,
    /// False: its utilization is not read at all, and seconds of it say nothing.
    pub(crate) measured: bool,
}

/// An allocation with the part of this very device that it is.
fn of(identity: &Identity, allocation: &Allocation) -> Allocation {
    let part = allocation.part.zip(allocation.device.part_of(identity)).map(|(part, of)| part * of);
    Allocation { part, ..allocation.clone() }
}

// === impl Node ===

impl Node {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, ledgers: HashMap::new(), seen: HashMap::new(), latest: None }
    }

    /// Takes new readings: each slot is credited once, to whom the device belongs now.
    pub(crate) fn learn(&mut self, readings: Readings, knowledge: &Knowledge, now: Instant) {
        for device in &readings.devices {
            let owner = attribute(knowledge, &device.identity).owner;
            let key = device.identity.key();
            self.seen.insert(key.to_owned(), now);
            let ledger = self.ledgers.entry(key.to_owned()).or_insert_with(|| DeviceLedger::new(now));
            ledger.credit(&device.gpu_slots, owner.as_ref(), self.window, now);
            ledger.add_memory(&device.memory_slots, self.window, now);
        }
        self.seen.retain(|_, seen| now.saturating_duration_since(*seen) < KEPT);
        self.ledgers.retain(|key, _| self.seen.contains_key(key));
        let devices = readings
            .devices
            .into_iter()
            .map(|device| DeviceReading { gpu_slots: Vec::new(), memory_slots: Vec::new(), ..device })
            .collect();
        self.latest = Some(Readings { devices, ..readings });
    }

    /// NVML is gone: nothing is known of any GPU until it is back.
    pub(crate) fn forget_values(&mut self) {
        self.latest = None;
    }

    /// How old the newest readings are.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.latest.as_ref().map(|readings| now.saturating_duration_since(readings.taken_at))
    }

    /// What a page made now says. No devices while nothing is known of them, or not yet whose they
    /// are: a series that begins without its labels would be another series.
    pub(crate) fn snapshot(&mut self, knowledge: &Knowledge, now: Instant) -> Snapshot {
        let nothing = Snapshot { driver_version: None, devices: Vec::new() };
        let Some(readings) = &self.latest else { return nothing };
        if matches!(knowledge, Knowledge::Waiting)
            || now.saturating_duration_since(readings.taken_at) >= STALE
        {
            return nothing;
        }
        let window = self.window;
        let devices = readings
            .devices
            .iter()
            .filter_map(|device| {
                let attribution = attribute(knowledge, &device.identity);
                let ledger = self.ledgers.get_mut(device.identity.key())?;
                // The owner may have changed since the readings: its account begins at 0 now.
                ledger.credit(&[], attribution.owner.as_ref(), window, now);
                let up = device.lost.is_none();
                Some(DeviceSnapshot {
                    up,
                    values: device.values.clone(),
                    gpu_utilization: ledger.gpu.mean(window, now).filter(|_| up),
                    memory_utilization: ledger.memory.mean(window, now).filter(|_| up),
                    active_s: ledger.active_s,
                    account: ledger.account(attribution.owner.as_ref())?,
                    owner: attribution.owner,
                    owners: matches!(knowledge, Knowledge::Known(_)).then_some(attribution.allocations.len()),
                    allocations: attribution
                        .allocations
                        .into_iter()
                        .map(|it| of(&device.identity, it))
                        .collect(),
                    measured: device.unmeasured.is_none(),
                    unavailable: attribution.unavailable.or(device.unmeasured.map(Unavailable::Unmeasured)),
                    identity: Arc::clone(&device.identity),
                })
            })
            .collect();
        Snapshot { driver_version: readings.driver_version.clone(), devices }
    }
}

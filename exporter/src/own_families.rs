//! Prints podgauge's own families, which are the same in every labelling mode.

use std::time::{SystemTime, UNIX_EPOCH};

use podgauge_common::catalogue::Own;
use podgauge_common::catalogue::own::{
    ACTIVE_SECONDS, ALLOCATION, ATTRIBUTION_ESTIMATED, ATTRIBUTION_UNAVAILABLE, DEVICE_ACTIVE_SECONDS,
    NVLINK_BYTES, OBSERVED_SECONDS, OWNERS, PART_UNKNOWN, PROCESS_SOURCE, RECENT_ACTIVE_SECONDS,
    RECENT_DEVICE_ACTIVE_SECONDS, RECENT_DEVICE_OBSERVED_SECONDS, RECENT_OBSERVED_SECONDS, SHARE_RESIDUAL,
    START_TIME, SWITCH_RECORDS, SWITCH_RECORDS_LOST, UP, UTILIZATION, XID_ERRORS,
};
use podgauge_common::exposition::write::{LabelText, PageWriter, Value};

use crate::attribution::Owner;
use crate::gpu::{DividedBy, Sharing};
use crate::integrals::{Account, Balance};
use crate::render::{LabelNames, by_xid, percent};
use crate::snapshot::DeviceSnapshot;

/// A family that is printed of every device.
struct Family {
    own: Own,
    about: About,
    write: fn(&mut PageWriter, &Device<'_>),
}

/// The subject of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// A device, whatever is read of it.
    State,
    /// A device's use, which may not be read.
    Use,
    /// How the exporter divides the use of a device: on the page with its metrics about itself.
    Exporter,
}

/// A device, and what its samples are labelled with.
struct Device<'a> {
    snapshot: &'a DeviceSnapshot,
    labels: &'a LabelText,
    recent_window: &'a str,
}

/// podgauge's own families by name. With the active and observed seconds a reader makes the mean
/// over any interval.
const FAMILIES: [Family; 20] = [
    of_use(ATTRIBUTION_ESTIMATED, |page, device| {
        if device.snapshot.sharing.is_some_and(|sharing| sharing.by == DividedBy::Nvml) {
            page.sample(&device.labels.clone().with("source", "nvml"), Value::U64(1));
        }
    }),
    state(ATTRIBUTION_UNAVAILABLE, |page, device| {
        for reason in &device.snapshot.unavailable {
            page.sample(&device.labels.clone().with("reason", reason.as_str()), Value::U64(1));
        }
    }),
    of_exporter(SWITCH_RECORDS_LOST, |page, device| {
        device.sharing(page, |sharing| Some(Value::U64(sharing.counts?.lost)));
    }),
    of_exporter(SWITCH_RECORDS, |page, device| {
        device.sharing(page, |sharing| Some(Value::U64(sharing.counts?.records)));
    }),
    of_exporter(PROCESS_SOURCE, |page, device| {
        if let Some(sharing) = device.snapshot.sharing {
            let source = match sharing.by {
                DividedBy::Trace => "context-switches",
                DividedBy::Nvml => "nvml",
                DividedBy::Nobody => "none",
            };
            page.sample(&device.labels.clone().with("source", source), Value::U64(1));
        }
    }),
    of_exporter(SHARE_RESIDUAL, |page, device| {
        device.sharing(page, |sharing| sharing.residual.map(Value::F64));
    }),
    of_use(ACTIVE_SECONDS, |page, device| {
        device.accounts(page, device.labels, |balance| Some(balance.total.active_s));
    }),
    state(ALLOCATION, |page, device| {
        device.allocations(page, |part| part.map(Value::F64));
    }),
    of_use(DEVICE_ACTIVE_SECONDS, |page, device| {
        page.sample(device.labels, micros(device.snapshot.active_s));
    }),
    state(NVLINK_BYTES, |page, device| {
        let bytes = device.snapshot.nvlink_bytes.into_iter().flatten();
        for (direction, bytes) in ["tx", "rx"].into_iter().zip(bytes) {
            page.sample(&device.labels.clone().with("direction", direction), Value::U64(bytes));
        }
    }),
    of_use(OBSERVED_SECONDS, |page, device| {
        device.accounts(page, device.labels, |balance| Some(balance.total.observed_s));
    }),
    state(OWNERS, |page, device| {
        if let Some(owners) = device.snapshot.owners {
            page.sample(device.labels, Value::U64(owners as u64));
        }
    }),
    state(PART_UNKNOWN, |page, device| {
        device.allocations(page, |part| part.is_none().then_some(Value::U64(1)));
    }),
    of_use(RECENT_ACTIVE_SECONDS, |page, device| {
        device.accounts(page, &device.recent_labels(), |balance| Some(balance.recent?.active_s));
    }),
    of_use(RECENT_DEVICE_ACTIVE_SECONDS, |page, device| {
        device.recent(page, |recent| recent.active_s);
    }),
    of_use(RECENT_DEVICE_OBSERVED_SECONDS, |page, device| {
        device.recent(page, |recent| recent.observed_s);
    }),
    of_use(RECENT_OBSERVED_SECONDS, |page, device| {
        device.accounts(page, &device.recent_labels(), |balance| Some(balance.recent?.observed_s));
    }),
    state(UP, |page, device| page.sample(device.labels, Value::U64(device.snapshot.up.into()))),
    state(UTILIZATION, |page, device| {
        if let Some(utilization) = device.snapshot.gpu_utilization {
            page.sample(device.labels, percent(utilization));
        }
    }),
    state(XID_ERRORS, |page, device| by_xid(page, device.labels, &device.snapshot.events.xids)),
];

const fn state(own: Own, write: fn(&mut PageWriter, &Device<'_>)) -> Family {
    Family { own, about: About::State, write }
}

const fn of_use(own: Own, write: fn(&mut PageWriter, &Device<'_>)) -> Family {
    Family { own, about: About::Use, write }
}

const fn of_exporter(own: Own, write: fn(&mut PageWriter, &Device<'_>)) -> Family {
    Family { own, about: About::Exporter, write }
}

/// Writes every family; those about the exporter if `exporter` is set. `devices` gives each device with its
/// labels.
pub(crate) fn write<'a, Devices>(
    page: &mut PageWriter,
    recent_window: &str,
    exporter: bool,
    devices: impl Fn() -> Devices,
) where
    Devices: Iterator<Item = (&'a DeviceSnapshot, &'a LabelText)>,
{
    for Family { own, about, write } in FAMILIES {
        if about == About::Exporter && !exporter {
            continue;
        }
        page.family(own.name, own.kind.as_str(), own.help);
        for (snapshot, labels) in devices().filter(|(device, _)| device.measured || about == About::State) {
            write(page, &Device { snapshot, labels, recent_window });
        }
    }
}

/// Writes when the exporter started. A reader that sees another time knows that every counter began again,
/// also one that has passed its old value since.
pub(crate) fn write_start_time(page: &mut PageWriter, started: SystemTime) {
    if let Ok(since_1970) = started.duration_since(UNIX_EPOCH) {
        page.family(START_TIME.name, START_TIME.kind.as_str(), START_TIME.help);
        page.sample(&LabelText::default(), micros(since_1970.as_secs_f64()));
    }
}

// === impl Device ===

impl Device<'_> {
    fn recent_labels(&self) -> LabelText {
        self.labels.clone().with("window", self.recent_window)
    }

    /// What is known of the division of a shared device.
    fn sharing(&self, page: &mut PageWriter, value: impl Fn(Sharing) -> Option<Value>) {
        if let Some(value) = self.snapshot.sharing.and_then(value) {
            page.sample(self.labels, value);
        }
    }

    /// The whole device's growth, if it is known.
    fn recent(&self, page: &mut PageWriter, seconds: impl Fn(Account) -> f64) {
        if let Some(recent) = self.snapshot.recent {
            page.sample(&self.recent_labels(), micros(seconds(recent)));
        }
    }

    /// One sample for each owner that has series and these seconds.
    fn accounts(&self, page: &mut PageWriter, labels: &LabelText, seconds: impl Fn(&Balance) -> Option<f64>) {
        for (owner, balance) in &self.snapshot.accounts {
            if let Some(seconds) = seconds(balance) {
                page.sample(&labels.and(&owner_labels(owner.as_deref())), micros(seconds));
            }
        }
    }

    /// One sample for each allocation whose part has a value here.
    fn allocations(&self, page: &mut PageWriter, value: impl Fn(Option<f64>) -> Option<Value>) {
        for allocation in self.snapshot.allocations.iter().chain(&self.snapshot.virtual_gpus) {
            let Some(value) = value(allocation.part) else { continue };
            let owner = LabelText::default()
                .with("container", &allocation.container)
                .with("namespace", &allocation.namespace)
                .with("pod", &allocation.pod)
                .with("pod_uid", allocation.pod_uid.as_deref().unwrap_or_default());
            page.sample(&self.labels.and(&owner), value);
        }
    }
}

fn owner_labels(owner: Option<&Owner>) -> LabelText {
    owner.map(|owner| LabelNames::CURRENT.owner(owner)).unwrap_or_default()
}

/// Slots are whole microseconds.
fn micros(seconds: f64) -> Value {
    Value::F64((seconds * 1e6).round() / 1e6)
}

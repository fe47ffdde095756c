//! Owns what a page looks like: families in order, label sets, values.

use podgauge_common::catalogue::own::{
    ACTIVE_SECONDS, ALLOCATION, ATTRIBUTION_UNAVAILABLE, DEVICE_ACTIVE_SECONDS, OBSERVED_SECONDS, OWNERS, UP,
    UTILIZATION,
};
use podgauge_common::catalogue::{Engine, Own, Reading, xid};
use podgauge_common::exposition::write::{LabelText, PageWriter, Value};

use crate::attribution::Owner;
use crate::counters::Counters;
use crate::snapshot::{DeviceSnapshot, Snapshot};

/// What a page is made with, the same for every page.
#[derive(Debug)]
pub(crate) struct Renderer {
    counters: Counters,
    hostname: Vec<(&'static str, String)>,
}

/// The label sets of one GPU.
struct Labels {
    /// gpu, UUID, pci_bus_id, device, modelName, those of a MIG instance, hostname.
    device: LabelText,
    /// `device`, the counters file's label fields, and the owner's.
    dcgm: LabelText,
    /// `device` and the owner's.
    own: LabelText,
}

/// Writes one device's samples of a family.
type WriteSamples = fn(&mut PageWriter, &DeviceSnapshot, &Labels);

/// podgauge's own families by name. With the active and observed seconds a reader makes the mean
/// over any interval.
const OWN_FAMILIES: [(Own, WriteSamples); 8] = [
    (ATTRIBUTION_UNAVAILABLE, |page, device, labels| {
        if let Some(reason) = device.unavailable {
            page.sample(&labels.device.clone().with("reason", reason.as_str()), Value::U64(1));
        }
    }),
    (ACTIVE_SECONDS, |page, device, labels| page.sample(&labels.own, micros(device.account.active_s))),
    (ALLOCATION, allocations),
    (DEVICE_ACTIVE_SECONDS, |page, device, labels| page.sample(&labels.device, micros(device.active_s))),
    (OBSERVED_SECONDS, |page, device, labels| page.sample(&labels.own, micros(device.account.observed_s))),
    (OWNERS, |page, device, labels| {
        if let Some(owners) = device.owners {
            page.sample(&labels.device, Value::U64(owners as u64));
        }
    }),
    (UP, |page, device, labels| page.sample(&labels.device, Value::U64(device.up.into()))),
    (UTILIZATION, |page, device, labels| {
        if let Some(utilization) = device.gpu_utilization {
            page.sample(&labels.device, percent(utilization));
        }
    }),
];

// === impl Renderer ===

impl Renderer {
    pub(crate) fn new(counters: Counters, hostname: Vec<(&'static str, String)>) -> Self {
        Self { counters, hostname }
    }

    /// The page as Prometheus text, families by name.
    pub(crate) fn render(&self, snapshot: &Snapshot) -> String {
        let mut page = PageWriter::with_capacity(16 * 1024);
        let labels: Vec<Labels> = snapshot
            .devices
            .iter()
            .map(|device| self.labels(device, snapshot.driver_version.as_deref()))
            .collect();
        let devices = || snapshot.devices.iter().zip(&labels);
        for (position, counter) in self.counters.served.iter().enumerate() {
            page.family(counter.metric.name, &counter.kind, &counter.help);
            for (device, labels) in devices().filter(|(device, _)| device.up) {
                let value = match counter.metric.reading {
                    // DCGM has no utilization of MIG instances.
                    Reading::Utilization(_) if device.identity.instance.is_some() => None,
                    Reading::Utilization(Engine::Gpu) => device.gpu_utilization.map(percent),
                    Reading::Utilization(Engine::Memory) => device.memory_utilization.map(percent),
                    _ => device.values.get(position).copied().flatten(),
                };
                let Some(value) = value else { continue };
                if counter.metric.reading == Reading::Xid {
                    page.sample(&with_xid(&labels.dcgm, value), value);
                } else {
                    page.sample(&labels.dcgm, value);
                }
            }
        }
        for (own, write) in OWN_FAMILIES {
            page.family(own.name, own.kind.as_str(), own.help);
            let of_use = [ACTIVE_SECONDS, OBSERVED_SECONDS, DEVICE_ACTIVE_SECONDS].contains(&own);
            for (device, labels) in devices().filter(|(device, _)| device.measured || !of_use) {
                write(&mut page, device, labels);
            }
        }
        page.finish()
    }

    fn labels(&self, device: &DeviceSnapshot, driver_version: Option<&str>) -> Labels {
        let identity = &device.identity;
        let mut text = LabelText::default()
            .with("gpu", &identity.index.to_string())
            .with("UUID", &identity.uuid)
            .with("pci_bus_id", &identity.pci_bus_id)
            .with("device", &format!("nvidia{}", identity.index))
            .with("modelName", &identity.model);
        if let Some(instance) = &identity.instance {
            text.push("GPU_I_PROFILE", &instance.profile);
            text.push("GPU_I_ID", &instance.gi.to_string());
        }
        for (name, value) in &self.hostname {
            text.push(name, value);
        }
        let mut dcgm = text.clone();
        if self.counters.driver_version_label
            && let Some(version) = driver_version
        {
            dcgm.push("DCGM_FI_DRIVER_VERSION", version);
        }
        let owner = device.owner.as_deref().map(owner_labels).unwrap_or_default();
        Labels { dcgm: dcgm.and(&owner), own: text.and(&owner), device: text }
    }
}

fn allocations(page: &mut PageWriter, device: &DeviceSnapshot, labels: &Labels) {
    for allocation in &device.allocations {
        let Some(part) = allocation.part else { continue };
        let owner = LabelText::default()
            .with("container", &allocation.container)
            .with("namespace", &allocation.namespace)
            .with("pod", &allocation.pod)
            .with("pod_uid", allocation.pod_uid.as_deref().unwrap_or_default());
        page.sample(&labels.device.and(&owner), Value::F64(part));
    }
}

fn owner_labels(owner: &Owner) -> LabelText {
    LabelText::default()
        .with("container", &owner.container)
        .with("namespace", &owner.namespace)
        .with("pod", &owner.pod)
}

fn with_xid(labels: &LabelText, value: Value) -> LabelText {
    let code = if let Value::U64(code) = value { code } else { 0 };
    labels.clone().with("err_code", &code.to_string()).with("err_msg", xid::message(code))
}

/// Hundredths of a percent are more than the driver resolves; more digits only lengthen the page.
fn percent(value: f64) -> Value {
    Value::F64((value * 100.0).round() / 100.0)
}

/// Slots are whole microseconds.
fn micros(seconds: f64) -> Value {
    Value::F64((seconds * 1e6).round() / 1e6)
}

//! Owns what a page looks like: families in order, label sets, values.

use std::collections::BTreeMap;
use std::time::SystemTime;

use podgauge_common::catalogue::clock_event::REASONS;
use podgauge_common::catalogue::{Engine, Memory, Reading, xid};
use podgauge_common::exposition::write::{LabelText, PageWriter, Value};

use crate::attribution::Owner;
use crate::attribution::allocations::Allocation;
use crate::attribution::pod_labels::PodLabels;
use crate::counters::Counters;
use crate::division::divide;
use crate::gpu::EventWindows;
use crate::own_families;
use crate::snapshot::{DeviceSnapshot, Divided, Snapshot};

/// Hundredths of a percent are more than the driver resolves; more digits only lengthen the page.
pub(crate) const PER_PERCENT: f64 = 100.0;
/// Owners' parts of a memory come in MiB, and what is printed of it in MiB or bytes.
const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;

/// What a page is made with, the same for every page.
#[derive(Debug)]
pub(crate) struct Renderer {
    counters: Counters,
    labelling: Labelling,
    windows: EventWindows,
    started: SystemTime,
}

/// What samples are labelled with besides the GPU's identity.
#[derive(Debug)]
pub(crate) struct Labelling {
    pub(crate) names: LabelNames,
    pub(crate) hostname: Vec<(&'static str, String)>,
    /// `-rbmn`.
    pub(crate) replace_blanks: bool,
    pub(crate) pods: PodLabelling,
    /// The label `window` of what counters gained lately, such as `60s`.
    pub(crate) recent_window: String,
    /// `--enable-exporter-metrics`.
    pub(crate) exporter_metrics: bool,
}

/// What labels of DCGM's families are called. podgauge's own are the same whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LabelNames {
    uuid: &'static str,
    namespace: &'static str,
    pod: &'static str,
    container: &'static str,
}

/// What DCGM's families say of pods besides namespace, pod and container.
#[derive(Debug, Default)]
pub(crate) struct PodLabelling {
    /// `--kubernetes-virtual-gpus`: a copy of each sample for every container and replica.
    pub(crate) virtual_gpus: bool,
    /// `--kubernetes-enable-pod-uid`.
    pub(crate) uid: bool,
    /// `--kubernetes-enable-pod-labels`.
    pub(crate) labels: Option<PodLabels>,
}

/// A page's text, and what it is made of.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// How many samples it holds.
    pub(crate) series: usize,
    /// How many were left out because they were no numbers.
    pub(crate) dropped: usize,
}

/// The label sets of one GPU.
struct Labels {
    /// gpu, UUID, pci_bus_id, device, modelName, those of a MIG instance, hostname.
    device: LabelText,
    /// `device`, and the counters file's label fields.
    dcgm: LabelText,
}

// === impl LabelNames ===

impl LabelNames {
    /// As dcgm-exporter has had them since 2.0.
    pub(crate) const CURRENT: Self =
        Self { uuid: "UUID", namespace: "namespace", pod: "pod", container: "container" };
    /// As dcgm-exporter 1.x had them.
    pub(crate) const OLD: Self =
        Self { uuid: "uuid", namespace: "pod_namespace", pod: "pod_name", container: "container_name" };

    pub(crate) fn owner(self, owner: &Owner) -> LabelText {
        LabelText::default()
            .with(self.container, &owner.container)
            .with(self.namespace, &owner.namespace)
            .with(self.pod, &owner.pod)
    }
}

// === impl Renderer ===

impl Renderer {
    /// Of a program that started just now.
    pub(crate) fn new(counters: Counters, labelling: Labelling, windows: EventWindows) -> Self {
        Self { counters, labelling, windows, started: SystemTime::now() }
    }

    /// Prints other families from now on.
    pub(crate) fn set_counters(&mut self, counters: Counters) {
        self.counters = counters;
    }

    /// The page as Prometheus text, families by name.
    pub(crate) fn render(&self, snapshot: &Snapshot) -> Rendered {
        let mut page = PageWriter::with_capacity(16 * 1024);
        let labels: Vec<Labels> = snapshot.devices.iter().map(|device| self.labels(device)).collect();
        let devices = || snapshot.devices.iter().zip(&labels);
        for (position, counter) in self.counters.served.iter().enumerate() {
            page.family(&counter.name, &counter.kind, &counter.help);
            for (device, labels) in devices() {
                if counter.metric.reading.is_event() {
                    for labels in self.undivided(device, &labels.dcgm) {
                        self.events(&mut page, counter.metric.reading, device, &labels);
                    }
                    continue;
                }
                let metric = counter.metric;
                let value = match metric.reading {
                    // DCGM has no utilization of MIG instances.
                    Reading::Utilization(_) if device.identity.instance.is_some() => None,
                    Reading::Utilization(Engine::Gpu) => device.gpu_utilization.map(percent),
                    Reading::Utilization(Engine::Memory) => {
                        device.memory_utilization.map(|value| metric.printed(percent(value)))
                    }
                    _ => device.values.get(position).copied().flatten(),
                };
                let Some(value) = value.filter(|_| device.up) else { continue };
                match (metric.reading, value) {
                    (Reading::Utilization(Engine::Gpu), Value::F64(percent)) => {
                        let hundredths = (percent * PER_PERCENT).round() as u64;
                        let print = |part| metric.printed(Value::F64(part as f64 / PER_PERCENT));
                        self.divided(
                            &mut page,
                            device,
                            labels,
                            &device.utilization,
                            (hundredths, PER_PERCENT),
                            print,
                        );
                    }
                    (Reading::Memory(Memory::Used), Value::U64(used)) => {
                        let per_mib = BYTES_PER_MIB * metric.scale.factor();
                        self.divided(&mut page, device, labels, &device.memory, (used, per_mib), Value::U64);
                    }
                    _ => {
                        for labels in self.undivided(device, &labels.dcgm) {
                            page.sample(&labels, value);
                        }
                    }
                }
            }
        }
        let Labelling { recent_window, exporter_metrics, .. } = &self.labelling;
        own_families::write(&mut page, recent_window, *exporter_metrics, || {
            devices().map(|(device, labels)| (device, &labels.device))
        });
        if !snapshot.devices.is_empty() {
            own_families::write_start_time(&mut page, self.started);
        }
        Rendered { series: page.samples(), dropped: page.dropped(), text: page.finish() }
    }

    /// As dcgm-exporter has it: runs of blanks become one `-`.
    fn model_name(&self, model: &str) -> String {
        if self.labelling.replace_blanks {
            model.split_whitespace().collect::<Vec<_>>().join("-")
        } else {
            model.to_owned()
        }
    }

    /// What events said. XIDs stay on the page of a GPU that is lost: they say why.
    fn events(&self, page: &mut PageWriter, reading: Reading, device: &DeviceSnapshot, labels: &LabelText) {
        let events = &device.events;
        match reading {
            Reading::Xid => {
                if let Some(last) = events.last_xid {
                    let labels = labels
                        .clone()
                        .with("err_code", &last.to_string())
                        .with("err_msg", xid::message(last));
                    page.sample(&labels, Value::U64(last));
                }
            }
            Reading::XidsTotal => by_xid(page, labels, &events.xids),
            Reading::XidsInWindow if events.last_xid.is_some() => {
                let labels =
                    labels.clone().with("window_size_in_ms", &self.windows.xids.as_millis().to_string());
                if events.xids_in_window.is_empty() {
                    page.sample(&labels, Value::U64(0));
                }
                by_xid(page, &labels, &events.xids_in_window);
            }
            Reading::ClockEventsTotal => by_reason(page, labels, &events.clock_events),
            Reading::ClockEventsInWindow if device.up => {
                let Some(readings) = &events.clock_events_in_window else { return };
                let window = self.windows.clock_events.as_millis().to_string();
                let labels = labels.clone().with("window_size_in_ms", &window);
                if readings.iter().all(|count| *count == 0) {
                    page.sample(&labels, Value::U64(0));
                }
                by_reason(page, &labels, readings);
            }
            _ => {}
        }
    }

    fn labels(&self, device: &DeviceSnapshot) -> Labels {
        let identity = &device.identity;
        let with_uuid = |uuid: &str| {
            let mut text = LabelText::default()
                .with("gpu", &identity.index.to_string())
                .with(uuid, &identity.uuid)
                .with("pci_bus_id", &identity.pci_bus_id)
                .with("device", &format!("nvidia{}", identity.index))
                .with("modelName", &self.model_name(&identity.model));
            if let Some(instance) = &identity.instance {
                text.push("GPU_I_PROFILE", &instance.profile);
                text.push("GPU_I_ID", &instance.gi.to_string());
            }
            for (name, value) in &self.labelling.hostname {
                text.push(name, value);
            }
            text
        };
        let own = with_uuid(LabelNames::CURRENT.uuid);
        let mut dcgm = if self.labelling.names == LabelNames::CURRENT {
            own.clone()
        } else {
            with_uuid(self.labelling.names.uuid)
        };
        self.label_fields(device, &mut dcgm);
        Labels { dcgm, device: own }
    }

    /// Texts are in the order of the labels, and so are the numbers after the metrics served.
    fn label_fields(&self, device: &DeviceSnapshot, labels: &mut LabelText) {
        let mut texts = device.texts.iter();
        let mut numbers = device.values.iter().skip(self.counters.served.len());
        for field in &self.counters.labels {
            if field.text().is_some() {
                labels.push(&field.name, texts.next().and_then(Option::as_deref).unwrap_or_default());
            } else if let Some(Some(value)) = numbers.next() {
                labels.push(&field.name, &value.to_string());
            }
        }
    }

    /// The samples of a family that can be divided. `total` is in the smallest unit that is printed,
    /// `scale` of which make one of the parts'.
    fn divided(
        &self,
        page: &mut PageWriter,
        device: &DeviceSnapshot,
        labels: &Labels,
        divided: &Divided,
        (total, scale): (u64, f64),
        print: impl Fn(u64) -> Value,
    ) {
        let (owners, parts, rest) = match divided {
            Divided::Whole(None) => (Vec::new(), Vec::new(), Some(total)),
            Divided::Whole(Some(owner)) => (vec![owner], vec![total], None),
            Divided::Parts(parts) => {
                let scaled: Vec<f64> = parts.iter().map(|(_, part)| part * scale).collect();
                let (divided, rest) = divide(total, &scaled);
                (parts.iter().map(|(owner, _)| owner).collect(), divided, Some(rest))
            }
        };
        if self.labelling.pods.virtual_gpus {
            page.sample(&labels.dcgm, print(total));
        }
        for (owner, part) in owners.into_iter().zip(parts) {
            let copies = self.copies(device, owner);
            let each = part / copies.len().max(1) as u64;
            for copy in copies {
                page.sample(&labels.dcgm.and(&copy), print(each));
            }
        }
        if let Some(rest) = rest.filter(|_| !self.labelling.pods.virtual_gpus) {
            page.sample(&labels.dcgm, print(rest));
        }
    }

    /// The label sets under which a family is printed that cannot be divided.
    fn undivided(&self, device: &DeviceSnapshot, dcgm: &LabelText) -> Vec<LabelText> {
        if !self.labelling.pods.virtual_gpus || device.allocations.is_empty() {
            return vec![dcgm.and(&self.pod_labels(device, device.owner.as_deref()))];
        }
        let allocations = device.allocations.iter();
        allocations
            .flat_map(|allocation| self.replicas(device, allocation))
            .map(|copy| dcgm.and(&copy))
            .collect()
    }

    /// The label sets of an owner's samples: one, or in virtual-GPU mode one for each replica that
    /// it holds.
    fn copies(&self, device: &DeviceSnapshot, owner: &Owner) -> Vec<LabelText> {
        if !self.labelling.pods.virtual_gpus {
            return vec![self.pod_labels(device, Some(owner))];
        }
        let held = held_by(device, owner);
        let copies: Vec<LabelText> = held.flat_map(|allocation| self.replicas(device, allocation)).collect();
        if copies.is_empty() { vec![self.pod_labels(device, Some(owner))] } else { copies }
    }

    /// One label set for each replica of an allocation, one in all for a whole device.
    fn replicas(&self, device: &DeviceSnapshot, allocation: &Allocation) -> Vec<LabelText> {
        let labels = self.pod_labels(device, Some(&allocation.owner()));
        match &allocation.replicas[..] {
            [] => vec![labels],
            replicas => replicas.iter().map(|replica| labels.clone().with("vgpu", replica)).collect(),
        }
    }

    /// What DCGM's families say of a pod.
    fn pod_labels(&self, device: &DeviceSnapshot, owner: Option<&Owner>) -> LabelText {
        let Some(owner) = owner else { return LabelText::default() };
        let mut labels = self.labelling.names.owner(owner);
        // Of several claims it is the first by name: one sample for each would count the owner's
        // use more than once.
        if let Some(claim) = held_by(device, owner).flat_map(|held| &held.claims).min() {
            claim.add_to(&mut labels);
        }
        if self.labelling.pods.uid {
            labels.push("pod_uid", device.pod_uid(owner).unwrap_or_default());
        }
        if let Some(known) = &self.labelling.pods.labels {
            for (name, value) in known.of(&owner.namespace, &owner.pod).iter() {
                labels.push(name, value);
            }
        }
        labels
    }
}

/// What an owner holds of the device.
fn held_by<'a>(device: &'a DeviceSnapshot, owner: &Owner) -> impl Iterator<Item = &'a Allocation> {
    device.allocations.iter().filter(move |allocation| {
        (&allocation.namespace, &allocation.pod) == (&owner.namespace, &owner.pod)
            && (owner.container.is_empty() || allocation.container == owner.container)
    })
}

pub(crate) fn by_xid(page: &mut PageWriter, labels: &LabelText, counts: &BTreeMap<u64, u64>) {
    for (xid, count) in counts {
        page.sample(&labels.clone().with("xid", &xid.to_string()), Value::U64(*count));
    }
}

fn by_reason(page: &mut PageWriter, labels: &LabelText, counts: &[u64; REASONS.len()]) {
    for (reason, count) in REASONS.into_iter().zip(counts).filter(|(_, count)| **count > 0) {
        page.sample(&labels.clone().with("clock_event", reason), Value::U64(*count));
    }
}

pub(crate) fn percent(value: f64) -> Value {
    Value::F64((value * PER_PERCENT).round() / PER_PERCENT)
}

//! Reads an exporter's page, podgauge's or NVIDIA's, into what is kept of it.

use std::collections::{HashMap, HashSet};

use podgauge_common::exposition::parse::{self, ParseError, Sample};

use super::history::Reading;
use crate::metric::{DEVICE_USE, FamilyId, GPU_UTIL, MEMORY_USED, Metrics, USE, is_ratio};

/// Longest label value that is kept, bytes. Kubernetes names have at most 253.
const MAX_LABEL_BYTES: usize = 512;
/// Most devices of one page: 16 GPUs of 7 instances, with room.
const MAX_DEVICES: usize = 512;
/// Most owners of one page's devices.
const MAX_HOLDINGS: usize = 8192;

/// What is kept of one page.
#[derive(Debug, Default)]
pub struct Page {
    pub devices: Vec<Device>,
    /// Whether it is podgauge's: use is then read from its counters, not from the gauge. `None` if
    /// the page does not tell, as an empty one.
    pub native: Option<bool>,
    /// Samples that were not kept because of a limit, because their value cannot be true, or because
    /// several say different things of the same.
    pub dropped: u64,
}

/// A GPU or MIG instance.
#[derive(Debug, Default)]
pub struct Device {
    /// UUID, with `/GI` for a MIG instance.
    pub key: String,
    /// What distinguishes devices, for `metricLabelSelector`.
    pub labels: Vec<(&'static str, String)>,
    pub owners: Option<f64>,
    /// Seconds in which it was busy, whoever used it.
    active: Option<f64>,
    /// Its use as a gauge, percent.
    utilization: Option<f64>,
    /// MiB. The parts of all owners add up to what the device uses.
    memory_used: Option<f64>,
    memory_samples: MemoryUsed,
    memory_free: Option<f64>,
    memory_reserved: Option<f64>,
    /// Why its use cannot be attributed.
    pub unavailable: Option<String>,
    pub holdings: Vec<Holding>,
    /// What is known of the whole device, without what its only holding says as well.
    pub readings: Vec<(FamilyId, Reading)>,
    /// Seconds for which its use is known, of the series without a pod.
    observed: Option<f64>,
    /// The samples without a pod, one entry a family.
    samples: Vec<Repeated>,
}

/// The samples of a device's memory use, MiB.
#[derive(Debug, Default, Clone, Copy)]
struct MemoryUsed {
    /// Of those that are no replica's copy.
    sum: Option<f64>,
    most: Option<f64>,
}

/// What a container has of a device.
#[derive(Debug, Default)]
pub struct Holding {
    pub namespace: String,
    pub pod: String,
    /// Empty if the exporter does not know.
    pub container: String,
    /// The part of the device that it was given.
    pub allocation: Option<f64>,
    pub pod_uid: Option<String>,
    active: Option<f64>,
    /// Seconds for which its use is known, since it began.
    pub observed: Option<f64>,
    pub readings: Vec<(FamilyId, Reading)>,
    /// The samples as they are read, one entry a family.
    samples: Vec<Repeated>,
    /// Samples of two pods under the same labels: whose the readings are is unknown.
    two_pods: bool,
}

/// The samples of one family and holding; mostly one.
#[derive(Debug)]
struct Repeated {
    family: FamilyId,
    counter: bool,
    first: f64,
    sum: f64,
    count: u64,
    /// Told apart by nothing but labels that make copies; see [`COPY_LABELS`].
    copies: bool,
    equal: bool,
}

/// The labels that tell devices apart, and the older or other spellings of them.
const DEVICE_LABELS: [(&str, &[&str]); 8] = [
    ("gpu", &["gpu"]),
    ("UUID", &["UUID", "uuid"]),
    ("pci_bus_id", &["pci_bus_id"]),
    ("device", &["device"]),
    ("modelName", &["modelName"]),
    ("GPU_I_PROFILE", &["GPU_I_PROFILE"]),
    ("GPU_I_ID", &["GPU_I_ID"]),
    ("hostname", &["hostname", "Hostname"]),
];

/// Labels that repeat a sample: once per replica of a device, once per batch job. Samples told apart
/// by any other label, like a link's or an error's number, are no value of the device.
const COPY_LABELS: [&str; 2] = ["vgpu", "hpc_job"];

/// The families of podgauge's own that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    Active,
    Observed,
    DeviceActive,
    DeviceUtilization,
    Owners,
    Allocation,
    Unavailable,
    MemoryFree,
    MemoryReserved,
}

fn own(name: &str) -> Option<Own> {
    Some(match name {
        "podgauge_gpu_active_seconds_total" => Own::Active,
        "podgauge_gpu_observed_seconds_total" => Own::Observed,
        "podgauge_gpu_device_active_seconds_total" => Own::DeviceActive,
        "podgauge_gpu_utilization" => Own::DeviceUtilization,
        "podgauge_gpu_owners" => Own::Owners,
        "podgauge_gpu_allocation" => Own::Allocation,
        "podgauge_attribution_unavailable" => Own::Unavailable,
        "DCGM_FI_DEV_FB_FREE" => Own::MemoryFree,
        "DCGM_FI_DEV_FB_RESERVED" => Own::MemoryReserved,
        _ => return None,
    })
}

/// Reads a page. The error names the line.
pub fn read(text: &str, metrics: &Metrics) -> Result<Page, ParseError> {
    let mut reader = Reader { page: Page::default(), devices: HashMap::new(), holdings: HashMap::new() };
    let types = Types::read(text, metrics);
    let mut native = types.native;
    for sample in parse::samples(text) {
        let sample = sample?;
        native |= is_native(sample.name);
        let (own, family) = (own(sample.name), metrics.family(sample.name));
        if own.is_none() && family.is_none() {
            continue;
        }
        if !plausible(own, family, &sample)
            || sample.labels.iter().any(|(_, value)| value.len() > MAX_LABEL_BYTES)
        {
            reader.page.dropped += 1;
            continue;
        }
        let kept = own.map_or(Ok(()), |own| reader.own(own, &sample)).and_then(|()| match family {
            Some(family) => reader.family(family, &sample, types.counters.contains(&family)),
            None => Ok(()),
        });
        if let Err(Full) = kept {
            reader.page.dropped += 1;
        }
    }
    Ok(reader.finish(native))
}

/// Whether only podgauge's exporter has such a family. Its metrics about itself tell nothing: they
/// stand on an empty page, too, but any exporter behind a proxy of ours could have them.
fn is_native(name: &str) -> bool {
    name.starts_with("podgauge_gpu_") || name == "podgauge_attribution_unavailable"
}

/// Whether a value can be true. What DCGM prints for "not read" cannot.
fn plausible(own: Option<Own>, family: Option<FamilyId>, sample: &Sample<'_>) -> bool {
    let value = sample.value;
    let blank = BLANKS.iter().any(|blanks| blanks.contains(&value));
    let percent = 0.0..=100.0;
    value.is_finite()
        && !blank
        && match own {
            Some(Own::DeviceUtilization) => percent.contains(&value),
            // A hair for what is lost in printing.
            Some(Own::Allocation) => value > 0.0 && value <= 1.0 + 1e-6,
            Some(_) => value >= 0.0,
            None => true,
        }
        && match family {
            Some(USE) => percent.contains(&value),
            Some(family) if is_ratio(family) => (0.0..=1.0 + 1e-6).contains(&value),
            Some(MEMORY_USED | crate::metric::POWER) => value >= 0.0,
            _ => true,
        }
}

/// What DCGM calls a blank: a number beyond what is measured, and the reasons right after it, in 32
/// and 64 bits and as a float.
const BLANKS: [std::ops::RangeInclusive<f64>; 3] = [
    2_147_483_632.0..=2_147_483_635.0,
    9_223_372_036_854_775_000.0..=9_223_372_036_854_776_000.0,
    140_737_488_355_328.0..=140_737_488_355_331.0,
];

/// What the page's TYPE lines tell.
#[derive(Default)]
struct Types {
    /// The kept families that are counters.
    counters: HashSet<FamilyId>,
    native: bool,
}

impl Types {
    fn read(text: &str, metrics: &Metrics) -> Self {
        let mut types = Self::default();
        let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for (name, kind) in lines.filter_map(|line| line.split_once(' ')) {
            types.native |= is_native(name);
            if kind.trim() == "counter" {
                types.counters.extend(metrics.family(name));
            }
        }
        types
    }
}

// === impl Device ===

impl Device {
    /// How much memory is used, by samples of its owners. Ours add up to the device's; another
    /// exporter repeats the device's for each owner.
    fn use_memory(&mut self, used: &MemoryUsed, native: bool) {
        self.memory_used = if native { used.sum.or(used.most) } else { used.most };
    }

    /// What is known of the whole device, without what its only holding says as well. Samples
    /// without a pod speak of the device; where there are none, what is said for every pod alike.
    fn whole(&mut self, native: bool, single: bool) -> Vec<(FamilyId, Reading)> {
        let mut whole: Vec<(FamilyId, Reading)> = std::mem::take(&mut self.samples)
            .into_iter()
            .filter(|samples| samples.count == 1 && samples.family != MEMORY_USED)
            .filter_map(|samples| Some((samples.family, samples.reading(native)?)))
            .collect();
        if let [first, others @ ..] = &self.holdings[..] {
            let alike =
                |known: &(FamilyId, Reading)| others.iter().all(|other| other.readings.contains(known));
            for known in first.readings.iter().filter(|known| known.0 != MEMORY_USED && alike(known)) {
                if whole.iter().all(|(family, _)| *family != known.0) {
                    whole.push(*known);
                }
            }
        }
        let gauge = whole.iter().find(|(family, _)| *family == USE).map(|(_, reading)| *reading);
        whole.retain(|(family, _)| !matches!(*family, USE | DEVICE_USE));
        let weight = match &self.holdings[..] {
            [] => self.observed,
            [only] => only.observed,
            _ => None,
        };
        let device_use = match (self.active.filter(|_| single), weight) {
            _ if !native => gauge,
            (Some(sum), Some(weight)) => Some(Reading::Share { sum, weight }),
            _ => self.utilization.map(|percent| Reading::Gauge(percent / 100.0)),
        };
        whole.extend(device_use.map(|reading| (DEVICE_USE, reading)));
        whole.extend(self.memory_used.map(|used| (MEMORY_USED, Reading::Gauge(used))));
        if let [only] = &self.holdings[..] {
            whole.retain(|known| !only.readings.contains(known));
        }
        whole
    }

    /// Memory of the device, MiB, where the page tells all of its parts.
    pub fn memory_total(&self) -> Option<f64> {
        Some(self.memory_used? + self.memory_free? + self.memory_reserved.unwrap_or_default())
    }
}

// === impl Reader ===

/// A limit on devices or owners bites.
struct Full;

struct Reader {
    page: Page,
    devices: HashMap<String, usize>,
    /// Device, namespace, pod, container.
    holdings: HashMap<(usize, String, String, String), usize>,
}

impl Reader {
    /// Samples without a device are of no use and no loss.
    fn own(&mut self, own: Own, sample: &Sample<'_>) -> Result<(), Full> {
        let Some(key) = device_key(sample) else { return Ok(()) };
        let device = self.device(key, sample)?;
        let value = Some(sample.value);
        match own {
            Own::DeviceActive => self.page.devices[device].active = value,
            Own::DeviceUtilization => self.page.devices[device].utilization = value,
            Own::Owners => self.page.devices[device].owners = value,
            Own::MemoryFree => self.page.devices[device].memory_free = value,
            Own::MemoryReserved => self.page.devices[device].memory_reserved = value,
            Own::Unavailable => {
                let reason = sample.label("reason").unwrap_or("no reason given");
                if sample.value > 0.0 {
                    self.page.devices[device].unavailable = Some(reason.to_owned());
                }
            }
            Own::Active | Own::Observed | Own::Allocation => {
                let Some(holding) = self.holding(device, sample)? else {
                    if own == Own::Observed {
                        self.page.devices[device].observed = value;
                    }
                    return Ok(());
                };
                match own {
                    Own::Active => holding.active = value,
                    Own::Observed => holding.observed = value,
                    _ => holding.allocation = value,
                }
            }
        }
        Ok(())
    }

    fn family(&mut self, family: FamilyId, sample: &Sample<'_>, counter: bool) -> Result<(), Full> {
        let Some(key) = device_key(sample) else { return Ok(()) };
        let device = self.device(key, sample)?;
        if family == MEMORY_USED {
            let used = &mut self.page.devices[device].memory_samples;
            used.most = Some(used.most.map_or(sample.value, |most| most.max(sample.value)));
            if sample.label("vgpu").is_none() {
                *used.sum.get_or_insert(0.0) += sample.value;
            }
        }
        let value = if sample.name == GPU_UTIL { sample.value / 100.0 } else { sample.value };
        let copy = COPY_LABELS.iter().any(|label| sample.label(label).is_some());
        let samples = match self.holding(device, sample)? {
            Some(holding) => &mut holding.samples,
            None => &mut self.page.devices[device].samples,
        };
        match samples.iter_mut().find(|known| known.family == family) {
            None => samples.push(Repeated {
                family,
                counter,
                first: value,
                sum: value,
                count: 1,
                copies: copy,
                equal: true,
            }),
            Some(known) => {
                known.sum += value;
                known.count += 1;
                known.copies &= copy;
                known.equal &= value.to_bits() == known.first.to_bits();
            }
        }
        Ok(())
    }

    fn device(&mut self, key: String, sample: &Sample<'_>) -> Result<usize, Full> {
        if let Some(at) = self.devices.get(&key) {
            return Ok(*at);
        }
        if self.page.devices.len() >= MAX_DEVICES {
            return Err(Full);
        }
        let labels = DEVICE_LABELS.iter().filter_map(|(name, spellings)| {
            Some((*name, spellings.iter().find_map(|label| sample.label(label))?.to_owned()))
        });
        let device = Device { key: key.clone(), labels: labels.collect(), ..Device::default() };
        self.devices.insert(key, self.page.devices.len());
        self.page.devices.push(device);
        Ok(self.page.devices.len() - 1)
    }

    /// The holding that a sample speaks of; `None` for a sample without a pod.
    fn holding(&mut self, device: usize, sample: &Sample<'_>) -> Result<Option<&mut Holding>, Full> {
        let label = |names: [&str; 2]| names.iter().find_map(|name| sample.label(name));
        let pod = label(["pod", "pod_name"]);
        let namespace = label(["namespace", "pod_namespace"]);
        let (Some(pod), Some(namespace)) = (pod, namespace) else { return Ok(None) };
        let container = label(["container", "container_name"]).unwrap_or_default();
        let key = (device, namespace.to_owned(), pod.to_owned(), container.to_owned());
        let at = match self.holdings.get(&key) {
            Some(at) => *at,
            None if self.holdings.len() >= MAX_HOLDINGS => return Err(Full),
            None => {
                let (_, namespace, pod, container) = key.clone();
                let holdings = &mut self.page.devices[device].holdings;
                holdings.push(Holding { namespace, pod, container, ..Holding::default() });
                let at = holdings.len() - 1;
                self.holdings.insert(key, at);
                at
            }
        };
        let holding = &mut self.page.devices[device].holdings[at];
        if let Some(uid) = sample.label("pod_uid") {
            holding.two_pods |= holding.pod_uid.as_deref().is_some_and(|known| known != uid);
            holding.pod_uid = Some(uid.to_owned());
        }
        Ok(Some(holding))
    }

    /// Puts the use of devices and owners into readings, now that all of the page is known.
    fn finish(mut self, says_native: bool) -> Page {
        let speaks_of_pods = !self.holdings.is_empty();
        self.page.native = (says_native || speaks_of_pods).then_some(says_native);
        for device in &mut self.page.devices {
            let used = device.memory_samples;
            device.use_memory(&used, says_native);
            let single = device.owners.is_none_or(|owners| owners <= 1.0);
            for holding in &mut device.holdings {
                if holding.two_pods {
                    self.page.dropped += 1;
                    holding.pod_uid = None;
                    continue;
                }
                for samples in std::mem::take(&mut holding.samples) {
                    match samples.reading(says_native) {
                        Some(reading) => holding.readings.push((samples.family, reading)),
                        None => self.page.dropped += samples.count,
                    }
                }
                let gauge = holding.readings.iter().find(|(family, _)| *family == USE).copied();
                if says_native {
                    holding.readings.retain(|(family, _)| *family != USE);
                }
                let share = |sum| Some(Reading::Share { sum, weight: holding.observed? });
                let device_use = match device.active {
                    // An owner of a shared device has fewer observed seconds than the device.
                    Some(active) if single => share(active),
                    _ => device.utilization.map(|percent| Reading::Gauge(percent / 100.0)),
                };
                let device_use = if says_native { device_use } else { gauge.map(|(_, reading)| reading) };
                let use_ = holding.active.and_then(share).filter(|_| says_native);
                holding.readings.extend(use_.map(|reading| (USE, reading)));
                holding.readings.extend(device_use.map(|reading| (DEVICE_USE, reading)));
            }
            device.readings = device.whole(says_native, single);
        }
        self.page
    }
}

// === impl Repeated ===

impl Repeated {
    /// What all of them say together; `None` if that cannot be told.
    fn reading(&self, native: bool) -> Option<Reading> {
        let value = match self.count {
            1 => self.first,
            _ if !self.copies => return None,
            // Ours splits a pod's memory over its replicas, others repeat the device's.
            _ if native && self.family == MEMORY_USED => self.sum,
            _ if self.equal => self.first,
            _ => return None,
        };
        Some(if self.counter { Reading::Rate(value) } else { Reading::Gauge(value) })
    }
}

fn device_key(sample: &Sample<'_>) -> Option<String> {
    let uuid = sample.label("UUID").or_else(|| sample.label("uuid")).or_else(|| sample.label("gpu"))?;
    Some(match sample.label("GPU_I_ID") {
        Some(instance) => format!("{uuid}/{instance}"),
        None => uuid.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::metric::POWER;

    const GPU: &str = r#"gpu="0",UUID="GPU-a",device="nvidia0",modelName="H100",hostname="n""#;
    const POD: &str = r#"namespace="demo",pod="p",container="c""#;

    fn page(lines: &[String]) -> Page {
        let energy = crate::metric::MetricFlag::parse("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION").unwrap();
        read(&(lines.join("\n") + "\n"), &Metrics::new(&[energy])).unwrap()
    }

    #[test]
    fn podgauges_counters_come_before_the_gauge() {
        let page = page(&[
            format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12.5"),
            format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
            format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 20"),
            format!("podgauge_gpu_owners{{{GPU}}} 1"),
            format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"u\"}} 1"),
            format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 99"),
            format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 100"),
            format!("DCGM_FI_DEV_FB_FREE{{{GPU},{POD}}} 300"),
            format!("DCGM_FI_DEV_SM_CLOCK{{{GPU},{POD}}} 1"),
        ]);
        assert_eq!(page.native, Some(true));
        let [device] = &page.devices[..] else { panic!("{page:?}") };
        assert_eq!((device.key.as_str(), device.memory_total()), ("GPU-a", Some(400.0)));
        assert!(device.labels.contains(&("modelName", "H100".to_owned())));
        let [holding] = &device.holdings[..] else { panic!("{device:?}") };
        assert_eq!((holding.allocation, holding.pod_uid.as_deref()), (Some(1.0), Some("u")));
        assert_eq!(
            holding.readings,
            [
                (MEMORY_USED, Reading::Gauge(100.0)),
                (USE, Reading::Share { sum: 12.5, weight: 50.0 }),
                (DEVICE_USE, Reading::Share { sum: 20.0, weight: 50.0 }),
            ]
        );
    }

    #[test]
    fn a_whole_device_is_told_once() {
        let of = |lines: &[String]| page(lines).devices[0].readings.clone();
        let other = "namespace=\"demo\",pod=\"q\",container=\"c\"";
        let mut lines = vec![
            format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 20"),
            format!("podgauge_gpu_utilization{{{GPU}}} 50"),
            format!("podgauge_gpu_owners{{{GPU}}} 0"),
            format!("podgauge_gpu_observed_seconds_total{{{GPU}}} 80"),
            format!("DCGM_FI_DEV_FB_USED{{{GPU}}} 100"),
            format!("DCGM_FI_DEV_POWER_USAGE{{{GPU}}} 70"),
        ];
        let share = (DEVICE_USE, Reading::Share { sum: 20.0, weight: 80.0 });
        let (memory, power) = (|mib| (MEMORY_USED, Reading::Gauge(mib)), (POWER, Reading::Gauge(70.0)));
        assert_eq!(of(&lines), [power, share, memory(100.0)], "a free device");
        lines.truncate(2);
        for pod in [POD, other] {
            lines.push(format!("podgauge_gpu_observed_seconds_total{{{GPU},{pod}}} 9"));
            lines.push(format!("podgauge_gpu_active_seconds_total{{{GPU},{pod}}} 9"));
            lines.push(format!("DCGM_FI_DEV_FB_USED{{{GPU},{pod}}} 100"));
        }
        lines.push(format!("podgauge_gpu_owners{{{GPU}}} 2"));
        let gauge = (DEVICE_USE, Reading::Gauge(0.5));
        assert_eq!(of(&lines), [gauge, memory(200.0)], "a shared one");
        let held = vec![
            format!("podgauge_gpu_device_active_seconds_total{{{GPU}}} 20"),
            format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12"),
            format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
            format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 100"),
            format!("DCGM_FI_DEV_POWER_USAGE{{{GPU},{POD}}} 70"),
        ];
        assert_eq!(of(&held), [], "its only holding says it");
        let theirs: Vec<String> =
            [POD, other].iter().map(|pod| format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{pod}}} 50")).collect();
        assert_eq!(of(&theirs), [gauge], "NVIDIA's says it for each pod");
        assert_eq!(of(&[format!("DCGM_FI_DEV_GPU_UTIL{{{GPU}}} 50")]), [gauge]);
    }

    #[test]
    fn nvidias_exporter_has_gauges_only() {
        let page = page(&[
            format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 50"),
            "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned(),
            format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{GPU},{POD}}} 7"),
        ]);
        assert_eq!(page.native, Some(false));
        let readings = &page.devices[0].holdings[0].readings;
        assert!(readings.contains(&(USE, Reading::Gauge(0.5))));
        assert!(readings.contains(&(DEVICE_USE, Reading::Gauge(0.5))));
        assert!(readings.iter().any(|(_, reading)| *reading == Reading::Rate(7.0)));
    }

    #[test]
    fn instances_are_devices_and_unlabelled_samples_nobodys() {
        let page = page(&[
            format!("podgauge_gpu_observed_seconds_total{{{GPU},GPU_I_ID=\"3\",{POD}}} 5"),
            format!("podgauge_gpu_observed_seconds_total{{{GPU}}} 5"),
            format!("podgauge_attribution_unavailable{{{GPU},reason=\"no host PIDs\"}} 1"),
        ]);
        assert_eq!(page.devices[0].key, "GPU-a/3");
        assert_eq!(page.devices[1].key, "GPU-a");
        assert!(page.devices[1].holdings.is_empty());
        assert_eq!(page.devices[1].unavailable.as_deref(), Some("no host PIDs"));
    }

    #[test]
    fn what_is_too_long_too_many_or_no_number_is_dropped_and_counted() {
        let long = "x".repeat(MAX_LABEL_BYTES + 1);
        let mut lines = vec![
            format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} NaN"),
            format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},pod=\"{long}\"}} 1"),
        ];
        lines.extend((0..=MAX_DEVICES).map(|i| format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"{i}\"}} 1")));
        let page = page(&lines);
        assert_eq!((page.devices.len(), page.dropped), (MAX_DEVICES, 3));
    }

    #[test]
    fn whose_page_it_is_may_stay_open() {
        for (line, native) in [
            ("podgauge_exporter_build_info 1".to_owned(), None),
            ("# TYPE podgauge_gpu_up gauge".to_owned(), Some(true)),
            (format!("DCGM_FI_DEV_GPU_UTIL{{{GPU}}} 1"), None),
            (format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 1"), Some(false)),
        ] {
            assert_eq!(page(std::slice::from_ref(&line)).native, native, "{line}");
        }
    }

    #[test]
    fn samples_of_one_holding_are_combined_or_dropped() {
        let of = |page: &Page| page.devices[0].holdings[0].readings.clone();
        let lines = |family: &str, values: [(&str, u8); 2]| -> Vec<String> {
            values.iter().map(|(label, value)| format!("{family}{{{GPU},{POD},{label}}} {value}")).collect()
        };
        let replicas = lines("DCGM_FI_DEV_FB_USED", [("vgpu=\"0\"", 40), ("vgpu=\"1\"", 40)]);
        let mut ours = replicas;
        ours.push(format!("DCGM_FI_DEV_FB_USED{{{GPU}}} 100"));
        ours.push(format!("DCGM_FI_DEV_FB_FREE{{{GPU}}} 300"));
        let mut theirs = ours.clone();
        ours.push(format!("podgauge_gpu_up{{{GPU}}} 1"));
        assert_eq!(of(&page(&ours)), [(MEMORY_USED, Reading::Gauge(80.0))], "split over its replicas");
        assert_eq!(page(&ours).devices[0].memory_total(), Some(400.0));
        assert_eq!(of(&page(&theirs)), [(MEMORY_USED, Reading::Gauge(40.0))], "repeated per replica");
        theirs.push(format!("DCGM_FI_DEV_FB_USED{{{GPU},namespace=\"demo\",pod=\"p\",container=\"d\"}} 100"));
        assert_eq!(page(&theirs).devices[0].memory_total(), Some(400.0), "not once per container");
        let links =
            page(&lines("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", [("link=\"0\"", 1), ("link=\"1\"", 1)]));
        assert_eq!((of(&links), links.dropped), (vec![], 2), "of which link would it be?");
    }

    #[test]
    fn what_cannot_be_true_is_dropped_and_counted() {
        for line in [
            format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} 101"),
            format!("DCGM_FI_DEV_GPU_UTIL{{{GPU},{POD}}} -1"),
            format!("DCGM_FI_DEV_FB_USED{{{GPU},{POD}}} 9223372036854775792"),
            format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{GPU},{POD}}} 2147483634"),
            format!("DCGM_FI_PROF_SM_ACTIVE{{{GPU},{POD}}} 140737488355328"),
            format!("DCGM_FI_PROF_SM_ACTIVE{{{GPU},{POD}}} 3"),
            format!("podgauge_gpu_utilization{{{GPU}}} 130"),
            format!("podgauge_gpu_allocation{{{GPU},{POD}}} 1.5"),
            format!("podgauge_gpu_allocation{{{GPU},{POD}}} 0"),
        ] {
            let page = page(std::slice::from_ref(&line));
            assert_eq!((page.dropped, page.devices.len()), (1, 0), "{line}");
        }
    }

    #[test]
    fn readings_under_the_labels_of_two_pods_are_nobodys() {
        let page = page(&[
            format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"a\"}} 0.5"),
            format!("podgauge_gpu_allocation{{{GPU},{POD},pod_uid=\"b\"}} 0.5"),
            format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 1"),
            format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 5"),
        ]);
        assert!(page.devices[0].holdings[0].readings.is_empty());
        assert_eq!(page.dropped, 1);
    }

    #[test]
    fn a_page_that_is_no_page_is_refused() {
        let error = read("a 1\n<html>\n", &Metrics::new(&[])).unwrap_err();
        assert_eq!(error.line, 2);
    }
}

//! Reads an exporter's page, podgauge's or NVIDIA's, into what is kept of it: piece by piece as it
//! comes, so that a page never lies in memory whole.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use podgauge_common::exposition::parse::{self, ParseError, Sample};

use super::history::Reading;
use super::labels::Labels;
use crate::metric::{DEVICE_USE, FamilyId, GPU_UTIL, MEMORY_USED, Metrics, USE, is_ratio};

/// Longest label value that is kept, bytes. Kubernetes names have at most 253.
const MAX_LABEL_BYTES: usize = 512;
/// Most devices of one page: 16 GPUs of 7 instances, with room.
const MAX_DEVICES: usize = 512;
/// Most owners of one page's devices.
const MAX_HOLDINGS: usize = 8192;
/// Most bytes of names and labels that are kept of one page. 56 instances with 5,600 owners have
/// half of it.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Longest line, bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

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
    pub labels: Labels,
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
    first: f64,
    sum: f64,
    count: u64,
    /// Told apart by nothing but labels that make copies; see [`COPY_LABELS`].
    copies: bool,
    equal: bool,
}

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

/// Why what an exporter sends is no page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("the page cannot be read: {0}")]
    Line(#[from] ParseError),
    #[error("the page cannot be read: line {line} or one soon after is not UTF-8")]
    NotText { line: usize },
    #[error("the page cannot be read: line {line} is longer than {MAX_LINE_BYTES} bytes")]
    LongLine { line: usize },
    #[error("the page ends in the middle of line {line}")]
    Cut { line: usize },
}

/// Reads a whole page. The error names the line.
pub fn read(text: &str, metrics: &Metrics) -> Result<Page, PageError> {
    let mut reader = PageReader::new(metrics);
    reader.push(text.as_bytes())?;
    reader.finish()
}

/// A page that is being read.
#[derive(Debug)]
pub struct PageReader<'m> {
    metrics: &'m Metrics,
    /// Lines read so far.
    lines: usize,
    /// The beginning of the line that the last piece ended in.
    begun: Vec<u8>,
    types: Types,
    kept: Kept,
}

impl<'m> PageReader<'m> {
    pub fn new(metrics: &'m Metrics) -> Self {
        Self { metrics, lines: 0, begun: Vec::new(), types: Types::default(), kept: Kept::default() }
    }

    /// Reads the next piece, cut wherever it may be. After an error the page is lost.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), PageError> {
        let end = piece.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (mut whole, rest) = piece.split_at(end);
        if !whole.is_empty() && !self.begun.is_empty() {
            let first = whole.iter().position(|byte| *byte == b'\n').map_or(end, |at| at + 1);
            self.begin(&whole[..first])?;
            let mut line = std::mem::take(&mut self.begun);
            self.read(&line)?;
            line.clear();
            self.begun = line;
            whole = &whole[first..];
        }
        self.read(whole)?;
        self.begin(rest)
    }

    /// What was kept of the page, now that all of it is known.
    pub fn finish(self) -> Result<Page, PageError> {
        match self.begun.is_empty() {
            true => Ok(self.kept.finish(&self.types)),
            false => Err(PageError::Cut { line: self.lines + 1 }),
        }
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), PageError> {
        if self.begun.len() + bytes.len() > MAX_LINE_BYTES {
            return Err(PageError::LongLine { line: self.lines + 1 });
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads whole lines.
    fn read(&mut self, lines: &[u8]) -> Result<(), PageError> {
        let text = std::str::from_utf8(lines).map_err(|_| PageError::NotText { line: self.lines + 1 })?;
        for (at, line) in text.split_terminator('\n').enumerate() {
            if let Some(comment) = line.strip_prefix('#') {
                self.types.read(comment, self.metrics);
                continue;
            }
            if let Some(name) = plain_name(line) {
                self.types.native |= is_native(name);
                if own(name).is_none() && self.metrics.family(name).is_none() {
                    continue;
                }
            }
            for sample in parse::samples(line) {
                let sample = sample.map_err(|error| ParseError { line: self.lines + at + 1, ..error })?;
                self.kept.sample(&sample, self.metrics);
            }
        }
        self.lines += lines.iter().filter(|byte| **byte == b'\n').count();
        Ok(())
    }
}

/// The name of what looks like a sample; most are of no use, and not read any further. `None` where
/// only reading it can tell.
fn plain_name(line: &str) -> Option<&str> {
    let end =
        line.bytes().position(|byte| !(byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'))?;
    let (name, rest) = line.split_at(end);
    let value = rest.bytes().rposition(|byte| byte == b' ').and_then(|at| rest.as_bytes().get(at + 1))?;
    let number = value.is_ascii_digit() || b"+-.NI".contains(value);
    (number && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
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
#[derive(Debug, Default)]
struct Types {
    /// The kept families that are counters.
    counters: HashSet<FamilyId>,
    native: bool,
}

impl Types {
    /// Reads what follows the `#` of a comment.
    fn read(&mut self, comment: &str, metrics: &Metrics) {
        let Some((name, kind)) = comment.strip_prefix(" TYPE ").and_then(|of| of.split_once(' ')) else {
            return;
        };
        self.native |= is_native(name);
        if kind.trim() == "counter" {
            self.counters.extend(metrics.family(name));
        }
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
    fn whole(&mut self, native: bool, single: bool, types: &Types) -> Vec<(FamilyId, Reading)> {
        let mut whole: Vec<(FamilyId, Reading)> = std::mem::take(&mut self.samples)
            .into_iter()
            .filter(|samples| samples.count == 1 && samples.family != MEMORY_USED)
            .filter_map(|samples| {
                Some((samples.family, samples.reading(native, types.counters.contains(&samples.family))?))
            })
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

    /// Forgets what was said twice and differently, and counts it.
    fn drop_contradictions(&mut self) -> u64 {
        let of_holdings = self
            .holdings
            .iter_mut()
            .flat_map(|holding| [&mut holding.active, &mut holding.observed, &mut holding.allocation]);
        let of_device = [
            &mut self.active,
            &mut self.utilization,
            &mut self.owners,
            &mut self.memory_free,
            &mut self.memory_reserved,
            &mut self.observed,
        ];
        let mut dropped = 0;
        for value in of_device.into_iter().chain(of_holdings) {
            if value.take_if(|value| value.is_nan()).is_some() {
                dropped += 1;
            }
        }
        dropped
    }

    /// Memory of the device, MiB, where the page tells all of its parts.
    pub fn memory_total(&self) -> Option<f64> {
        Some(self.memory_used? + self.memory_free? + self.memory_reserved.unwrap_or_default())
    }
}

// === impl Kept ===

/// A limit on devices, owners or text bites.
struct Full;

/// Owners of a device that are looked for one by one.
const FEW: usize = 8;

/// What is kept of a page so far.
#[derive(Debug, Default)]
struct Kept {
    page: Page,
    devices: HashMap<String, usize>,
    /// Owners of all devices.
    owners: usize,
    /// The owners of a device after the first [`FEW`]: device, namespace, pod, container.
    further: HashMap<(usize, String, String, String), usize>,
    /// Bytes of names and labels.
    text: usize,
}

impl Kept {
    /// Keeps what is of use.
    fn sample(&mut self, sample: &Sample<'_>, metrics: &Metrics) {
        let (own, family) = (own(sample.name), metrics.family(sample.name));
        if own.is_none() && family.is_none() {
            return;
        }
        if !plausible(own, family, sample)
            || sample.labels.iter().any(|(_, value)| value.len() > MAX_LABEL_BYTES)
        {
            self.page.dropped += 1;
            return;
        }
        let kept = own.map_or(Ok(()), |own| self.own(own, sample));
        let kept = kept.and_then(|()| family.map_or(Ok(()), |family| self.family(family, sample)));
        if let Err(Full) = kept {
            self.page.dropped += 1;
        }
    }

    /// Samples without a device are of no use and no loss.
    fn own(&mut self, own: Own, sample: &Sample<'_>) -> Result<(), Full> {
        let Some(key) = device_key(sample) else { return Ok(()) };
        let device = self.device(key, sample)?;
        let value = sample.value;
        let Some(place) = (match own {
            Own::DeviceActive => Some(&mut self.page.devices[device].active),
            Own::DeviceUtilization => Some(&mut self.page.devices[device].utilization),
            Own::Owners => Some(&mut self.page.devices[device].owners),
            Own::MemoryFree => Some(&mut self.page.devices[device].memory_free),
            Own::MemoryReserved => Some(&mut self.page.devices[device].memory_reserved),
            Own::Unavailable => {
                let reason = sample.label("reason").unwrap_or("no reason given");
                if value > 0.0 {
                    self.page.devices[device].unavailable = Some(reason.to_owned());
                }
                None
            }
            Own::Active => {
                self.place_of(device, sample)?.map(|at| &mut self.page.devices[device].holdings[at].active)
            }
            Own::Allocation => self
                .place_of(device, sample)?
                .map(|at| &mut self.page.devices[device].holdings[at].allocation),
            Own::Observed => match self.place_of(device, sample)? {
                Some(at) => Some(&mut self.page.devices[device].holdings[at].observed),
                None => Some(&mut self.page.devices[device].observed),
            },
        }) else {
            return Ok(());
        };
        // NaN stands for two that differ: no page has it, because it is no plausible value.
        let differs = |known: f64| known.to_bits() != value.to_bits();
        *place = Some(if place.is_some_and(differs) { f64::NAN } else { value });
        Ok(())
    }

    fn family(&mut self, family: FamilyId, sample: &Sample<'_>) -> Result<(), Full> {
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
        let samples = match self.place_of(device, sample)? {
            Some(at) => &mut self.page.devices[device].holdings[at].samples,
            None => &mut self.page.devices[device].samples,
        };
        match samples.iter_mut().find(|known| known.family == family) {
            None => samples.push(Repeated {
                family,
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

    fn device(&mut self, key: Cow<'_, str>, sample: &Sample<'_>) -> Result<usize, Full> {
        if let Some(at) = self.devices.get(&*key) {
            return Ok(*at);
        }
        if self.page.devices.len() >= MAX_DEVICES {
            return Err(Full);
        }
        let labels = Labels::of(sample);
        self.room_for(key.len() + labels.bytes())?;
        let device = Device { key: key.clone().into_owned(), labels, ..Device::default() };
        self.devices.insert(key.into_owned(), self.page.devices.len());
        self.page.devices.push(device);
        Ok(self.page.devices.len() - 1)
    }

    fn find(&self, device: usize, namespace: &str, pod: &str, container: &str) -> Option<usize> {
        let few = self.page.devices[device].holdings.iter().take(FEW);
        let found = few.enumerate().find(|(_, known)| {
            known.pod == pod && known.container == container && known.namespace == namespace
        });
        if found.is_some() || self.page.devices[device].holdings.len() <= FEW {
            return found.map(|(at, _)| at);
        }
        let key = (device, namespace.to_owned(), pod.to_owned(), container.to_owned());
        self.further.get(&key).copied()
    }

    fn room_for(&mut self, text: usize) -> Result<(), Full> {
        if self.text + text > MAX_TEXT_BYTES {
            return Err(Full);
        }
        self.text += text;
        Ok(())
    }

    /// The place of the holding that a sample speaks of; `None` for a sample without a pod.
    fn place_of(&mut self, device: usize, sample: &Sample<'_>) -> Result<Option<usize>, Full> {
        let label = |names: [&str; 2]| names.iter().find_map(|name| sample.label(name));
        let pod = label(["pod", "pod_name"]);
        let namespace = label(["namespace", "pod_namespace"]);
        let (Some(pod), Some(namespace)) = (pod, namespace) else { return Ok(None) };
        let container = label(["container", "container_name"]).unwrap_or_default();
        let at = match self.find(device, namespace, pod, container) {
            Some(at) => at,
            None if self.owners >= MAX_HOLDINGS => return Err(Full),
            None => {
                self.room_for(namespace.len() + pod.len() + container.len())?;
                let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
                let holdings = &mut self.page.devices[device].holdings;
                let at = holdings.len();
                if at >= FEW {
                    let key = (device, namespace.clone(), pod.clone(), container.clone());
                    self.further.insert(key, at);
                }
                holdings.push(Holding { namespace, pod, container, ..Holding::default() });
                self.owners += 1;
                at
            }
        };
        let holding = &mut self.page.devices[device].holdings[at];
        if let Some(uid) = sample.label("pod_uid") {
            holding.two_pods |= holding.pod_uid.as_deref().is_some_and(|known| known != uid);
            holding.pod_uid = Some(uid.to_owned());
        }
        Ok(Some(at))
    }

    /// Puts the use of devices and owners into readings, now that all of the page is known.
    fn finish(mut self, types: &Types) -> Page {
        let says_native = types.native;
        let speaks_of_pods = self.owners > 0;
        self.page.native = (says_native || speaks_of_pods).then_some(says_native);
        for device in &mut self.page.devices {
            self.page.dropped += device.drop_contradictions();
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
                    match samples.reading(says_native, types.counters.contains(&samples.family)) {
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
            device.readings = device.whole(says_native, single, types);
        }
        self.page
    }
}

// === impl Repeated ===

impl Repeated {
    /// What all of them say together; `None` if that cannot be told.
    fn reading(&self, native: bool, counter: bool) -> Option<Reading> {
        let value = match self.count {
            1 => self.first,
            _ if !self.copies => return None,
            // Ours splits a pod's memory over its replicas, others repeat the device's.
            _ if native && self.family == MEMORY_USED => self.sum,
            _ if self.equal => self.first,
            _ => return None,
        };
        Some(if counter { Reading::Rate(value) } else { Reading::Gauge(value) })
    }
}

fn device_key<'s>(sample: &'s Sample<'_>) -> Option<Cow<'s, str>> {
    let uuid = sample.label("UUID").or_else(|| sample.label("uuid")).or_else(|| sample.label("gpu"))?;
    Some(match sample.label("GPU_I_ID") {
        Some(instance) => format!("{uuid}/{instance}").into(),
        None => uuid.into(),
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
        assert_eq!(device.labels.get("modelName"), Some("H100"));
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
    fn what_is_said_twice_and_differently_is_nobodys_word() {
        let lines = |active: [f64; 2]| {
            let mut lines = vec![format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50")];
            lines.extend(
                active.map(|active| format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} {active}")),
            );
            lines
        };
        let readings = |page: &Page| page.devices[0].holdings[0].readings.len();
        let (same, other) = (page(&lines([5.0, 5.0])), page(&lines([5.0, 6.0])));
        assert_eq!((readings(&same), same.dropped), (1, 0));
        assert_eq!((readings(&other), other.dropped), (0, 1));
    }

    #[test]
    fn a_page_that_is_no_page_is_refused() {
        let refused = |bytes: &[u8], pieces: usize| {
            let metrics = Metrics::new(&[]);
            let mut reader = PageReader::new(&metrics);
            let read = bytes.chunks(pieces).try_for_each(|piece| reader.push(piece));
            read.and_then(|()| reader.finish()).unwrap_err().to_string()
        };
        for pieces in [1, 3, 1000] {
            let html = refused(b"a 1\n<html>\nb 2\n", pieces);
            assert!(html.starts_with("the page cannot be read: line 2: \"<html>\""), "{html}");
            assert_eq!(refused(b"a 1\nb 12", pieces), "the page ends in the middle of line 2");
        }
        assert!(refused(b"a 1\n\xff\xfe 1\n", 4).contains("line 2 or one soon after is not UTF-8"));
        let long = [b"a 1\nb{c=\"".as_slice(), &[b'x'; MAX_LINE_BYTES]].concat();
        assert!(refused(&long, 1000).contains("line 2 is longer than 65536 bytes"));
    }

    #[test]
    fn names_of_one_page_take_a_bounded_room() {
        let name = "x".repeat(500);
        let lines: Vec<String> = (0..MAX_HOLDINGS)
            .map(|i| format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"0\",namespace=\"{name}\",pod=\"{i}\"}} 1"))
            .collect();
        let page = page(&lines);
        let kept = page.devices[0].holdings.len();
        assert_eq!(kept as u64 + page.dropped, MAX_HOLDINGS as u64);
        assert!((2000..2100).contains(&kept), "{kept}");
    }

    #[test]
    fn a_device_may_have_many_owners() {
        let owner = |i: usize, family: &str| {
            format!("{family}{{{GPU},namespace=\"demo\",pod=\"p{i}\",container=\"c\"}} {i}")
        };
        let lines = |family| (0..40).map(move |i| owner(i, family));
        let page = page(
            &lines("podgauge_gpu_active_seconds_total")
                .chain(lines("podgauge_gpu_observed_seconds_total"))
                .collect::<Vec<_>>(),
        );
        assert_eq!(page.devices[0].holdings.len(), 40);
        for (i, holding) in page.devices[0].holdings.iter().enumerate() {
            let both = i as f64;
            assert_eq!(holding.readings, [(USE, Reading::Share { sum: both, weight: both })]);
        }
    }

    #[test]
    fn what_is_of_no_use_is_hardly_read_and_what_is_no_sample_is_refused() {
        let refused = |line: &str| read(&format!("{line}\n"), &Metrics::new(&[])).unwrap_err().to_string();
        for line in ["a{b=\"c\"} 1", "a{b=\"c d\"} NaN 1700", "a +Inf"] {
            assert_eq!(read(&format!("{line}\n"), &Metrics::new(&[])).unwrap().devices.len(), 0);
        }
        for line in ["Service Unavailable", "404 page not found", "a{", "{\"a\": 1}", "a", "-1"] {
            assert!(refused(line).starts_with("the page cannot be read: line 1"), "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_page_reads_the_same_wherever_it_is_cut(cuts in proptest::collection::vec(1usize..60, 1..200)) {
            let lines = [
                format!("podgauge_gpu_active_seconds_total{{{GPU},{POD}}} 12.5"),
                format!("podgauge_gpu_observed_seconds_total{{{GPU},{POD}}} 50"),
                format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{GPU},{POD}}} 7"),
                "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned(),
                format!("DCGM_FI_DEV_FB_USED{{{GPU},namespace=\"dëmo\",pod=\"p\"}} 100"),
            ];
            let text = lines.join("\n") + "\n";
            let metrics = Metrics::new(&[crate::metric::MetricFlag::parse("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION").unwrap()]);
            let mut reader = PageReader::new(&metrics);
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                reader.push(piece).unwrap();
                rest = after;
            }
            reader.push(rest).unwrap();
            let cut = reader.finish().unwrap();
            proptest::prop_assert_eq!(format!("{cut:?}"), format!("{:?}", read(&text, &metrics).unwrap()));
            proptest::prop_assert!(cut.devices[0].holdings[0].readings.iter().any(|(_, r)| *r == Reading::Rate(7.0)));
        }
    }
}

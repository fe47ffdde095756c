//! Owns what is kept of a page while it is read, within its limits.

use std::borrow::Cow;
use std::collections::HashMap;

use podgauge_common::exposition::parse::Sample;

use super::lines::Types;
use super::sample::{COPY_LABELS, Own, device_key, own, plausible};
use super::{Device, Holding, MAX_DEVICES, MAX_HOLDINGS, MAX_LABEL_BYTES, MAX_TEXT_BYTES, Page};
use crate::metric::{DEVICE_USE, FamilyId, GPU_UTIL, MEMORY_USED, Metrics, USE};
use crate::source::history::Reading;
use crate::source::labels::Labels;

/// The samples of a device's memory use, MiB.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct MemoryUsed {
    /// Of those that are no replica's copy.
    pub(super) sum: Option<f64>,
    pub(super) most: Option<f64>,
}

/// The samples of one family and holding; mostly one.
#[derive(Debug)]
pub(super) struct Repeated {
    pub(super) family: FamilyId,
    first: f64,
    sum: f64,
    pub(super) count: u64,
    /// Told apart by nothing but labels that make copies; see [`COPY_LABELS`].
    copies: bool,
    equal: bool,
}

// === impl Kept ===

/// A limit on devices, owners or text bites.
struct Full;

/// Owners of a device that are looked for one by one.
const FEW: usize = 8;

/// What is kept of a page so far.
#[derive(Debug, Default)]
pub(super) struct Kept {
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
    pub(super) fn sample(&mut self, sample: &Sample<'_>, metrics: &Metrics) {
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
            Own::PartUnknown => {
                if let Some(at) = self.place_of(device, sample)?.filter(|_| value > 0.0) {
                    self.page.devices[device].holdings[at].part_unknown = true;
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
        holding.replica |= sample.label("vgpu").is_some();
        if let Some(uid) = sample.label("pod_uid") {
            holding.two_pods |= holding.pod_uid.as_deref().is_some_and(|known| known != uid);
            holding.pod_uid = Some(uid.to_owned());
        }
        Ok(Some(at))
    }

    /// Puts the use of devices and owners into readings, now that all of the page is known.
    pub(super) fn finish(mut self, types: &Types) -> Page {
        let says_native = types.native;
        let speaks_of_pods = self.owners > 0;
        self.page.native = (says_native || speaks_of_pods).then_some(says_native);
        for device in &mut self.page.devices {
            self.page.dropped += device.drop_contradictions();
            let used = device.memory_samples;
            device.use_memory(&used, says_native);
            let single = device.owners.is_none_or(|owners| owners <= 1.0);
            for holding in &mut device.holdings {
                holding.part_unknown |= holding.replica && !says_native;
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
    pub(super) fn reading(&self, native: bool, counter: bool) -> Option<Reading> {
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

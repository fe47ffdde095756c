//! Puts what was read of a page together, now that all of it is known.

use super::kept::{Kept, Scratch};
use super::memory::{Memory, Sharing};
use super::sample::Repeated;
use super::types::Types;
use super::{Device, Holding, Page};
use crate::metric::{DEVICE_USE, FamilyId, MEMORY_USED, USE};
use crate::source::history::Reading;

/// How a page is read.
#[derive(Debug, Clone, Copy)]
struct Dialect<'a> {
    types: &'a Types,
    sharing: Sharing,
}

// === impl Kept ===

impl Kept {
    /// The page, and the scratch for the next one.
    pub(super) fn finish(mut self, types: &Types) -> (Page, Box<Scratch>) {
        let sharing = match types.native {
            false => Sharing::Repeated,
            true if self.has_copies() => Sharing::Copies,
            true => Sharing::Parts,
        };
        let dialect = Dialect { types, sharing };
        let names_pods = self.holdings > 0;
        let Page { devices, native, dropped, .. } = &mut self.page;
        *native = (types.native || names_pods).then_some(types.native);
        for device in devices {
            *dropped += device.drop_contradictions();
            *dropped += device.use_memory(dialect);
            *dropped += device.sum_up();
            let (active, utilization) = (device.active.filter(|_| device.is_single()), device.utilization);
            for holding in &mut device.holdings {
                *dropped += holding.read(dialect, active, utilization, device.memory_total);
            }
            device.read_whole(dialect);
        }
        (self.page, self.scratch)
    }

    /// Whether samples with a pod are copies of the device's, for each container and replica. Where
    /// no label `vgpu` shows it: a device of one owner has no rest, so a sample without a pod beside
    /// that owner's is the device's; and what cannot be divided has the labels of one pod at most.
    fn has_copies(&self) -> bool {
        let divisible = |samples: &Repeated| matches!(samples.family, USE | MEMORY_USED);
        self.vgpu
            || self.page.devices.iter().any(|device| {
                let whole_and_part = device.memory.iter().any(Memory::both);
                let undivided = |holding: &&Holding| !holding.samples.iter().all(divisible);
                let mut holders = device.holdings.iter().filter(undivided).map(|h| (&h.namespace, &h.pod));
                let several = holders.next().is_some_and(|first| holders.any(|other| other != first));
                device.owners.is_some_and(|owners| owners <= 1.0) && whole_and_part || several
            })
    }
}

// === impl Holding ===

impl Holding {
    /// Makes readings of the samples. `active`: of the device, if it has no other owner;
    /// `utilization`: its gauge. Gives how many samples were dropped.
    fn read(
        &mut self,
        Dialect { types, .. }: Dialect<'_>,
        active: Option<f64>,
        utilization: Option<f64>,
        memory_total: Option<f64>,
    ) -> u64 {
        self.part_unknown |= self.replica && !types.native;
        if self.two_pods {
            self.pod_uid = None;
            return 1;
        }
        let mut dropped = 0;
        Repeated::by_one_name(&mut self.samples);
        for samples in &self.samples {
            let reading = samples.reading(types.native, types.counters.contains(&samples.family));
            let larger = |reading: &Reading| match (reading, memory_total) {
                (Reading::Gauge(used), Some(total)) => samples.family == MEMORY_USED && *used > total,
                _ => false,
            };
            match reading.filter(|reading| !larger(reading)) {
                Some(reading) => self.readings.push((samples.family, reading)),
                None => dropped += samples.count,
            }
        }
        let gauge = self.readings.iter().find(|(family, _)| *family == USE).map(|(_, reading)| *reading);
        let share = |sum| Some(Reading::Share { sum, weight: self.observed? });
        let (used, device_use) = match types.native {
            false => (gauge, gauge),
            // An owner of a shared device has fewer observed seconds than the device.
            true => (
                self.active.and_then(share),
                active.and_then(share).or_else(|| utilization.map(|percent| Reading::Gauge(percent / 100.0))),
            ),
        };
        self.readings.retain(|(family, _)| *family != USE);
        self.readings.extend(used.map(|reading| (USE, reading)));
        self.readings.extend(device_use.map(|reading| (DEVICE_USE, reading)));
        let (recent, impossible) = self.recent_sums.recent();
        self.recent = recent;
        dropped + impossible
    }
}

// === impl Device ===

impl Device {
    /// Whether nobody else owns it.
    fn is_single(&self) -> bool {
        self.owners.is_none_or(|owners| owners <= 1.0)
    }

    fn sum_up(&mut self) -> u64 {
        let (recent, dropped) = self.recent_sums.recent();
        self.recent = recent;
        dropped
    }

    fn use_memory(&mut self, Dialect { sharing, .. }: Dialect<'_>) -> u64 {
        let mut memory = Memory::of_one_name(self.memory);
        let mut used = memory.used(sharing);
        let dropped = memory.drop_impossible(&mut used);
        self.memory_used = used;
        self.memory_total = memory.total(used, self.labels.get("GPU_I_ID").is_some());
        dropped
    }

    /// What is known of the whole device, without what its only holding says as well. Samples
    /// without a pod are the device's; where there are none, what is said for every pod alike.
    fn read_whole(&mut self, Dialect { types, .. }: Dialect<'_>) {
        Repeated::by_one_name(&mut self.samples);
        let mut whole: Vec<(FamilyId, Reading)> = std::mem::take(&mut self.readings);
        let single =
            self.samples.iter().filter(|samples| samples.count == 1 && samples.family != MEMORY_USED);
        whole.extend(single.filter_map(|samples| {
            let counter = types.counters.contains(&samples.family);
            Some((samples.family, samples.reading(types.native, counter)?))
        }));
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
        let device_use = match (self.active.filter(|_| self.is_single()), weight) {
            _ if !types.native => gauge,
            (Some(sum), Some(weight)) => Some(Reading::Share { sum, weight }),
            _ => self.utilization.map(|percent| Reading::Gauge(percent / 100.0)),
        };
        whole.extend(device_use.map(|reading| (DEVICE_USE, reading)));
        whole.extend(self.memory_used.map(|used| (MEMORY_USED, Reading::Gauge(used))));
        if let [only] = &self.holdings[..] {
            whole.retain(|known| !only.readings.contains(known));
        }
        self.readings = whole;
    }

    /// Forgets what was said twice and differently, and counts it.
    fn drop_contradictions(&mut self) -> u64 {
        let sums = self.holdings.iter_mut().flat_map(|holding| {
            let Holding { active, observed, allocation, recent_sums, .. } = holding;
            [active, observed, allocation, &mut recent_sums.active, &mut recent_sums.observed]
        });
        let memory = self.memory.iter_mut().flat_map(|m| [&mut m.free, &mut m.reserved, &mut m.total]);
        let of_device = [
            &mut self.active,
            &mut self.utilization,
            &mut self.owners,
            &mut self.observed,
            &mut self.recent_sums.active,
            &mut self.recent_sums.observed,
        ];
        let values = of_device.into_iter().chain(memory).chain(sums);
        let mut dropped = 0;
        for value in values {
            dropped += u64::from(value.take_if(|value| value.is_nan()).is_some());
        }
        dropped
    }
}

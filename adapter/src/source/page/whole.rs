//! Says what a device's samples tell of the whole device.

use super::Device;
use super::kept::MemoryUsed;
use super::lines::Types;
use crate::metric::{DEVICE_USE, FamilyId, MEMORY_USED, USE};
use crate::source::history::Reading;

// === impl Device ===

impl Device {
    /// How much memory is used, by samples of its owners. Ours add up to the device's; another
    /// exporter repeats the device's for each owner.
    pub(super) fn use_memory(&mut self, used: &MemoryUsed, native: bool) {
        self.memory_used = if native { used.sum.or(used.most) } else { used.most };
    }

    /// What is known of the whole device, without what its only holding says as well. Samples
    /// without a pod speak of the device; where there are none, what is said for every pod alike.
    pub(super) fn whole(&mut self, native: bool, single: bool, types: &Types) -> Vec<(FamilyId, Reading)> {
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
    pub(super) fn drop_contradictions(&mut self) -> u64 {
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

//! Makes a device's memory of its samples: how much is used, and how much there is.

use crate::metric::GpuFamily;

/// For what dividing by 2^20 loses.
const HAIR: f64 = 1.0 + 1e-9;

/// The samples of a device's memory, MiB, under names of one kind.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Memory {
    /// Used, of the sample without a pod.
    unlabelled: Option<f64>,
    /// … the sum of those with one.
    labelled: Option<f64>,
    /// … the largest of all.
    most: Option<f64>,
    pub(super) free: Option<f64>,
    pub(super) reserved: Option<f64>,
    pub(super) total: Option<f64>,
}

/// How an exporter's samples of used memory add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Each repeats the device's.
    Repeated,
    /// They add up to the device's.
    Parts,
    /// The one without a pod is the device's; the others are copies of its parts.
    Copies,
}

impl Memory {
    pub(super) fn add_used(&mut self, value: f64, labelled: bool) {
        self.most = Some(self.most.map_or(value, |most| most.max(value)));
        if labelled {
            *self.labelled.get_or_insert(0.0) += value;
        } else {
            self.unlabelled = Some(value);
        }
    }

    /// The place of what a family says of the size; `None` for other families.
    pub(super) fn place(&mut self, says: GpuFamily) -> Option<&mut Option<f64>> {
        match says {
            GpuFamily::MemoryFree => Some(&mut self.free),
            GpuFamily::MemoryReserved => Some(&mut self.reserved),
            GpuFamily::MemoryTotal => Some(&mut self.total),
            _ => None,
        }
    }

    /// Whether the samples without a pod are there beside those with one.
    pub(super) fn both(&self) -> bool {
        self.unlabelled.is_some() && self.labelled.is_some()
    }

    /// One of two pages' worth: where a page has both names of a field the classic one counts.
    pub(super) fn of_one_name([classic, newer]: [Self; 2]) -> Self {
        let used = if classic.most.is_some() { classic } else { newer };
        Self {
            free: classic.free.or(newer.free),
            reserved: classic.reserved.or(newer.reserved),
            total: classic.total.or(newer.total),
            ..used
        }
    }

    /// MiB in use on the device.
    pub(super) fn used(&self, sharing: Sharing) -> Option<f64> {
        match sharing {
            Sharing::Repeated => self.most,
            Sharing::Copies => self.unlabelled,
            Sharing::Parts => {
                self.most.map(|_| self.unlabelled.unwrap_or_default() + self.labelled.unwrap_or_default())
            }
        }
    }

    /// Forgets what is larger than the whole, and counts it. `used` is what the device uses.
    pub(super) fn drop_impossible(&mut self, used: &mut Option<f64>) -> u64 {
        let Some(total) = self.total else { return 0 };
        let larger = |value: &mut Option<f64>| value.take_if(|value| *value > total * HAIR).is_some();
        u64::from(larger(used)) + u64::from(larger(&mut self.free)) + u64::from(larger(&mut self.reserved))
    }

    /// MiB of the whole device. Of an instance the capacity may be the whole GPU's.
    pub(super) fn total(&self, used: Option<f64>, instance: bool) -> Option<f64> {
        match (used, self.free) {
            (Some(used), Some(free)) => Some(used + free + self.reserved.unwrap_or_default()),
            _ => self.total.filter(|_| !instance),
        }
    }
}

//! Says which families of exporters' pages are read, under which names, and which of their numbers
//! can be measurements. The page reader and the query of a scrape use it.
//!
//! A field that dcgm-exporter 4.9 renamed is read under both names. The name decides what the
//! number means, never its size: 0.9 is 90 % under one name and 0.9 % under the other.

use podgauge_common::catalogue::base_units::{RENAMED, renamed};
use podgauge_common::catalogue::{self, own, served};
use podgauge_common::measurement::Bound;

use crate::map::Map;

use super::{DRAM_ACTIVE, FamilyId, MEMORY_USED, POWER, SM_ACTIVE, TENSOR_ACTIVE, USE};

const MIB: f64 = 1024.0 * 1024.0;
const PERCENT: f64 = 100.0;

/// The classic names of the families that the built-in metrics are made of.
const KEPT: [(&str, FamilyId); 6] = [
    ("DCGM_FI_DEV_GPU_UTIL", USE),
    ("DCGM_FI_DEV_FB_USED", MEMORY_USED),
    ("DCGM_FI_DEV_POWER_USAGE", POWER),
    ("DCGM_FI_PROF_SM_ACTIVE", SM_ACTIVE),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", TENSOR_ACTIVE),
    ("DCGM_FI_PROF_DRAM_ACTIVE", DRAM_ACTIVE),
];

/// … and of those that say how large a device's memory is.
const MEMORY: [(&str, GpuFamily); 3] = [
    ("DCGM_FI_DEV_FB_FREE", GpuFamily::MemoryFree),
    ("DCGM_FI_DEV_FB_RESERVED", GpuFamily::MemoryReserved),
    ("DCGM_FI_DEV_FB_TOTAL", GpuFamily::MemoryTotal),
];

/// The memory of the whole GPU, bytes: new in dcgm-exporter 4.9, without a classic name.
const FB_CAPACITY: &str = "DCGM_FI_DEV_FB_CAPACITY_BYTES";

/// podgauge's own families.
const OWN: [(catalogue::Own, GpuFamily); 13] = [
    (own::ACTIVE_SECONDS, GpuFamily::Active),
    (own::OBSERVED_SECONDS, GpuFamily::Observed),
    (own::DEVICE_ACTIVE_SECONDS, GpuFamily::DeviceActive),
    (own::UTILIZATION, GpuFamily::DeviceUtilization),
    (own::OWNERS, GpuFamily::Owners),
    (own::ALLOCATION, GpuFamily::Allocation),
    (own::PART_UNKNOWN, GpuFamily::PartUnknown),
    (own::ATTRIBUTION_UNAVAILABLE, GpuFamily::Unavailable),
    (own::RECENT_ACTIVE_SECONDS, GpuFamily::RecentActive),
    (own::RECENT_OBSERVED_SECONDS, GpuFamily::RecentObserved),
    (own::RECENT_DEVICE_ACTIVE_SECONDS, GpuFamily::RecentDeviceActive),
    (own::RECENT_DEVICE_OBSERVED_SECONDS, GpuFamily::RecentDeviceObserved),
    (own::START_TIME, GpuFamily::Started),
];

/// The meaning of a sample for its exporter, a device or a container on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuFamily {
    Active,
    Observed,
    DeviceActive,
    DeviceUtilization,
    Owners,
    Allocation,
    PartUnknown,
    Unavailable,
    RecentActive,
    RecentObserved,
    RecentDeviceActive,
    RecentDeviceObserved,
    Started,
    MemoryFree,
    MemoryReserved,
    MemoryTotal,
}

/// The use of a family's samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    pub says: Option<GpuFamily>,
    /// The series that a history is kept of.
    pub kept: Option<FamilyId>,
    /// The name is one of dcgm-exporter 4.9; a page with both names is read by the classic one.
    pub newer: bool,
    /// A value under this name, divided by this, has the classic unit.
    divisor: f64,
    /// Which values are possible under this name, and in the classic unit.
    bounds: [Bound; 2],
}

/// The families that are read, by every name.
#[derive(Debug, Default)]
pub(super) struct Families {
    by_name: Map<Box<str>, Family>,
}

// === impl Family ===

impl Family {
    /// The value in the unit that is kept; `None` if it cannot be a measurement.
    pub fn measured(&self, value: f64) -> Option<f64> {
        let [named, classic] = self.bounds;
        let in_classic_unit = value / self.divisor;
        let nothing_allocated = self.says == Some(GpuFamily::Allocation) && value <= 0.0;
        let possible = named.admits(value) && classic.admits(in_classic_unit) && !nothing_allocated;
        // Use is kept as a part of one, whoever measured it.
        let scale = if self.kept == Some(USE) { PERCENT } else { 1.0 };
        possible.then_some(in_classic_unit / scale)
    }
}

// === impl Families ===

impl Families {
    /// Those of the built-in metrics.
    pub(super) fn built_in() -> Self {
        let mut families = Self::default();
        for (entry, says) in OWN {
            let bound = match says {
                GpuFamily::Allocation => Bound::Ratio,
                GpuFamily::Started => Bound::NotNegative,
                _ if entry.unit.is_empty() => Bound::NotNegative,
                _ => Bound::of_unit(entry.unit),
            };
            families.entry(entry.name, bound).says = Some(says);
        }
        for (name, says) in MEMORY {
            families.both_names(name, |family| family.says = Some(says));
        }
        let mebibytes = Bound::of_unit("MiB");
        *families.entry(FB_CAPACITY, Bound::of_unit("B")) = Family {
            says: Some(GpuFamily::MemoryTotal),
            kept: None,
            newer: true,
            divisor: MIB,
            bounds: [Bound::of_unit("B"), mebibytes],
        };
        for (name, kept) in KEPT {
            families.both_names(name, |family| family.kept = Some(kept));
        }
        families
    }

    /// The family of that name, whichever of its names that is, kept as `next` unless it is already.
    /// Gives its id, and what a kept value is multiplied by to have the unit of that name.
    pub(super) fn keep(&mut self, name: &str, next: FamilyId) -> (FamilyId, f64) {
        let classic = renamed(name).map_or(name, |entry| entry.classic);
        let kept = self.get(classic).and_then(|family| family.kept).unwrap_or(next);
        self.both_names(classic, |family| family.kept = Some(kept));
        let divisor = self.get(name).map_or(1.0, |family| family.divisor);
        (kept, divisor * if kept == USE { PERCENT } else { 1.0 })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Family> {
        self.by_name.get(name)
    }

    /// Every name, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_name.keys().map(Box::as_ref).collect();
        names.sort_unstable();
        names
    }

    /// Changes a field's entries under its classic name and under the one of 4.9.
    fn both_names(&mut self, classic: &str, change: impl Fn(&mut Family)) {
        let unit = served(classic).map_or("", |metric| metric.unit);
        let bound = Bound::of_unit(unit);
        change(self.entry(classic, bound));
        for newer in RENAMED.iter().filter(|entry| entry.classic == classic) {
            let family = self.entry(newer.name, Bound::of_unit(newer.unit));
            family.newer = true;
            family.divisor = newer.from_classic(1.0);
            family.bounds[1] = bound;
            change(family);
        }
    }

    fn entry(&mut self, name: &str, bound: Bound) -> &mut Family {
        let new = Family { says: None, kept: None, newer: false, divisor: 1.0, bounds: [bound; 2] };
        self.by_name.entry(name.into()).or_insert(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_that_is_read_is_in_the_catalogue() {
        for name in Families::built_in().names() {
            let ours = OWN.iter().any(|(entry, _)| entry.name == name);
            let classic = served(name).is_some_and(|metric| metric.name == name);
            assert!(ours || classic || renamed(name).is_some() || name == FB_CAPACITY, "{name}");
        }
    }

    #[test]
    fn a_name_decides_what_a_number_means() {
        let families = Families::built_in();
        let measured = |name, value| families.get(name).unwrap().measured(value);
        for (name, value, kept) in [
            ("DCGM_FI_DEV_GPU_UTIL", 90.0, 0.9),
            ("DCGM_FI_DEV_GPU_UTIL", 0.9, 0.009),
            ("DCGM_FI_DEV_GPU_UTIL_RATIO", 0.9, 0.9),
            ("DCGM_FI_DEV_FB_USED_BYTES", 100.0 * MIB, 100.0),
            (FB_CAPACITY, 80.0 * 1024.0 * MIB, 81_920.0),
            ("DCGM_FI_DEV_BOARD_POWER_WATTS", 700.0, 700.0),
            ("DCGM_FI_PROF_TENSOR_UTIL_RATIO", 0.5, 0.5),
        ] {
            let found = measured(name, value).unwrap();
            assert!((found - kept).abs() < 1e-9, "{name} {value}: {found}");
        }
        for (name, value) in [
            ("DCGM_FI_DEV_GPU_UTIL_RATIO", 90.0),
            ("DCGM_FI_DEV_GPU_UTIL", 101.0),
            ("DCGM_FI_DEV_FB_FREE", 17_592_186_044_415.0),
            ("DCGM_FI_DEV_FB_FREE_BYTES", 18_446_744_073_709_551_615.0),
            ("DCGM_FI_DEV_POWER_USAGE", 4_294_967.295),
            ("DCGM_FI_DEV_BOARD_POWER_WATTS", -1.0),
            (own::ALLOCATION.name, 0.0),
            (own::ALLOCATION.name, 1.5),
            (own::RECENT_ACTIVE_SECONDS.name, -1.0),
        ] {
            assert_eq!(measured(name, value), None, "{name} {value}");
        }
    }
}

//! Owns what a single sample speaks of, and whether its value can be true.

use std::borrow::Cow;

use podgauge_common::exposition::parse::Sample;

use crate::metric::{FamilyId, MEMORY_USED, USE, is_ratio};

/// Labels that repeat a sample: once per replica of a device, once per batch job. Samples told apart
/// by any other label, like a link's or an error's number, are no value of the device.
pub(super) const COPY_LABELS: [&str; 2] = ["vgpu", "hpc_job"];

/// The families of podgauge's own that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Active,
    Observed,
    DeviceActive,
    DeviceUtilization,
    Owners,
    Allocation,
    PartUnknown,
    Unavailable,
    MemoryFree,
    MemoryReserved,
}

pub(super) fn own(name: &str) -> Option<Own> {
    Some(match name {
        "podgauge_gpu_active_seconds_total" => Own::Active,
        "podgauge_gpu_observed_seconds_total" => Own::Observed,
        "podgauge_gpu_device_active_seconds_total" => Own::DeviceActive,
        "podgauge_gpu_utilization" => Own::DeviceUtilization,
        "podgauge_gpu_owners" => Own::Owners,
        "podgauge_gpu_allocation" => Own::Allocation,
        "podgauge_gpu_part_unknown" => Own::PartUnknown,
        "podgauge_attribution_unavailable" => Own::Unavailable,
        "DCGM_FI_DEV_FB_FREE" => Own::MemoryFree,
        "DCGM_FI_DEV_FB_RESERVED" => Own::MemoryReserved,
        _ => return None,
    })
}

/// Whether a value can be true. What DCGM prints for "not read" cannot.
pub(super) fn plausible(own: Option<Own>, family: Option<FamilyId>, sample: &Sample<'_>) -> bool {
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

pub(super) fn device_key<'s>(sample: &'s Sample<'_>) -> Option<Cow<'s, str>> {
    let uuid = sample.label("UUID").or_else(|| sample.label("uuid")).or_else(|| sample.label("gpu"))?;
    Some(match sample.label("GPU_I_ID") {
        Some(instance) => format!("{uuid}/{instance}").into(),
        None => uuid.into(),
    })
}

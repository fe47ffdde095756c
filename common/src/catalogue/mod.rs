//! The catalogue: of every metric its name, type, help, unit, scope, how NVML is read and which
//! values are possible.
//!
//! The exporter renders by it and checks counters files against it; docs/METRICS.md is written from
//! it. Names are DCGM's where DCGM has one, `podgauge_…` otherwise.

pub mod base_units;
pub mod clock_event;
mod device;
mod families;
mod links;
pub mod markdown;
mod names;
mod profiling;
mod reading;
mod served;
pub mod xid;

pub use families::{OWN, Own, own};
pub use names::{is_known, is_well_formed};
pub use reading::{
    Clock, Codec, Direction, Engine, GpmUnit, LinkError, Memory, MemoryPlace, Pace, PcieLink, PowerLimit,
    Reading, RemapBanks, Text, Threshold,
};
pub use served::{SERVED, served};

use crate::exposition::write::Value;
use crate::measurement::{Bound, is_sentinel};

/// A Prometheus metric type, or DCGM's `label`, which is printed as a label of every sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Label,
}

/// What a sample speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The GPU; a MIG instance has its parent's value.
    Gpu,
    /// The GPU, or the MIG instance with a value of its own.
    Instance,
    /// The node.
    Node,
}

/// One metric that a counters file can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// DCGM's classic name. A counters file may use another name of the same field.
    pub name: &'static str,
    /// DCGM's field id; `None` for the families that dcgm-exporter itself adds.
    pub field: Option<u16>,
    pub kind: Kind,
    /// In our words; a counters file's own help text is printed in its place.
    pub help: &'static str,
    pub unit: &'static str,
    pub scope: Scope,
    pub reading: Reading,
    /// From the unit of `reading` to `unit`.
    pub scale: Scale,
}

/// How a number in the unit in which it is read becomes the number in the unit that is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    One,
    /// Multiplied by this; whole.
    Times(u32),
    /// Divided by this; what is not whole is cut off, as DCGM does.
    Over(u32),
    /// Divided by this, with its fraction.
    Part(u32),
}

impl Kind {
    /// As the TYPE line and counters files write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Label => "label",
        }
    }
}

impl Metric {
    /// The printed value of a number as it was read. `None` if it cannot be a measurement: a number
    /// that drivers write for "not known", or one that this quantity cannot have.
    pub fn measured(&self, read: Value) -> Option<Value> {
        let raw = read.as_f64();
        // Whole numbers would hide NaN and numbers below 0.
        let is_possible = raw.is_finite() && (raw >= 0.0 || self.scale == Scale::One) && !is_sentinel(raw);
        let printed = self.printed(read);
        (is_possible && self.bound().admits(printed.as_f64())).then_some(printed)
    }

    /// A measurement in the unit that is printed.
    pub fn printed(&self, read: Value) -> Value {
        self.scale.apply(read)
    }

    /// Which values are possible.
    pub fn bound(&self) -> Bound {
        match self.reading {
            // NVML's percent of the speed that the fan is made for: it can turn faster.
            Reading::FanSpeed => Bound::NotNegative,
            _ => Bound::of_unit(self.unit),
        }
    }
}

impl Scale {
    /// How many of the printed unit one of the read unit is.
    pub fn factor(self) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Times(factor) => f64::from(factor),
            Self::Over(divisor) | Self::Part(divisor) => 1.0 / f64::from(divisor),
        }
    }

    fn apply(self, read: Value) -> Value {
        /// Digits behind the ninth decimal are rounding errors of floats.
        const DECIMALS: f64 = 1e9;
        match (self, read) {
            (Self::One, read) => read,
            (Self::Times(factor), Value::U64(read)) => Value::U64(read.saturating_mul(factor.into())),
            (Self::Over(divisor), Value::U64(read)) => Value::U64(read / u64::from(divisor)),
            (Self::Times(_) | Self::Over(_), read) => Value::U64((read.as_f64() * self.factor()) as u64),
            (Self::Part(divisor), read) => {
                let part = read.as_f64() / f64::from(divisor);
                Value::F64(if part < DECIMALS { (part * DECIMALS).round() / DECIMALS } else { part })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(name: &str, read: Value) -> Option<Value> {
        served(name).unwrap().measured(read)
    }

    #[test]
    fn what_a_unit_truncates_is_kept_in_another() {
        let bytes = Value::U64((5 << 20) + 7);
        assert_eq!(measured("DCGM_FI_DEV_FB_USED", bytes), Some(Value::U64(5)));
        assert_eq!(measured("DCGM_FI_DEV_FB_USED_BYTES", bytes), Some(bytes));
        assert_eq!(measured("DCGM_FI_DEV_GPU_UTIL_RATIO", Value::F64(12.34)), Some(Value::F64(0.1234)));
        let ns = Value::U64(1_500_000_001);
        assert_eq!(
            measured("DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL", ns),
            Some(Value::F64(1.500_000_001))
        );
        let mj = Value::U64(2_999);
        assert_eq!(measured("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", mj), Some(Value::U64(2)));
        let kib_s = Value::F64(2000.5);
        assert_eq!(measured("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", kib_s), Some(Value::U64(2)));
        assert_eq!(
            measured("DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND", kib_s),
            Some(Value::U64(2_048_512))
        );
    }

    #[test]
    fn what_cannot_be_is_not_printed() {
        for (name, read) in [
            ("DCGM_FI_DEV_POWER_USAGE", Value::F64(4_294_967.295)),
            ("DCGM_FI_DEV_SM_CLOCK", Value::U64(u32::MAX.into())),
            ("DCGM_FI_DEV_SM_CLOCK_HERTZ", Value::U64(u32::MAX.into())),
            ("DCGM_FI_DEV_FB_FREE", Value::U64(u64::MAX)),
            ("DCGM_FI_DEV_FB_FREE_BYTES", Value::U64(u64::MAX)),
            ("DCGM_FI_DEV_GPU_TEMP", Value::U64(201)),
            ("DCGM_FI_DEV_ENC_UTIL_RATIO", Value::U64(101)),
            ("DCGM_FI_PROF_SM_ACTIVE", Value::F64(1.5)),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", Value::U64(u64::MAX)),
        ] {
            assert_eq!(measured(name, read), None, "{name}");
        }
        assert_eq!(measured("DCGM_FI_DEV_FAN_SPEED_RATIO", Value::U64(110)), Some(Value::F64(1.1)));
    }
}

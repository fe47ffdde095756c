//! The names and units that DCGM 4.7 and dcgm-exporter 4.9 gave to fields that had others before.
//!
//! Two names of one field may differ in unit, so that a name alone decides what its number means:
//! the size of a value is never looked at. A field in another unit is another metric with an id of its
//! own; a field with another name alone is the same metric.

use super::{Metric, Reading, Scale, served};

/// How a value under the classic name becomes the value under the name of 4.9.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Conversion {
    Same,
    /// Multiplied by this.
    Times(f64),
}

/// A field with a classic name and one of 4.9.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Renamed {
    /// The name up to dcgm-exporter 4.8.
    pub classic: &'static str,
    /// The name since dcgm-exporter 4.9.
    pub name: &'static str,
    /// DCGM's id of the field in the other unit; `None` if the unit is the same, and so the id.
    pub field: Option<u16>,
    /// The unit under the name of 4.9.
    pub unit: &'static str,
    pub conversion: Conversion,
}

const MIB: f64 = 1024.0 * 1024.0;
/// From KiB per second ÷ 1000 to bytes per second.
const NVLINK: Conversion = Conversion::Times(1024.0 * 1000.0);

macro_rules! renamed {
    ($($classic:literal => $field:expr, $name:literal $unit:literal $conversion:expr;)*) => {
        &[$(Renamed {
            classic: concat!("DCGM_FI_", $classic),
            name: concat!("DCGM_FI_", $name),
            field: $field,
            unit: $unit,
            conversion: $conversion,
        }),*]
    };
}

use Conversion::{Same, Times};

/// The fields that dcgm-exporter 4.9 renamed in its default and profiling presets, label excluded,
/// and the other fields that have a base unit since DCGM 4.7. `NVLINK_BANDWIDTH_…` is in KiB per
/// second ÷ 1000 under its classic name.
pub const RENAMED: &[Renamed] = renamed! {
    "DEV_SM_CLOCK" => Some(1603), "DEV_SM_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MEM_CLOCK" => Some(1604), "DEV_MEMORY_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MEMORY_TEMP" => None, "DEV_MEMORY_TEMP_CELSIUS" "°C" Same;
    "DEV_GPU_TEMP" => None, "DEV_GPU_TEMP_CELSIUS" "°C" Same;
    "DEV_POWER_USAGE" => None, "DEV_BOARD_POWER_WATTS" "W" Same;
    "DEV_TOTAL_ENERGY_CONSUMPTION" => Some(1611), "DEV_GPU_ENERGY_JOULES_TOTAL" "J" Times(1e-3);
    "DEV_PCIE_REPLAY_COUNTER" => None, "DEV_PCIE_REPLAY_TOTAL" "" Same;
    "DEV_GPU_UTIL" => Some(1613), "DEV_GPU_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_MEM_COPY_UTIL" => Some(1614), "DEV_MEMORY_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_ENC_UTIL" => Some(1615), "DEV_ENC_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_DEC_UTIL" => Some(1616), "DEV_DEC_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_XID_ERRORS" => None, "DEV_XID_ERROR" "" Same;
    "DEV_FB_FREE" => Some(1626), "DEV_FB_FREE_BYTES" "B" Times(MIB);
    "DEV_FB_USED" => Some(1627), "DEV_FB_USED_BYTES" "B" Times(MIB);
    "DEV_FB_RESERVED" => Some(1628), "DEV_FB_RESERVED_BYTES" "B" Times(MIB);
    "DEV_UNCORRECTABLE_REMAPPED_ROWS" => None, "DEV_ROW_REMAP_UNCORRECTABLE_TOTAL" "" Same;
    "DEV_CORRECTABLE_REMAPPED_ROWS" => None, "DEV_ROW_REMAP_CORRECTABLE_TOTAL" "" Same;
    "DEV_ROW_REMAP_FAILURE" => None, "DEV_ROW_REMAP_FAILED" "" Same;
    "DEV_NVLINK_BANDWIDTH_TOTAL" => Some(1648), "DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND" "B/s" NVLINK;
    "PROF_GR_ENGINE_ACTIVE" => None, "PROF_GR_ENGINE_UTIL_RATIO" "ratio" Same;
    "PROF_SM_ACTIVE" => None, "PROF_SM_UTIL_RATIO" "ratio" Same;
    "PROF_PIPE_TENSOR_ACTIVE" => None, "PROF_TENSOR_UTIL_RATIO" "ratio" Same;
    "PROF_DRAM_ACTIVE" => None, "PROF_DRAM_UTIL_RATIO" "ratio" Same;
    "DEV_FB_TOTAL" => Some(1625), "DEV_FB_CAPACITY_BYTES" "B" Times(MIB);
    "DEV_BAR1_TOTAL" => Some(1600), "DEV_BAR1_CAPACITY_BYTES" "B" Times(MIB);
    "DEV_BAR1_USED" => Some(1601), "DEV_BAR1_USED_BYTES" "B" Times(MIB);
    "DEV_BAR1_FREE" => Some(1602), "DEV_BAR1_FREE_BYTES" "B" Times(MIB);
    "DEV_VIDEO_CLOCK" => Some(1605), "DEV_VIDEO_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_APP_SM_CLOCK" => Some(1606), "DEV_SM_APP_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_APP_MEM_CLOCK" => Some(1607), "DEV_MEMORY_APP_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MAX_SM_CLOCK" => Some(1608), "DEV_SM_MAX_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MAX_MEM_CLOCK" => Some(1609), "DEV_MEMORY_MAX_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MAX_VIDEO_CLOCK" => Some(1610), "DEV_VIDEO_MAX_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_FAN_SPEED" => Some(1612), "DEV_FAN_SPEED_RATIO" "ratio" Times(1e-2);
    "DEV_POWER_VIOLATION" => Some(1617), "DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_THERMAL_VIOLATION" => Some(1618), "DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_SYNC_BOOST_VIOLATION" => Some(1619), "DEV_GPU_SYNC_BOOST_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_BOARD_LIMIT_VIOLATION" => Some(1620), "DEV_GPU_LIMIT_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_LOW_UTIL_VIOLATION" => Some(1621), "DEV_GPU_LOW_UTIL_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_RELIABILITY_VIOLATION" => Some(1622), "DEV_GPU_RELIABILITY_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_TOTAL_APP_CLOCKS_VIOLATION" => Some(1623), "DEV_GPU_APP_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_TOTAL_BASE_CLOCKS_VIOLATION" => Some(1624), "DEV_GPU_BASE_THROTTLE_SECONDS_TOTAL" "s" Times(1e-9);
    "DEV_C2C_MAX_BANDWIDTH" => Some(1629), "DEV_C2C_MAX_BANDWIDTH_BYTES_PER_SECOND" "B/s" Times(1e6);
    "DEV_NVLINK_BANDWIDTH_L0" => Some(1630), "DEV_NVLINK_THROUGHPUT_L0_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L1" => Some(1631), "DEV_NVLINK_THROUGHPUT_L1_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L2" => Some(1632), "DEV_NVLINK_THROUGHPUT_L2_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L3" => Some(1633), "DEV_NVLINK_THROUGHPUT_L3_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L4" => Some(1634), "DEV_NVLINK_THROUGHPUT_L4_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L5" => Some(1635), "DEV_NVLINK_THROUGHPUT_L5_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L6" => Some(1636), "DEV_NVLINK_THROUGHPUT_L6_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L7" => Some(1637), "DEV_NVLINK_THROUGHPUT_L7_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L8" => Some(1638), "DEV_NVLINK_THROUGHPUT_L8_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L9" => Some(1639), "DEV_NVLINK_THROUGHPUT_L9_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L10" => Some(1640), "DEV_NVLINK_THROUGHPUT_L10_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L11" => Some(1641), "DEV_NVLINK_THROUGHPUT_L11_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L12" => Some(1642), "DEV_NVLINK_THROUGHPUT_L12_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L13" => Some(1643), "DEV_NVLINK_THROUGHPUT_L13_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L14" => Some(1644), "DEV_NVLINK_THROUGHPUT_L14_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L15" => Some(1645), "DEV_NVLINK_THROUGHPUT_L15_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L16" => Some(1646), "DEV_NVLINK_THROUGHPUT_L16_BYTES_PER_SECOND" "B/s" NVLINK;
    "DEV_NVLINK_BANDWIDTH_L17" => Some(1647), "DEV_NVLINK_THROUGHPUT_L17_BYTES_PER_SECOND" "B/s" NVLINK;
};

/// Units as help texts write them, classic and of 4.9.
const UNITS_IN_HELP: [(&str, &str); 7] = [
    ("(in MiB)", "(in bytes)"),
    ("(in MHz)", "(in Hz)"),
    ("(in mJ)", "(in J)"),
    ("(in %)", "(0 to 1)"),
    ("(in % of its fastest)", "(1 is its fastest; it can be more)"),
    ("(in ns)", "(in s)"),
    ("(in MB/s)", "(in bytes per second)"),
];

/// The entry of a name of 4.9.
pub fn renamed(name: &str) -> Option<&'static Renamed> {
    RENAMED.iter().find(|entry| entry.name == name)
}

/// A field as dcgm-exporter 4.9 names it and in the unit that it has there: the name and the metric.
/// A metric of 4.9, and one that has no other name, is given back as it is.
pub fn in_4_9(metric: &'static Metric) -> (&'static str, &'static Metric) {
    let entry = RENAMED.iter().find(|entry| entry.classic == metric.name);
    match entry {
        Some(Renamed { name, field: Some(_), .. }) => (name, served(name).unwrap_or(metric)),
        Some(Renamed { name, field: None, .. }) => (name, metric),
        None => (super::names::canonical(metric.name).unwrap_or(metric.name), metric),
    }
}

/// The metrics that have another unit than the classic ones that they are read as.
pub(super) fn metrics(classic: &[Metric]) -> Vec<Metric> {
    let other_units = RENAMED.iter().filter(|entry| entry.field.is_some());
    other_units
        .filter_map(|entry| {
            let metric = classic.iter().find(|metric| metric.name == entry.classic)?;
            Some(Metric {
                name: entry.name,
                field: entry.field,
                unit: entry.unit,
                scale: entry.scale(metric),
                help: help_in_base_units(metric.help),
                ..*metric
            })
        })
        .collect()
}

impl Renamed {
    /// The value under the classic name, of a value under the name of 4.9.
    pub fn to_classic(&self, value: f64) -> f64 {
        match self.conversion {
            Same => value,
            Times(factor) => value / factor,
        }
    }

    /// The value under the name of 4.9, of a value under the classic name.
    pub fn from_classic(&self, value: f64) -> f64 {
        match self.conversion {
            Same => value,
            Times(factor) => value * factor,
        }
    }

    /// From the reading itself: what the classic unit truncates is not lost.
    fn scale(&self, classic: &Metric) -> Scale {
        match (classic.reading, classic.unit, self.unit) {
            (Reading::NvlinkRate { .. }, ..) => Scale::Times(1024),
            (_, "MHz", "Hz") | (_, "MB/s", "B/s") => Scale::Times(1_000_000),
            (_, "mJ", "J") => Scale::Over(1000),
            (_, "%", "ratio") => Scale::Part(100),
            (_, "ns", "s") => Scale::Part(1_000_000_000),
            // Memories are read in bytes.
            _ => Scale::One,
        }
    }
}

/// Made once for the life of the program.
fn help_in_base_units(classic: &'static str) -> &'static str {
    let unit = UNITS_IN_HELP.iter().find(|(unit, _)| classic.contains(unit));
    unit.map_or(classic, |(unit, other)| String::leak(classic.replace(unit, other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::write::Value;

    #[test]
    fn every_classic_name_is_served_and_the_way_back_is_the_same() {
        for entry in RENAMED {
            assert_eq!(served(entry.classic).map(|metric| metric.name), Some(entry.classic));
            assert!((entry.to_classic(entry.from_classic(42.0)) - 42.0).abs() < 1e-9, "{}", entry.name);
        }
        assert_eq!(renamed("DCGM_FI_DEV_GPU_UTIL_RATIO").unwrap().to_classic(0.9), 90.0);
        assert_eq!(renamed("DCGM_FI_DEV_GPU_UTIL"), None);
    }

    #[test]
    fn a_name_of_4_9_is_served_in_its_own_unit() {
        for entry in RENAMED {
            let (classic, metric) = (served(entry.classic).unwrap(), served(entry.name).unwrap());
            assert_eq!(in_4_9(classic), (entry.name, metric), "{}", entry.name);
            if entry.field.is_none() {
                assert_eq!(metric, classic, "{}", entry.name);
                continue;
            }
            assert_eq!((metric.unit, metric.field), (entry.unit, entry.field), "{}", entry.name);
            assert_ne!(metric.help, classic.help, "{}", entry.name);
            // The same reading, in a size that neither unit truncates.
            let read = match classic.unit {
                "MiB" => Value::U64(42 << 20),
                "MB/s" => Value::F64(42_000.0),
                "%" => Value::F64(42.0),
                _ => Value::U64(42_000),
            };
            let in_classic = classic.measured(read).unwrap().as_f64();
            let in_base = metric.measured(read).unwrap().as_f64();
            assert!(
                (entry.from_classic(in_classic) / in_base - 1.0).abs() < 1e-9,
                "{}: {in_base}",
                entry.name
            );
        }
    }

    #[test]
    fn fields_that_kept_their_unit_are_named_as_dcgm_names_them_now() {
        for (classic, name) in [
            ("DCGM_FI_DRIVER_VERSION", "DCGM_FI_SYSTEM_DRIVER_VERSION"),
            ("DCGM_FI_DEV_POWER_MGMT_LIMIT", "DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS"),
            ("DCGM_FI_PROF_PCIE_TX_BYTES", "DCGM_FI_PROF_PCIE_TX_BYTES"),
            ("DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_COUNT"),
        ] {
            assert_eq!(in_4_9(served(classic).unwrap()).0, name);
        }
    }
}

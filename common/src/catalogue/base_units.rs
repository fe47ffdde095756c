//! The names and units that DCGM 4.7 and dcgm-exporter 4.9 gave to fields that had others before.
//!
//! Two names of one field may differ in unit, so that a name alone decides what its number means:
//! nobody looks at the size of a value.

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
    /// The unit under the name of 4.9.
    pub unit: &'static str,
    pub conversion: Conversion,
}

const MIB: f64 = 1024.0 * 1024.0;

macro_rules! renamed {
    ($($classic:literal => $name:literal $unit:literal $conversion:expr;)*) => {
        &[$(Renamed {
            classic: concat!("DCGM_FI_", $classic),
            name: concat!("DCGM_FI_", $name),
            unit: $unit,
            conversion: $conversion,
        }),*]
    };
}

use Conversion::{Same, Times};

/// The fields that dcgm-exporter 4.9 renamed in its default and profiling presets, label excluded.
/// `NVLINK_BANDWIDTH_TOTAL` is in KiB per second ÷ 1000 under its classic name.
pub const RENAMED: &[Renamed] = renamed! {
    "DEV_SM_CLOCK" => "DEV_SM_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MEM_CLOCK" => "DEV_MEMORY_CLOCK_HERTZ" "Hz" Times(1e6);
    "DEV_MEMORY_TEMP" => "DEV_MEMORY_TEMP_CELSIUS" "°C" Same;
    "DEV_GPU_TEMP" => "DEV_GPU_TEMP_CELSIUS" "°C" Same;
    "DEV_POWER_USAGE" => "DEV_BOARD_POWER_WATTS" "W" Same;
    "DEV_TOTAL_ENERGY_CONSUMPTION" => "DEV_GPU_ENERGY_JOULES_TOTAL" "J" Times(1e-3);
    "DEV_PCIE_REPLAY_COUNTER" => "DEV_PCIE_REPLAY_TOTAL" "" Same;
    "DEV_GPU_UTIL" => "DEV_GPU_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_MEM_COPY_UTIL" => "DEV_MEMORY_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_ENC_UTIL" => "DEV_ENC_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_DEC_UTIL" => "DEV_DEC_UTIL_RATIO" "ratio" Times(1e-2);
    "DEV_XID_ERRORS" => "DEV_XID_ERROR" "" Same;
    "DEV_FB_FREE" => "DEV_FB_FREE_BYTES" "B" Times(MIB);
    "DEV_FB_USED" => "DEV_FB_USED_BYTES" "B" Times(MIB);
    "DEV_FB_RESERVED" => "DEV_FB_RESERVED_BYTES" "B" Times(MIB);
    "DEV_UNCORRECTABLE_REMAPPED_ROWS" => "DEV_ROW_REMAP_UNCORRECTABLE_TOTAL" "" Same;
    "DEV_CORRECTABLE_REMAPPED_ROWS" => "DEV_ROW_REMAP_CORRECTABLE_TOTAL" "" Same;
    "DEV_ROW_REMAP_FAILURE" => "DEV_ROW_REMAP_FAILED" "" Same;
    "DEV_NVLINK_BANDWIDTH_TOTAL" => "DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND" "B/s" Times(1024.0 * 1000.0);
    "PROF_GR_ENGINE_ACTIVE" => "PROF_GR_ENGINE_UTIL_RATIO" "ratio" Same;
    "PROF_SM_ACTIVE" => "PROF_SM_UTIL_RATIO" "ratio" Same;
    "PROF_PIPE_TENSOR_ACTIVE" => "PROF_TENSOR_UTIL_RATIO" "ratio" Same;
    "PROF_DRAM_ACTIVE" => "PROF_DRAM_UTIL_RATIO" "ratio" Same;
};

/// The entry of a name of 4.9.
pub fn renamed(name: &str) -> Option<&'static Renamed> {
    RENAMED.iter().find(|entry| entry.name == name)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::served;

    #[test]
    fn every_classic_name_is_served_and_the_way_back_is_the_same() {
        for entry in RENAMED {
            assert_eq!(served(entry.classic).map(|metric| metric.name), Some(entry.classic));
            assert!((entry.to_classic(entry.from_classic(42.0)) - 42.0).abs() < 1e-9, "{}", entry.name);
        }
        assert_eq!(renamed("DCGM_FI_DEV_GPU_UTIL_RATIO").unwrap().to_classic(0.9), 90.0);
        assert_eq!(renamed("DCGM_FI_DEV_GPU_UTIL"), None);
    }
}

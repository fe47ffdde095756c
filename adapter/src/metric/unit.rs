//! Names the units of metrics, for people who read their values.

use podgauge_common::catalogue::base_units::renamed;
use podgauge_common::catalogue::{Kind, served};

use super::{DRAM_ACTIVE, Formula, Metric, POWER, SM_ACTIVE, TENSOR_ACTIVE};

impl Metric {
    /// The unit of its values; empty where it has none or it is not known.
    pub fn unit(&self) -> String {
        match self.formula {
            Formula::Utilization
            | Formula::UtilizationShare
            | Formula::DeviceUtilization
            | Formula::MemoryUtilization => "%".to_owned(),
            Formula::MemoryUsed => "bytes".to_owned(),
            Formula::Sum(POWER) => "W".to_owned(),
            // A ratio times 100.
            Formula::Mean { family: SM_ACTIVE | TENSOR_ACTIVE | DRAM_ACTIVE, scale } if scale > 1.0 => {
                "%".to_owned()
            }
            Formula::Sum(_) | Formula::Mean { .. } => of_family(&self.name),
        }
    }
}

/// The unit of a family under the name that `--metric` has for it.
fn of_family(name: &str) -> String {
    let newer = renamed(name);
    let Some(family) = served(newer.map_or(name, |newer| newer.classic)) else { return String::new() };
    unit(newer.map_or(family.unit, |newer| newer.unit), family.kind)
}

/// A counter's values are rates.
fn unit(unit: &str, kind: Kind) -> String {
    match kind {
        Kind::Counter => format!("{unit}/s"),
        Kind::Gauge | Kind::Label => unit.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MetricFlag, Metrics};

    #[test]
    fn values_have_the_unit_of_their_family_and_counters_are_rates() {
        let names = [
            "DCGM_FI_DEV_GPU_TEMP",
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_GPU_UTIL_RATIO",
            "DCGM_FI_DEV_FB_USED_BYTES",
            "DCGM_FI_PROF_SM_ACTIVE",
            "my_family",
        ];
        let metrics = Metrics::new(&names.map(|name| MetricFlag::parse(name).unwrap()));
        for (name, unit) in [
            ("gpu_utilization", "%"),
            ("gpu_memory_used_bytes", "bytes"),
            ("gpu_power_watts", "W"),
            ("gpu_sm_active", "%"),
            ("DCGM_FI_DEV_GPU_TEMP", "°C"),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "mJ/s"),
            ("DCGM_FI_DEV_GPU_UTIL", "%"),
            ("DCGM_FI_DEV_GPU_UTIL_RATIO", "ratio"),
            ("DCGM_FI_DEV_FB_USED_BYTES", "B"),
            ("DCGM_FI_PROF_SM_ACTIVE", "ratio"),
            ("my_family", ""),
        ] {
            assert_eq!(metrics.get(name).unwrap().unit(), unit, "{name}");
        }
    }
}

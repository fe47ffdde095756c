//! Names the units of metrics, for people who read their values.

use podgauge_common::catalogue::{Kind, served};

use super::{Formula, Metric, Metrics, POWER, USE, is_ratio};

impl Metrics {
    /// The unit of a metric's values; empty where it has none or it is not known.
    pub fn unit(&self, metric: &Metric) -> String {
        match metric.formula {
            Formula::Utilization
            | Formula::UtilizationShare
            | Formula::DeviceUtilization
            | Formula::MemoryUtilization => "%".to_owned(),
            Formula::MemoryUsed => "bytes".to_owned(),
            Formula::Sum(POWER) => "W".to_owned(),
            // A ratio times 100.
            Formula::Mean { family, scale } if scale > 1.0 && (family == USE || is_ratio(family)) => {
                "%".to_owned()
            }
            Formula::Sum(family) | Formula::Mean { family, .. } => {
                let family = self.family_name(family).and_then(served);
                family.map(|family| unit(family.unit, family.kind)).unwrap_or_default()
            }
        }
    }
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
    use super::super::MetricFlag;
    use super::*;

    #[test]
    fn values_have_the_unit_of_their_family_and_counters_are_rates() {
        let names = ["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_GPU_UTIL"];
        let metrics = Metrics::new(&names.map(|name| MetricFlag::parse(name).unwrap()));
        for (name, unit) in [
            ("gpu_utilization", "%"),
            ("gpu_memory_used_bytes", "bytes"),
            ("gpu_power_watts", "W"),
            ("gpu_sm_active", "%"),
            ("DCGM_FI_DEV_GPU_TEMP", "°C"),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "mJ/s"),
            ("DCGM_FI_DEV_GPU_UTIL", "%"),
        ] {
            assert_eq!(metrics.unit(metrics.get(name).unwrap()), unit, "{name}");
        }
    }
}

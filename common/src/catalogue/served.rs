//! Owns the list of DCGM's metrics that are served, put together from the tables.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::names::field_of;
use super::{Metric, base_units, device, links, profiling};

/// Writes the rows of a table.
macro_rules! metrics {
    ($($name:literal $field:expr, $kind:ident $scope:ident $unit:literal $reading:expr => $help:literal)*) => {
        &[$($crate::catalogue::Metric {
            name: $name,
            field: $field,
            kind: $crate::catalogue::Kind::$kind,
            scope: $crate::catalogue::Scope::$scope,
            unit: $unit,
            scale: $reading.classic_scale(),
            reading: $reading,
            help: $help,
        }),*]
    };
}
pub(super) use metrics;

/// Every metric that a counters file can ask for and NVML answers, by field id; the families that
/// dcgm-exporter itself adds come last.
pub static SERVED: LazyLock<Vec<Metric>> = LazyLock::new(|| {
    let mut all: Vec<Metric> =
        [device::IDENTITY, device::STATE, device::HEALTH, device::EVENTS, profiling::ENGINES]
            .into_iter()
            .flatten()
            .copied()
            .chain(links::metrics())
            .chain(profiling::metrics())
            .collect();
    all.extend(base_units::metrics(&all));
    all.sort_by_key(|metric| (metric.field.is_none(), metric.field, metric.name));
    all
});

/// By what a counters file can name it: DCGM's field id, else the name.
static BY_FIELD: LazyLock<HashMap<u16, usize>> = LazyLock::new(|| {
    SERVED.iter().enumerate().filter_map(|(position, metric)| Some((metric.field?, position))).collect()
});

/// The metric of that name, whichever of DCGM's names for it that is, if this version serves it.
pub fn served(name: &str) -> Option<&'static Metric> {
    let by_name = SERVED.iter().find(|metric| metric.name == name);
    by_name.or_else(|| BY_FIELD.get(&field_of(name)?).map(|position| &SERVED[*position]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Kind, Reading};

    #[test]
    fn served_metrics_have_dcgms_names_and_ids_once_each() {
        for metric in SERVED.iter() {
            // Those of a later DCGM are not on the list.
            if metric.field.is_some_and(|field| field < 1600) {
                assert_eq!(field_of(metric.name), metric.field, "{}", metric.name);
            }
            assert_eq!(
                metric.kind == Kind::Label,
                matches!(metric.reading, Reading::Text(_)),
                "{}",
                metric.name
            );
        }
        let mut names: Vec<_> = SERVED.iter().map(|metric| (metric.field, metric.name)).collect();
        let all = names.len();
        names.dedup_by_key(|(field, name)| {
            field.map_or_else(|| (*name).to_owned(), |field| field.to_string())
        });
        assert_eq!(names.len(), all, "a field stands twice in the tables");
        assert!(all > 300, "{all}");
    }

    #[test]
    fn every_name_of_a_field_leads_to_its_metric() {
        for (name, classic) in [
            ("dcgm_gpu_utilization", "DCGM_FI_DEV_GPU_UTIL"),
            ("DCGM_FI_DEV_GPU_TEMP_CELSIUS", "DCGM_FI_DEV_GPU_TEMP"),
            ("DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_POWER_USAGE"),
            ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS"),
            ("DCGM_FI_PROF_TENSOR_UTIL_RATIO", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
            ("DCGM_FI_DEV_NVLINK_THROUGHPUT_TOTAL", "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"),
            ("DCGM_EXP_XID_ERRORS_TOTAL", "DCGM_EXP_XID_ERRORS_TOTAL"),
        ] {
            assert_eq!(served(name).map(|metric| metric.name), Some(classic), "{name}");
        }
        assert_eq!(served("DCGM_EXP_P2P_STATUS"), None);
    }

    #[test]
    fn every_1x_name_is_served() {
        let old: Vec<&str> = super::super::names::all().filter(|name| name.starts_with("dcgm_")).collect();
        assert_eq!(old.len(), 41);
        for name in old {
            assert!(served(name).is_some(), "{name}");
        }
    }
}

//! Owns the names that a counters file may hold: everything DCGM knows, whether served or not.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A name that DCGM knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// DCGM's field id; `None` for a name of a later naming scheme that has an id of its own.
    pub field: Option<u16>,
}

/// `field id, name, aliases…` a line.
static LINES: &str = include_str!("dcgm_names.txt");

/// Endings of the base-unit names that DCGM 4.7 brought.
const BASE_UNITS: [&str; 8] =
    ["_HERTZ", "_BYTES", "_BYTES_TOTAL", "_JOULES_TOTAL", "_RATIO", "_CELSIUS", "_WATTS", "_CYCLES_TOTAL"];

/// dcgm-exporter's own metrics: each also with `_TOTAL` in place of `_COUNT`, or appended.
const EXPORTER: [&str; 6] = [
    "DCGM_EXP_XID_ERRORS_COUNT",
    "DCGM_EXP_XID_ERRORS_TOTAL",
    "DCGM_EXP_CLOCK_EVENTS_COUNT",
    "DCGM_EXP_CLOCK_EVENTS_TOTAL",
    "DCGM_EXP_GPU_HEALTH_STATUS",
    "DCGM_EXP_P2P_STATUS",
];

static NAMES: LazyLock<HashMap<&'static str, u16>> = LazyLock::new(|| {
    let mut names = HashMap::new();
    for line in LINES.lines() {
        let mut words = line.split(' ');
        let Some(id) = words.next().and_then(|id| id.parse().ok()) else { continue };
        names.extend(words.map(|name| (name, id)));
    }
    names
});

/// Whether a name is DCGM's. `None` is a typing error in a counters file.
pub fn known(name: &str) -> Option<Known> {
    if let Some(id) = NAMES.get(name) {
        return Some(Known { field: Some(*id) });
    }
    let ours = EXPORTER.iter().any(|known| name == *known || name.strip_suffix("_TOTAL") == Some(known));
    let base_unit = name.starts_with("DCGM_FI_") && BASE_UNITS.iter().any(|unit| name.ends_with(unit));
    (ours || base_unit).then_some(Known { field: None })
}

/// Every name with a field id, in no order.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    NAMES.keys().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_an_id_and_a_name() {
        for line in LINES.lines() {
            let (id, name) = line.split_once(' ').unwrap();
            assert!(id.parse::<u16>().is_ok() && !name.is_empty(), "{line}");
        }
        assert_eq!(LINES.lines().count(), 598);
    }

    #[test]
    fn names_aliases_and_base_units_are_known_and_typing_errors_are_not() {
        for name in [
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_GPU_UTIL_RATIO",
            "dcgm_gpu_utilization",
            "DCGM_FI_DEV_BOARD_POWER_WATTS",
            "DCGM_EXP_XID_ERRORS_COUNT",
            "DCGM_EXP_CLOCK_EVENTS_TOTAL",
            "DCGM_FI_DEV_FB_CAPACITY_BYTES",
        ] {
            assert!(known(name).is_some(), "{name}");
        }
        assert_eq!(known("DCGM_FI_DEV_GPU_UTIL").unwrap().field, Some(203));
        for name in ["DCGM_FI_DEV_GPU_UTILL", "DCGM_FI_DEV_FOO", "gpu_util", "DCGM_EXP_FOO", "foo_BYTES", ""]
        {
            assert!(known(name).is_none(), "{name}");
        }
    }
}

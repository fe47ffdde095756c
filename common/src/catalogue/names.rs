//! The names that DCGM has for its fields, whether served or not.

use std::collections::HashMap;
use std::sync::LazyLock;

/// `field id, name, aliases…` a line, of DCGM 4.6 and dcgm-exporter 1.x.
static LINES: &str = include_str!("dcgm_names.txt");

static NAMES: LazyLock<HashMap<&'static str, u16>> = LazyLock::new(|| {
    let mut names = HashMap::new();
    for line in LINES.lines() {
        let mut words = line.split(' ');
        let Some(id) = words.next().and_then(|id| id.parse().ok()) else { continue };
        names.extend(words.map(|name| (name, id)));
    }
    names
});

/// DCGM's field id of a name, if it is on the list.
pub(super) fn field_of(name: &str) -> Option<u16> {
    NAMES.get(name).copied()
}

/// The name that DCGM has used for a field since 4.6, by its classic name.
pub(super) fn canonical(classic: &str) -> Option<&'static str> {
    LINES.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next() == Some(classic)).then(|| words.next()).flatten()
    })
}

/// Whether a name has the form of DCGM's names. DCGM has more names than the list, and gets new
/// ones: an unknown one does not make a file wrong.
pub fn is_well_formed(name: &str) -> bool {
    ["DCGM_FI_", "DCGM_EXP_"].iter().filter_map(|prefix| name.strip_prefix(prefix)).any(|rest| {
        rest.starts_with(|first: char| first.is_ascii_uppercase())
            && rest.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    })
}

/// Whether a name is on the list of DCGM's names, or one of dcgm-exporter's own.
pub fn is_known(name: &str) -> bool {
    /// Those that no field and no family of this program answers.
    const EXPORTER: [&str; 2] = ["DCGM_EXP_GPU_HEALTH_STATUS", "DCGM_EXP_P2P_STATUS"];
    NAMES.contains_key(name) || EXPORTER.contains(&name) || super::served(name).is_some()
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
    fn names_and_aliases_are_known_and_typing_errors_are_not() {
        for name in [
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_GPU_UTIL_RATIO",
            "dcgm_gpu_utilization",
            "DCGM_FI_DEV_BOARD_POWER_WATTS",
            "DCGM_EXP_XID_ERRORS_COUNT",
            "DCGM_EXP_P2P_STATUS",
            "DCGM_FI_DEV_FB_CAPACITY_BYTES",
        ] {
            assert!(is_known(name), "{name}");
        }
        assert_eq!(field_of("DCGM_FI_DEV_GPU_UTIL"), Some(203));
        assert_eq!(field_of("DCGM_FI_DEV_GPU_UTIL_RATIO"), None);
        for name in ["DCGM_FI_DEV_GPU_UTILL", "DCGM_FI_DEV_FOO", "gpu_util", "DCGM_EXP_FOO", ""] {
            assert!(!is_known(name), "{name}");
        }
    }

    #[test]
    fn a_name_of_a_later_dcgm_is_well_formed() {
        for name in ["DCGM_FI_DEV_NVSWITCH_VOLTAGE_MVOLT", "DCGM_FI_X2", "DCGM_EXP_NEW_TOTAL"] {
            assert!(is_well_formed(name), "{name}");
        }
        for name in ["DCGM_FI_", "DCGM_FI_DEV_gpu", "DCGM_FI_DEV GPU", "DCGM_FI__X", "dcgm_new", "DCGM_X", ""]
        {
            assert!(!is_well_formed(name), "{name}");
        }
    }
}

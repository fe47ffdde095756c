//! Tests that need more than every machine gives. They fail there, with the reason, unless a variable
//! permits to leave them out.

/// No package index can be reached.
pub const OFFLINE: &str = "PODGAUGE_TESTS_OFFLINE";
/// No network and mount namespaces can be made; containers are often kept from it.
pub const WITHOUT_NAMESPACES: &str = "PODGAUGE_TESTS_WITHOUT_NAMESPACES";

/// Says that the calling test is left out. Panics if this variable is not set.
pub fn leave_out(variable: &str, reason: &str) {
    assert!(std::env::var_os(variable).is_some(), "{reason}; set {variable}=1 to go on without it");
    eprintln!("left out, {variable} is set: {reason}");
}

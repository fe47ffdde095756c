//! Owns the names of clock event reasons, as the label `clock_event` has them.

/// NVML's bits from 0x1 on, in their order.
pub const REASONS: [&str; 9] = [
    "gpu_idle",
    "clocks_setting",
    "power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal",
    "hw_thermal",
    "hw_power_brake",
    "display_clocks",
];

//! Owns what the simulated driver knows, without any of NVML's C types: the scenario in force,
//! each GPU's past and present, and the errors and blocks that calls are to meet.
//!
//! Every function takes the moment it is asked at; only the C ABI reads the clock.

mod device;
mod events;
mod fields;
mod figures;
mod gpm;
mod mig;
mod node;
mod power;
mod reading;
mod ring;
mod timeline;
mod watch;

pub(crate) use events::XID_EVENT;
pub(crate) use fields::FieldValue;
pub(crate) use figures::{
    BAR1_BYTES, BAR1_IDLE_BYTES, MAX_SM_CLOCK_MHZ, MAX_VIDEO_CLOCK_MHZ, MEMORY_CLOCK_MHZ, POWER_LIMIT_MW,
    POWER_MIN_LIMIT_MW,
};
pub(crate) use node::Node;
pub(crate) use power::SAMPLES as POWER_SAMPLES;
pub(crate) use reading::{Reading, Running};
pub(crate) use ring::{SLOTS, mix};
pub(crate) use timeline::services;

/// Name of the variable that names the scenario file.
pub const SCENARIO_VARIABLE: &str = "PODGAUGE_SIM_SCENARIO";

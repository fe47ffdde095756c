//! Reads the scenario, and again when its file has changed.

use std::path::PathBuf;
use std::time::SystemTime;

use podgauge_sim_nvml::SCENARIO_VARIABLE;
use podgauge_sim_nvml::scenario::{Gpu, Scenario, SwitchCall};

/// The scenario in force.
#[derive(Debug, Default)]
pub(crate) struct Scene {
    read_at: Option<(SystemTime, u64)>,
    scenario: Option<Scenario>,
}

impl Scene {
    /// The newest one that could be read.
    pub(crate) fn now(&mut self) -> Option<&Scenario> {
        let path = PathBuf::from(std::env::var_os(SCENARIO_VARIABLE)?);
        let state = std::fs::metadata(&path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
        if state.is_some()
            && state != self.read_at
            && let Ok(scenario) = Scenario::read(&path)
        {
            self.scenario = Some(scenario);
            self.read_at = state;
        }
        self.scenario.as_ref()
    }

    /// A GPU of it, by its place.
    pub(crate) fn gpu(&mut self, index: usize) -> Option<&Gpu> {
        self.now()?.gpus.get(index)
    }

    /// The status that a call is to answer, if it is refused.
    pub(crate) fn refused(&mut self, index: usize, call: SwitchCall) -> Option<u32> {
        self.gpu(index)?.switch_trace.refuses.get(&call).copied()
    }
}

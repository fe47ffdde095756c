//! Owns what a scenario must keep beyond its shape; every complaint names the offending entry.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gpu, NvLink, Process, Scenario};
use crate::abi;
use crate::load::Load;
use crate::pci::PciAddress;
use crate::status::Failure;

/// More GPUs than any node has; it bounds what a typing mistake can cost.
const MAX_GPUS: usize = 128;
/// NVML's limit of NVLinks on one GPU in the bindings used here.
const MAX_LINKS: u32 = 18;
/// Longest block of a call, seconds.
const MAX_BLOCK_S: f64 = 86_400.0;
/// Most memory of a GPU or a process, MiB: a PiB.
const MAX_MEMORY_MIB: u64 = 1 << 30;
/// Highest rate of NVLink, MiB/s.
const MAX_LINK_MIB_S: f64 = 1e8;
/// Latest moment a replay may begin, seconds since the epoch.
const MAX_START_S: f64 = 1e11;

/// Calls that the scenario can have answer a number.
const ANSWERS: [&str; 10] = [
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetFanSpeed",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPcieReplayCounter",
];
/// Calls with an answer by id.
const NUMBERED_ANSWERS: [&str; 2] = ["nvmlDeviceGetFieldValues", "nvmlGpmMetricsGet"];
/// The call with an answer by part, and the parts.
const MEMORY: (&str, [&str; 4]) = ("nvmlDeviceGetMemoryInfo", ["total", "free", "used", "reserved"]);

impl Scenario {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.gpus.len() > MAX_GPUS {
            return Err(format!("{} GPUs, the limit is {MAX_GPUS}", self.gpus.len()));
        }
        let mut uuids = BTreeSet::new();
        for (index, gpu) in self.gpus.iter().enumerate() {
            gpu.check(index).map_err(|why| format!("gpu {index}: {why}"))?;
            let instances = gpu.instances().iter().map(|instance| instance.uuid(gpu, index));
            for uuid in instances.chain([gpu.uuid(index)]) {
                if uuids.contains(&uuid) {
                    return Err(format!("gpu {index}: UUID {uuid} is taken by another device"));
                }
                uuids.insert(uuid);
            }
        }
        (0..self.gpus.len()).try_for_each(|index| self.check_turns(index))?;
        check_calls(self.errors.keys().chain(self.blocks.keys()))?;
        check_errors(self.errors.values())?;
        check_blocks(self.blocks.values())?;
        let mut on_gpu = BTreeSet::new();
        for (_, process) in self.all_processes() {
            self.check_process(process).map_err(|why| format!("process {}: {why}", process.pid))?;
            if !on_gpu.insert((process.gpu, process.pid)) {
                return Err(format!("process {} is listed twice on gpu {}", process.pid, process.gpu));
            }
        }
        for pod in &self.pods {
            for container in &pod.containers {
                self.check_held(pod, container)?;
            }
        }
        self.check_claims()
    }

    /// Processes take turns on a GPU only if all of them say by which requests.
    fn check_turns(&self, index: usize) -> Result<(), String> {
        let gpu = &self.gpus[index];
        let any = self.loads(index).iter().any(|(_, load)| matches!(load, Load::Requests(_)));
        let all = !self.services(index).is_empty() && gpu.passing.is_none();
        if any && !(all && gpu.mig.is_none() && gpu.mps_server.is_none() && gpu.replay.is_none()) {
            return Err(format!(
                "gpu {index}: where a load is of requests, all of its processes' are, and it has neither MIG, MPS nor a replay"
            ));
        }
        Ok(())
    }

    fn check_process(&self, process: &Process) -> Result<(), String> {
        if process.gpu >= self.gpus.len() {
            return Err(format!("it is on gpu {}, but there are {} GPUs", process.gpu, self.gpus.len()));
        }
        let gpu = &self.gpus[process.gpu];
        if let Some(gi) = process.gi
            && !gpu.instances().iter().any(|instance| process.is_on(process.gpu, instance))
        {
            return Err(format!("it is on instance {gi}/{}, which gpu {} has not", process.ci, process.gpu));
        }
        if process.memory_mib > MAX_MEMORY_MIB {
            return Err(format!("memory_mib is {}: want at most {MAX_MEMORY_MIB}", process.memory_mib));
        }
        process.load.as_ref().map_or(Ok(()), Load::check)
    }
}

impl Gpu {
    fn check(&self, index: usize) -> Result<(), String> {
        let bus_id = self.pci_bus_id(index);
        if PciAddress::parse(&bus_id).is_none() {
            return Err(format!(
                "pci_bus_id {bus_id:?}: want <domain>:<bus>:<device>.<function> in hexadecimal"
            ));
        }
        if self.replicas == Some(0) {
            return Err("replicas is 0: leave it out for a GPU that is not shared".into());
        }
        if !(1..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(format!("memory_mib is {}: want 1 to {MAX_MEMORY_MIB}", self.memory_mib));
        }
        self.check_mig()?;
        if let Some(nvlink) = &self.nvlink {
            nvlink.check()?;
        }
        if let Some(start) = self.replay.as_ref().and_then(|replay| replay.start)
            && !(0.0..=MAX_START_S).contains(&start)
        {
            return Err(format!("replay.start is {start}: want seconds since the epoch"));
        }
        if let Some(load) = &self.load {
            load.check()?;
        }
        check_calls(self.errors.keys().chain(self.blocks.keys()))?;
        check_errors(self.errors.values())?;
        check_blocks(self.blocks.values())?;
        check_answers(&self.answers)
    }
}

impl NvLink {
    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_LINKS).contains(&self.links) {
            return Err(format!("nvlink.links is {}: want 1 to {MAX_LINKS}", self.links));
        }
        match [self.rx_mib_s, self.tx_mib_s].into_iter().find(|rate| !(0.0..=MAX_LINK_MIB_S).contains(rate)) {
            Some(rate) => Err(format!("nvlink: {rate} MiB/s, want 0 to {MAX_LINK_MIB_S}")),
            None => Ok(()),
        }
    }
}

/// Refuses names of calls that the library does not have: a typing mistake would do nothing.
fn check_calls<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    for name in names {
        let call = name.split_once(':').map_or(name.as_str(), |(call, _)| call);
        let known = call == "all" || abi::calls().any(|known| known == call || abi::base(known) == call);
        if !known {
            return Err(format!("errors and blocks: the library has no call {call:?}"));
        }
    }
    Ok(())
}

/// Refuses answers of calls that do not look for one.
fn check_answers(answers: &BTreeMap<String, f64>) -> Result<(), String> {
    for (call, value) in answers {
        let known = match call.split_once(':') {
            Some((call, part)) if call == MEMORY.0 => MEMORY.1.contains(&part),
            Some((call, id)) => NUMBERED_ANSWERS.contains(&call) && id.parse::<u32>().is_ok(),
            None => ANSWERS.contains(&call.as_str()),
        };
        if !known {
            return Err(format!(
                "answers: {call:?} is none of {ANSWERS:?}, {NUMBERED_ANSWERS:?} with :<id> and {MEMORY:?}"
            ));
        }
        // GPM says not-a-number where it has no data.
        if *value < 0.0 || value.is_infinite() {
            return Err(format!("answers: {call} is {value}: want a number of at least 0, or .nan"));
        }
    }
    Ok(())
}

fn check_errors<'a>(errors: impl Iterator<Item = &'a String>) -> Result<(), String> {
    for error in errors {
        if Failure::named(error).is_none() {
            return Err(format!("no NVML error is called {error:?}; there are {:?}", Failure::NAMES));
        }
    }
    Ok(())
}

fn check_blocks<'a>(mut seconds: impl Iterator<Item = &'a f64>) -> Result<(), String> {
    match seconds.find(|seconds| !(0.0..=MAX_BLOCK_S).contains(*seconds)) {
        Some(bad) => Err(format!("blocks: {bad} seconds, want 0 to {MAX_BLOCK_S}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_refused_with_the_entry_it_is_in() {
        for (yaml, why) in [
            ("", "empty"),
            ("gpus: [{}]\nprocesses: [{pid: 7, gpu: 1}]", "process 7: it is on gpu 1"),
            ("gpus: [{errors: {nvmlDeviceGetTemperatur: UNKNOWN}}]", "gpu 0: errors and blocks"),
            ("gpus: [{}]\nerrors: {nvmlDeviceGetName: BROKEN}", "\"BROKEN\""),
            ("gpus: [{load: {constant: 101}}]", "gpu 0: a load of 101"),
            ("gpus: [{load: {square: {low: 1, high: 2, period_s: 0}}}]", "period_s"),
            ("gpus: [{uuid: GPU-1}, {uuid: GPU-1}]", "gpu 1: UUID GPU-1"),
            ("gpus: [{}]\nprocesses: [{pid: 7, gpu: 0}, {pid: 7, gpu: 0}]", "twice"),
            ("gpus: [{pci_bus_id: '17'}]", "pci_bus_id"),
            ("gpus: [{nvlink: {links: 19}}]", "nvlink.links is 19"),
            ("gpus: [{nvlink: {tx_mib_s: -1}}]", "-1 MiB/s"),
            ("gpus: [{memory_mib: 0}]", "memory_mib is 0"),
            ("gpus: [{replay: {file: a, run: b, start: .inf}}]", "replay.start is inf"),
            ("gpus: [{blocks: {nvmlDeviceGetName: .nan}}]", "NaN seconds"),
            ("gpus: [{answers: {nvmlDeviceGetName: 1}}]", "nvmlDeviceGetName"),
            ("gpus: [{answers: {nvmlDeviceGetPowerUsage: -1}}]", "is -1"),
            ("gpus: [{loud: 1}]", "loud"),
            ("gpus: [{switch_trace: {refuses: {bnid: 27}}}]", "bnid"),
            ("gpus: [{load: {requests: {ms: 1, percent: 5}}}]", "gpu 0: where a load is of requests"),
            (
                "gpus: [{}]\nprocesses: [{pid: 7, gpu: 0, load: {requests: {ms: 0, percent: 5}}}]",
                "requests of 0 ms",
            ),
            ("gpus: [{}]\npods: [{name: a, containers: [{devices: ['1']}]}]", "holds device \"1\""),
        ] {
            let error = Scenario::parse(yaml).unwrap_err();
            assert!(error.contains(why), "{yaml}: {error}");
        }
    }

    #[test]
    fn errors_may_be_named_with_or_without_the_calls_version() {
        for name in
            ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2", "all", "nvmlDeviceGetFieldValues:82"]
        {
            Scenario::parse(&format!("gpus: [{{errors: {{\"{name}\": GPU_IS_LOST}}}}]")).unwrap();
        }
    }
}

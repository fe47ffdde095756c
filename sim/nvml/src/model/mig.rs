//! Owns what MIG changes: which calls know instances, which go missing on a GPU that is cut into
//! them, and GPM of a whole GPU instance.

use super::gpm::Sample;
use super::node::Node;
use super::reading::Reading;
use crate::abi;
use crate::scenario::{Gpu, Instance, MAX_INSTANCES};
use crate::status::{Answer, Failure};

/// Calls that take the handle of an instance; others find it no valid argument.
const ON_INSTANCES: [&str; 17] = [
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetBAR1MemoryInfo",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "nvmlDeviceGetAttributes",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetRunningProcessDetailList",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmSampleGet",
];
/// Calls that a GPU with MIG on does not support.
const NOT_WITH_MIG: [&str; 10] = [
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetJpgUtilization",
    "nvmlDeviceGetOfaUtilization",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetProcessesUtilizationInfo",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetNvLinkVersion",
    "nvmlDeviceGetNvLinkErrorCounter",
];

/// Whether a GPU, or an instance of it, knows a call.
pub(super) fn check(call: &str, gpu: &Gpu, instance: Option<&Instance>) -> Answer {
    let call = abi::base(call);
    if instance.is_some() && !ON_INSTANCES.contains(&call) {
        return Err(Failure::INVALID_ARGUMENT);
    }
    if gpu.mig.is_some() && NOT_WITH_MIG.contains(&call) {
        return Err(Failure::NOT_SUPPORTED);
    }
    Ok(())
}

/// Fields that a GPU with MIG on does not support: NVLink's, and remapped rows.
pub(super) const fn hides_field(id: u32) -> bool {
    matches!(id, 91 | 138..=146 | 161..=168 | 200 | 223..=225)
}

impl Reading<'_> {
    /// The instance's ids; only a handle of an instance has them.
    pub(crate) fn instance_ids(&self) -> Result<(u32, u32), Failure> {
        self.instance.map(|instance| (instance.gi, instance.ci)).ok_or(Failure::NOT_SUPPORTED)
    }

    /// NVML's index: of the GPU on the node, or of the instance on the GPU.
    pub(crate) fn slot(&self) -> u32 {
        let Some(instance) = self.instance else { return self.index as u32 };
        let listed = |slot: &u32| self.gpu.instance_at(*slot) == Some(instance);
        (0..MAX_INSTANCES).find(listed).unwrap_or(MAX_INSTANCES)
    }

    /// As NVML calls it, with the profile at the end for an instance.
    pub(crate) fn name(&self) -> String {
        match self.instance {
            Some(instance) => format!("{} MIG {}", self.gpu.model, instance.profile),
            None => self.gpu.model.clone(),
        }
    }
}

impl Node {
    /// The handle of the instance at an index of a GPU.
    pub(crate) fn instance_handle(
        &mut self,
        call: &str,
        gpu: usize,
        slot: u32,
        now_us: i64,
    ) -> Result<usize, Failure> {
        let reading = self.reading(call, gpu, now_us)?;
        if reading.gpu.mig.is_none() {
            return Err(Failure::NOT_SUPPORTED);
        }
        if slot >= MAX_INSTANCES {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let instance = reading.gpu.instance_at(slot).ok_or(Failure::NOT_FOUND)?;
        let uuid = instance.uuid(reading.gpu, reading.index);
        self.handle(&uuid)
    }

    /// The handle of the GPU that an instance is part of.
    pub(crate) fn parent_handle(&mut self, call: &str, handle: usize, now_us: i64) -> Result<usize, Failure> {
        let reading = self.reading(call, handle, now_us)?;
        if reading.instance.is_none() {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let uuid = reading.gpu.uuid(reading.index);
        self.handle(&uuid)
    }

    /// Brings the compute instances of a GPU instance up to now and takes a GPM sample of them
    /// together.
    pub(crate) fn take_instance_sample(
        &mut self,
        call: &str,
        handle: usize,
        gi: u32,
        sample: usize,
        now_us: i64,
    ) -> Answer {
        let reading = self.reading(call, handle, now_us)?;
        if reading.gpu.mig.is_none() {
            return Err(Failure::NOT_SUPPORTED);
        }
        let compute = reading.gpu.instances().iter().filter(|instance| instance.gi == gi);
        let parts: Vec<(String, f64)> = compute
            .map(|instance| {
                let (of, slices) = instance.slices();
                (instance.uuid(reading.gpu, reading.index), f64::from(slices) / f64::from(of))
            })
            .collect();
        let (first, _) = parts.first().ok_or(Failure::INVALID_ARGUMENT)?.clone();
        let mut load_s = 0.0;
        for (uuid, part) in &parts {
            load_s += self.advanced(uuid, now_us)?.meter.load_s * part;
        }
        let taken = Sample::of_instance(first.clone(), self.advanced(&first, now_us)?.meter, load_s);
        self.samples.fill(sample, taken)
    }
}

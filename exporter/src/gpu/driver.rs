//! The loaded library and its devices, so that every driver call of this program is made in one way:
//! booked in the [`account`](super::account) under NVML's name, and judged if it fails.
//!
//! A call that says that the GPU or the driver is gone is believed only if other calls on the same
//! GPU agree: drivers are known that answer GPU_IS_LOST or RESET_REQUIRED to one call alone.

use std::cell::RefCell;

use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, InfoRom, MemoryError, MemoryLocation, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::error::NvmlError as Cause;
use nvml_wrapper::struct_wrappers::device::{
    BAR1MemoryInfo, DeviceAttributes, MemoryInfo, PciInfo, Utilization,
};
use nvml_wrapper::structs::device::{
    AutoBoostClocksEnabledInfo, CudaComputeCapability, MigMode, PowerManagementConstraints, UtilizationInfo,
};
use nvml_wrapper::{EventSet, Nvml};

use super::account::{code, timed};
pub(super) use super::fault::{Fault, NvmlError, known};

/// Most GPUs of one node: a greater count is not believed.
const MAX_GPUS: u32 = 4096;

/// The loaded library.
#[derive(Debug)]
pub(crate) struct Driver(Nvml);

/// A GPU or a MIG instance.
#[derive(Debug)]
pub(crate) struct Device<'nvml> {
    inner: nvml_wrapper::Device<'nvml>,
    driver: &'nvml Driver,
    /// Calls that said alone that the GPU is gone, so that each is logged once.
    contradicted: RefCell<Vec<&'static str>>,
}

/// A call that any GPU answers that answers at all, and that asks the driver, not the library.
type Probe = fn(&nvml_wrapper::Device<'_>) -> Result<(), Cause>;

const PROBES: [(&str, Probe); 4] = [
    ("nvmlDeviceGetMemoryInfo_v2", |device| device.memory_info().map(drop)),
    ("nvmlDeviceGetTemperature", |device| device.temperature(TemperatureSensor::Gpu).map(drop)),
    ("nvmlDeviceGetPowerUsage", |device| device.power_usage().map(drop)),
    ("nvmlDeviceGetUtilizationRates", |device| device.utilization_rates().map(drop)),
];

// === impl Driver ===

impl Driver {
    pub(super) fn new(nvml: Nvml) -> Self {
        Self(nvml)
    }

    /// For calls that [`raw`](super::raw) and [`calls`](super::calls) make.
    pub(super) fn library(&self) -> &Nvml {
        &self.0
    }

    /// Makes a call that concerns no GPU.
    pub(super) fn call<T>(
        &self,
        call: &'static str,
        run: impl FnOnce(&Nvml) -> Result<T, Cause>,
    ) -> Result<T, NvmlError> {
        timed(call, || run(&self.0)).map_err(|cause| NvmlError::new(call, cause))
    }

    pub(super) fn device_count(&self) -> Result<u32, NvmlError> {
        const CALL: &str = "nvmlDeviceGetCount_v2";
        match self.call(CALL, Nvml::device_count)? {
            count if count > MAX_GPUS => Err(NvmlError::new(CALL, Cause::NoData)),
            count => Ok(count),
        }
    }

    /// The GPU of an index. An error that the library answers for this GPU alone is not one of the
    /// library.
    pub(super) fn device_by_index(&self, index: u32) -> Result<Device<'_>, NvmlError> {
        const CALL: &str = "nvmlDeviceGetHandleByIndex_v2";
        match timed(CALL, || self.0.device_by_index(index)) {
            Ok(inner) => Ok(Device::new(inner, self)),
            Err(cause) => {
                let error = NvmlError::new(CALL, cause);
                let of_gpu = error.fault == Fault::Reload && self.device_count().is_ok();
                Err(if of_gpu { NvmlError { fault: Fault::Lost, ..error } } else { error })
            }
        }
    }

    pub(super) fn driver_version(&self) -> Result<String, NvmlError> {
        self.call("nvmlSystemGetDriverVersion", Nvml::sys_driver_version)
    }

    pub(super) fn nvml_version(&self) -> Result<String, NvmlError> {
        self.call("nvmlSystemGetNVMLVersion", Nvml::sys_nvml_version)
    }

    pub(super) fn event_set(&self) -> Result<EventSet<'_>, NvmlError> {
        timed("nvmlEventSetCreate", || self.0.create_event_set())
            .map_err(|cause| NvmlError::new("nvmlEventSetCreate", cause))
    }

    /// Ends the use of the library.
    pub(super) fn shut_down(self) {
        // There is nothing to do about an error: the library is let go either way.
        drop(timed("nvmlShutdown", || self.0.shutdown()));
    }
}

// === impl Device ===

impl<'nvml> Device<'nvml> {
    fn new(inner: nvml_wrapper::Device<'nvml>, driver: &'nvml Driver) -> Self {
        Self { inner, driver, contradicted: RefCell::default() }
    }

    pub(super) fn driver(&self) -> &'nvml Driver {
        self.driver
    }

    /// For calls that [`raw`](super::raw) and [`calls`](super::calls) make.
    pub(super) fn inner(&self) -> &nvml_wrapper::Device<'nvml> {
        &self.inner
    }

    /// Makes a call on this device.
    pub(super) fn call<T>(
        &self,
        call: &'static str,
        run: impl FnOnce(&nvml_wrapper::Device<'nvml>) -> Result<T, Cause>,
    ) -> Result<T, NvmlError> {
        timed(call, || run(&self.inner)).map_err(|cause| self.judge(call, cause))
    }

    /// The meaning of an error, after other calls were tried if it concerns the whole GPU.
    pub(super) fn judge(&self, call: &'static str, cause: Cause) -> NvmlError {
        let of_call = Fault::of_code(&cause);
        let speaks_of_gpu = matches!(of_call, Fault::Lost | Fault::Reload);
        if !speaks_of_gpu && !matches!(cause, Cause::Unknown) {
            return NvmlError { call, cause, fault: of_call };
        }
        let fault = if self.answers() {
            if speaks_of_gpu {
                self.contradict(call, &cause);
            }
            Fault::NoValue
        } else if of_call == Fault::Reload && self.driver.device_count().is_err() {
            Fault::Reload
        } else {
            Fault::Lost
        };
        NvmlError { call, cause, fault }
    }

    /// Whether the driver answers any question about the device.
    pub(super) fn answers(&self) -> bool {
        let mut refused = false;
        for (call, probe) in PROBES {
            match timed(call, || probe(&self.inner)) {
                Ok(()) => return true,
                Err(cause) => {
                    let fault = Fault::of_code(&cause);
                    refused |=
                        matches!(fault, Fault::Lost | Fault::Reload) || matches!(cause, Cause::Unknown);
                }
            }
        }
        // A device that has none of these values is asked for its name.
        !refused && timed("nvmlDeviceGetUUID", || self.inner.uuid()).is_ok()
    }

    fn contradict(&self, call: &'static str, cause: &Cause) {
        let mut contradicted = self.contradicted.borrow_mut();
        if !contradicted.contains(&call) {
            contradicted.push(call);
            let uuid = timed("nvmlDeviceGetUUID", || self.inner.uuid()).unwrap_or_default();
            tracing::warn!(
                "{uuid}: {call} answers {}, while other calls on this GPU are answered: its value is left out",
                code(cause)
            );
        }
    }

    /// The MIG instance in a slot.
    pub(super) fn mig_device_by_index(&self, slot: u32) -> Result<Self, NvmlError> {
        self.call("nvmlDeviceGetMigDeviceHandleByIndex", |device| device.mig_device_by_index(slot))
            .map(|inner| Self::new(inner, self.driver))
    }

    pub(super) fn link_errors(&self, link: u32, counter: ErrorCounter) -> Result<u64, NvmlError> {
        self.call("nvmlDeviceGetNvLinkErrorCounter", |device| {
            device.link_wrapper_for(link).error_counter(counter)
        })
    }
}

/// nvml-wrapper's calls on a device, under the names that it has for them.
macro_rules! wrapped {
    ($($symbol:ident $name:ident($($argument:ident: $type:ty),*) -> $value:ty;)*) => {
        impl Device<'_> {$(
            pub(super) fn $name(&self $(, $argument: $type)*) -> Result<$value, NvmlError> {
                self.call(stringify!($symbol), |device| device.$name($($argument),*))
            }
        )*}
    };
}

wrapped! {
    nvmlDeviceGetUUID uuid() -> String;
    nvmlDeviceGetName name() -> String;
    nvmlDeviceGetPciInfo_v3 pci_info() -> PciInfo;
    nvmlDeviceGetIndex index() -> u32;
    nvmlDeviceGetMinorNumber minor_number() -> u32;
    nvmlDeviceGetSerial serial() -> String;
    nvmlDeviceGetVbiosVersion vbios_version() -> String;
    nvmlDeviceGetInforomVersion info_rom_version(object: InfoRom) -> String;
    nvmlDeviceGetInforomImageVersion info_rom_image_version() -> String;
    nvmlDeviceGetInforomConfigurationChecksum config_checksum() -> u32;
    nvmlDeviceValidateInforom validate_info_rom() -> ();
    nvmlDeviceGetCudaComputeCapability cuda_compute_capability() -> CudaComputeCapability;
    nvmlDeviceGetPersistenceMode is_in_persistent_mode() -> bool;
    nvmlDeviceGetMigMode mig_mode() -> MigMode;
    nvmlDeviceGetMaxMigDeviceCount mig_device_count() -> u32;
    nvmlDeviceGetAttributes_v2 attributes() -> DeviceAttributes;
    nvmlGpmQueryDeviceSupport gpm_support() -> bool;
    nvmlDeviceGetClockInfo clock_info(clock: Clock) -> u32;
    nvmlDeviceGetMaxClockInfo max_clock_info(clock: Clock) -> u32;
    nvmlDeviceGetApplicationsClock applications_clock(clock: Clock) -> u32;
    nvmlDeviceGetAutoBoostedClocksEnabled auto_boosted_clocks_enabled() -> AutoBoostClocksEnabledInfo;
    nvmlDeviceGetTemperature temperature(sensor: TemperatureSensor) -> u32;
    nvmlDeviceGetTemperatureThreshold temperature_threshold(which: TemperatureThreshold) -> u32;
    nvmlDeviceGetPowerUsage power_usage() -> u32;
    nvmlDeviceGetPowerManagementLimit power_management_limit() -> u32;
    nvmlDeviceGetPowerManagementLimitConstraints
        power_management_limit_constraints() -> PowerManagementConstraints;
    nvmlDeviceGetPowerManagementDefaultLimit power_management_limit_default() -> u32;
    nvmlDeviceGetEnforcedPowerLimit enforced_power_limit() -> u32;
    nvmlDeviceGetPcieReplayCounter pcie_replay_counter() -> u32;
    nvmlDeviceGetCurrPcieLinkGeneration current_pcie_link_gen() -> u32;
    nvmlDeviceGetCurrPcieLinkWidth current_pcie_link_width() -> u32;
    nvmlDeviceGetMaxPcieLinkGeneration max_pcie_link_gen() -> u32;
    nvmlDeviceGetMaxPcieLinkWidth max_pcie_link_width() -> u32;
    nvmlDeviceGetEncoderUtilization encoder_utilization() -> UtilizationInfo;
    nvmlDeviceGetDecoderUtilization decoder_utilization() -> UtilizationInfo;
    nvmlDeviceGetMemoryErrorCounter
        memory_error_counter(error: MemoryError, counter: EccCounter, location: MemoryLocation) -> u64;
    nvmlDeviceGetMemoryInfo_v2 memory_info() -> MemoryInfo;
    nvmlDeviceGetBAR1MemoryInfo bar1_memory_info() -> BAR1MemoryInfo;
    nvmlDeviceGetUtilizationRates utilization_rates() -> Utilization;
}

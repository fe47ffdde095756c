//! Reads the values that take a driver call each.

use nvml_wrapper::enum_wrappers::device::{
    Clock as NvmlClock, EccCounter, InfoRom, MemoryError, MemoryLocation, TemperatureSensor,
    TemperatureThreshold,
};
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::error::NvmlError as Cause;
use podgauge_common::catalogue::{
    Clock, Codec, LinkError, MemoryPlace, PcieLink, PowerLimit, Reading, RemapBanks, Text, Threshold,
};
use podgauge_common::exposition::write::Value;
use podgauge_common::measurement::{measured_u32, measured_u64};

use super::driver::{Device, Fault, NvmlError, known};
use super::{calls, raw};

/// Above this a temperature is no measurement, as DCGM has it.
const HOTTEST: u32 = 200;
/// NVML's number of a performance state that is not known.
const UNKNOWN_STATE: u32 = 32;
const MILLIWATTS: u32 = 1000;

/// The value of a reading of one call, in the unit in which it is read. `None` is not a measurement,
/// and no failure.
pub(super) fn value(device: &Device<'_>, reading: Reading) -> Result<Option<Value>, NvmlError> {
    let integer = |value: u32| measured_u32(value).map(|value| Value::U64(value.into()));
    let long = |value: u64| measured_u64(value).map(Value::U64);
    Ok(match reading {
        Reading::DeviceCount => integer(device.driver().device_count()?),
        Reading::CudaVersion => Some(Value::I64(calls::cuda_version(device.driver())?.into())),
        Reading::Index => integer(device.index()?),
        Reading::MinorNumber => integer(device.minor_number()?),
        Reading::PciId { subsystem: false } => integer(device.pci_info()?.pci_device_id),
        Reading::PciId { subsystem: true } => device.pci_info()?.pci_sub_system_id.and_then(integer),
        Reading::ComputeCapability => {
            let capability = device.cuda_compute_capability()?;
            Some(Value::I64(i64::from(capability.major) << 16 | i64::from(capability.minor)))
        }
        Reading::ComputeMode => compute_mode(calls::compute_mode(device)?),
        Reading::PersistenceMode => integer(device.is_in_persistent_mode()?.into()),
        // A GPU that knows no MIG has it off.
        Reading::MigMode => integer(or_zero(device.mig_mode().map(|mode| mode.current))?),
        Reading::MigMaxInstances => integer(device.mig_device_count()?),
        Reading::VirtualMode => integer(calls::virtualization_mode(device)?),
        Reading::GpmSupport => integer(or_zero(device.gpm_support().map(u32::from))?),
        Reading::InforomChecksum => integer(device.config_checksum()?),
        Reading::InforomValid => match device.validate_info_rom() {
            Ok(()) => integer(1),
            Err(NvmlError { cause: Cause::CorruptedInfoROM, .. }) => integer(0),
            Err(error) => return Err(error),
        },
        Reading::Clock(clock) => integer(device.clock_info(nvml_clock(clock))?),
        Reading::MaxClock(clock) => integer(device.max_clock_info(nvml_clock(clock))?),
        Reading::ApplicationClock(clock) => integer(device.applications_clock(nvml_clock(clock))?),
        Reading::ClockEventReasons => long(calls::clock_event_reasons(device)?),
        Reading::AutoBoost => integer(device.auto_boosted_clocks_enabled()?.is_enabled.into()),
        Reading::GpuTemperature => {
            let celsius = device.temperature(TemperatureSensor::Gpu)?;
            (celsius <= HOTTEST).then_some(Value::U64(celsius.into()))
        }
        Reading::TemperatureThreshold(which) => integer(device.temperature_threshold(match which {
            Threshold::Shutdown => TemperatureThreshold::Shutdown,
            Threshold::Slowdown => TemperatureThreshold::Slowdown,
            Threshold::MemoryMax => TemperatureThreshold::MemoryMax,
            Threshold::GpuMax => TemperatureThreshold::GpuMax,
        })?),
        Reading::TemperatureMargin => {
            Some(Value::I64(calls::margin_temperature(device)?.marginTemperature.into()))
        }
        Reading::PowerUsage => measured_u32(device.power_usage()?)
            .map(|milliwatts| Value::F64(f64::from(milliwatts) / f64::from(MILLIWATTS))),
        Reading::PowerLimit(limit) => measured_u32(power_limit_mw(device, limit)?)
            .map(|milliwatts| Value::U64((milliwatts / MILLIWATTS).into())),
        Reading::PerformanceState => {
            let state = calls::performance_state(device)?;
            (state < UNKNOWN_STATE).then_some(Value::U64(state.into()))
        }
        Reading::FanSpeed => integer(calls::fan_speed(device)?),
        Reading::PcieReplays => integer(device.pcie_replay_counter()?),
        Reading::PcieLink(PcieLink::Generation) => integer(device.current_pcie_link_gen()?),
        Reading::PcieLink(PcieLink::Width) => integer(device.current_pcie_link_width()?),
        Reading::PcieLink(PcieLink::MaxGeneration) => integer(device.max_pcie_link_gen()?),
        Reading::PcieLink(PcieLink::MaxWidth) => integer(device.max_pcie_link_width()?),
        Reading::Codec(Codec::Encoder) => integer(device.encoder_utilization()?.utilization),
        Reading::Codec(Codec::Decoder) => integer(device.decoder_utilization()?.utilization),
        Reading::EccErrors { corrected, volatile, place } => long(device.memory_error_counter(
            if corrected { MemoryError::Corrected } else { MemoryError::Uncorrected },
            if volatile { EccCounter::Volatile } else { EccCounter::Aggregate },
            location(place),
        )?),
        Reading::SramThreshold => integer((calls::sram_errors(device)?.bThresholdExceeded != 0).into()),
        Reading::RemapBanks(banks) => {
            let histogram = calls::remap_banks(device)?;
            integer(match banks {
                RemapBanks::Max => histogram.max,
                RemapBanks::High => histogram.high,
                RemapBanks::Partial => histogram.partial,
                RemapBanks::Low => histogram.low,
                RemapBanks::None => histogram.none,
            })
        }
        Reading::RetiredPages => integer(raw::retired_pages(device)?),
        Reading::NvlinkErrors { link, error } => {
            let counter = match error {
                LinkError::CrcFlit => ErrorCounter::DlCrcFlit,
                LinkError::CrcData => ErrorCounter::DlCrcData,
                LinkError::Replay => ErrorCounter::DlReplay,
                LinkError::Recovery => ErrorCounter::DlRecovery,
            };
            long(device.link_errors(link.into(), counter)?)
        }
        Reading::VgpuLicense => match raw::vgpu_licensed(device) {
            Ok(licensed) => integer(licensed.unwrap_or(false).into()),
            // A GPU outside a vGPU guest has nothing to license, and DCGM says 0 there.
            Err(error) if Fault::of(&error) == Fault::Unsupported => integer(0),
            Err(error) => return Err(error),
        },
        // These come from texts, rings, events, the batch of field values, or GPM.
        Reading::Text(_)
        | Reading::Utilization(_)
        | Reading::Xid
        | Reading::XidsInWindow
        | Reading::XidsTotal
        | Reading::ClockEventsInWindow
        | Reading::ClockEventsTotal
        | Reading::Memory(_)
        | Reading::Bar1(_)
        | Reading::Field { .. }
        | Reading::FieldWatts(_)
        | Reading::LinksField(_)
        | Reading::LinksErrorRate(_)
        | Reading::SlowdownTime { .. }
        | Reading::EccTotal(_)
        | Reading::NvlinkRate { .. }
        | Reading::PcieRate(_)
        | Reading::Gpm { .. } => None,
    })
}

/// The text of a label field. An error is one that speaks of the whole GPU or library.
pub(super) fn text(device: &Device<'_>, text: Text) -> Result<Option<String>, NvmlError> {
    let read = match text {
        Text::DriverVersion => device.driver().driver_version(),
        Text::NvmlVersion => device.driver().nvml_version(),
        Text::Name => device.name(),
        Text::Brand => calls::brand(device).map(|brand| brand_name(brand).to_owned()),
        Text::Serial => device.serial(),
        Text::Uuid => device.uuid(),
        Text::PciBusId => device.pci_info().map(|pci| pci.bus_id),
        Text::OemInforom => device.info_rom_version(InfoRom::OEM),
        Text::EccInforom => device.info_rom_version(InfoRom::ECC),
        Text::PowerInforom => device.info_rom_version(InfoRom::Power),
        Text::InforomImage => device.info_rom_image_version(),
        Text::Vbios => device.vbios_version(),
    };
    known(read)
}

fn or_zero(read: Result<u32, NvmlError>) -> Result<u32, NvmlError> {
    match read {
        Err(error) if Fault::of(&error) == Fault::Unsupported => Ok(0),
        read => read,
    }
}

/// DCGM knows three of NVML's four.
fn compute_mode(mode: u32) -> Option<Value> {
    match mode {
        0 => Some(Value::U64(0)),
        2 => Some(Value::U64(1)),
        3 => Some(Value::U64(2)),
        _ => None,
    }
}

const fn nvml_clock(clock: Clock) -> NvmlClock {
    match clock {
        Clock::Graphics => NvmlClock::Graphics,
        Clock::Sm => NvmlClock::SM,
        Clock::Memory => NvmlClock::Memory,
        Clock::Video => NvmlClock::Video,
    }
}

fn power_limit_mw(device: &Device<'_>, limit: PowerLimit) -> Result<u32, NvmlError> {
    match limit {
        PowerLimit::Set => device.power_management_limit(),
        PowerLimit::Least => device.power_management_limit_constraints().map(|limits| limits.min_limit),
        PowerLimit::Most => device.power_management_limit_constraints().map(|limits| limits.max_limit),
        PowerLimit::Default => device.power_management_limit_default(),
        PowerLimit::Enforced => device.enforced_power_limit(),
    }
}

const fn location(place: MemoryPlace) -> MemoryLocation {
    match place {
        MemoryPlace::L1 => MemoryLocation::L1Cache,
        MemoryPlace::L2 => MemoryLocation::L2Cache,
        MemoryPlace::Device => MemoryLocation::Device,
        MemoryPlace::Registers => MemoryLocation::RegisterFile,
        MemoryPlace::Texture => MemoryLocation::Texture,
        MemoryPlace::Shared => MemoryLocation::Shared,
        MemoryPlace::Cbu => MemoryLocation::Cbu,
        MemoryPlace::Sram => MemoryLocation::SRAM,
    }
}

/// In the words that DCGM has for NVML's numbers.
const fn brand_name(brand: u32) -> &'static str {
    match brand {
        1 => "Quadro",
        2 => "Tesla",
        3 => "NVS",
        4 => "Grid",
        5 => "GeForce",
        6 => "Titan",
        7 => "NVIDIA Virtual Applications",
        8 => "NVIDIA Virtual PC",
        9 => "NVIDIA Virtual Compute Server",
        10 => "NVIDIA RTX Virtual Workstation",
        11 => "NVIDIA Cloud Gaming",
        12 => "Quadro RTX",
        13 => "NVIDIA RTX",
        14 => "NVIDIA",
        15 => "GeForce RTX",
        16 => "Titan RTX",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_modes_are_dcgms() {
        assert_eq!([0, 1, 2, 3].map(compute_mode).map(|mode| mode.is_some()), [true, false, true, true]);
        assert_eq!(compute_mode(3), Some(Value::U64(2)));
    }
}

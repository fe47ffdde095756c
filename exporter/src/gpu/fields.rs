//! Reads the values of one GPU that a plan asks for, everything but utilization.

use std::time::Instant;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock as NvmlClock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use podgauge_common::catalogue::{Clock, Codec, Memory, Metric, Reading};
use podgauge_common::exposition::write::Value;

use super::calls::timed;
use super::raw;

const MIB: u64 = 1024 * 1024;
/// Above this a temperature is no measurement, as DCGM has it.
const HOTTEST: u32 = 200;
/// `NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX` and `…_RX`: KiB since the driver was loaded.
const NVLINK_DATA: [u32; 2] = [138, 139];

/// Which driver calls a list of metrics takes: field values share one.
#[derive(Debug, Default)]
pub(super) struct FieldPlan {
    /// `(field id, scope)` of the one call.
    fields: Vec<(u32, u32)>,
    needs_memory: bool,
}

/// What must be remembered of a GPU from one reading to the next.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// The sum of both directions, KiB, and when it was read.
    nvlink: Option<(Instant, u64)>,
    /// By position in the metric list: the driver does not support it; do not ask again.
    unsupported: Vec<bool>,
}

/// What an NVML error means for what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// This driver or GPU does not have it.
    Unsupported,
    /// Not now, or not for us: no value.
    NoValue,
    /// The GPU is lost.
    Lost,
    /// The library must be loaded anew.
    Reload,
}

// === impl Fault ===

impl Fault {
    pub(super) fn of(error: &NvmlError) -> Self {
        match error {
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            // 25 argument version mismatch, 26 deprecated: codes the wrapper does not know.
            | NvmlError::UnexpectedVariant(25 | 26) => Self::Unsupported,
            NvmlError::GpuLost | NvmlError::ResetRequired => Self::Lost,
            // 28 GPU not found.
            NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
            | NvmlError::UnexpectedVariant(28) => Self::Reload,
            _ => Self::NoValue,
        }
    }
}

// === impl FieldPlan ===

impl FieldPlan {
    pub(super) fn new(metrics: &[&'static Metric]) -> Self {
        let mut plan = Self::default();
        for metric in metrics {
            match metric.reading {
                Reading::Field { id, .. } => plan.fields.push((id, 0)),
                Reading::NvlinkBandwidth => {
                    plan.fields.extend(NVLINK_DATA.map(|id| (id, raw::ALL_LINKS)));
                }
                Reading::Memory(_) => plan.needs_memory = true,
                _ => {}
            }
        }
        plan
    }

    /// Reads every metric but utilization and XIDs, which come from elsewhere. An error is one that
    /// speaks of the whole GPU or library; what merely has no value is `None`.
    pub(super) fn read(
        &self,
        device: &Device<'_>,
        metrics: &[&'static Metric],
        memo: &mut Memo,
        values: &mut [Option<Value>],
    ) -> Result<(), NvmlError> {
        memo.unsupported.resize(metrics.len(), false);
        let mut fields = self.field_values(device)?.into_iter();
        let memory = if self.needs_memory {
            Some(timed("nvmlDeviceGetMemoryInfo_v2", || device.memory_info()))
        } else {
            None
        };
        for (position, metric) in metrics.iter().enumerate() {
            let value = match metric.reading {
                Reading::Utilization(_) | Reading::Xid | Reading::DriverVersion => continue,
                Reading::Field { max, .. } => {
                    next_field(&mut fields).map(|value| (value <= max).then_some(Value::U64(value)))
                }
                Reading::NvlinkBandwidth => {
                    // Both are taken off the list, whatever the first one says.
                    let (tx, rx) = (next_field(&mut fields), next_field(&mut fields));
                    let now = Instant::now();
                    tx.and_then(|tx| Ok(tx + rx?))
                        .map(|kib| Some(Value::U64(nvlink_rate(memo.nvlink.replace((now, kib)), now, kib))))
                }
                Reading::Memory(part) => match &memory {
                    Some(Ok(info)) => Ok(Some(Value::U64(
                        match part {
                            Memory::Free => info.free,
                            Memory::Used => info.used,
                            Memory::Reserved => info.reserved,
                        } / MIB,
                    ))),
                    Some(Err(error)) => Err(copy(error)),
                    None => Ok(None),
                },
                _ if memo.unsupported[position] => Ok(None),
                reading => direct(device, reading),
            };
            values[position] = match value {
                Ok(value) => value,
                Err(error) => match Fault::of(&error) {
                    Fault::Unsupported => {
                        memo.unsupported[position] = true;
                        None
                    }
                    Fault::NoValue => None,
                    Fault::Lost | Fault::Reload => return Err(error),
                },
            };
        }
        Ok(())
    }

    /// One driver call for all field values. A driver without the call has none of them.
    fn field_values(&self, device: &Device<'_>) -> Result<Vec<Result<u64, NvmlError>>, NvmlError> {
        match raw::field_values(device, &self.fields) {
            Ok(values) => Ok(values),
            Err(error) => match Fault::of(&error) {
                Fault::Lost | Fault::Reload => Err(error),
                Fault::Unsupported | Fault::NoValue => {
                    Ok(self.fields.iter().map(|_| Err(copy(&error))).collect())
                }
            },
        }
    }
}

fn next_field(fields: &mut impl Iterator<Item = Result<u64, NvmlError>>) -> Result<u64, NvmlError> {
    fields.next().unwrap_or(Err(NvmlError::NotFound))
}

/// Readings of one call each.
fn direct(device: &Device<'_>, reading: Reading) -> Result<Option<Value>, NvmlError> {
    let integer = |value: u32| Some(Value::U64(value.into()));
    Ok(match reading {
        Reading::Clock(Clock::Sm) => {
            integer(timed("nvmlDeviceGetClockInfo", || device.clock_info(NvmlClock::SM))?)
        }
        Reading::Clock(Clock::Memory) => {
            integer(timed("nvmlDeviceGetClockInfo", || device.clock_info(NvmlClock::Memory))?)
        }
        Reading::GpuTemperature => {
            let celsius = timed("nvmlDeviceGetTemperature", || device.temperature(TemperatureSensor::Gpu))?;
            (celsius <= HOTTEST).then_some(Value::U64(celsius.into()))
        }
        Reading::PowerUsage => {
            let milliwatts = timed("nvmlDeviceGetPowerUsage", || device.power_usage())?;
            Some(Value::F64(f64::from(milliwatts) / 1000.0))
        }
        Reading::PcieReplays => {
            integer(timed("nvmlDeviceGetPcieReplayCounter", || device.pcie_replay_counter())?)
        }
        Reading::Codec(Codec::Encoder) => {
            integer(timed("nvmlDeviceGetEncoderUtilization", || device.encoder_utilization())?.utilization)
        }
        Reading::Codec(Codec::Decoder) => {
            integer(timed("nvmlDeviceGetDecoderUtilization", || device.decoder_utilization())?.utilization)
        }
        Reading::VgpuLicense => match raw::vgpu_licensed(device) {
            Ok(licensed) => integer(licensed.unwrap_or(false).into()),
            // A GPU outside a vGPU guest has nothing to license, and DCGM says 0 there.
            Err(error) if Fault::of(&error) == Fault::Unsupported => integer(0),
            Err(error) => return Err(error),
        },
        Reading::DriverVersion
        | Reading::Utilization(_)
        | Reading::Xid
        | Reading::Memory(_)
        | Reading::Field { .. }
        | Reading::NvlinkBandwidth => None,
    })
}

/// DCGM's unit: KiB per second ÷ 1000, truncated; 0 until there are two readings, and after the
/// counter fell because the driver was reloaded.
fn nvlink_rate(before: Option<(Instant, u64)>, now: Instant, kib: u64) -> u64 {
    let Some((then, kib_then)) = before else { return 0 };
    let seconds = now.saturating_duration_since(then).as_secs_f64();
    if seconds <= 0.0 || kib < kib_then {
        return 0;
    }
    ((kib - kib_then) as f64 / seconds / 1000.0) as u64
}

/// NvmlError has no Clone; these are all whose meaning is asked for here.
fn copy(error: &NvmlError) -> NvmlError {
    match error {
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => {
            NvmlError::NotSupported
        }
        NvmlError::GpuLost => NvmlError::GpuLost,
        NvmlError::ResetRequired => NvmlError::ResetRequired,
        NvmlError::Uninitialized => NvmlError::Uninitialized,
        NvmlError::DriverNotLoaded => NvmlError::DriverNotLoaded,
        NvmlError::LibRmVersionMismatch => NvmlError::LibRmVersionMismatch,
        NvmlError::UnexpectedVariant(code) => NvmlError::UnexpectedVariant(*code),
        _ => NvmlError::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nvlink_bandwidth_is_dcgms_rate() {
        let then = Instant::now();
        let now = then + Duration::from_secs(2);
        assert_eq!(nvlink_rate(None, now, 5_000_000), 0);
        assert_eq!(nvlink_rate(Some((then, 1_000_000)), now, 5_000_999), 2000);
        assert_eq!(nvlink_rate(Some((then, 5_000_000)), now, 1_000), 0);
    }

    #[test]
    fn unknown_codes_are_classified_too() {
        assert_eq!(Fault::of(&NvmlError::from(15)), Fault::Lost);
        assert_eq!(Fault::of(&NvmlError::from(18)), Fault::Reload);
        assert_eq!(Fault::of(&NvmlError::from(28)), Fault::Reload);
        assert_eq!(Fault::of(&NvmlError::from(3)), Fault::Unsupported);
        assert_eq!(Fault::of(&NvmlError::from(26)), Fault::Unsupported);
        assert_eq!(Fault::of(&NvmlError::from(999)), Fault::NoValue);
    }
}

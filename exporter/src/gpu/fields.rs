//! Reads the values of one GPU that a plan asks for: field values and memory in a call for many, the
//! rest one by one.

use std::time::{Duration, Instant};

use podgauge_common::catalogue::{Direction, Memory, Metric, Pace, Reading};
use podgauge_common::exposition::write::Value;
use podgauge_common::measurement::{measured_u64, part_of};

use super::driver::{Device, Fault, NvmlError, known};
use super::field_values::{FieldMemo, FieldRequests, Since};
use super::{calls, direct, raw};

/// How often values are read that are expensive and hardly ever change.
const SLOW: Duration = Duration::from_secs(30);
/// `NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX` and `…_RX`: KiB since the driver was loaded.
const NVLINK_DATA: [u32; 2] = [138, 139];
/// `NVML_FI_DEV_PCIE_COUNT_TX_BYTES` and `…_RX_BYTES`: 32 bits that wrap.
const PCIE_BYTES: [u32; 2] = [197, 198];
/// `NVML_FI_DEV_ECC_CURRENT`.
const ECC_CURRENT: u32 = 1;

/// Which driver calls a list of metrics takes.
#[derive(Debug, Default)]
pub(super) struct FieldPlan {
    requests: FieldRequests,
    /// By metric: the requests it is made from.
    parts: Vec<[Option<usize>; 2]>,
    /// The requests for sent and received KiB over all NVLinks.
    nvlink: [usize; 2],
    /// The request that says whether ECC is on.
    ecc: Option<usize>,
    needs_memory: bool,
    needs_bar1: bool,
}

/// What must be remembered of a GPU from one reading to the next.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// By position in the metric list: the counter's last value and when it was read.
    previous: Vec<Option<(Instant, u64)>>,
    /// By position in the metric list: do not ask again, the driver has it not or it is static.
    settled: Vec<bool>,
    fields: FieldMemo,
    slow_at: Option<Instant>,
    /// Bytes over all NVLinks since the driver was loaded, sent and received.
    pub(super) nvlink_bytes: Option<[u64; 2]>,
}

/// Parts of a memory, bytes; `None` is not known.
struct MemoryParts {
    total: Option<u64>,
    free: Option<u64>,
    used: Option<u64>,
    /// Drivers before 510 do not tell it, and count it as used.
    reserved: Option<u64>,
}

// === impl FieldPlan ===

impl FieldPlan {
    pub(super) fn new(metrics: &[&'static Metric]) -> Self {
        let mut plan = Self::default();
        plan.nvlink = NVLINK_DATA.map(|id| plan.request(id, raw::ALL_LINKS));
        for metric in metrics {
            let parts = plan.parts_of(metric.reading);
            plan.parts.push(parts);
        }
        plan
    }

    fn parts_of(&mut self, reading: Reading) -> [Option<usize>; 2] {
        match reading {
            Reading::Field { id, .. } | Reading::FieldWatts(id) => [Some(self.request(id, 0)), None],
            Reading::LinksField(id) | Reading::LinksErrorRate(id) => {
                [Some(self.request(id, raw::ALL_LINKS)), None]
            }
            Reading::SlowdownTime { id, before } => [
                Some(self.requests.add(id, 0, Since::Renumbered)),
                Some(self.requests.add(before, 0, Since::BeforeRenumbered)),
            ],
            Reading::EccTotal(id) => {
                self.ecc = Some(self.request(ECC_CURRENT, 0));
                [Some(self.request(id, 0)), None]
            }
            Reading::NvlinkRate { link, direction } => {
                let scope = link.map_or(raw::ALL_LINKS, u32::from);
                let [tx, rx] = NVLINK_DATA.map(|id| (id, scope));
                match direction {
                    None => [tx, rx].map(|(id, scope)| Some(self.request(id, scope))),
                    Some(Direction::Tx) => [Some(self.request(tx.0, tx.1)), None],
                    Some(Direction::Rx) => [Some(self.request(rx.0, rx.1)), None],
                }
            }
            Reading::PcieRate(direction) => [Some(self.request(PCIE_BYTES[direction as usize], 0)), None],
            Reading::Memory(_) => {
                self.needs_memory = true;
                [None; 2]
            }
            Reading::Bar1(_) => {
                self.needs_bar1 = true;
                [None; 2]
            }
            _ => [None; 2],
        }
    }

    fn request(&mut self, id: u32, scope: u32) -> usize {
        self.requests.add(id, scope, Since::Ever)
    }

    /// Reads every metric but what comes from rings, events and GPM. `gpm` says that GPM tells PCIe
    /// rates. An error is one that speaks of the whole GPU or library; what has no value, or one
    /// that cannot be a measurement, is `None`.
    pub(super) fn read(
        &self,
        device: &Device<'_>,
        metrics: &[&'static Metric],
        memo: &mut Memo,
        gpm: bool,
        values: &mut [Option<Value>],
    ) -> Result<(), NvmlError> {
        memo.settled.resize(metrics.len(), false);
        memo.previous.resize(metrics.len(), None);
        let started = Instant::now();
        let slow = memo.slow_at.is_none_or(|at| started.saturating_duration_since(at) >= SLOW);
        // Where GPM tells the rates the counters are not needed.
        let left_out: &[u32] = if gpm { &PCIE_BYTES } else { &[] };
        let fields = self.requests.read(device, &mut memo.fields, left_out)?;
        let field = |part: Option<usize>| part.and_then(|request| fields[request]);
        let at = Instant::now();
        let memory = if self.needs_memory { memory(device)? } else { None };
        let bar1 = if self.needs_bar1 { bar1(device)? } else { None };
        let ecc_is_on = field(self.ecc) == Some(1);
        let [tx, rx] = self.nvlink.map(|request| fields[request]);
        memo.nvlink_bytes =
            tx.zip(rx).and_then(|(tx, rx)| Some([tx.checked_mul(1024)?, rx.checked_mul(1024)?]));
        for (position, metric) in metrics.iter().enumerate() {
            let [first, second] = self.parts[position];
            let read = match metric.reading {
                Reading::Field { max, .. } => field(first).filter(|value| *value <= max).map(Value::U64),
                Reading::FieldWatts(_) => {
                    field(first).map(|milliwatts| Value::F64(milliwatts as f64 / 1000.0))
                }
                Reading::LinksField(_) => field(first).map(Value::U64),
                Reading::LinksErrorRate(_) => field(first).map(|word| Value::F64(error_rate(word))),
                // One of them is of this driver.
                Reading::SlowdownTime { .. } => field(first).or(field(second)).map(Value::U64),
                Reading::EccTotal(_) => field(first).filter(|_| ecc_is_on).map(Value::U64),
                Reading::NvlinkRate { direction, .. } => {
                    let kib = match direction {
                        None => field(first).zip(field(second)).map(|(tx, rx)| tx.saturating_add(rx)),
                        Some(_) => field(first),
                    };
                    let previous = &mut memo.previous[position];
                    let rate = kib.map(|kib| nvlink_rate(*previous, at, kib));
                    *previous = kib.map(|kib| (at, kib));
                    rate.map(Value::F64)
                }
                Reading::PcieRate(_) if gpm => continue,
                Reading::PcieRate(_) => {
                    let previous = &mut memo.previous[position];
                    let rate = field(first).and_then(|bytes| pcie_rate(*previous, at, bytes));
                    *previous = field(first).map(|bytes| (at, bytes));
                    rate.map(Value::U64)
                }
                Reading::Memory(part) => memory.as_ref().and_then(|memory| memory.part(part)),
                Reading::Bar1(part) => bar1.as_ref().and_then(|memory| memory.part(part)),
                Reading::Utilization(_) | Reading::Text(_) | Reading::Gpm { .. } => continue,
                reading if reading.is_event() => continue,
                _ if memo.settled[position] => continue,
                reading if reading.pace() == Pace::Slow && !slow => continue,
                reading => match direct::value(device, reading) {
                    Ok(value) => {
                        let value = value.filter(|value| metric.measured(*value).is_some());
                        memo.settled[position] = reading.pace() == Pace::Once && value.is_some();
                        value
                    }
                    Err(error) => match Fault::of(&error) {
                        Fault::Unsupported => {
                            memo.settled[position] = true;
                            None
                        }
                        Fault::NoValue => None,
                        Fault::Lost | Fault::Reload => return Err(error),
                    },
                },
            };
            values[position] = read.and_then(|read| metric.measured(read));
        }
        if slow {
            memo.slow_at = Some(started);
        }
        Ok(())
    }
}

// === impl MemoryParts ===

impl MemoryParts {
    /// The driver's numbers that remain: a part larger than the whole is left out.
    fn new(total: u64, free: u64, used: u64, reserved: Option<u64>) -> Self {
        let total = measured_u64(total);
        let part =
            |part| measured_u64(part).and_then(|part| total.map_or(Some(part), |all| part_of(part, all)));
        Self { total, free: part(free), used: part(used), reserved: reserved.and_then(part) }
    }

    fn part(&self, part: Memory) -> Option<Value> {
        match part {
            Memory::Total => self.total.map(Value::U64),
            Memory::Free => self.free.map(Value::U64),
            Memory::Used => self.used.map(Value::U64),
            Memory::Reserved => self.reserved.map(Value::U64),
            Memory::UsedRatio => {
                let usable =
                    self.total?.checked_sub(self.reserved.unwrap_or(0)).filter(|bytes| *bytes > 0)?;
                let ratio = self.used? as f64 / usable as f64;
                Some(Value::F64((ratio * 1e6).round() / 1e6))
            }
        }
    }
}

fn memory(device: &Device<'_>) -> Result<Option<MemoryParts>, NvmlError> {
    let read = match device.memory_info() {
        Ok(info) => Ok(MemoryParts::new(info.total, info.free, info.used, Some(info.reserved))),
        // Drivers before 510.
        Err(error) if Fault::of(&error) == Fault::Unsupported => {
            calls::memory_v1(device).map(|info| MemoryParts::new(info.total, info.free, info.used, None))
        }
        Err(error) => Err(error),
    };
    known(read)
}

fn bar1(device: &Device<'_>) -> Result<Option<MemoryParts>, NvmlError> {
    known(device.bar1_memory_info().map(|info| MemoryParts::new(info.total, info.free, info.used, None)))
}

/// KiB per second; 0 at first, as DCGM has it.
fn nvlink_rate(previous: Option<(Instant, u64)>, now: Instant, kib: u64) -> f64 {
    let Some((then, kib_then)) = previous else { return 0.0 };
    let seconds = now.saturating_duration_since(then).as_secs_f64();
    if seconds <= 0.0 || kib < kib_then {
        return 0.0;
    }
    (kib - kib_then) as f64 / seconds
}

/// KiB per second. The counter has 32 bits on drivers of today, and starts anew when it is full.
fn pcie_rate(previous: Option<(Instant, u64)>, now: Instant, bytes: u64) -> Option<u64> {
    let (then, bytes_then) = previous?;
    let seconds = now.saturating_duration_since(then).as_secs_f64();
    let full = u64::from(u32::MAX);
    let moved = match bytes.checked_sub(bytes_then) {
        Some(moved) => moved,
        None if bytes_then <= full => bytes + full + 1 - bytes_then,
        None => return None,
    };
    (seconds > 0.0).then(|| (moved as f64 / seconds / 1024.0) as u64)
}

/// Mantissa × 10^-exponent.
fn error_rate(word: u64) -> f64 {
    let (mantissa, exponent) = (word >> 8 & 0xf, word & 0xff);
    mantissa as f64 * 10f64.powi(-(exponent as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_nvlink_is_0_at_first_and_after_a_reset() {
        let then = Instant::now();
        let now = then + Duration::from_secs(2);
        assert_eq!(nvlink_rate(None, now, 5_000_000), 0.0);
        assert_eq!(nvlink_rate(Some((then, 1_000_000)), now, 5_000_999), 2_000_499.5);
        assert_eq!(nvlink_rate(Some((then, 5_000_000)), now, 1_000), 0.0);
    }

    #[test]
    fn pcie_bytes_wrap_at_32_bits_and_have_no_rate_at_first() {
        let then = Instant::now();
        let now = then + Duration::from_secs(2);
        assert_eq!(pcie_rate(None, now, 5), None);
        assert_eq!(pcie_rate(Some((then, 0)), now, 4096), Some(2));
        assert_eq!(pcie_rate(Some((then, (1 << 32) - 2048)), now, 2048), Some(2));
        // A counter of more bits that fell: the driver was loaded anew.
        assert_eq!(pcie_rate(Some((then, 1 << 40)), now, 2048), None);
    }

    #[test]
    fn error_rates_are_decoded() {
        assert_eq!(error_rate(0), 0.0);
        assert!((error_rate(0x50f) - 5e-15).abs() < 1e-20);
    }

    #[test]
    fn a_memory_of_an_old_driver_has_no_reserve() {
        let old = MemoryParts::new(400, 100, 300, None);
        assert_eq!(old.part(Memory::Reserved), None);
        assert_eq!(old.part(Memory::UsedRatio), Some(Value::F64(0.75)));
        let new = MemoryParts::new(401, 100, 100, Some(201));
        assert_eq!(new.part(Memory::UsedRatio), Some(Value::F64(0.5)));
        assert_eq!(new.part(Memory::Total), Some(Value::U64(401)));
    }

    #[test]
    fn a_part_larger_than_the_whole_is_no_measurement() {
        let parts = |memory: &MemoryParts| {
            [Memory::Total, Memory::Free, Memory::Used, Memory::UsedRatio]
                .map(|part| memory.part(part).is_some())
        };
        assert_eq!(parts(&MemoryParts::new(100, 101, 50, Some(0))), [true, false, true, true]);
        assert_eq!(parts(&MemoryParts::new(100, 50, u64::MAX, Some(0))), [true, true, false, false]);
        assert_eq!(parts(&MemoryParts::new(u64::MAX, 50, 40, None)), [false, true, true, false]);
        assert_eq!(parts(&MemoryParts::new(0, 0, 0, None)), [true, true, true, false]);
    }
}

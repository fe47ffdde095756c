//! Owns the field values: what each id answers, in the type it answers it in.

use super::figures::{POWER_LIMIT_MW, POWER_MIN_LIMIT_MW};
use super::reading::Reading;
use crate::scenario::NvLink;
use crate::status::Failure;

/// A field's value, in NVML's own type for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FieldValue {
    Double(f64),
    UInt(u32),
    ULongLong(u64),
    Int(i32),
}

use FieldValue::{Double, Int, UInt, ULongLong};

/// Scope of a sum over all links.
const ALL_LINKS: u32 = u32::MAX;
/// Raw NVLink counters count headers too: measured about so much on top of the data.
const RAW_OVERHEAD: f64 = 1.1;
const NS_PER_S: f64 = 1e9;

impl Reading<'_> {
    /// What a field answers. Scope 0 is the GPU itself, or for NVLink its first link.
    pub(crate) fn field(&self, id: u32, scope: u32) -> Result<FieldValue, Failure> {
        if let Some(value) = self.answer(&format!("nvmlDeviceGetFieldValues:{id}")) {
            return Ok(ULongLong(value as u64));
        }
        match id {
            _ if self.gpu.mig.is_some() && super::mig::hides_field(id) => Err(Failure::NOT_SUPPORTED),
            91 | 138..=141 | 146 | 161..=168 | 200 | 223..=225 => self.nvlink_field(id, scope),
            185 | 186 if scope != 0 => Err(Failure::NOT_SUPPORTED),
            _ => self.gpu_field(id),
        }
    }

    fn gpu_field(&self, id: u32) -> Result<FieldValue, Failure> {
        let meter = &self.device.meter;
        let ns = |seconds: f64| ULongLong((seconds * NS_PER_S) as u64);
        Ok(match id {
            // Nothing has gone wrong: no ECC error, no other violation than by
            // power, no remapped row.
            1 | 2 => ULongLong(self.gpu.ecc.into()),
            3..=6 | 75..=77 | 79 | 142..=145 | 269..=271 | 301 | 302 => ULongLong(0),
            74 => ns(self.power_violation_s()),
            78 => ns(self.idle_s()),
            80 | 81 => ns(self.full_load_s()),
            82 => UInt(self.memory_temperature_c()),
            83 | 191 => ULongLong(meter.energy_mj()),
            94 | 95 | 173..=183 | 226..=230 => UInt(0),
            147 => Double(0.0),
            169 => UInt(23),
            184 | 199 => UInt(1),
            185 => UInt(self.power_mw()),
            186 => UInt(self.power_now_mw()),
            187 => UInt(POWER_MIN_LIMIT_MW),
            188..=190 | 192 => UInt(POWER_LIMIT_MW),
            193 => Int(-8),
            194 => Int(-2),
            195 | 196 => Int(0),
            // The byte counters are 32 bits wide and wrap.
            197 => UInt((meter.pcie_kib().0 * 1024.0) as u64 as u32),
            198 => UInt((meter.pcie_kib().1 * 1024.0) as u64 as u32),
            _ => return Err(Failure::NOT_SUPPORTED),
        })
    }

    fn nvlink_field(&self, id: u32, scope: u32) -> Result<FieldValue, Failure> {
        let nvlink = self.gpu.nvlink.as_ref().ok_or(Failure::NOT_SUPPORTED)?;
        if scope != ALL_LINKS && scope >= nvlink.links {
            return Err(Failure::INVALID_ARGUMENT);
        }
        let meter = &self.device.meter;
        let counter = |kib: f64| ULongLong(kib_of(nvlink, scope, kib));
        if let Some(counted) = match id {
            138 => Some(counter(meter.nvlink_tx_kib)),
            139 => Some(counter(meter.nvlink_rx_kib)),
            140 => Some(counter(meter.nvlink_tx_kib * RAW_OVERHEAD)),
            141 => Some(counter(meter.nvlink_rx_kib * RAW_OVERHEAD)),
            91 => Some(UInt(nvlink.links)),
            161..=163 => Some(ULongLong(0)),
            _ => None,
        } {
            return Ok(counted);
        }
        // The rest is told of one link only, as an H200 told it.
        if scope == ALL_LINKS {
            return Err(Failure::NOT_SUPPORTED);
        }
        Ok(UInt(match id {
            146 => scope,
            164 => 26_562,
            165 | 167 | 223 => 1,
            166 => 6,
            168 => 500,
            200 => 8_191,
            224 => 0,
            225 => 2,
            _ => return Err(Failure::NOT_SUPPORTED),
        }))
    }

    /// Seconds held back by the power limit since the driver was loaded: measured, 0.41 of the
    /// time at full load.
    pub(crate) fn power_violation_s(&self) -> f64 {
        self.full_load_s() * 0.41
    }
}

/// One link's part of a counter, or all of them, so that the links add up exactly.
fn kib_of(nvlink: &NvLink, scope: u32, total_kib: f64) -> u64 {
    let one = (total_kib / f64::from(nvlink.links)) as u64;
    if scope == ALL_LINKS { one * u64::from(nvlink.links) } else { one }
}

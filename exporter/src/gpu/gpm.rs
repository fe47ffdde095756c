//! The profiling counters: GPM samples of one GPU or MIG instance and the means between two of them.
//!
//! A metric is the true mean between two samples. They are taken once per `-c`, so nothing between
//! two pages is missed. Any number of programs may read GPM at once; nothing is reserved.

use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError as Cause;
use podgauge_common::catalogue::{Direction, GpmUnit, Metric, Reading};
use podgauge_common::exposition::write::Value;
use podgauge_common::measurement::Bound;

use super::driver::{Device, Fault, NvmlError};
use super::gpm_calls::{self, Sample};

/// NVML asks for at least so much time between two samples.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);
const MIB: f64 = 1_048_576.0;
const KIB: f64 = 1024.0;
/// A ratio may read a little above all of it.
pub(super) const MOST_PERCENT: f64 = 101.0;

/// Which GPM metrics a list of metrics takes.
#[derive(Debug, Default)]
pub(super) struct GpmPlan {
    ids: Vec<u32>,
    /// By id: position in the metric list, the metric, and the unit of GPM's number.
    metrics: Vec<(usize, &'static Metric, GpmUnit)>,
    /// Whether a metric is asked for that only GPM has.
    pub(super) is_asked_for: bool,
}

/// One GPU's samples.
#[derive(Debug, Default)]
pub(super) struct Gpm<'nvml> {
    state: State<'nvml>,
    /// Whether the last sample failed, so that it is logged once.
    failing: bool,
}

#[derive(Debug, Default)]
enum State<'nvml> {
    #[default]
    NotAsked,
    /// The GPU or its driver has no GPM.
    Unsupported,
    Sampling {
        last: Sample<'nvml>,
        taken_at: Instant,
        /// Allocated once and filled again and again.
        spare: Option<Sample<'nvml>>,
    },
}

// === impl GpmPlan ===

impl GpmPlan {
    pub(super) fn new(metrics: &[&'static Metric]) -> Self {
        let mut plan = Self::default();
        for (position, metric) in metrics.iter().enumerate() {
            let (id, unit) = match metric.reading {
                Reading::Gpm { metric, unit } => {
                    plan.is_asked_for = true;
                    (metric, unit)
                }
                Reading::PcieRate(Direction::Tx) => (20, GpmUnit::Kibibytes),
                Reading::PcieRate(Direction::Rx) => (21, GpmUnit::Kibibytes),
                _ => continue,
            };
            plan.ids.push(id);
            plan.metrics.push((position, metric, unit));
        }
        plan
    }
}

// === impl Gpm ===

impl<'nvml> Gpm<'nvml> {
    /// Whether the GPU was asked and has none.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.state, State::Unsupported)
    }

    /// Whether it gives values.
    pub(super) fn is_sampling(&self) -> bool {
        matches!(self.state, State::Sampling { .. })
    }

    /// Takes a sample of the GPU, or of its GPU instance of this id, and writes the means since the
    /// one before it. An error speaks of the whole GPU or library.
    pub(super) fn read(
        &mut self,
        device: &Device<'nvml>,
        instance: Option<u32>,
        plan: &GpmPlan,
        values: &mut [Option<Value>],
    ) -> Result<(), NvmlError> {
        if plan.ids.is_empty() || self.is_unsupported() {
            return Ok(());
        }
        let read = self.sample(device, instance, plan);
        let means = match read {
            Ok(Some(means)) => means,
            // Too early: the values stand.
            Ok(None) => return Ok(()),
            Err(error) => {
                let fault = Fault::of(&error);
                if matches!(fault, Fault::Lost | Fault::Reload) {
                    return Err(error);
                }
                if fault == Fault::Unsupported {
                    self.state = State::Unsupported;
                } else {
                    self.state = State::NotAsked;
                    if !std::mem::replace(&mut self.failing, true) {
                        let of = instance.map_or_else(String::new, |id| format!(", MIG instance {id}"));
                        tracing::warn!(
                            "{}{of}: no profiling counters: {error}; asked again",
                            device.uuid().unwrap_or_default()
                        );
                    }
                }
                vec![None; plan.ids.len()]
            }
        };
        for ((position, metric, unit), mean) in plan.metrics.iter().zip(means) {
            values[*position] =
                mean.and_then(|mean| convert(mean, *unit)).and_then(|read| metric.measured(read));
        }
        Ok(())
    }

    /// The means since the last sample; none known at the first. `None` if it is too early.
    fn sample(
        &mut self,
        device: &Device<'nvml>,
        instance: Option<u32>,
        plan: &GpmPlan,
    ) -> Result<Option<Vec<Option<f64>>>, NvmlError> {
        let State::Sampling { last, taken_at, spare } = &mut self.state else {
            if !device.gpm_support()? {
                return Err(NvmlError::new("nvmlGpmQueryDeviceSupport", Cause::NotSupported));
            }
            let last = Sample::take(device, instance)?;
            self.state = State::Sampling { last, taken_at: Instant::now(), spare: None };
            return Ok(Some(vec![None; plan.ids.len()]));
        };
        if taken_at.elapsed() < SHORTEST {
            return Ok(None);
        }
        let new = match spare.take() {
            Some(sample) => {
                sample.fill(device, instance)?;
                sample
            }
            None => Sample::take(device, instance)?,
        };
        let means = gpm_calls::metrics(device.driver(), last, &new, &plan.ids)?;
        *taken_at = Instant::now();
        *spare = Some(std::mem::replace(last, new));
        self.failing = false;
        Ok(Some(means))
    }
}

/// NVML's percent and MiB/s in the unit of the metric. `None` is not a measurement.
fn convert(mean: f64, unit: GpmUnit) -> Option<Value> {
    if !Bound::NotNegative.admits(mean) {
        return None;
    }
    Some(match unit {
        GpmUnit::Ratio => {
            Value::F64(round(Some(mean).filter(|mean| *mean <= MOST_PERCENT)?.min(100.0) / 100.0))
        }
        GpmUnit::Bytes => Value::U64((mean * MIB) as u64),
        GpmUnit::Kibibytes => Value::U64((mean * KIB) as u64),
        GpmUnit::Integer => Value::U64(mean as u64),
    })
}

/// Six decimals, as DCGM prints; more only lengthen the page.
fn round(ratio: f64) -> f64 {
    (ratio * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(convert(37.0, GpmUnit::Ratio), Some(Value::F64(0.37)));
        assert_eq!(convert(12.5, GpmUnit::Bytes), Some(Value::U64(13_107_200)));
        assert_eq!(convert(12.5, GpmUnit::Kibibytes), Some(Value::U64(12_800)));
        assert_eq!(convert(99.9, GpmUnit::Integer), Some(Value::U64(99)));
    }

    #[test]
    fn what_cannot_be_is_no_measurement_and_a_hair_above_all_is_all() {
        assert_eq!(convert(100.4, GpmUnit::Ratio), Some(Value::F64(1.0)));
        for mean in [-1.0, f64::NAN, f64::INFINITY, 140.0] {
            assert_eq!(convert(mean, GpmUnit::Ratio), None, "{mean}");
        }
        assert_eq!(convert(-0.5, GpmUnit::Bytes), None);
    }
}

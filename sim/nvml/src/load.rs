//! Owns the loads: functions from wall-clock time to percent of a GPU, and their exact integrals.

use serde::Deserialize;

use crate::switching::Requests;

/// Shorter periods than this are refused: a 200 ms slot would cross too many edges.
const MIN_PERIOD_S: f64 = 0.001;
/// Integration always moves on by at least this much, whatever floating point says about an edge:
/// seconds since the epoch are exact to a quarter of a microsecond.
const MIN_STEP_S: f64 = 1e-6;

/// A load over time, in percent of the device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Load {
    /// The same percent always.
    Constant(f64),
    /// `high` for `duty` of each period, then `low`. Periods are counted from the Unix epoch.
    Square(Square),
    /// Steps: each percent holds from its second on; repeats after the last point's second, or
    /// holds the last percent for ever.
    Trace(Trace),
    /// Requests, with the GPU's other processes taking turns as on a time-sliced GPU.
    Requests(Requests),
}

/// Two levels in turn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Square {
    /// Percent in the rest of each period.
    pub low: f64,
    /// Percent in the first `duty` of each period.
    pub high: f64,
    /// Seconds.
    pub period_s: f64,
    /// Part of the period, 0 to 1.
    #[serde(default = "half")]
    pub duty: f64,
}

/// Steps.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// `[second, percent]`, seconds rising from 0.
    pub points: Vec<(f64, f64)>,
    /// When second 0 is, in seconds since the Unix epoch.
    #[serde(default)]
    pub start: f64,
    /// Begin again at the last point's second.
    #[serde(default)]
    pub repeat: bool,
}

fn half() -> f64 {
    0.5
}

// === impl Load ===

impl Load {
    /// Percent at a moment, in seconds since the Unix epoch.
    pub fn at(&self, epoch_s: f64) -> f64 {
        match self {
            Self::Constant(percent) => *percent,
            Self::Square(square) => {
                if square.phase(epoch_s) < square.duty {
                    square.high
                } else {
                    square.low
                }
            }
            Self::Trace(trace) => trace.at(epoch_s),
            Self::Requests(requests) => requests.percent,
        }
    }

    /// The same at every moment times `part`.
    pub(crate) fn scaled(&self, part: f64) -> Self {
        match self {
            Self::Constant(percent) => Self::Constant(percent * part),
            Self::Square(square) => {
                Self::Square(Square { low: square.low * part, high: square.high * part, ..square.clone() })
            }
            Self::Trace(trace) => Self::Trace(Trace {
                points: trace.points.iter().map(|(second, percent)| (*second, percent * part)).collect(),
                ..trace.clone()
            }),
            Self::Requests(requests) => {
                Self::Requests(Requests { percent: requests.percent * part, ..*requests })
            }
        }
    }

    /// The first moment after this one at which the load may step; infinity if it never does.
    fn next_change(&self, epoch_s: f64) -> f64 {
        match self {
            Self::Constant(_) | Self::Requests(_) => f64::INFINITY,
            Self::Square(square) => {
                let phase = square.phase(epoch_s);
                let edge = if phase < square.duty { square.duty } else { 1.0 };
                epoch_s + (edge - phase) * square.period_s
            }
            Self::Trace(trace) => trace.next_change(epoch_s),
        }
    }

    /// Says what is wrong with it, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Constant(percent) => percent_in_range(*percent),
            Self::Square(square) => square.check(),
            Self::Trace(trace) => trace.check(),
            Self::Requests(requests) => requests.check(),
        }
    }
}

// === impl Square ===

impl Square {
    fn phase(&self, epoch_s: f64) -> f64 {
        (epoch_s / self.period_s).rem_euclid(1.0)
    }

    fn check(&self) -> Result<(), String> {
        percent_in_range(self.low)?;
        percent_in_range(self.high)?;
        if !self.period_s.is_finite() || self.period_s < MIN_PERIOD_S {
            return Err(format!("period_s is {}: want at least {MIN_PERIOD_S}", self.period_s));
        }
        if !(0.0..=1.0).contains(&self.duty) {
            return Err(format!("duty is {}: want 0 to 1", self.duty));
        }
        Ok(())
    }
}

// === impl Trace ===

impl Trace {
    fn at(&self, epoch_s: f64) -> f64 {
        match self.reached(self.second(epoch_s)) {
            0 => 0.0,
            reached => self.points[reached - 1].1,
        }
    }

    fn next_change(&self, epoch_s: f64) -> f64 {
        let second = self.second(epoch_s);
        self.points
            .get(self.reached(second))
            .map_or(f64::INFINITY, |(next, _)| epoch_s + (next - second).max(MIN_STEP_S))
    }

    /// Seconds into the trace.
    fn second(&self, epoch_s: f64) -> f64 {
        let second = epoch_s - self.start;
        match self.points.last() {
            Some(&(end, _)) if self.repeat && end > 0.0 => second.rem_euclid(end),
            _ => second,
        }
    }

    /// How many points lie at or before a second of the trace.
    fn reached(&self, second: f64) -> usize {
        self.points.partition_point(|(from, _)| *from <= second)
    }

    fn check(&self) -> Result<(), String> {
        if self.points.first().is_none_or(|(second, _)| *second != 0.0) {
            return Err("a trace's first point is at second 0".into());
        }
        if !self.start.is_finite() {
            return Err(format!("start is {}: want seconds since the epoch", self.start));
        }
        for pair in self.points.windows(2) {
            if !pair[1].0.is_finite() || pair[1].0 - pair[0].0 < MIN_PERIOD_S {
                return Err(format!("a trace's seconds rise: {} follows {}", pair[1].0, pair[0].0));
            }
        }
        self.points.iter().try_for_each(|(_, percent)| percent_in_range(*percent))
    }
}

fn percent_in_range(percent: f64) -> Result<(), String> {
    if (0.0..=100.0).contains(&percent) {
        return Ok(());
    }
    Err(format!("a load of {percent} %: want 0 to 100"))
}

/// The mean of the sum of loads over a span, in percent, the sum capped at 100 at every moment.
pub fn mean_of_sum(loads: &[&Load], from_s: f64, to_s: f64) -> f64 {
    if to_s <= from_s {
        return loads.iter().map(|load| load.at(from_s)).sum::<f64>().clamp(0.0, 100.0);
    }
    integrals(loads, from_s, to_s).iter().sum::<f64>() / (to_s - from_s)
}

/// Each load's part of the device over a span, in percent-seconds. Where loads add up to more
/// than 100 percent each gets its proportion of 100, so the parts add up to what the device did.
pub fn integrals(loads: &[&Load], from_s: f64, to_s: f64) -> Vec<f64> {
    let mut parts = vec![0.0; loads.len()];
    let mut moment = from_s;
    while moment < to_s {
        let edge = loads.iter().map(|load| load.next_change(moment)).fold(f64::INFINITY, f64::min);
        let until = edge.max(moment + MIN_STEP_S).min(to_s);
        // Loads are constant between edges, so the middle of the piece stands for all of it, and
        // an edge computed a hair too early or late does no harm.
        let middle = f64::midpoint(moment, until);
        let sum: f64 = loads.iter().map(|load| load.at(middle)).sum();
        let scale = if sum > 100.0 { 100.0 / sum } else { 1.0 };
        for (part, load) in parts.iter_mut().zip(loads) {
            *part += load.at(middle) * scale * (until - moment);
        }
        moment = until;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(low: f64, high: f64, period_s: f64, duty: f64) -> Load {
        Load::Square(Square { low, high, period_s, duty })
    }

    #[test]
    fn a_square_wave_integrates_exactly_over_whole_and_partial_periods() {
        let load = square(20.0, 60.0, 2.0, 0.25);
        let base = 1_800_000_000.0;
        assert!((mean_of_sum(&[&load], base, base + 60.0) - 30.0).abs() < 1e-3);
        assert!((mean_of_sum(&[&load], base + 0.25, base + 0.75) - 40.0).abs() < 1e-3);
    }

    #[test]
    fn a_sum_over_100_is_capped_at_every_moment_and_divided_in_proportion() {
        let (steady, wave) = (Load::Constant(80.0), square(0.0, 80.0, 1.0, 0.5));
        let parts = integrals(&[&steady, &wave], 0.0, 1.0);
        assert!((parts[0] - (25.0 + 40.0)).abs() < 1e-3, "{parts:?}");
        assert!((parts[1] - 25.0).abs() < 1e-3, "{parts:?}");
    }

    #[test]
    fn a_trace_holds_its_last_percent_or_repeats() {
        let points = vec![(0.0, 10.0), (1.0, 50.0), (3.0, 90.0)];
        let held = Load::Trace(Trace { points: points.clone(), start: 100.0, repeat: false });
        assert_eq!([99.0, 100.0, 101.5, 103.0, 500.0].map(|at| held.at(at)), [0.0, 10.0, 50.0, 90.0, 90.0]);
        let again = Load::Trace(Trace { points, start: 100.0, repeat: true });
        assert_eq!([103.0, 104.5, 105.9].map(|at| again.at(at)), [10.0, 50.0, 50.0]);
        assert!((mean_of_sum(&[&again], 100.0, 160.0) - 110.0 / 3.0).abs() < 1e-3);
    }
}

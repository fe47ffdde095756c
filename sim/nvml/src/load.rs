//! Owns the loads: functions from wall-clock time to percent of a GPU.

use serde::Deserialize;

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
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Square {
    pub low: f64,
    pub high: f64,
    pub period_s: f64,
    #[serde(default = "half")]
    pub duty: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// `[second, percent]`, seconds rising from 0.
    pub points: Vec<(f64, f64)>,
    /// When second 0 is, in seconds since the Unix epoch.
    #[serde(default)]
    pub start: f64,
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
            Self::Square(s) => {
                let phase = (epoch_s / s.period_s).rem_euclid(1.0);
                if phase < s.duty { s.high } else { s.low }
            }
            Self::Trace(t) => t.at(epoch_s),
        }
    }
}

impl Trace {
    fn at(&self, epoch_s: f64) -> f64 {
        let Some(&(end, last)) = self.points.last() else { return 0.0 };
        let mut second = epoch_s - self.start;
        if self.repeat && end > 0.0 {
            second = second.rem_euclid(end);
        } else if second >= end {
            return last;
        }
        self.points.iter().rev().find(|(from, _)| *from <= second).map_or(0.0, |(_, percent)| *percent)
    }
}

/// The mean of the sum of loads over a span, in percent, the sum capped at 100 at every moment.
/// Stepped at 1 ms: loads are piecewise constant and periods are far longer.
pub fn mean_of_sum(loads: &[&Load], from_s: f64, to_s: f64) -> f64 {
    if loads.iter().all(|load| matches!(load, Load::Constant(_))) {
        return loads.iter().map(|load| load.at(from_s)).sum::<f64>().clamp(0.0, 100.0);
    }
    let steps = (((to_s - from_s) * 1000.0).ceil() as usize).max(1);
    let step = (to_s - from_s) / steps as f64;
    let sum: f64 = (0..steps)
        .map(|i| {
            let moment = from_s + (i as f64 + 0.5) * step;
            loads.iter().map(|load| load.at(moment)).sum::<f64>().clamp(0.0, 100.0)
        })
        .sum();
    sum / steps as f64
}

//! Durations of many equal requests.

use std::time::Duration;

/// Sorted when asked.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    all: Vec<Duration>,
}

impl Latencies {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.all.push(duration);
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The duration that this part of all, between 0 and 1, does not exceed.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.all.clone();
        sorted.sort_unstable();
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(crate) fn quantile_ms(&self, part: f64) -> f64 {
        self.quantile(part).as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_pushed() {
        let mut all = Latencies::default();
        (1..=100).rev().for_each(|ms| all.push(Duration::from_millis(ms)));
        assert_eq!((all.quantile_ms(0.5), all.quantile_ms(0.99), all.quantile_ms(1.0)), (50.0, 99.0, 100.0));
    }
}

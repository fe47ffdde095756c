//! Says how long a retry loop waits after a failure. Pure: the time is passed in.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// The pause after the first failure.
const LEAST: Duration = Duration::from_millis(250);
/// A try that lasted longer than this does not continue a series of failures.
const LASTED: Duration = Duration::from_secs(10);

/// The pauses of one retry loop: each is twice the one before, up to a limit.
#[derive(Debug, Clone)]
pub struct Pace {
    failures: u32,
    /// When the newest pause ends.
    resumed: Option<Instant>,
}

impl Pace {
    /// Nothing has failed yet.
    pub const fn new() -> Self {
        Self { failures: 0, resumed: None }
    }

    /// The pause after a failure at `now`, `most` at most.
    pub fn after_failure(&mut self, most: Duration, now: Instant) -> Duration {
        if !self.continues(now) {
            self.failures = 0;
        }
        let pause = LEAST.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures += 1;
        self.resumed = Some(now + pause);
        pause
    }

    /// Whether a failure at `now` belongs to the same series as the last one.
    pub fn continues(&self, now: Instant) -> bool {
        self.failures > 0 && self.resumed.is_some_and(|at| now.saturating_duration_since(at) < LASTED)
    }

    /// The next failure is the first of a new series.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// Between half of the pause and all of it, so that many programs do not retry in step.
pub fn spread(pause: Duration) -> Duration {
    // Every RandomState has other keys, so this is a random number.
    let random = RandomState::new().hash_one(0) >> 32;
    pause.mul_f64(0.5 + random as f64 / (1u64 << 33) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_grow_to_the_limit_and_start_over_after_a_long_try() {
        let mut pace = Pace::new();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = pace.after_failure(MOST, now);
            pauses.push(pause.as_millis());
            // The try after the pause takes as long as a connection that is not answered.
            now += pause + Duration::from_secs(3);
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        now += LASTED;
        assert_eq!(pace.after_failure(MOST, now), LEAST);
        pace.after_failure(MOST, now);
        pace.reset();
        assert_eq!(pace.after_failure(MOST, now), LEAST);
    }

    #[test]
    fn spread_pauses_differ_and_are_never_longer() {
        let spread: Vec<Duration> = (0..100).map(|_| spread(MOST)).collect();
        assert!(spread.iter().all(|pause| (MOST / 2..=MOST).contains(pause)), "{spread:?}");
        assert!(spread.iter().any(|pause| *pause != spread[0]));
    }
}

//! Says when an exporter is scraped: at its own place in the interval, by the wall clock.
//!
//! Every replica of the adapter has the same places, so that all of them read the same pages and
//! give the same answers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use super::Target;

/// An exporter's place in the interval.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    interval: Duration,
    offset: Duration,
}

impl Place {
    /// The place of a target, the same in every process and version of the adapter.
    pub(super) fn of(target: &Target, interval: Duration) -> Self {
        let node = target.node.as_deref().unwrap_or_default();
        let hash = Sha256::digest(format!("{node}\n{}", target.url));
        let [a, b, c, d, ..] = hash[..] else { return Self { interval, offset: Duration::ZERO } };
        let part = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
        Self { interval, offset: interval.mul_f64(part) }
    }

    /// Time from `now` to the next moment at this place that is at least `least` away.
    pub(super) fn wait(&self, now: SystemTime, least: Duration) -> Duration {
        // A clock of before 1970 has places, too: those of 1970.
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let interval = self.interval.as_nanos().max(1);
        let passed = (now + least.as_nanos() + interval - self.offset.as_nanos() % interval) % interval;
        let rest = if passed == 0 { 0 } else { interval - passed };
        least + Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX))
    }

    /// A part of `time` that is this exporter's own.
    pub(super) fn part_of(&self, time: Duration) -> Duration {
        time.mul_f64(self.offset.as_secs_f64() / self.interval.as_secs_f64().max(f64::MIN_POSITIVE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(node: &str) -> Target {
        Target { node: Some(node.into()), url: "http://10.0.0.7:9400/metrics".parse().unwrap() }
    }

    #[test]
    fn a_place_is_a_moment_of_the_wall_clock_whenever_it_is_asked_for() {
        let interval = Duration::from_secs(2);
        for node in ["a", "b", "gpu-7"] {
            let place = Place::of(&target(node), interval);
            for millis in [0, 1, 999, 1000, 1999, 1_700_000_000_123] {
                for least in [0, 300, 2500] {
                    let (now, least) = (Duration::from_millis(millis), Duration::from_millis(least));
                    let wait = place.wait(UNIX_EPOCH + now, least);
                    assert!(wait >= least && wait <= least + interval, "{node} {now:?} {least:?}: {wait:?}");
                    let at = (now + wait).as_nanos() % interval.as_nanos();
                    assert_eq!(at, place.offset.as_nanos() % interval.as_nanos(), "{node} {now:?}");
                }
            }
        }
    }

    #[test]
    fn places_are_spread_and_stay_the_same_from_version_to_version() {
        let interval = Duration::from_secs(2);
        let offset = |node: &str| Place::of(&target(node), interval).offset;
        let mut tenths = [0; 10];
        for node in 0..1000 {
            let part = offset(&format!("gpu-{node}")).as_secs_f64() / interval.as_secs_f64();
            tenths[((part * 10.0) as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| (50..150).contains(count)), "{tenths:?}");
        assert_eq!(offset("gpu-7").as_millis(), 1794);
    }
}

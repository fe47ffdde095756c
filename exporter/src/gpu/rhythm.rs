//! Owns when the driver's slots end, so that each slot is asked for once: in the middle of the time
//! for which it is the newest.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time between two questions while the ends are not known: less than a slot of 200 ms.
const BLIND: Duration = Duration::from_millis(150);
/// A slot that ended longer ago says nothing of the ends to come.
const RECENT: Duration = Duration::from_secs(5);
/// Slots are at least so long: questions cost the driver 2 ms and more each.
const SHORTEST: Duration = Duration::from_millis(100);

/// When slots end: every `spacing`, once at `end`.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rhythm {
    known: Option<(Instant, Duration)>,
}

impl Rhythm {
    /// Takes a slot that ended at `ended_us` of the driver's clock, µs. That is the wall clock; of a
    /// driver with another one nothing is learned.
    pub(super) fn follow(&mut self, ended_us: u64, spacing: Duration, wall: SystemTime, now: Instant) {
        let age = wall.duration_since(UNIX_EPOCH + Duration::from_micros(ended_us)).ok();
        let end = age.filter(|age| *age <= RECENT).and_then(|age| now.checked_sub(age));
        self.known = end.map(|end| (end, spacing.max(SHORTEST)));
    }

    /// The next moment in the middle between two ends.
    pub(super) fn middle_after(&self, now: Instant) -> Instant {
        let Some((end, spacing)) = self.known else { return now + BLIND };
        let middle = end + spacing / 2;
        match now.checked_duration_since(middle) {
            None => middle,
            Some(past) => {
                let into = Duration::from_nanos((past.as_nanos() % spacing.as_nanos()) as u64);
                now + (spacing - into)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Duration = Duration::from_millis(200);

    #[test]
    fn each_slot_is_asked_for_once_in_its_middle() {
        let start = Instant::now() + Duration::from_secs(60);
        let wall = UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let ended_us = 1_795_000_000_000_000 - 30_000;
        let mut rhythm = Rhythm::default();
        rhythm.follow(ended_us, SLOT, wall, start);
        let ms = |ms| start + Duration::from_millis(ms);
        assert_eq!(rhythm.middle_after(start), ms(70));
        assert_eq!(rhythm.middle_after(ms(70)), ms(270));
        assert_eq!(rhythm.middle_after(ms(75)), ms(270));
        // A thread that was held up does not ask twice for what it missed.
        assert_eq!(rhythm.middle_after(ms(1000)), ms(1070));
    }

    #[test]
    fn a_driver_with_a_clock_of_its_own_is_asked_more_often() {
        let now = Instant::now() + Duration::from_secs(60);
        let wall = UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        for ended_us in [5_000_000, 1_795_000_001_000_000] {
            let mut rhythm = Rhythm::default();
            rhythm.follow(ended_us, SLOT, wall, now);
            assert_eq!(rhythm.middle_after(now), now + BLIND);
        }
    }
}

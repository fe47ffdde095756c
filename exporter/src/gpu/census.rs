//! Watches from time to time whether GPUs came or went, and whether the driver gives no answers at all.

use std::time::{Duration, Instant};

use super::driver::Driver;
use super::end::{End, GIVE_UP, UNKNOWN_ADVICE, end_of};

/// How often the number of GPUs is compared.
const RECOUNT: Duration = Duration::from_secs(5);

/// The number of GPUs of a session.
#[derive(Debug)]
pub(super) struct Census {
    gpus: u32,
    counted_at: Instant,
    /// The last count was answered UNKNOWN.
    count_is_unknown: bool,
    /// Since when the driver answers nothing but UNKNOWN.
    unknown_since: Option<Instant>,
}

// === impl Census ===

impl Census {
    pub(super) fn new(gpus: u32) -> Self {
        Self { gpus, counted_at: Instant::now(), count_is_unknown: false, unknown_since: None }
    }

    /// Why the session must end, if it must. `gpus_are_unknown`: the driver answers UNKNOWN for every
    /// GPU.
    pub(super) fn check(&mut self, driver: &Driver, gpus_are_unknown: bool) -> Option<End> {
        let now = Instant::now();
        if now.saturating_duration_since(self.counted_at) >= RECOUNT {
            self.counted_at = now;
            match driver.device_count() {
                Ok(count) if count != self.gpus => {
                    return Some(End::Reload(format!(
                        "the number of GPUs changed from {} to {count}",
                        self.gpus
                    )));
                }
                Ok(_) => self.count_is_unknown = false,
                Err(error) if error.is_unknown() => self.count_is_unknown = true,
                Err(error) => return Some(end_of(None, &error)),
            }
        }
        let silent = gpus_are_unknown || self.count_is_unknown;
        self.gave_up(silent, now).then(|| {
            End::GiveUp(format!(
                "NVML has answered UNKNOWN (999) for every GPU for {} s; {UNKNOWN_ADVICE}",
                GIVE_UP.as_secs()
            ))
        })
    }

    fn gave_up(&mut self, silent: bool, now: Instant) -> bool {
        if !silent {
            self.unknown_since = None;
            return false;
        }
        let since = *self.unknown_since.get_or_insert(now);
        now.saturating_duration_since(since) >= GIVE_UP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_without_a_break_ends_it() {
        let start = Instant::now();
        let mut census = Census::new(1);
        assert!(!census.gave_up(true, start));
        assert!(!census.gave_up(true, start + GIVE_UP / 2));
        assert!(!census.gave_up(false, start + GIVE_UP));
        assert!(!census.gave_up(true, start + GIVE_UP));
        assert!(census.gave_up(true, start + 2 * GIVE_UP));
    }
}

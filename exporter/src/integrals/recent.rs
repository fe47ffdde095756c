//! An account's gain within a sliding window, tick by tick.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Account;

/// How old the newest gain may be. After that the sum says nothing of this moment: a reader that
/// sees it for the first time would take it for fresh.
const FRESH: Duration = Duration::from_secs(10);

/// The gains of the last ticks, one a second at most.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// When slots were counted, and what they added. Single precision: each is of seconds.
    ticks: VecDeque<(Instant, f32, f32)>,
}

// === impl Recent ===

impl Recent {
    pub(super) fn add(&mut self, gained: Account, window: Duration, now: Instant) {
        let (active_s, observed_s) = (gained.active_s as f32, gained.observed_s as f32);
        match self.ticks.back_mut() {
            Some((at, active, observed)) if *at == now => {
                *active += active_s;
                *observed += observed_s;
            }
            _ => self.ticks.push_back((now, active_s, observed_s)),
        }
        while self.ticks.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) >= window) {
            self.ticks.pop_front();
        }
    }

    /// The gain in the window that ends `now`; `None` without one in the last 10 s.
    pub(super) fn sum(&self, window: Duration, now: Instant) -> Option<Account> {
        let (newest, ..) = self.ticks.back()?;
        if now.saturating_duration_since(*newest) > FRESH.min(window) {
            return None;
        }
        let in_window = self.ticks.iter().filter(|(at, ..)| now.saturating_duration_since(*at) < window);
        let mut sum = Account::default();
        for (_, active, observed) in in_window {
            sum += Account { active_s: f64::from(*active), observed_s: f64::from(*observed) };
        }
        Some(sum)
    }

    /// Whether anything was gained in the window that ends `now`.
    pub(super) fn gained(&self, window: Duration, now: Instant) -> bool {
        self.ticks.back().is_some_and(|(at, ..)| now.saturating_duration_since(*at) < window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_slides_tick_by_tick() {
        let start = Instant::now();
        let window = Duration::from_secs(60);
        let mut recent = Recent::default();
        let gained = |percent: f64| Account { active_s: percent / 100.0, observed_s: 1.0 };
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            recent.add(gained(if second < 70 { 0.0 } else { 50.0 }), window, now);
        }
        let at = |second| recent.sum(window, start + Duration::from_secs(second));
        assert_eq!(at(99), Some(Account { active_s: 15.0, observed_s: 60.0 }));
        assert_eq!(at(109), Some(Account { active_s: 15.0, observed_s: 50.0 }));
        // Nothing is known of the last seconds.
        assert_eq!(at(110), None);
        assert_eq!(Recent::default().sum(window, start), None);
        let gained = |second| recent.gained(window, start + Duration::from_secs(second));
        assert_eq!([158, 159].map(gained), [true, false]);
        assert!(recent.ticks.len() <= 60);
    }
}

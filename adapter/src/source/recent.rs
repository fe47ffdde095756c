//! Holds an exporter's own sum of the last seconds, from which an adapter that has just started
//! answers.

use std::time::{Duration, Instant};

use super::history::CATCH_UP;

/// The part of a window that is known where nothing was missed: a page may be a second old.
const NEARLY_ALL: f64 = 0.95;

/// How much a device or an owner was used in the time before a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recent {
    pub window: Duration,
    /// Seconds of use, at most `observed`.
    pub active: f64,
    /// Seconds of the window for which the use is known; never 0.
    pub observed: f64,
}

/// The newest sums with something new in them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latest {
    pub recent: Recent,
    /// When they were received.
    pub at: Instant,
}

impl Recent {
    /// `None` if the numbers cannot be true, or say nothing.
    pub fn new(window: Duration, active: f64, observed: f64) -> Option<Self> {
        // For the rounding of what is printed.
        let possible = active <= observed + 0.001 && observed <= (window + CATCH_UP).as_secs_f64();
        (possible && observed > 0.0).then(|| Self { window, active: active.min(observed), observed })
    }

    /// Whether hardly anything of the window is unknown.
    pub fn is_of_whole_window(&self) -> bool {
        self.observed >= self.window.as_secs_f64() * NEARLY_ALL
    }

    /// The mean use, part of one.
    pub fn mean(&self) -> f64 {
        self.active / self.observed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sums_are_refused() {
        let of = |active, observed| Recent::new(Duration::from_secs(60), active, observed);
        assert_eq!(of(30.0, 60.0).map(|recent| recent.mean()), Some(0.5));
        assert_eq!(of(60.0004, 60.0).map(|recent| recent.mean()), Some(1.0));
        // After a driver call that blocked an exporter observes more than the window has.
        assert!(of(10.0, 74.0).is_some());
        for (active, observed) in [(61.0, 60.0), (10.0, 81.0), (0.0, 0.0)] {
            assert_eq!(of(active, observed), None, "{active} {observed}");
        }
    }
}

//! Measures how long a connection does nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a connection is doing. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    in_flight: usize,
    /// It has had a request.
    used: bool,
    /// When it was opened, or last had a request in flight.
    idle_since: Instant,
}

/// A request that is being answered, until the answer is written.
#[derive(Debug)]
pub(super) struct InFlight(Activity);

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { in_flight: 0, used: false, idle_since: now })))
    }

    pub(super) fn begin(&self) -> InFlight {
        let mut state = self.0.lock();
        state.in_flight += 1;
        state.used = true;
        InFlight(self.clone())
    }

    /// How much longer it may do nothing: `first` until its first request, `between` after each.
    /// `None` once that is over.
    pub(super) fn left(&self, now: Instant, first: Duration, between: Duration) -> Option<Duration> {
        let state = self.0.lock();
        let limit = if state.used { between } else { first };
        if state.in_flight > 0 {
            return Some(limit);
        }
        let left = limit.saturating_sub(now.saturating_duration_since(state.idle_since));
        (!left.is_zero()).then_some(left)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.in_flight -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_may_do_nothing_for_a_limited_time() {
        let (first, between) = (Duration::from_secs(3), Duration::from_secs(9));
        let start = Instant::now();
        let activity = Activity::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(activity.left(after(1), first, between), Some(Duration::from_secs(2)));
        assert_eq!(activity.left(after(3), first, between), None);
        let request = activity.begin();
        assert_eq!(activity.left(after(100), first, between), Some(between));
        drop(request);
        assert!(activity.left(after(8), first, between).is_some());
        assert_eq!(activity.left(after(60), first, between), None);
    }
}

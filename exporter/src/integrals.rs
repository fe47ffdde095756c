//! Owns the integrals: per device and owner, seconds of use and seconds of knowing.
//!
//! Slots in, counters and gauges out. Mean utilization over any interval between two readings of
//! the counters is Δactive ÷ Δobserved, however the reader's clock runs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attribution::Owner;
use crate::gpu::Slot;

/// How long an account outlives its series: the same labels within it go on where they were.
pub(crate) const KEPT: Duration = Duration::from_secs(600);
/// Part of the window that must have been observed for a mean to be given.
const ENOUGH: f64 = 0.8;
/// Shortest time over which a mean is given.
const SHORTEST: Duration = Duration::from_secs(2);

/// Seconds of one owner on one device.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Account {
    /// Time times utilization.
    pub(crate) active_s: f64,
    /// Time for which utilization was known.
    pub(crate) observed_s: f64,
}

/// The mean over a sliding window, of what is known of it.
#[derive(Debug)]
pub(crate) struct Window {
    slots: VecDeque<Slot>,
    since: Instant,
}

/// Everything accumulated of one device.
#[derive(Debug)]
pub(crate) struct DeviceLedger {
    pub(crate) active_s: f64,
    accounts: HashMap<Option<Arc<Owner>>, (Account, Instant)>,
    pub(crate) gpu: Window,
    pub(crate) memory: Window,
}

// === impl Window ===

impl Window {
    fn new(now: Instant) -> Self {
        Self { slots: VecDeque::new(), since: now }
    }

    fn add(&mut self, slots: &[Slot], window: Duration, now: Instant) {
        self.slots.extend(slots);
        while self.slots.front().is_some_and(|slot| now.saturating_duration_since(slot.end) >= window) {
            self.slots.pop_front();
        }
    }

    /// Percent, mean over the part of the last `window` that was observed. `None` if that is less
    /// than 80 % of the window, or of the time since start where that is shorter (at least 2 s).
    pub(crate) fn mean(&self, window: Duration, now: Instant) -> Option<f64> {
        let (mut active, mut observed) = (0.0, 0.0);
        for slot in &self.slots {
            if now.saturating_duration_since(slot.end) < window {
                active += slot.active_seconds();
                observed += slot.length.as_secs_f64();
            }
        }
        let span = now.saturating_duration_since(self.since).clamp(SHORTEST.min(window), window);
        (observed >= ENOUGH * span.as_secs_f64()).then(|| active / observed * 100.0)
    }
}

// === impl DeviceLedger ===

impl DeviceLedger {
    pub(crate) fn new(now: Instant) -> Self {
        Self { active_s: 0.0, accounts: HashMap::new(), gpu: Window::new(now), memory: Window::new(now) }
    }

    /// Credits new slots of the device to its one owner; `None` is nobody, or not known which pod.
    /// The account is opened even if no slot is new, so that its series begins at 0.
    pub(crate) fn credit(
        &mut self,
        slots: &[Slot],
        owner: Option<&Arc<Owner>>,
        window: Duration,
        now: Instant,
    ) {
        self.gpu.add(slots, window, now);
        let (account, last_seen) = self.accounts.entry(owner.cloned()).or_insert((Account::default(), now));
        *last_seen = now;
        for slot in slots.iter().filter(|slot| !slot.history) {
            let active = slot.active_seconds();
            self.active_s += active;
            account.active_s += active;
            account.observed_s += slot.length.as_secs_f64();
        }
        self.accounts.retain(|_, (_, last_seen)| now.saturating_duration_since(*last_seen) < KEPT);
    }

    /// Adds slots of memory utilization, which has a gauge alone.
    pub(crate) fn add_memory(&mut self, slots: &[Slot], window: Duration, now: Instant) {
        self.memory.add(slots, window, now);
    }

    /// The account of an owner, if it was ever credited.
    pub(crate) fn account(&self, owner: Option<&Arc<Owner>>) -> Option<Account> {
        self.accounts.get(&owner.cloned()).map(|(account, _)| *account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(15);

    fn slot(end: Instant, length_ms: u64, percent: f64) -> Slot {
        Slot { end, length: Duration::from_millis(length_ms), percent, history: false }
    }

    fn owner(pod: &str) -> Arc<Owner> {
        Arc::new(Owner { namespace: "ns".into(), pod: pod.into(), container: "c".into() })
    }

    #[test]
    fn a_gap_adds_to_neither_and_too_much_of_it_leaves_no_mean() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut ledger = DeviceLedger::new(start);
        for second in 1..=20 {
            let slots = if (5..15).contains(&second) { vec![] } else { vec![slot(at(second), 1000, 40.0)] };
            ledger.credit(&slots, None, WINDOW, at(second));
        }
        let account = ledger.account(None).unwrap();
        assert!((account.observed_s - 10.0).abs() < 1e-9);
        assert!((account.active_s - 4.0).abs() < 1e-9);
        assert_eq!(ledger.gpu.mean(WINDOW, at(20)), None);
        assert_eq!(ledger.gpu.mean(Duration::from_secs(5), at(20)).map(f64::round), Some(40.0));
    }

    #[test]
    fn the_first_mean_comes_after_two_seconds_and_history_counts_for_it_alone() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut fresh = DeviceLedger::new(start);
        fresh.credit(&[slot(at(1000), 1000, 50.0)], None, WINDOW, at(1000));
        assert_eq!(fresh.gpu.mean(WINDOW, at(1000)), None);
        fresh.credit(&[slot(at(2000), 1000, 50.0)], None, WINDOW, at(2000));
        assert_eq!(fresh.gpu.mean(WINDOW, at(2000)), Some(50.0));

        let mut with_history = DeviceLedger::new(start);
        let history: Vec<Slot> = (0..70).map(|_| Slot { history: true, ..slot(start, 200, 30.0) }).collect();
        with_history.credit(&history, None, WINDOW, start);
        assert_eq!(with_history.gpu.mean(WINDOW, start).map(f64::round), Some(30.0));
        assert_eq!(with_history.account(None), Some(Account::default()));
        assert_eq!(with_history.active_s, 0.0);
    }

    #[test]
    fn an_owner_that_returns_within_ten_minutes_goes_on_and_one_that_comes_later_starts_at_zero() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let (a, b) = (owner("a"), owner("b"));
        let mut ledger = DeviceLedger::new(start);
        ledger.credit(&[slot(at(1), 1000, 100.0)], Some(&a), WINDOW, at(1));
        ledger.credit(&[slot(at(2), 1000, 50.0)], Some(&b), WINDOW, at(2));
        ledger.credit(&[], None, WINDOW, at(500));
        ledger.credit(&[slot(at(501), 1000, 100.0)], Some(&a), WINDOW, at(501));
        assert_eq!(ledger.account(Some(&a)), Some(Account { active_s: 2.0, observed_s: 2.0 }));
        ledger.credit(&[], None, WINDOW, at(603));
        assert_eq!(ledger.account(Some(&b)), None);
        assert_eq!(ledger.active_s, 2.5);
    }

    proptest::proptest! {
        /// Owners coming and going: what the accounts gain adds up to the device, no counter falls,
        /// and none gains more than the time that passed.
        #[test]
        fn accounts_add_up_to_the_device(steps in proptest::collection::vec((0usize..4, 0.0f64..100.0, 1u64..1000), 1..60)) {
            let start = Instant::now();
            let mut now = start;
            let owners: Vec<_> = (0..3).map(|i| owner(&i.to_string())).collect();
            let mut ledger = DeviceLedger::new(start);
            let all = |ledger: &DeviceLedger| -> f64 {
                owners.iter().map(Some).chain([None]).filter_map(|o| ledger.account(o)).map(|a| a.active_s).sum()
            };
            for (who, percent, ms) in steps {
                now += Duration::from_millis(ms);
                let before = all(&ledger);
                ledger.credit(&[slot(now, ms, percent)], owners.get(who), WINDOW, now);
                let gained = all(&ledger) - before;
                proptest::prop_assert!(gained >= 0.0 && gained <= ms as f64 / 1000.0 + 1e-9);
                proptest::prop_assert!((all(&ledger) - ledger.active_s).abs() < 1e-6);
            }
        }
    }
}

//! Owns the integrals: per device and owner, seconds of use and seconds of knowing.
//!
//! Slots in, counters and gauges out. Mean utilization over any interval between two readings of
//! the counters is Δactive ÷ Δobserved, however the reader's clock runs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attribution::{Division, Owner};
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

/// Whose a slot is, in the terms of accounts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Share {
    /// An owner's, or with `None` nobody's that has labels.
    Of(Option<Arc<Owner>>),
    /// It was not used, which is known of every owner.
    Idle,
    /// It was used, and nobody knows by whom.
    Unknown,
}

/// Everything accumulated of one device.
#[derive(Debug)]
pub(crate) struct DeviceLedger {
    pub(crate) active_s: f64,
    accounts: HashMap<Option<Arc<Owner>>, (Account, Instant)>,
    pub(crate) gpu: Window,
    pub(crate) memory: Window,
    /// The slots of `gpu`, and whose they are.
    shares: VecDeque<(Slot, Share)>,
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
        Self {
            active_s: 0.0,
            accounts: HashMap::new(),
            gpu: Window::new(now),
            memory: Window::new(now),
            shares: VecDeque::new(),
        }
    }

    /// Credits new slots of the device. Undivided they are all the one owner's, or nobody's.
    /// Divided, each adds to the active seconds of whose it is and to the observed seconds of every
    /// owner and of nobody; one that nobody knows of adds to the device alone.
    ///
    /// Accounts of the division are opened even if no slot is new, so that their series begin at 0.
    pub(crate) fn credit(
        &mut self,
        slots: impl IntoIterator<Item = (Slot, Share)>,
        division: &Division,
        window: Duration,
        now: Instant,
    ) {
        let printed = printed(division);
        for owner in &printed {
            self.open(owner, now);
        }
        let mut new = Vec::new();
        for (slot, share) in slots {
            new.push(slot);
            let share = match division {
                // What was before the first look counts for the device's gauge, for nobody's part.
                _ if slot.history => Share::Unknown,
                Division::Whole(owner) => Share::Of(owner.clone()),
                Division::Among(owners) => match share {
                    Share::Of(Some(owner)) if !owners.contains(&owner) => Share::Unknown,
                    Share::Of(_) | Share::Unknown if slot.percent <= 0.0 => Share::Idle,
                    share => share,
                },
            };
            if !slot.history {
                self.count(&slot, &share, &printed);
            }
            self.shares.push_back((slot, share));
        }
        self.gpu.add(&new, window, now);
        while self.shares.front().is_some_and(|(slot, _)| now.saturating_duration_since(slot.end) >= window) {
            self.shares.pop_front();
        }
        self.accounts.retain(|_, (_, last_seen)| now.saturating_duration_since(*last_seen) < KEPT);
    }

    fn open(&mut self, owner: &Option<Arc<Owner>>, now: Instant) {
        self.accounts.entry(owner.clone()).or_insert((Account::default(), now)).1 = now;
    }

    fn count(&mut self, slot: &Slot, share: &Share, printed: &[Option<Arc<Owner>>]) {
        let active = slot.active_seconds();
        self.active_s += active;
        if *share == Share::Unknown {
            return;
        }
        for owner in printed {
            let Some((account, _)) = self.accounts.get_mut(owner) else { continue };
            account.observed_s += slot.length.as_secs_f64();
            if matches!(share, Share::Of(whose) if whose == owner) {
                account.active_s += active;
            }
        }
    }

    /// Adds slots of memory utilization, which has a gauge alone.
    pub(crate) fn add_memory(&mut self, slots: &[Slot], window: Duration, now: Instant) {
        self.memory.add(slots, window, now);
    }

    /// The accounts of a division that were ever opened, in its order, the unlabelled one last.
    pub(crate) fn accounts(&self, division: &Division) -> Vec<(Option<Arc<Owner>>, Account)> {
        let account = |owner: Option<Arc<Owner>>| {
            let (account, _) = self.accounts.get(&owner)?;
            Some((owner, *account))
        };
        printed(division).into_iter().filter_map(account).collect()
    }

    /// Percent of the device that each of these owners used, mean over the part of the window of
    /// which it is known whose it was. `None` if that is too little to speak for the window.
    pub(crate) fn parts(&self, owners: &[Arc<Owner>], window: Duration, now: Instant) -> Option<Vec<f64>> {
        let (mut known, mut seen) = (0.0, 0.0);
        let mut active = vec![0.0; owners.len()];
        let recent = |slot: &Slot| !slot.history && now.saturating_duration_since(slot.end) < window;
        for (slot, share) in self.shares.iter().filter(|(slot, _)| recent(slot)) {
            let length = slot.length.as_secs_f64();
            seen += length;
            if *share == Share::Unknown {
                continue;
            }
            known += length;
            if let Share::Of(Some(whose)) = share
                && let Some(at) = owners.iter().position(|owner| owner == whose)
            {
                active[at] += slot.active_seconds();
            }
        }
        let enough = known >= ENOUGH * seen && known >= ENOUGH * SHORTEST.min(window).as_secs_f64();
        (enough && known > 0.0).then(|| active.into_iter().map(|active| active / known * 100.0).collect())
    }
}

/// The owners whose series a division has, `None` for the one without labels.
fn printed(division: &Division) -> Vec<Option<Arc<Owner>>> {
    match division {
        Division::Whole(owner) => vec![owner.clone()],
        Division::Among(owners) => owners.iter().cloned().map(Some).chain([None]).collect(),
    }
}

#[cfg(test)]
mod tests;

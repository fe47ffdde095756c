//! The integrals of each device: seconds of use and seconds for which use was known, by owner.
//!
//! Slots in, counters and gauges out. Mean utilization over any interval between two readings of
//! the counters is Δactive ÷ Δobserved, however the reader's clock runs.

mod recent;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attribution::{Division, Owner};
use crate::gpu::Slot;
use recent::Recent;

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

/// The owners that a slot's use counts for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Share {
    /// An owner, or with `None` somebody whose samples have no pod labels.
    Of(Option<Arc<Owner>>),
    /// Several, each with its part of one.
    Spread(Vec<(Option<Arc<Owner>>, f64)>),
    /// The device was not used, which is known of every owner.
    Idle,
    /// It is not known who used the device, or whether anybody did: a gap for every owner.
    Unknown,
}

/// The times over which a ledger keeps what was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    /// `--utilization-window`: gauges are the mean over it.
    pub(crate) utilization: Duration,
    /// `--recent-window`: what the counters grew in it is printed.
    pub(crate) recent: Duration,
}

/// An account's sum, and its gain lately.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Balance {
    pub(crate) total: Account,
    /// Growth within [`Windows::recent`]; `None` if it is not known of this moment, or is not all of
    /// what the pod used: a part of it was counted for another container label of the pod.
    pub(crate) recent: Option<Account>,
}

/// Everything accumulated of one device.
#[derive(Debug)]
pub(crate) struct DeviceLedger {
    windows: Windows,
    pub(crate) active_s: f64,
    recent: Recent,
    accounts: HashMap<Option<Arc<Owner>>, Entry>,
    pub(crate) gpu: Window,
    pub(crate) memory: Window,
    /// The slots of `gpu`, with their owners.
    shares: VecDeque<(Slot, Share)>,
}

#[derive(Debug)]
struct Entry {
    account: Account,
    /// Of the pod with that UID alone.
    recent: Recent,
    /// The last one that was known of the pod.
    uid: Option<Box<str>>,
    last_seen: Instant,
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

// === impl Account ===

impl std::ops::AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.active_s += other.active_s;
        self.observed_s += other.observed_s;
    }
}

// === impl Share ===

impl Share {
    /// The part of the slot's use that counts for the owner, of one.
    fn part_of(&self, owner: &Option<Arc<Owner>>) -> f64 {
        match self {
            Self::Of(user) => f64::from(user == owner),
            Self::Spread(parts) => parts.iter().filter(|(user, _)| user == owner).map(|(_, part)| part).sum(),
            Self::Idle | Self::Unknown => 0.0,
        }
    }

    /// Counts what owners without a series used for the one without labels.
    fn among(self, owners: &[Arc<Owner>]) -> Self {
        let printed = |user: Option<Arc<Owner>>| user.filter(|user| owners.contains(user));
        match self {
            Self::Of(user) => Self::Of(printed(user)),
            Self::Spread(parts) => {
                Self::Spread(parts.into_iter().map(|(user, part)| (printed(user), part)).collect())
            }
            other => other,
        }
    }
}

// === impl DeviceLedger ===

impl DeviceLedger {
    pub(crate) fn new(windows: Windows, now: Instant) -> Self {
        Self {
            windows,
            active_s: 0.0,
            recent: Recent::default(),
            accounts: HashMap::new(),
            gpu: Window::new(now),
            memory: Window::new(now),
            shares: VecDeque::new(),
        }
    }

    /// Credits new slots of the device. Undivided, all of their use counts for the one owner, or for
    /// the series without labels. Divided, each adds to the active seconds of those who used it and
    /// to the observed seconds of everybody; one without a known user adds to the device alone.
    ///
    /// Accounts of the division are opened even if no slot is new, so that their series begin at 0.
    pub(crate) fn credit(
        &mut self,
        slots: impl IntoIterator<Item = (Slot, Share)>,
        division: &Division,
        now: Instant,
    ) {
        let printed = printed(division);
        for owner in &printed {
            self.open(owner, now);
        }
        let window = self.windows.utilization;
        let mut new = Vec::new();
        for (slot, share) in slots {
            new.push(slot);
            let share = match division {
                // From before the first look: it counts for the device's gauge, for no owner.
                _ if slot.history => Share::Unknown,
                Division::Whole(owner) => Share::Of(owner.clone()),
                Division::Among(owners) => share.among(owners),
            };
            if !slot.history {
                self.count(&slot, &share, &printed, now);
            }
            self.shares.push_back((slot, share));
        }
        self.gpu.add(&new, window, now);
        while self.shares.front().is_some_and(|(slot, _)| now.saturating_duration_since(slot.end) >= window) {
            self.shares.pop_front();
        }
        self.accounts.retain(|_, entry| now.saturating_duration_since(entry.last_seen) < KEPT);
    }

    fn open(&mut self, owner: &Option<Arc<Owner>>, now: Instant) {
        let new =
            || Entry { account: Account::default(), recent: Recent::default(), uid: None, last_seen: now };
        self.accounts.entry(owner.clone()).or_insert_with(new).last_seen = now;
    }

    /// The pod of that name has this UID. What an account gained before that was known may be of another
    /// pod of the name: its sum of the last seconds begins again, while the counters go on.
    pub(crate) fn pod_is(&mut self, namespace: &str, pod: &str, uid: &str) {
        for (owner, entry) in &mut self.accounts {
            let is_of_pod = |owner: &Owner| (&*owner.namespace, &*owner.pod) == (namespace, pod);
            if owner.as_deref().is_some_and(is_of_pod) && entry.uid.as_deref() != Some(uid) {
                entry.uid = Some(uid.into());
                entry.recent = Recent::default();
            }
        }
    }

    fn count(&mut self, slot: &Slot, share: &Share, printed: &[Option<Arc<Owner>>], now: Instant) {
        let (active_s, observed_s) = (slot.active_seconds(), slot.length.as_secs_f64());
        self.active_s += active_s;
        self.recent.add(Account { active_s, observed_s }, self.windows.recent, now);
        if *share == Share::Unknown {
            return;
        }
        for owner in printed {
            let Some(entry) = self.accounts.get_mut(owner) else { continue };
            let gained = Account { active_s: active_s * share.part_of(owner), observed_s };
            entry.account += gained;
            entry.recent.add(gained, self.windows.recent, now);
        }
    }

    /// Adds slots of memory utilization, which has a gauge alone.
    pub(crate) fn add_memory(&mut self, slots: &[Slot], now: Instant) {
        self.memory.add(slots, self.windows.utilization, now);
    }

    /// The whole device's seconds within [`Windows::recent`]; `None` if they are not of this moment.
    pub(crate) fn recent(&self, now: Instant) -> Option<Account> {
        self.recent.sum(self.windows.recent, now)
    }

    /// The accounts of a division that were ever opened, in its order, the unlabelled one last.
    pub(crate) fn accounts(&self, division: &Division, now: Instant) -> Vec<(Option<Arc<Owner>>, Balance)> {
        let printed = printed(division);
        let balance = |owner: &Option<Arc<Owner>>| {
            let entry = self.accounts.get(owner)?;
            let complete = owner.as_deref().is_none_or(|owner| !self.has_left(owner, &printed, now));
            let recent = entry.recent.sum(self.windows.recent, now).filter(|_| complete);
            Some((owner.clone(), Balance { total: entry.account, recent }))
        };
        printed.iter().filter_map(balance).collect()
    }

    /// Whether a part of the pod's use within [`Windows::recent`] is in an account that is not printed
    /// any more.
    fn has_left(&self, owner: &Owner, printed: &[Option<Arc<Owner>>], now: Instant) -> bool {
        self.accounts.iter().any(|(other, entry)| {
            let of_the_pod = other
                .as_deref()
                .is_some_and(|other| (&other.namespace, &other.pod) == (&owner.namespace, &owner.pod));
            of_the_pod && !printed.contains(other) && entry.recent.gained(self.windows.recent, now)
        })
    }

    /// Percent of the device that each of these owners used, mean over the part of the utilization
    /// window for which the users are known. `None` if that is too little of the window.
    pub(crate) fn parts(&self, owners: &[Arc<Owner>], now: Instant) -> Option<Vec<f64>> {
        let window = self.windows.utilization;
        let (mut known, mut seen) = (0.0, 0.0);
        let owners: Vec<Option<Arc<Owner>>> = owners.iter().cloned().map(Some).collect();
        let mut active = vec![0.0; owners.len()];
        let recent = |slot: &Slot| !slot.history && now.saturating_duration_since(slot.end) < window;
        for (slot, share) in self.shares.iter().filter(|(slot, _)| recent(slot)) {
            let length = slot.length.as_secs_f64();
            seen += length;
            if *share == Share::Unknown {
                continue;
            }
            known += length;
            for (active, owner) in active.iter_mut().zip(&owners) {
                *active += slot.active_seconds() * share.part_of(owner);
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

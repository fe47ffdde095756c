//! Decides whether the use of a shared device can be attributed to its owners, by the part of its
//! busy time that the driver's process samples account for. Pure: slots in, verdicts out.
//!
//! Busy slots without a known user may not be left out while idle ones count: every owner would read
//! too low. So they are spread over the owners while they are few, and if they are many nothing is
//! counted for any owner.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Owner, Unavailable};

/// Time over which the busy time is judged.
const SPAN: Duration = Duration::from_secs(60);
/// Part of the busy time that must be accounted for, for owners to be counted.
const ENOUGH: f64 = 0.8;
/// Part of the busy time of the MPS server and of unreadable processes above which the device is not
/// divided …
const ENTER: f64 = 0.2;
/// … until it is below this again.
const LEAVE: f64 = 0.1;
/// An MPS server is no passing process: its part of so short a time suffices.
const CERTAIN: Duration = Duration::from_secs(5);

/// The user of a slot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum User {
    /// An owner; `None`: somebody whose samples have no pod labels.
    Of(Option<Arc<Owner>>),
    /// The process's sample was not seen.
    Missed,
    MpsServer,
    /// A process that runs and whose pod cannot be read.
    Unreadable,
}

/// Follows the busy slots of one device while its processes are sampled.
#[derive(Debug, Default)]
pub(crate) struct Confidence {
    slots: VecDeque<(Instant, f64, User)>,
    /// Process samples without a slot: they account for the busy time of the readings that take the
    /// place of slots.
    loose: VecDeque<(Instant, f64, Option<Arc<Owner>>)>,
    sums: Sums,
    /// Since when slots have come.
    since: Option<Instant>,
    verdict: Option<Unavailable>,
}

/// Seconds of use within [`SPAN`].
#[derive(Debug, Default)]
struct Sums {
    busy: f64,
    missed: f64,
    mps: f64,
    unreadable: f64,
    /// … of each owner, slots and loose samples.
    of: HashMap<Option<Arc<Owner>>, f64>,
}

// === impl Confidence ===

impl Confidence {
    /// Takes a slot, or a reading in place of one, in which the device was used.
    pub(crate) fn learn(&mut self, end: Instant, active_s: f64, user: User) {
        if self.slots.is_empty() {
            self.since = None;
        }
        self.since.get_or_insert(end);
        self.sums.add(&user, active_s);
        self.slots.push_back((end, active_s, user));
    }

    /// Takes a process sample that belongs to no slot.
    pub(crate) fn learn_loose(&mut self, at: Instant, active_s: f64, user: &User) {
        if let User::Of(owner) = user {
            *self.sums.of.entry(owner.clone()).or_default() += active_s;
            self.loose.push_back((at, active_s, owner.clone()));
        }
    }

    /// Whether what owners used is counted now, and the time for which it is known.
    pub(crate) fn counts(&mut self, now: Instant) -> bool {
        self.expire(now);
        let (mps, busy) = self.recently(now);
        self.sums.credited() >= ENOUGH * self.sums.busy - f64::EPSILON && mps <= ENTER * busy
    }

    /// Why the device is not divided at all now.
    pub(crate) fn undivided(&mut self, now: Instant) -> Option<Unavailable> {
        self.expire(now);
        let Sums { busy, mps, unreadable, .. } = self.sums;
        // An idle device proves nothing.
        if busy <= 0.0 {
            return self.verdict;
        }
        let (recent_mps, recently) = self.recently(now);
        let watched = self.watched(now);
        let doubtful = mps + unreadable;
        let serves = mps > ENTER * busy || recent_mps > ENTER * recently;
        self.verdict = if self.verdict.is_some() {
            self.verdict.filter(|_| doubtful >= LEAVE * busy || serves)
        } else if watched >= CERTAIN && serves {
            Some(Unavailable::MpsServer)
        } else if watched >= SPAN && doubtful > ENTER * busy {
            Some(if mps > unreadable { Unavailable::MpsServer } else { Unavailable::ProcessesUnreadable })
        } else {
            None
        };
        self.verdict
    }

    /// Why what owners used is not counted although the device is divided; `None` while it is, and
    /// as long as it is too soon to say.
    pub(crate) fn stands_still(&mut self, now: Instant) -> Option<Unavailable> {
        if self.counts(now) || self.watched(now) < CERTAIN {
            return None;
        }
        let Sums { missed, mps, unreadable, .. } = self.sums;
        if missed < mps.max(unreadable) {
            return None;
        }
        let heard = self.sums.credited() + mps + unreadable;
        Some(if heard > 0.0 { Unavailable::SamplesMissed } else { Unavailable::NoProcessSamples })
    }

    /// How a slot without a known user is spread: over `candidates`, or over everybody if there are
    /// none, in proportion to what each was credited with lately. The parts add up to 1.
    pub(crate) fn spread(&self, candidates: &[Option<Arc<Owner>>]) -> Vec<(Option<Arc<Owner>>, f64)> {
        let credited = |owner: &Option<Arc<Owner>>| self.sums.of.get(owner).copied().unwrap_or_default();
        let among: Vec<(Option<Arc<Owner>>, f64)> = match candidates {
            [] => self.sums.of.iter().map(|(owner, seconds)| (owner.clone(), *seconds)).collect(),
            some => some.iter().map(|owner| (owner.clone(), credited(owner))).collect(),
        };
        let total: f64 = among.iter().map(|(_, seconds)| seconds).sum();
        let count = among.len() as f64;
        let part = |seconds: f64| if total > 0.0 { seconds / total } else { 1.0 / count };
        among.into_iter().map(|(owner, seconds)| (owner, part(seconds))).collect()
    }

    fn watched(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Seconds of the MPS server, and of everybody, within [`CERTAIN`].
    fn recently(&self, now: Instant) -> (f64, f64) {
        let recent = self.slots.iter().rev();
        let recent = recent.take_while(|(end, ..)| now.saturating_duration_since(*end) < CERTAIN);
        recent.fold((0.0, 0.0), |(mps, busy), (_, active_s, user)| {
            (mps + if *user == User::MpsServer { *active_s } else { 0.0 }, busy + active_s)
        })
    }

    fn expire(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= SPAN;
        while self.slots.front().is_some_and(|(end, ..)| is_old(*end)) {
            let Some((_, active_s, user)) = self.slots.pop_front() else { break };
            self.sums.remove(&user, active_s);
        }
        while self.loose.front().is_some_and(|(at, ..)| is_old(*at)) {
            let Some((_, active_s, owner)) = self.loose.pop_front() else { break };
            self.sums.remove_of(&owner, active_s);
        }
        if self.slots.is_empty() && self.loose.is_empty() {
            // Sums of floats drift.
            self.sums = Sums::default();
        }
    }
}

// === impl Sums ===

impl Sums {
    /// Seconds that an owner was credited with, or somebody without labels.
    fn credited(&self) -> f64 {
        self.of.values().sum()
    }

    fn add(&mut self, user: &User, active_s: f64) {
        self.busy += active_s;
        *self.of_user(user) += active_s;
    }

    fn remove(&mut self, user: &User, active_s: f64) {
        self.busy = (self.busy - active_s).max(0.0);
        match user {
            User::Of(owner) => self.remove_of(owner, active_s),
            other => {
                let sum = self.of_user(other);
                *sum = (*sum - active_s).max(0.0);
            }
        }
    }

    fn remove_of(&mut self, owner: &Option<Arc<Owner>>, active_s: f64) {
        if let Some(sum) = self.of.get_mut(owner) {
            *sum -= active_s;
            // A thousandth of a slot of one percent: what is left is rounding.
            if *sum < 1e-6 {
                self.of.remove(owner);
            }
        }
    }

    fn of_user(&mut self, user: &User) -> &mut f64 {
        match user {
            User::Of(owner) => self.of.entry(owner.clone()).or_default(),
            User::Missed => &mut self.missed,
            User::MpsServer => &mut self.mps,
            User::Unreadable => &mut self.unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(pod: &str) -> Option<Arc<Owner>> {
        Some(Arc::new(Owner { namespace: "n".into(), pod: pod.into(), container: "c".into() }))
    }

    fn at(start: Instant, second: u64) -> Instant {
        start + Duration::from_secs(second)
    }

    /// A slot each second, used by `user` of that second; the last element is the newest verdict.
    fn run(
        seconds: std::ops::Range<u64>,
        confidence: &mut Confidence,
        start: Instant,
        user: impl Fn(u64) -> User,
    ) -> Vec<Option<Unavailable>> {
        seconds
            .map(|second| {
                confidence.learn(at(start, second), 0.5, user(second));
                confidence.undivided(at(start, second))
            })
            .collect()
    }

    #[test]
    fn an_mps_server_ends_the_division_and_its_end_brings_it_back() {
        let start = Instant::now();
        let mut confidence = Confidence::default();
        let verdicts = run(0..20, &mut confidence, start, |_| User::MpsServer);
        assert!(!confidence.counts(at(start, 1)));
        assert_eq!(verdicts[4], None);
        assert_eq!(verdicts[5], Some(Unavailable::MpsServer));
        let verdicts = run(20..100, &mut confidence, start, |_| User::Of(owner("a")));
        // 10 % of the last minute is from before second 20 as long as six slots of it are.
        let back = verdicts.iter().position(Option::is_none).unwrap();
        assert!((50..60).contains(&back), "{back}");
    }

    #[test]
    fn an_mps_server_that_begins_in_a_busy_minute_stops_the_counting_within_two_slots() {
        let start = Instant::now();
        let mut confidence = Confidence::default();
        run(0..60, &mut confidence, start, |_| User::Of(owner("a")));
        run(60..62, &mut confidence, start, |_| User::MpsServer);
        assert!(!confidence.counts(at(start, 61)));
        assert_eq!(confidence.undivided(at(start, 61)), Some(Unavailable::MpsServer));
    }

    #[test]
    fn unreadable_processes_need_a_minute_and_a_fifth_of_the_use() {
        let start = Instant::now();
        let every = |nth: u64| {
            move |second: u64| {
                if second.is_multiple_of(nth) { User::Unreadable } else { User::Of(None) }
            }
        };
        let mut confidence = Confidence::default();
        assert!(run(0..200, &mut confidence, start, every(6)).iter().all(Option::is_none));
        let mut confidence = Confidence::default();
        let verdicts = run(0..100, &mut confidence, start, every(4));
        assert!(verdicts[..60].iter().all(Option::is_none));
        assert_eq!(verdicts[60], Some(Unavailable::ProcessesUnreadable));
        // 15 % is neither enough to begin nor little enough to end it.
        let verdicts = run(100..300, &mut confidence, start, every(7));
        assert!(verdicts.iter().all(Option::is_some));
        let later = at(start, 1000);
        assert_eq!(confidence.undivided(later), Some(Unavailable::ProcessesUnreadable));
    }

    #[test]
    fn few_missed_slots_are_spread_and_many_stop_the_counting() {
        let start = Instant::now();
        let mut confidence = Confidence::default();
        // Nothing was ever credited: a first busy slot without a user proves nothing.
        confidence.learn(start, 0.5, User::Missed);
        assert!(!confidence.counts(start));
        assert_eq!(confidence.stands_still(start), None, "too soon to say");
        let mixed = |missed: u64| {
            move |second: u64| match second % 10 {
                part if part < missed => User::Missed,
                part if part < 8 => User::Of(owner("a")),
                _ => User::Of(owner("b")),
            }
        };
        let mut confidence = Confidence::default();
        run(0..60, &mut confidence, start, mixed(2));
        assert!(confidence.counts(at(start, 59)));
        assert_eq!(confidence.stands_still(at(start, 59)), None);
        let spread: HashMap<_, _> = confidence.spread(&[]).into_iter().collect();
        assert!((spread[&owner("a")] - 0.75).abs() < 1e-9, "{spread:?}");
        let one: Vec<_> = confidence.spread(&[owner("b")]);
        assert_eq!(one, [(owner("b"), 1.0)]);
        let strangers = confidence.spread(&[owner("x"), None]);
        assert_eq!(strangers, [(owner("x"), 0.5), (None, 0.5)]);
        run(60..120, &mut confidence, start, mixed(3));
        assert_eq!(confidence.stands_still(at(start, 119)), Some(Unavailable::SamplesMissed));
        run(120..200, &mut confidence, start, |_| User::Missed);
        assert_eq!(confidence.stands_still(at(start, 199)), Some(Unavailable::NoProcessSamples));
        // A minute later nothing is left to judge by: an idle device is known to be idle.
        assert!(confidence.counts(at(start, 300)));
    }

    #[test]
    fn loose_samples_account_for_readings() {
        let start = Instant::now();
        let mut confidence = Confidence::default();
        for second in 0..20 {
            confidence.learn(at(start, second), 0.5, User::Missed);
            confidence.learn_loose(at(start, second), 0.45, &User::Of(owner("a")));
        }
        assert!(confidence.counts(at(start, 19)));
        assert_eq!(confidence.spread(&[]), [(owner("a"), 1.0)]);
    }
}

//! Matches process samples with the slots of a shared GPU's ring. Pure.
//!
//! The driver names one process for each slot, and a call returns each process's newest slot since
//! the call before. So a slot whose sample a late call did not return belongs to a process of which
//! that call returned a newer one. After a call in time nothing explains why a sample is lacking.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::ring::Slot;
use super::{Credit, LooseSample};
use crate::attribution::Whose;

/// A process's slot is the device's if their ends are not further apart, µs. The driver takes both
/// from one ring; a quarter of a slot is for one that does not.
const SAME_SLOT_US: u64 = 50_000;
/// Process samples older than this are of slots that were drained, µs.
const KEPT_US: u64 = 15_000_000;
/// Most process samples that wait for their slot.
const MAX_WAITING: usize = 1024;
/// Most answers that are remembered: seven a second for [`KEPT_US`], and room.
const MAX_ANSWERS: usize = 128;
/// Most processes that a slot may be of for its owner to be narrowed down.
const MAX_CANDIDATES: usize = 8;

/// A process's newest slot, as one call returned it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// When the slot ended in the driver's clock, µs.
    pub(crate) end_us: u64,
    /// Percent of the GPU.
    pub(crate) percent: u32,
    pub(crate) whose: Whose,
}

/// The process samples of a shared GPU.
#[derive(Debug)]
pub(crate) struct SampleMatch {
    /// Slots that ended later are sampled, µs in the driver's clock.
    since_us: u64,
    last_seen_us: u64,
    /// Samples whose slot was not drained yet, by its end.
    waiting: BTreeMap<u64, (u32, Whose)>,
    answers: VecDeque<Answer>,
}

/// The rows of one call.
#[derive(Debug)]
struct Answer {
    /// It was asked for slots that ended later than this.
    after_us: u64,
    newest_us: u64,
    /// The call came so late that newer slots may hide older ones.
    is_late: bool,
    rows: Vec<(u64, Whose)>,
}

// === impl SampleMatch ===

impl SampleMatch {
    pub(crate) fn new(since_us: u64) -> Self {
        Self { since_us, last_seen_us: since_us, waiting: BTreeMap::new(), answers: VecDeque::new() }
    }

    /// Samples newer than this are to be asked for.
    pub(crate) fn last_seen_us(&self) -> u64 {
        self.last_seen_us
    }

    /// Takes the answer of one call, which came late if more than one slot can have ended since the
    /// call before. Where two samples have one slot the greater counts.
    pub(crate) fn take(&mut self, rows: Vec<Row>, is_late: bool) {
        let Some(newest_us) = rows.iter().map(|row| row.end_us).max() else { return };
        let after_us = self.last_seen_us;
        for row in rows.iter().filter(|row| row.percent > 0) {
            if self.waiting.len() >= MAX_WAITING && !self.waiting.contains_key(&row.end_us) {
                continue;
            }
            let place = self.waiting.entry(row.end_us).or_insert_with(|| (row.percent, row.whose.clone()));
            if row.percent > place.0 {
                *place = (row.percent, row.whose.clone());
            }
        }
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.pop_front();
        }
        let rows = rows.into_iter().map(|row| (row.end_us, row.whose)).collect();
        self.answers.push_back(Answer { after_us, newest_us, is_late, rows });
        self.last_seen_us = self.last_seen_us.max(newest_us);
    }

    /// The use of a slot.
    pub(crate) fn credit(&mut self, slot: &Slot) -> Credit {
        let Some(end_us) = slot.timestamp_us else {
            // A reading of the rates is not a slot of the ring: no sample belongs to it alone.
            return if slot.percent > 0.0 { Credit::Missed(Vec::new()) } else { Credit::Idle };
        };
        if end_us <= self.since_us {
            return Credit::Unsampled;
        }
        if slot.percent <= 0.0 {
            return Credit::Idle;
        }
        let near = self.waiting.range(end_us.saturating_sub(SAME_SLOT_US)..=end_us + SAME_SLOT_US);
        let nearest = near.map(|(at, _)| *at).min_by_key(|at| at.abs_diff(end_us));
        if let Some((_, whose)) = nearest.and_then(|at| self.waiting.remove(&at)) {
            return Credit::Of(whose);
        }
        match self.candidates(end_us) {
            // One process alone can have had it.
            candidates if candidates.len() == 1 => Credit::Of(candidates[0].clone()),
            candidates => Credit::Missed(candidates),
        }
    }

    /// Samples that belong to no slot because the ring gives none.
    pub(crate) fn take_loose(&mut self, spacing: Duration, now: Instant) -> Vec<LooseSample> {
        let loose = |(percent, whose): (u32, Whose)| LooseSample {
            at: now,
            active_s: spacing.as_secs_f64() * f64::from(percent) / 100.0,
            whose,
        };
        std::mem::take(&mut self.waiting).into_values().map(loose).collect()
    }

    /// Forgets what belongs to slots that were drained long before `newest_us`.
    pub(crate) fn forget(&mut self, newest_us: u64) {
        let before = newest_us.saturating_sub(KEPT_US);
        self.waiting = self.waiting.split_off(&before);
        self.answers.retain(|answer| answer.newest_us >= before);
    }

    /// Owners of the processes of which the slot that ended then can be: a newer slot of such a process
    /// took its place in a late answer. Empty if there is no such answer, or too many processes can.
    fn candidates(&self, end_us: u64) -> Vec<Whose> {
        let covers = |answer: &&Answer| answer.after_us < end_us && end_us <= answer.newest_us;
        let Some(answer) = self.answers.iter().find(covers).filter(|answer| answer.is_late) else {
            return Vec::new();
        };
        let mut candidates: Vec<Whose> = Vec::new();
        for (_, whose) in answer.rows.iter().filter(|(at, _)| *at > end_us + SAME_SLOT_US) {
            if !candidates.contains(whose) {
                candidates.push(whose.clone());
            }
        }
        if candidates.len() > MAX_CANDIDATES {
            candidates.clear();
        }
        candidates
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attribution::Owner;

    fn slot(end_us: u64, percent: f64) -> Slot {
        Slot {
            end: Instant::now(),
            timestamp_us: Some(end_us),
            length: Duration::from_millis(200),
            percent,
            history: false,
        }
    }

    fn pod(name: &str) -> Whose {
        let owner = Owner { namespace: "n".into(), pod: name.into(), container: "c".into() };
        Whose::Pod { owner: Arc::new(owner), uid: name.into() }
    }

    fn row(end_us: u64, percent: u32, whose: Whose) -> Row {
        Row { end_us, percent, whose }
    }

    #[test]
    fn a_slot_belongs_to_the_process_of_its_sample_and_one_of_zero_to_everybody() {
        let mut samples = SampleMatch::new(1_000_000);
        samples.take(vec![row(1_400_000, 0, Whose::Unreadable)], false);
        samples.take(vec![row(1_600_000, 30, Whose::Outside), row(1_600_000, 10, Whose::Unreadable)], false);
        samples.take(vec![row(1_801_000, 30, Whose::MpsServer)], false);
        let credits = [(1_000_000, 50.0), (1_400_000, 0.0), (1_600_000, 30.0), (1_800_000, 30.0)]
            .map(|(end, percent)| samples.credit(&slot(end, percent)));
        let wanted =
            [Credit::Unsampled, Credit::Idle, Credit::Of(Whose::Outside), Credit::Of(Whose::MpsServer)];
        assert_eq!(credits, wanted);
        assert_eq!(samples.credit(&slot(2_000_000, 9.0)), Credit::Missed(Vec::new()), "no answer covers it");
    }

    #[test]
    fn a_slot_that_a_late_call_did_not_return_is_of_a_process_with_a_newer_one() {
        let mut samples = SampleMatch::new(0);
        // Asked after three slots: a had the first and the last, b the second.
        samples.take(vec![row(600_000, 50, pod("a")), row(400_000, 50, pod("b"))], true);
        let credits = [200_000, 400_000, 600_000].map(|end| samples.credit(&slot(end, 50.0)));
        // The first may have been b's as well.
        assert_eq!(credits[0], Credit::Missed(vec![pod("a"), pod("b")]));
        assert_eq!(credits[1..], [Credit::Of(pod("b")), Credit::Of(pod("a"))]);
        // b has no newer slot, and so no older one that was hidden by it.
        samples.take(vec![row(1_200_000, 50, pod("a")), row(800_000, 50, pod("b"))], true);
        assert_eq!(samples.credit(&slot(1_000_000, 50.0)), Credit::Of(pod("a")));
        // A sample of 0 % hides an older slot as well as any.
        samples.take(vec![row(1_600_000, 0, pod("a"))], true);
        assert_eq!(samples.credit(&slot(1_400_000, 50.0)), Credit::Of(pod("a")));
        // A call in time hides nothing: the sample is lacking for a reason that nobody knows.
        samples.take(vec![row(2_000_000, 50, pod("a"))], false);
        assert_eq!(samples.credit(&slot(1_800_000, 50.0)), Credit::Missed(Vec::new()));
    }

    #[test]
    fn samples_without_a_ring_are_loose() {
        let mut samples = SampleMatch::new(0);
        samples.take(vec![row(200_000, 50, pod("a"))], false);
        let reading = Slot { timestamp_us: None, ..slot(0, 50.0) };
        assert_eq!(samples.credit(&reading), Credit::Missed(Vec::new()));
        let now = Instant::now();
        let loose = samples.take_loose(Duration::from_millis(200), now);
        assert_eq!(loose, [LooseSample { at: now, active_s: 0.1, whose: pod("a") }]);
        assert_eq!(samples.take_loose(Duration::from_millis(200), now), []);
    }
}

//! Owns the ring of 200 ms slots of one GPU, and whom each slot credits.

use std::collections::{BTreeMap, VecDeque};

use super::timeline::{Parts, Source, Timeline};
use crate::scenario::PASSING_PID;

/// Slots that NVML keeps.
pub(crate) const SLOTS: usize = 71;
/// Length of a slot, µs.
pub(crate) const SLOT_US: i64 = 200_000;
/// How far a slot's end strays from its boundary, µs.
const JITTER_US: i64 = 2_000;
/// A slot older than this has left the ring, however few there are.
const AGE_US: i64 = (SLOTS as i64 + 1) * SLOT_US;
/// Credits begin anew at every so many slots, so that processes that loaded the library at
/// different times agree on whom each slot credits.
const CREDIT_BLOCK: i64 = 512;

/// One slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// When it ended, µs since the epoch.
    pub(crate) end_us: i64,
    /// How far the driver's clock was ahead when it ended, µs.
    ahead_us: i64,
    /// Mean use of the device in it.
    pub(crate) percent: u32,
    /// The one process that it credits with all of that.
    pub(crate) pid: Option<u32>,
    /// Taken from a recording: its credit stands even at 0 percent, as NVML gave it.
    recorded: bool,
}

/// The newest slots of one GPU, oldest first.
#[derive(Debug)]
pub(crate) struct Ring {
    slots: VecDeque<Slot>,
    /// Slots that ended by then are in; `None` before the first call.
    filled_to: Option<i64>,
    credits: Credits,
    /// How far the driver's clock is ahead, µs.
    ahead_us: i64,
    /// Tells GPUs apart in what is drawn from a hash.
    seed: u64,
}

/// How much use each process has made that no slot credited it with yet, in percent-slots.
#[derive(Debug, Default)]
struct Credits {
    due: BTreeMap<Option<u32>, f64>,
    block: Option<i64>,
}

// === impl Ring ===

impl Ring {
    pub(crate) fn new(seed: u64) -> Self {
        Self { slots: VecDeque::new(), filled_to: None, credits: Credits::default(), ahead_us: 0, seed }
    }

    /// Sets how far the driver's clock is ahead from now on, µs.
    pub(crate) fn set_clock(&mut self, ahead_us: i64) {
        self.ahead_us = ahead_us;
    }

    /// Adds the slots that ended since the last call, and drops what is too old.
    pub(crate) fn fill(&mut self, timeline: &Timeline, now_us: i64) {
        let first = now_us - AGE_US;
        // From the block's beginning, so that credits come out the same whenever this starts.
        let block_start =
            first.div_euclid(SLOT_US).div_euclid(CREDIT_BLOCK) * CREDIT_BLOCK * SLOT_US - SLOT_US / 2;
        let from = self.filled_to.map_or(block_start, |filled| filled.max(block_start));
        if from >= now_us {
            return;
        }
        for (source, after, until) in timeline.pieces(from, now_us) {
            match source {
                Source::Loads(_) => self.fill_loads(timeline, after, until),
                Source::Replay(played) => {
                    let ahead_us = self.ahead_us;
                    self.slots.extend(played.slots(after, until).map(|(end_us, slot)| Slot {
                        end_us,
                        ahead_us,
                        percent: slot.percent,
                        pid: slot.pid,
                        recorded: true,
                    }));
                }
            }
        }
        self.filled_to = Some(now_us);
        while self.slots.len() > SLOTS || self.slots.front().is_some_and(|slot| slot.end_us < first) {
            self.slots.pop_front();
        }
    }

    fn fill_loads(&mut self, timeline: &Timeline, after_us: i64, until_us: i64) {
        let first = after_us.div_euclid(SLOT_US) - 1;
        for number in first.. {
            let end_us = self.end_us(number);
            if end_us > until_us {
                break;
            }
            if end_us > after_us {
                let begin_us = self.end_us(number - 1);
                let parts = timeline.parts(begin_us, end_us);
                let mean = parts.values().sum::<f64>() / ((end_us - begin_us) as f64 / 1e6);
                let percent = self.whole_percent(number, mean);
                // The driver names the process that is there when it looks, its idle time included.
                let pid = match timeline.takes_turns(end_us) {
                    true => timeline.resident(end_us).filter(|_| percent > 0),
                    false => self.credits.credit(number, percent, &parts, self.seed),
                };
                let pid = pid.map(|pid| if pid == PASSING_PID { passing(number) } else { pid });
                let ahead_us = self.ahead_us;
                self.slots.push_back(Slot { end_us, ahead_us, percent, pid, recorded: false });
            }
        }
    }

    /// When a slot ends: its boundary on the wall clock, and a little jitter.
    fn end_us(&self, number: i64) -> i64 {
        let jitter = (mix(self.seed ^ number as u64) % (2 * JITTER_US as u64 + 1)) as i64 - JITTER_US;
        number * SLOT_US + jitter
    }

    /// A whole percent above or below the mean, so often each that many slots' mean is exact.
    fn whole_percent(&self, number: i64, mean: f64) -> u32 {
        const GOLDEN: f64 = 0.618_033_988_749_894_9;
        let offset = (number.rem_euclid(1 << 24) as f64).mul_add(GOLDEN, unit(self.seed)).fract();
        // To a thousandth first: a mean of 29.9999999 is a load of 30.
        let mean = (mean * 1000.0).round() / 1000.0;
        (mean + offset).floor().clamp(0.0, 100.0) as u32
    }

    /// Slots newer than a timestamp, oldest first.
    pub(crate) fn newer_than(&self, seen_us: u64) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(move |slot| slot.timestamp_us() > seen_us)
    }

    /// The newest slot.
    pub(crate) fn latest(&self) -> Option<&Slot> {
        self.slots.back()
    }

    /// For each process the newest slot that credits it, if newer than a timestamp.
    pub(crate) fn credited(&self, seen_us: u64) -> Vec<(u32, Slot)> {
        let mut newest: BTreeMap<u32, Slot> = BTreeMap::new();
        for slot in self.newer_than(seen_us).filter(|slot| slot.percent > 0 || slot.recorded) {
            if let Some(pid) = slot.pid {
                newest.insert(pid, *slot);
            }
        }
        newest.into_iter().collect()
    }
}

// === impl Slot ===

impl Slot {
    /// The timestamp that NVML gives it, µs.
    pub(crate) fn timestamp_us(&self) -> u64 {
        (self.end_us + self.ahead_us) as u64
    }
}

/// The pid that one slot of [`PASSING_PID`] is credited to.
fn passing(number: i64) -> u32 {
    PASSING_PID + 1 + number.rem_euclid(100_000_000) as u32
}

// === impl Credits ===

impl Credits {
    /// Credits a slot to the process that is owed most, and books it.
    fn credit(&mut self, number: i64, percent: u32, parts: &Parts, seed: u64) -> Option<u32> {
        let total: f64 = parts.values().sum();
        if total <= 0.0 || percent == 0 {
            return None;
        }
        let block = number.div_euclid(CREDIT_BLOCK);
        if self.block != Some(block) {
            self.block = Some(block);
            self.due.clear();
        }
        self.due.retain(|pid, _| parts.contains_key(pid));
        let percent = f64::from(percent);
        for (pid, part) in parts {
            // Who is new starts with up to half a slot owed to it or by it: else a process that
            // uses little would never be credited in a block, or always.
            let start = || (unit(mix(seed ^ block as u64) ^ u64::from(pid.unwrap_or(0))) - 0.5) * percent;
            *self.due.entry(*pid).or_insert_with(start) += percent * part / total;
        }
        let most = self
            .due
            .iter_mut()
            .filter(|(pid, _)| parts.get(pid).is_some_and(|part| *part > 0.0))
            .max_by(|a, b| a.1.total_cmp(b.1));
        let (pid, due) = most?;
        *due -= percent;
        *pid
    }
}

/// A hash of a number (splitmix64's finish).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number from 0 up to 1 drawn from a hash.
fn unit(number: u64) -> f64 {
    (mix(number) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::load::{Load, Square};
    use crate::model::timeline::Played;
    use crate::recording::Recording;

    const NOW: i64 = 1_795_277_919_232_070;

    fn loads(parts: &[(u32, Load)]) -> Timeline {
        Timeline::new(Source::Loads(parts.iter().map(|(pid, load)| (Some(*pid), load.clone())).collect()))
    }

    /// Every slot of a minute, drained each second, and what each process was credited with.
    fn minute(timeline: &Timeline) -> (Vec<Slot>, BTreeMap<u32, f64>) {
        let mut ring = Ring::new(1);
        ring.fill(timeline, NOW);
        let mut seen = ring.latest().unwrap().end_us as u64;
        let (mut all, mut credits) = (Vec::new(), BTreeMap::new());
        for second in 1..=60 {
            ring.fill(timeline, NOW + second * 1_000_000);
            let new: Vec<Slot> = ring.newer_than(seen).copied().collect();
            seen = new.last().unwrap().end_us as u64;
            for slot in &new {
                *credits.entry(slot.pid.unwrap_or(0)).or_default() += f64::from(slot.percent) / 300.0;
            }
            all.extend(new);
        }
        (all, credits)
    }

    #[test]
    fn the_ring_holds_71_slots_200_ms_apart_and_an_idle_gpu_fills_it_with_zeros() {
        let mut ring = Ring::new(3);
        ring.fill(&loads(&[]), NOW);
        let slots: Vec<&Slot> = ring.newer_than(0).collect();
        assert_eq!(slots.len(), SLOTS);
        assert!(slots.iter().all(|slot| slot.percent == 0 && slot.pid.is_none()));
        assert!(slots.windows(2).all(|w| (196_000..=204_000).contains(&(w[1].end_us - w[0].end_us))));
        assert!((0..SLOT_US + JITTER_US).contains(&(NOW - ring.latest().unwrap().end_us)));
        assert!(ring.credited(0).is_empty());
    }

    #[test]
    fn slots_of_a_fractional_load_are_whole_percents_with_the_loads_mean() {
        let (slots, _) = minute(&loads(&[(1, Load::Constant(12.3))]));
        assert!(slots.iter().all(|slot| slot.percent == 12 || slot.percent == 13));
        let mean = slots.iter().map(|slot| f64::from(slot.percent)).sum::<f64>() / slots.len() as f64;
        assert!((mean - 12.3).abs() < 0.05, "{mean}");
        let (slots, _) = minute(&loads(&[(1, Load::Constant(30.0))]));
        assert!(slots.iter().all(|slot| slot.percent == 30));
    }

    #[test]
    fn credits_converge_to_the_shares_and_each_slot_credits_one_process() {
        let wave = Load::Square(Square { low: 0.0, high: 40.0, period_s: 2.0, duty: 0.5 });
        let (_, credits) = minute(&loads(&[(7, Load::Constant(33.0)), (8, wave), (9, Load::Constant(5.0))]));
        for (pid, share) in [(7, 33.0), (8, 20.0), (9, 5.0)] {
            assert!((credits[&pid] - share).abs() < 1.0, "{pid}: {credits:?}");
        }
        let (_, credits) = minute(&loads(&[(7, Load::Constant(100.0)), (8, Load::Constant(50.0))]));
        assert!((credits[&7] - 66.7).abs() < 1.0 && (credits[&8] - 33.3).abs() < 1.0, "{credits:?}");
    }

    #[test]
    fn a_later_start_finds_the_same_slots_and_credits() {
        let timeline = loads(&[(7, Load::Constant(33.0)), (8, Load::Constant(20.5))]);
        let (mut early, mut late) = (Ring::new(5), Ring::new(5));
        for step in 0..400 {
            early.fill(&timeline, NOW + step * 300_000);
        }
        late.fill(&timeline, NOW + 399 * 300_000);
        assert_eq!(early.slots, late.slots);
    }

    #[test]
    fn a_replay_gives_its_own_slots_once_and_then_runs_dry() {
        let text =
            r#"{"runs": [{"load": "a", "samples": [[5, 1000000, 40], [6, 1200000, 0], [5, 1400000, 9]]}]}"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let recording = Arc::new(Recording::read(file.path(), "a").unwrap());
        let timeline = Timeline::new(Source::Replay(Played { recording, start_us: NOW }));
        let mut ring = Ring::new(1);
        ring.fill(&timeline, NOW - 1);
        assert_eq!(ring.newer_than(0).count(), 0);
        ring.fill(&timeline, NOW + 300_000);
        assert_eq!(ring.newer_than(0).map(|slot| slot.percent).collect::<Vec<_>>(), [40, 0]);
        assert_eq!(ring.credited(0).iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [5, 6]);
        ring.fill(&timeline, NOW + 10_000_000);
        assert_eq!(ring.newer_than(0).count(), 3);
        ring.fill(&timeline, NOW + 400_000 + AGE_US + 1);
        assert_eq!(ring.newer_than(0).count(), 0);
    }
}

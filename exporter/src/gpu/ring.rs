//! The time of sample rings: which slots are new, and how long each one lasts.
//!
//! Pure: samples and moments in, [`Slot`]s out.

use std::time::{Duration, Instant};

use super::raw::RingSample;

/// Spacing assumed until one has been seen: what an H100 shows.
const USUAL_SPACING: Duration = Duration::from_millis(200);
/// How many spacings are remembered for the usual one.
const REMEMBERED: usize = 31;
/// How often all of a ring is asked for while it gives nothing new.
const ASK_FOR_ALL_EVERY: Duration = Duration::from_secs(60);
/// Longest time that one reading of `nvmlDeviceGetUtilizationRates` speaks for.
const LONGEST_READING: Duration = Duration::from_secs(1);

/// A stretch of time for which a device's utilization is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slot {
    /// When it ended.
    pub(crate) end: Instant,
    /// When it ended in the driver's clock, µs; `None` for a reading of the rates. What processes
    /// used is told under the same time.
    pub(crate) timestamp_us: Option<u64>,
    /// How long it lasted.
    pub(crate) length: Duration,
    /// Percent, 0 to 100.
    pub(crate) percent: f64,
    /// From before this device was first read: it counts for the gauge, for no counter, because
    /// nobody knows whose it was.
    pub(crate) history: bool,
}

/// Follows one ring of one device.
#[derive(Debug, Default)]
pub(crate) struct RingClock {
    /// Newest timestamp that the driver gave, µs.
    last_us: Option<u64>,
    /// When the ring was first looked at: what it holds from before is history.
    first_look: Option<Instant>,
    /// The latest spacings, µs, oldest first.
    spacings_us: Vec<u64>,
    /// When the ring last gave something new.
    fresh_at: Option<Instant>,
    /// When all of the ring was last asked for because it gave nothing new.
    asked_for_all: Option<Instant>,
    set_back: Option<SetBack>,
    /// The previous reading of the rates, when the ring is dry.
    last_reading: Option<Instant>,
    /// Readings since the ring was last looked at. It knows better, should it wake up.
    pending: Vec<Slot>,
    /// The last stretch of time for which readings were counted: ring slots in it are known already.
    counted: Option<(Instant, Instant)>,
}

/// The driver's clock went back: what was sampled before has later timestamps than what comes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetBack {
    /// A timestamp of the driver's new time, µs, and when that was.
    pub(super) at_us: u64,
    pub(super) at: Instant,
}

// === impl SetBack ===

impl SetBack {
    /// How far timestamps may be ahead of what has passed of the new time.
    const TOLERANCE: Duration = Duration::from_millis(500);
    /// How long samples of before stay with the driver: twice as long as an H100 keeps them. A later
    /// timestamp after that is of a clock that went forward again.
    const KEPT: Duration = Duration::from_secs(30);

    /// Whether a timestamp is of the new time.
    pub(super) fn is_past(&self, timestamp_us: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let latest_us = u128::from(self.at_us) + (passed + Self::TOLERANCE).as_micros();
        passed >= Self::KEPT || u128::from(timestamp_us) <= latest_us
    }
}

// === impl Slot ===

impl Slot {
    /// Time times utilization, in seconds.
    pub(crate) fn active_seconds(&self) -> f64 {
        self.length.as_secs_f64() * self.percent / 100.0
    }
}

// === impl RingClock ===

impl RingClock {
    /// What to ask the driver for: samples newer than this, in its own clock.
    pub(crate) fn last_seen_us(&self) -> u64 {
        self.last_us.unwrap_or(0)
    }

    /// Whether all that the ring holds is to be asked for: it gives nothing new, which is also how it
    /// looks after the driver's clock went back. Once when that begins, and every minute.
    pub(crate) fn asks_for_all(&mut self, now: Instant, patience: Duration) -> bool {
        let Some(fresh) = self.fresh_at.filter(|_| self.is_dry(now, patience)) else { return false };
        let asked = self.asked_for_all.filter(|asked| *asked >= fresh);
        let is_due = asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_FOR_ALL_EVERY);
        if is_due {
            self.asked_for_all = Some(now);
        }
        is_due
    }

    /// Takes all that the ring holds, in the driver's order. If its newest sample is older than the
    /// last one seen, the driver's clock went back: those after the step are returned, to be taken as
    /// new ones.
    pub(crate) fn set_back(&mut self, mut samples: Vec<RingSample>, now: Instant) -> Option<Vec<RingSample>> {
        let last_seen_us = self.last_us?;
        // Placeholders have no timestamp.
        samples.retain(|sample| sample.timestamp_us > 0);
        let newest = *samples.last().filter(|newest| newest.timestamp_us < last_seen_us)?;
        let step = samples.windows(2).rposition(|pair| pair[1].timestamp_us < pair[0].timestamp_us);
        let after = match step {
            Some(at) => samples[at + 1..].to_vec(),
            // The ring was emptied, or all of it is new.
            None => samples.iter().filter(|it| it.timestamp_us <= newest.timestamp_us).copied().collect(),
        };
        self.set_back = Some(SetBack { at_us: newest.timestamp_us, at: now });
        self.last_us = None;
        Some(after)
    }

    /// Whether the ring has given nothing new for so long that the rates are read instead.
    pub(crate) fn is_dry(&self, now: Instant, patience: Duration) -> bool {
        self.fresh_at.is_none_or(|fresh| now.saturating_duration_since(fresh) >= patience)
    }

    /// Takes what the ring held at `now` and gives what is newly known: its slots, or if it has none
    /// the readings made since the last look.
    ///
    /// A slot lasts from its predecessor's timestamp, but at most 1.5 times the usual spacing; the
    /// first one, and one after a longer hole, lasts the usual spacing.
    pub(crate) fn drained(&mut self, mut samples: Vec<RingSample>, now: Instant) -> Vec<Slot> {
        // Placeholders have no timestamp; above 100 % nothing was measured.
        samples.retain(|sample| {
            sample.timestamp_us > self.last_seen_us()
                && sample.value <= 100
                && self.set_back.is_none_or(|set_back| set_back.is_past(sample.timestamp_us, now))
        });
        samples.sort_unstable_by_key(|sample| sample.timestamp_us);
        samples.dedup_by_key(|sample| sample.timestamp_us);
        let first_look = *self.first_look.get_or_insert(now);
        let Some(newest_us) = samples.last().map(|sample| sample.timestamp_us) else {
            return self.count_readings();
        };
        self.learn_spacing(&samples);
        let usual_us = self.usual_spacing_us();
        let mut previous_us = self.last_us;
        let mut slots = Vec::with_capacity(samples.len());
        for sample in samples {
            let gap_us = previous_us.map(|previous| sample.timestamp_us - previous);
            previous_us = Some(sample.timestamp_us);
            // Spacings are whole microseconds: twice the gap against three times the usual one.
            let length_us = gap_us.filter(|gap| gap * 2 <= usual_us * 3).unwrap_or(usual_us);
            let age = Duration::from_micros(newest_us - sample.timestamp_us);
            let Some(end) = now.checked_sub(age) else { continue };
            let slot = Slot {
                end,
                timestamp_us: Some(sample.timestamp_us),
                length: Duration::from_micros(length_us),
                percent: f64::from(sample.value),
                history: end <= first_look,
            };
            slots.extend(self.without_counted(slot));
        }
        self.last_us = Some(newest_us);
        self.fresh_at = Some(now);
        self.last_reading = None;
        self.pending.clear();
        slots
    }

    /// Takes a reading of the rates, made because the ring is dry. It speaks for the time since the
    /// previous one, at most a second; the first one for none.
    pub(crate) fn reading(&mut self, percent: u32, now: Instant) {
        let Some(previous) = self.last_reading.replace(now) else { return };
        let length = now.saturating_duration_since(previous).min(LONGEST_READING);
        if percent <= 100 && !length.is_zero() {
            self.pending.push(Slot {
                end: now,
                timestamp_us: None,
                length,
                percent: f64::from(percent),
                history: false,
            });
        }
    }

    /// A reading failed: the time up to the next one is not known.
    pub(crate) fn reading_failed(&mut self) {
        self.last_reading = None;
    }

    fn count_readings(&mut self) -> Vec<Slot> {
        for slot in &self.pending {
            let start = slot.end - slot.length;
            self.counted = match self.counted {
                Some((from, until)) if until == start => Some((from, slot.end)),
                _ => Some((start, slot.end)),
            };
        }
        std::mem::take(&mut self.pending)
    }

    /// Cuts off what readings have already counted, so that no time counts twice.
    fn without_counted(&self, slot: Slot) -> Option<Slot> {
        let Some((from, until)) = self.counted else { return Some(slot) };
        let start = slot.end.checked_sub(slot.length)?;
        let overlap = slot.end.min(until).saturating_duration_since(start.max(from));
        let length = slot.length - overlap;
        (!length.is_zero()).then_some(Slot { length, ..slot })
    }

    fn learn_spacing(&mut self, samples: &[RingSample]) {
        let before = self.last_us.into_iter();
        let timestamps: Vec<u64> = before.chain(samples.iter().map(|sample| sample.timestamp_us)).collect();
        self.spacings_us.extend(timestamps.windows(2).map(|pair| pair[1] - pair[0]));
        let surplus = self.spacings_us.len().saturating_sub(REMEMBERED);
        self.spacings_us.drain(..surplus);
    }

    /// Time from one slot's end to the next one's, usually.
    pub(super) fn spacing(&self) -> Duration {
        Duration::from_micros(self.usual_spacing_us())
    }

    /// The median of the spacings seen, µs. Too few say nothing.
    fn usual_spacing_us(&self) -> u64 {
        if self.spacings_us.len() < 3 {
            return USUAL_SPACING.as_micros() as u64;
        }
        let mut sorted = self.spacings_us.clone();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(samples: &[(u64, u32)]) -> Vec<RingSample> {
        samples.iter().map(|(ms, value)| RingSample { timestamp_us: ms * 1000, value: *value }).collect()
    }

    fn lengths(slots: &[Slot]) -> Vec<u128> {
        slots.iter().map(|slot| slot.length.as_millis()).collect()
    }

    #[test]
    fn a_slot_lasts_from_its_predecessor_and_a_hole_adds_nothing() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut clock = RingClock::default();
        let first = clock.drained(ring(&[(1000, 0), (1200, 10), (1400, 10), (1600, 10)]), start);
        assert!(first.iter().all(|slot| slot.history));
        let slots = clock.drained(
            ring(&[(1600, 10), (1805, 20), (2000, 30), (2290, 40), (3000, 50), (3200, 101)]),
            start + Duration::from_secs(2),
        );
        assert_eq!(lengths(&slots), [205, 195, 290, 200]);
        assert!(slots.iter().all(|slot| !slot.history));
        assert_eq!(slots[3].end, start + Duration::from_secs(2));
        assert_eq!(slots[2].end, start + Duration::from_millis(1290));
    }

    #[test]
    fn what_comes_into_an_empty_ring_is_no_history() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut clock = RingClock::default();
        assert_eq!(clock.drained(Vec::new(), now), []);
        let slots = clock.drained(ring(&[(1000, 5), (1600, 5), (1800, 5)]), now + Duration::from_millis(500));
        assert_eq!(lengths(&slots), [200, 200, 200]);
        // But what is older than the first look is, whenever it comes to light.
        assert_eq!(slots.iter().map(|slot| slot.history).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn samples_seen_before_do_not_count_again() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut clock = RingClock::default();
        clock.drained(ring(&[(1000, 5), (1200, 5)]), now);
        assert_eq!(clock.drained(ring(&[(1000, 5), (1200, 5)]), now), []);
        assert_eq!(clock.last_seen_us(), 1_200_000);
    }

    #[test]
    fn readings_count_the_time_between_them_and_no_time_counts_twice() {
        let start = Instant::now() + Duration::from_secs(60);
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = RingClock::default();
        assert!(clock.is_dry(start, LONGEST_READING));
        clock.reading(10, at(0));
        clock.reading(10, at(200));
        // The sampler was held up: a reading speaks for a second at most.
        clock.reading(10, at(5000));
        assert_eq!(lengths(&clock.drained(Vec::new(), at(5000))), [200, 1000]);
        // The ring wakes up and holds slots of the last 600 ms: half of it was counted already.
        clock.reading(90, at(5200));
        let slots = clock.drained(ring(&[(1000, 50), (1200, 50), (1400, 50)]), at(5300));
        assert_eq!(lengths(&slots), [100, 200]);
        assert!(!clock.is_dry(at(5400), LONGEST_READING));
        assert!(clock.is_dry(at(6300), LONGEST_READING));
    }

    #[test]
    fn a_ring_that_wakes_knows_better_than_the_readings_of_the_same_tick() {
        let start = Instant::now() + Duration::from_secs(60);
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = RingClock::default();
        assert_eq!(clock.drained(Vec::new(), at(0)), []);
        for ms in [0, 200, 400, 600, 800] {
            clock.reading(77, at(ms));
        }
        let slots = clock.drained(ring(&[(1000, 5), (1200, 6)]), at(1000));
        assert_eq!(slots.iter().map(|slot| slot.percent).collect::<Vec<_>>(), [5.0, 6.0]);
        assert_eq!(clock.drained(Vec::new(), at(2000)), []);
    }

    #[test]
    fn a_clock_that_goes_back_is_noticed_and_only_what_came_after_is_new() {
        let start = Instant::now() + Duration::from_secs(60);
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = RingClock::default();
        clock.drained(ring(&[(9_000_000, 5), (9_000_200, 5)]), at(0));
        assert!(!clock.asks_for_all(at(900), LONGEST_READING));
        assert!(clock.asks_for_all(at(1000), LONGEST_READING));
        assert!(!clock.asks_for_all(at(2000), LONGEST_READING), "once");
        assert!(clock.asks_for_all(at(61_000), LONGEST_READING), "and every minute");
        let same = ring(&[(9_000_000, 5), (9_000_200, 5)]);
        assert_eq!(clock.set_back(same, at(61_000)), None, "it is only silent");
        let mixed = ring(&[(9_000_000, 5), (9_000_200, 5), (1000, 70), (1200, 80)]);
        let after = clock.set_back(mixed.clone(), at(61_000)).unwrap();
        assert_eq!(after, ring(&[(1000, 70), (1200, 80)]));
        let slots = clock.drained(after, at(61_000));
        assert_eq!(slots.iter().map(|slot| slot.percent).collect::<Vec<_>>(), [70.0, 80.0]);
        assert_eq!(lengths(&slots), [200, 200]);
        assert!(slots.iter().all(|slot| !slot.history));
        assert_eq!(clock.last_seen_us(), 1_200_000);
        // The driver goes on returning what it sampled before: its timestamps are later ones.
        let slots = clock.drained([mixed, ring(&[(1400, 90)])].concat(), at(61_200));
        assert_eq!(slots.iter().map(|slot| slot.percent).collect::<Vec<_>>(), [90.0]);
        // Until they are gone; then a later timestamp is of a clock that was set right again.
        assert_eq!(clock.drained(ring(&[(9_080_000, 40)]), at(80_000)), []);
        let slots = clock.drained(ring(&[(9_091_000, 40), (9_091_200, 40)]), at(91_200));
        assert_eq!(lengths(&slots), [200, 200]);
    }

    #[test]
    fn a_failed_reading_is_a_gap() {
        let start = Instant::now();
        let mut clock = RingClock::default();
        clock.reading(10, start);
        clock.reading_failed();
        clock.reading(10, start + Duration::from_millis(400));
        assert_eq!(clock.drained(Vec::new(), start + Duration::from_millis(400)), []);
    }
}

//! Owns the short history of one series: gap-free pieces, and the mean over a window of them.

use std::time::{Duration, Instant};

/// How much more time a counter may have observed than passed between two scrapes: an exporter
/// catches up with what the driver kept (14 s) after a call that blocked. More than this is a
/// restart that the counter hides, or a lie.
const CATCH_UP: Duration = Duration::from_secs(20);

/// One value as a page gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// Two counters that grow together: Δ`sum` ÷ Δ`weight` is a part of one, so `sum` never grows
    /// faster. `weight` is in seconds.
    Share { sum: f64, weight: f64 },
    /// A value that held since the previous scrape.
    Gauge(f64),
    /// A counter whose rate per second is wanted.
    Rate(f64),
}

/// How long histories are, and what is a gap.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// What a mean is over.
    pub window: Duration,
    /// The longest time that one gauge reading stands for.
    pub longest_step: Duration,
}

/// The readings of one series, piece by piece: each point holds how much was measured since the
/// point before it, across a gap nothing. Any window's mean is then made of the points in it, gaps
/// left out.
///
/// There are four of these for each pod and device: what they take is what the adapter takes.
#[derive(Debug, Clone, Default)]
pub struct History {
    points: Vec<Point>,
    /// What the points' times are counted from; `None` before the first reading.
    base: Option<Instant>,
    /// The end of the piece under way.
    last: Option<Last>,
    /// When it last grew.
    fresh: Option<Millis>,
    /// The newest point begins a piece that has not grown yet.
    beginning: bool,
    /// Seconds without a gap that it was told of, since it began.
    told: f64,
}

/// Milliseconds since a history's base; 49 days of them.
type Millis = u32;

#[derive(Debug, Clone, Copy)]
struct Point {
    /// Growth since the point before; the reading's unit.
    sum: f64,
    /// … seconds. Read as a part of at most minutes, so that seven digits are plenty.
    weight: f32,
    at: Millis,
}

#[derive(Debug, Clone)]
struct Last {
    reading: Reading,
    at: Millis,
    /// Its low bits: whether the next one is the very next.
    scrape: u32,
}

/// A mean over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    pub value: f64,
    /// When the newest reading in it was received.
    pub at: Instant,
}

/// The readings in a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub readings: usize,
    /// Seconds for which something is known, gaps left out.
    pub covered: f64,
    pub oldest: Instant,
    pub newest: Instant,
}

impl Span {
    /// How many points a window has with nothing missing: one a scrape, both ends, and the one that
    /// pushes the oldest out.
    fn points(&self) -> usize {
        let interval = (self.longest_step / 2).max(Duration::from_millis(1));
        (self.window.as_millis() / interval.as_millis()) as usize + 3
    }
}

impl History {
    /// Adds a reading that scrape number `scrape` received at `at`. A scrape left out, a counter
    /// that fell or another kind of reading ends the piece.
    pub fn push(&mut self, at: Instant, scrape: u64, reading: Reading, span: &Span) {
        let at = self.millis(at);
        let scrape = scrape as u32;
        let growth = self.last.as_ref().and_then(|last| last.growth(at, scrape, reading, span));
        match growth {
            // The same page again, or a sampler that stands still: nothing new.
            Some((_, time)) if time <= 0.0 => {}
            Some((sum, weight)) => {
                self.add(Point { sum, weight, at }, span);
                self.told += f64::from(weight);
                self.fresh = Some(at);
                self.beginning = false;
            }
            None => {
                // A piece that never grew says nothing: the new one takes its place.
                if self.beginning {
                    self.points.pop();
                }
                self.add(Point { sum: 0.0, weight: 0.0, at }, span);
                self.beginning = true;
            }
        }
        self.last = Some(Last { reading, at, scrape });
        if let Some(fresh) = self.fresh {
            let from = fresh.saturating_sub(millis(span.window));
            let old = self.points.partition_point(|point| point.at < from);
            self.points.drain(..old);
        }
    }

    /// The next reading begins a new piece, because it measures something else than the last one.
    pub fn interrupt(&mut self) {
        self.last = None;
    }

    /// The mean over the window that ends with the newest growth, of readings received since
    /// `not_before`; `None` without two of one piece.
    pub fn mean(&self, window: Duration, not_before: Option<Instant>) -> Option<Mean> {
        let (base, fresh) = (self.base?, self.fresh?);
        let grown = self.points.get(self.first(window, not_before)? + 1..)?;
        let weight: f64 = grown.iter().map(|point| f64::from(point.weight)).sum();
        let sum: f64 = grown.iter().map(|point| point.sum).sum();
        (weight > 0.0).then(|| Mean { value: sum / weight, at: instant(base, fresh) })
    }

    /// What the mean over that window is made of; `None` without a reading that grew.
    pub fn part(&self, window: Duration, not_before: Option<Instant>) -> Option<Part> {
        let base = self.base?;
        let [oldest, grown @ ..] = self.points.get(self.first(window, not_before)?..)? else { return None };
        Some(Part {
            readings: 1 + grown.len(),
            covered: grown.iter().map(|point| f64::from(point.weight)).sum(),
            oldest: instant(base, oldest.at),
            newest: instant(base, grown.last().unwrap_or(oldest).at),
        })
    }

    /// The first point of the window that ends with the newest growth.
    fn first(&self, window: Duration, not_before: Option<Instant>) -> Option<usize> {
        let (base, from) = (self.base?, self.fresh?.saturating_sub(millis(window)));
        let before = |point: &Point| {
            point.at < from || not_before.is_some_and(|limit| instant(base, point.at) < limit)
        };
        Some(self.points.partition_point(before))
    }

    /// When it was last told anything.
    pub fn updated(&self) -> Option<Instant> {
        Some(instant(self.base?, self.last.as_ref()?.at))
    }

    /// Seconds without a gap that it was told of, since it began.
    pub fn told(&self) -> f64 {
        self.told
    }

    /// When it last grew.
    pub fn fresh(&self) -> Option<Instant> {
        Some(instant(self.base?, self.fresh?))
    }

    /// A series lives as long as its pod: room for its window at once, and no more than that.
    fn add(&mut self, point: Point, span: &Span) {
        if self.points.len() == self.points.capacity() {
            self.points.reserve_exact(span.points().saturating_sub(self.points.len()).clamp(4, 32));
        }
        self.points.push(point);
    }

    /// The time on this history's scale, which is moved along before it ends.
    fn millis(&mut self, at: Instant) -> Millis {
        let base = *self.base.get_or_insert(at);
        let passed = |base: Instant| Millis::try_from(at.saturating_duration_since(base).as_millis());
        if let Ok(passed) = passed(base) {
            return passed;
        }
        let shift = self.points.first().map_or(0, |point| point.at);
        let moved = instant(base, shift);
        let Ok(passed) = passed(moved) else {
            // Silent for 49 days.
            *self = Self { base: Some(at), told: self.told, ..Self::default() };
            return 0;
        };
        self.points.iter_mut().for_each(|point| point.at -= shift);
        self.last.iter_mut().for_each(|last| last.at = last.at.saturating_sub(shift));
        self.fresh = self.fresh.map(|fresh| fresh.saturating_sub(shift));
        self.base = Some(moved);
        passed
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

fn instant(base: Instant, at: Millis) -> Instant {
    base + Duration::from_millis(at.into())
}

impl Last {
    /// By how much sum and weight grew since, `None` across a gap.
    fn growth(&self, at: Millis, scrape: u32, reading: Reading, span: &Span) -> Option<(f64, f32)> {
        if self.scrape.wrapping_add(1) != scrape {
            return None;
        }
        let elapsed = Duration::from_millis(at.saturating_sub(self.at).into());
        match (self.reading, reading) {
            (Reading::Share { sum: sum_before, weight: weight_before }, Reading::Share { sum, weight }) => {
                let (more, time) = (sum - sum_before, weight - weight_before);
                // A millisecond for the rounding of what is printed.
                let sound = more >= 0.0 && time >= 0.0 && more <= time + 0.001;
                let kept = time as f32;
                (sound && time <= (elapsed + CATCH_UP).as_secs_f64())
                    .then(|| (more.min(f64::from(kept)), kept))
            }
            (Reading::Gauge(_), Reading::Gauge(value)) => {
                let time = elapsed.as_secs_f32();
                (elapsed <= span.longest_step).then(|| (value * f64::from(time), time))
            }
            (Reading::Rate(before), Reading::Rate(value)) => {
                (value >= before).then_some((value - before, elapsed.as_secs_f32()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { window: Duration::from_secs(60), longest_step: Duration::from_secs(11) };

    /// Scrapes 5 s apart; `None` is a scrape that failed.
    fn history(readings: &[Option<(f64, f64)>]) -> (History, Instant) {
        let start = Instant::now();
        let mut history = History::default();
        let mut at = start;
        for (scrape, reading) in readings.iter().enumerate() {
            at = start + Duration::from_secs(5 * scrape as u64);
            if let Some((sum, weight)) = *reading {
                history.push(at, scrape as u64, Reading::Share { sum, weight }, &SPAN);
            }
        }
        (history, at)
    }

    fn value(history: &History) -> Option<f64> {
        history.mean(SPAN.window, None).map(|mean| mean.value)
    }

    #[test]
    fn the_mean_is_the_growth_of_one_counter_by_the_other() {
        let (history, end) = history(&[Some((100.0, 500.0)), Some((102.0, 505.0)), Some((105.0, 510.0))]);
        assert_eq!(history.mean(SPAN.window, None), Some(Mean { value: 0.5, at: end }));
    }

    #[test]
    fn one_reading_is_no_value() {
        assert_eq!(value(&history(&[Some((100.0, 500.0))]).0), None);
    }

    #[test]
    fn a_missing_scrape_is_left_out_of_the_mean() {
        let (history, _) =
            history(&[Some((0.0, 0.0)), Some((5.0, 5.0)), None, Some((5.0, 15.0)), Some((5.0, 20.0))]);
        assert_eq!(value(&history), Some(0.5));
    }

    #[test]
    fn a_reset_begins_a_new_piece() {
        let (history, _) =
            history(&[Some((0.0, 100.0)), Some((5.0, 105.0)), Some((1.0, 1.0)), Some((1.0, 6.0))]);
        assert_eq!(value(&history), Some(0.5));
    }

    #[test]
    fn growth_that_cannot_be_true_is_a_gap() {
        // More active than observed, and more observed than time passed.
        for lie in [(9.0, 15.0), (5.0, 60.0)] {
            let (history, _) = history(&[Some((0.0, 5.0)), Some((1.0, 10.0)), Some(lie)]);
            assert_eq!(value(&history), Some(0.2), "{lie:?}");
        }
    }

    #[test]
    fn a_counter_that_stands_still_is_nothing_new() {
        let (history, end) =
            history(&[Some((0.0, 0.0)), Some((5.0, 5.0)), Some((5.0, 5.0)), Some((5.0, 5.0))]);
        let mean = history.mean(SPAN.window, None).unwrap();
        assert_eq!((mean.value, mean.at), (1.0, end - Duration::from_secs(10)));
    }

    #[test]
    fn only_the_window_counts_and_only_it_is_kept() {
        let readings: Vec<_> =
            (0..100).map(|i| Some((if i < 50 { f64::from(i) } else { 50.0 }, f64::from(5 * i)))).collect();
        let (history, _) = history(&readings);
        assert_eq!(value(&history), Some(0.0));
        assert_eq!(history.points.len(), 13);
    }

    #[test]
    fn pieces_that_never_grow_do_not_pile_up() {
        let readings: Vec<_> = (0..100).map(|i| (i % 2 == 0).then_some((0.0, f64::from(5 * i)))).collect();
        assert_eq!(history(&readings).0.points.len(), 1);
        let mut readings = vec![Some((0.0, 0.0)), Some((0.0, 5.0))];
        readings.extend((0..100).map(|i| (i % 2 == 1).then_some((0.0, f64::from(5 * i)))));
        assert_eq!(history(&readings).0.points.len(), 3);
    }

    #[test]
    fn what_a_mean_is_made_of() {
        let (history, end) =
            history(&[Some((0.0, 0.0)), Some((5.0, 5.0)), None, Some((5.0, 15.0)), Some((5.0, 20.0))]);
        let ago = |seconds| end - Duration::from_secs(seconds);
        let part = Part { readings: 4, covered: 10.0, oldest: ago(20), newest: end };
        assert_eq!(history.part(SPAN.window, None), Some(part));
        let part = Part { readings: 2, covered: 5.0, oldest: ago(5), newest: end };
        assert_eq!(history.part(SPAN.window, Some(ago(9))), Some(part));
        assert_eq!(history.part(Duration::from_secs(7), None), Some(part));
    }

    #[test]
    fn readings_from_before_the_pod_do_not_count() {
        let (history, end) = history(&[Some((5.0, 5.0)), Some((10.0, 10.0)), Some((10.0, 15.0))]);
        let mean =
            |ago| history.mean(SPAN.window, Some(end - Duration::from_secs(ago))).map(|mean| mean.value);
        assert_eq!(mean(10), Some(0.5));
        assert_eq!(mean(9), Some(0.0));
        assert_eq!(mean(4), None);
    }

    #[test]
    fn a_pod_may_live_for_months() {
        let start = Instant::now();
        let mut history = History::default();
        let (scrapes, step) = (2000, Duration::from_secs(3600));
        let span = Span { window: 4 * step, longest_step: 2 * step };
        for scrape in 0..scrapes {
            history.push(start + step * scrape, scrape.into(), Reading::Gauge(scrape.into()), &span);
        }
        let end = start + step * (scrapes - 1);
        assert_eq!(history.mean(span.window, None), Some(Mean { value: 1997.5, at: end }));
        assert_eq!(history.told(), 3600.0 * f64::from(scrapes - 1));
        // Another 58 days of silence.
        let end = end + step * 1400;
        history.push(end, 2000, Reading::Gauge(1.0), &span);
        history.push(end + step, 2001, Reading::Gauge(2.0), &span);
        assert_eq!(history.mean(span.window, None), Some(Mean { value: 2.0, at: end + step }));
    }

    #[test]
    fn a_series_takes_few_bytes() {
        assert!(size_of::<History>() <= 104 && size_of::<Point>() == 16, "{}", size_of::<History>());
        let readings: Vec<_> = (0..100).map(|i| Some((f64::from(i), f64::from(5 * i)))).collect();
        assert!(history(&readings).0.points.capacity() <= 18);
    }

    #[test]
    fn gauges_are_weighted_by_time_and_never_stretched() {
        let start = Instant::now();
        let mut history = History::default();
        for (scrape, (seconds, gauge)) in
            [(0, 90.0), (5, 10.0), (15, 40.0), (40, 99.0)].into_iter().enumerate()
        {
            let at = start + Duration::from_secs(seconds);
            history.push(at, scrape as u64, Reading::Gauge(gauge), &SPAN);
        }
        assert_eq!(value(&history), Some(30.0));
    }

    #[test]
    fn counters_become_rates() {
        let start = Instant::now();
        let mut history = History::default();
        for (scrape, counter) in [100.0, 110.0, 140.0].into_iter().enumerate() {
            let at = start + Duration::from_secs(5 * scrape as u64);
            history.push(at, scrape as u64, Reading::Rate(counter), &SPAN);
        }
        assert_eq!(value(&history), Some(4.0));
    }
}

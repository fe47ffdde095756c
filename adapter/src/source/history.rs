//! Owns the short history of one series: gap-free pieces, and the mean over a window of them.

use std::collections::VecDeque;
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

/// The readings of one series, summed piece by piece: between two points of one piece `sum` and
/// `weight` grow by what was measured, across a gap they stay. Any window's mean is then the
/// difference of two points, gaps left out.
#[derive(Debug, Default)]
pub struct History {
    points: VecDeque<Point>,
    /// The end of the piece under way.
    last: Option<Last>,
    /// When it last grew.
    fresh: Option<Instant>,
    /// The newest point begins a piece that has not grown yet.
    beginning: bool,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    at: Instant,
    sum: f64,
    weight: f64,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    scrape: u64,
    reading: Reading,
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

impl History {
    /// Adds a reading that scrape number `scrape` received at `at`. A scrape left out, a counter
    /// that fell or another kind of reading ends the piece.
    pub fn push(&mut self, at: Instant, scrape: u64, reading: Reading, span: &Span) {
        let growth = self.last.as_ref().and_then(|last| last.growth(at, scrape, reading, span));
        let (sum, weight) = self.points.back().map_or((0.0, 0.0), |point| (point.sum, point.weight));
        match growth {
            // The same page again, or a sampler that stands still: nothing new.
            Some((_, time)) if time <= 0.0 => {}
            Some((more, time)) => {
                self.points.push_back(Point { at, sum: sum + more, weight: weight + time });
                self.fresh = Some(at);
                self.beginning = false;
            }
            None => {
                // A piece that never grew says nothing: the new one takes its place.
                if self.beginning {
                    self.points.pop_back();
                }
                self.points.push_back(Point { at, sum, weight });
                self.beginning = true;
            }
        }
        self.last = Some(Last { at, scrape, reading });
        if let Some(from) = self.fresh.and_then(|fresh| fresh.checked_sub(span.window)) {
            while self.points.front().is_some_and(|point| point.at < from) {
                self.points.pop_front();
            }
        }
    }

    /// The mean over the window that ends with the newest growth, of readings received since
    /// `not_before`; `None` without two of one piece.
    pub fn mean(&self, window: Duration, not_before: Option<Instant>) -> Option<Mean> {
        let at = self.fresh?;
        let (first, last) = (self.points.get(self.first(window, not_before)?)?, self.points.back()?);
        let weight = last.weight - first.weight;
        (weight > 0.0).then(|| Mean { value: (last.sum - first.sum) / weight, at })
    }

    /// What the mean over that window is made of; `None` without a reading that grew.
    pub fn part(&self, window: Duration, not_before: Option<Instant>) -> Option<Part> {
        let first = self.first(window, not_before)?;
        let (oldest, last) = (self.points.get(first)?, self.points.back()?);
        Some(Part {
            readings: self.points.len() - first,
            covered: last.weight - oldest.weight,
            oldest: oldest.at,
            newest: last.at,
        })
    }

    /// The first point of the window that ends with the newest growth.
    fn first(&self, window: Duration, not_before: Option<Instant>) -> Option<usize> {
        let from = match (self.fresh?.checked_sub(window), not_before) {
            (Some(start), Some(limit)) => Some(start.max(limit)),
            (start, limit) => start.or(limit),
        };
        Some(self.points.partition_point(|point| from.is_some_and(|from| point.at < from)))
    }

    /// Seconds without a gap that it was told of, since it began.
    pub fn told(&self) -> f64 {
        self.points.back().map_or(0.0, |point| point.weight)
    }

    /// When it was last told anything.
    pub fn updated(&self) -> Option<Instant> {
        self.last.as_ref().map(|last| last.at)
    }

    /// When it last grew.
    pub fn fresh(&self) -> Option<Instant> {
        self.fresh
    }
}

impl Last {
    /// By how much sum and weight grew since, `None` across a gap.
    fn growth(&self, at: Instant, scrape: u64, reading: Reading, span: &Span) -> Option<(f64, f64)> {
        if self.scrape + 1 != scrape {
            return None;
        }
        let elapsed = at.saturating_duration_since(self.at);
        match (self.reading, reading) {
            (Reading::Share { sum: sum_before, weight: weight_before }, Reading::Share { sum, weight }) => {
                let (more, time) = (sum - sum_before, weight - weight_before);
                // A millisecond for the rounding of what is printed.
                let sound = more >= 0.0 && time >= 0.0 && more <= time + 0.001;
                (sound && time <= (elapsed + CATCH_UP).as_secs_f64()).then(|| (more.min(time), time))
            }
            (Reading::Gauge(_), Reading::Gauge(value)) => {
                let time = elapsed.as_secs_f64();
                (elapsed <= span.longest_step).then_some((value * time, time))
            }
            (Reading::Rate(before), Reading::Rate(value)) => {
                (value >= before).then_some((value - before, elapsed.as_secs_f64()))
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
    fn readings_from_before_the_pod_do_not_count() {
        let (history, end) = history(&[Some((5.0, 5.0)), Some((10.0, 10.0)), Some((10.0, 15.0))]);
        let mean =
            |ago| history.mean(SPAN.window, Some(end - Duration::from_secs(ago))).map(|mean| mean.value);
        assert_eq!(mean(10), Some(0.5));
        assert_eq!(mean(9), Some(0.0));
        assert_eq!(mean(4), None);
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

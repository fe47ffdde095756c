//! Keeps the short history of one series: gap-free pieces, and the mean over a window of them.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How much more time a counter may have observed than passed between two scrapes: an exporter
/// catches up with what the driver kept (14 s) after a call that blocked. More than this is a
/// restart that the counter hides, or a lie.
pub const CATCH_UP: Duration = Duration::from_secs(20);
/// A window is kept in about so many points, however often its exporter is scraped.
const POINTS_PER_WINDOW: u32 = 10;

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
    /// The longest window that a mean is over.
    pub window: Duration,
    /// The shortest one. Its means need the finest points.
    pub shortest: Duration,
    /// The longest time that one gauge reading stands for.
    pub longest_step: Duration,
}

/// The readings of one series, piece by piece: each point holds how much was measured since the
/// point before it, across a gap nothing. The mean of any window is made of the points in it, gaps
/// left out.
///
/// Readings that follow each other closely share a point, so that memory does not grow with the
/// number of scrapes. Of the point in which a window begins, the part inside the window counts.
///
/// There are four of these for each pod and device: they are most of the adapter's memory.
#[derive(Debug, Clone, Default)]
pub struct History {
    points: Vec<Point>,
    /// The points' times count from here.
    base: Base,
    /// The newest reading's numbers, in the order in which [`Reading`] has them.
    numbers: [f64; 2],
    /// When it was received.
    at: Millis,
    /// The low bits of its scrape's number: whether the next one is the very next.
    scrape: u32,
    /// When it last grew, if it did.
    fresh: Millis,
    /// Seconds of readings without a gap, since it began.
    covered: f32,
    /// The newest reading's kind; `None` where the next one begins a piece.
    kind: Option<Kind>,
    grew: bool,
    /// The newest point begins a piece that has not grown yet.
    beginning: bool,
}

/// Milliseconds since a history's base; 49 days of them.
type Millis = u32;

/// A time in half of an `Instant`'s bytes: ns since a time that all histories share. 0: none yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Base(u64);

/// Which [`Reading`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Share,
    Gauge,
    Rate,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    /// Growth since the point before; the reading's unit × seconds.
    sum: f64,
    /// … seconds. Read as a part of at most minutes, so that seven digits are plenty.
    weight: f32,
    at: Millis,
}

/// A mean over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    pub value: f64,
    /// Seconds of the window that it is made of, gaps left out.
    pub covered: f64,
    /// Where the oldest part of it begins.
    pub oldest: Instant,
    /// When the newest reading in it was received.
    pub at: Instant,
}

impl Span {
    /// One window for all means, scraped at this interval.
    pub fn new(window: Duration, interval: Duration) -> Self {
        // Twice the interval bridges one late scrape, and no missing one.
        Self { window, shortest: window, longest_step: 2 * interval }
    }

    /// The longest time that a point of this age may stand for.
    fn longest_point(&self, age: Millis) -> Millis {
        age.max(millis(self.shortest)) / POINTS_PER_WINDOW
    }

    /// How many points a window has with nothing missing: the whole ones, the one before, and the one
    /// that grows.
    fn points(&self) -> usize {
        let interval = (millis(self.longest_step) / 2).max(1);
        let whole = (self.longest_point(0) / interval).max(1) * interval;
        (millis(self.shortest) / whole) as usize + 2
    }
}

impl History {
    /// Adds a reading that scrape number `scrape` received at `at`. A scrape left out, a counter
    /// that fell or another kind of reading ends the piece.
    pub fn push(&mut self, at: Instant, scrape: u64, reading: Reading, span: &Span) {
        let at = self.millis(at);
        let scrape = scrape as u32;
        match self.growth(at, scrape, reading, span) {
            // The same page again, or a sampler that stands still: nothing new.
            Some((_, time)) if time <= 0.0 => {}
            Some((sum, weight)) => {
                (self.fresh, self.grew) = (at, true);
                self.add(Point { sum, weight, at }, span);
                self.covered += weight;
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
        (self.kind, self.numbers) = reading.split();
        (self.at, self.scrape) = (at, scrape);
    }

    /// Whether a counter of the newest reading is less in this one: it began again in between.
    pub fn fell(&self, reading: Reading) -> bool {
        let (kind, now) = reading.split();
        match kind.filter(|_| kind == self.kind) {
            Some(Kind::Share) => now[0] < self.numbers[0] || now[1] < self.numbers[1],
            Some(Kind::Rate) => now[0] < self.numbers[0],
            Some(Kind::Gauge) | None => false,
        }
    }

    /// The next reading begins a new piece, because it measures something else than the last one.
    pub fn interrupt(&mut self) {
        self.kind = None;
    }

    /// The mean over the window that ends with the newest growth, of readings received since
    /// `not_before`; `None` without two of one piece.
    pub fn mean(&self, window: Duration, not_before: Option<Instant>) -> Option<Mean> {
        let (base, fresh) = (self.base, self.fresh);
        if !self.grew {
            return None;
        }
        let from = fresh.saturating_sub(millis(window));
        let (mut sum, mut covered, mut oldest) = (0.0, 0.0, None);
        for pair in self.points.windows(2) {
            let (begin, point) = (pair[0].at, &pair[1]);
            // A point holds readings of all its time: none of it may be from before.
            let excluded = not_before.is_some_and(|limit| base.instant(begin) < limit);
            if point.at <= from || excluded || point.weight <= 0.0 {
                continue;
            }
            let inside = match point.at - begin {
                // Two scrapes within a millisecond.
                0 => 1.0,
                all => f64::from(point.at - begin.max(from)) / f64::from(all),
            };
            sum += inside * point.sum;
            covered += inside * f64::from(point.weight);
            oldest.get_or_insert(begin.max(from));
        }
        (covered > 0.0).then(|| Mean {
            value: sum / covered,
            covered,
            oldest: base.instant(oldest.unwrap_or(fresh)),
            at: base.instant(fresh),
        })
    }

    /// When it was last read.
    pub fn updated(&self) -> Option<Instant> {
        self.kind.map(|_| self.base.instant(self.at))
    }

    /// Seconds of readings without a gap, since it began.
    pub fn covered(&self) -> f64 {
        self.covered.into()
    }

    /// When it last grew.
    pub fn fresh(&self) -> Option<Instant> {
        self.grew.then(|| self.base.instant(self.fresh))
    }

    /// By how much sum and weight grew since the newest reading, `None` across a gap.
    fn growth(&self, at: Millis, scrape: u32, reading: Reading, span: &Span) -> Option<(f64, f32)> {
        if self.kind.is_none() || self.scrape.wrapping_add(1) != scrape {
            return None;
        }
        let elapsed = Duration::from_millis(at.saturating_sub(self.at).into());
        let [before, weight_before] = self.numbers;
        match (self.kind?, reading) {
            (Kind::Share, Reading::Share { sum, weight }) => {
                let (more, time) = (sum - before, weight - weight_before);
                // A millisecond for the rounding of what is printed.
                let sound = more >= 0.0 && time >= 0.0 && more <= time + 0.001;
                let kept = time as f32;
                (sound && time <= (elapsed + CATCH_UP).as_secs_f64())
                    .then(|| (more.min(f64::from(kept)), kept))
            }
            (Kind::Gauge, Reading::Gauge(value)) => {
                let time = elapsed.as_secs_f32();
                (elapsed <= span.longest_step).then(|| (value * f64::from(time), time))
            }
            (Kind::Rate, Reading::Rate(value)) => {
                (value >= before).then_some((value - before, elapsed.as_secs_f32()))
            }
            _ => None,
        }
    }

    /// A series lives as long as its pod: room for its window at once, and no more than that. One
    /// that never grows, of which there may be many, has room for little.
    fn add(&mut self, point: Point, span: &Span) {
        self.forget_before_window(span);
        let mut point = point;
        // The one before may have waited for what it is joined with.
        while let Some(joined) = self.joined_with_newest(point, span) {
            self.points.pop();
            point = joined;
        }
        if self.points.len() == self.points.capacity() {
            let expected = if self.points.is_empty() { 2 } else { span.points() };
            self.points.reserve_exact(expected.saturating_sub(self.points.len()).clamp(2, 32));
        }
        self.points.push(point);
        self.thin(span);
    }

    /// Forgets points of before the longest window, but for the one in which it begins.
    fn forget_before_window(&mut self, span: &Span) {
        let from = self.fresh.saturating_sub(millis(span.window));
        if self.grew && self.points.get(1).is_some_and(|second| second.at <= from) {
            let old = self.points.partition_point(|point| point.at <= from).saturating_sub(1);
            self.points.drain(..old);
        }
    }

    /// The newest point as one with the next, if both together stand for little enough time.
    fn joined_with_newest(&self, next: Point, span: &Span) -> Option<Point> {
        let [.., before, newest] = self.points[..] else { return None };
        let age = self.fresh.saturating_sub(next.at);
        if next.at - before.at > span.longest_point(age) {
            return None;
        }
        newest.joined(next)
    }

    /// Joins points that are closer together than their age asks for. With one window for all means no point
    /// may stand for longer as it ages, so that there are none.
    fn thin(&mut self, span: &Span) {
        if span.window <= span.shortest {
            return;
        }
        let mut at = 1;
        while at + 1 < self.points.len() {
            let [before, first, second] = self.points[at - 1..=at + 1] else { break };
            let age = self.fresh.saturating_sub(second.at);
            let close = second.at - before.at <= span.longest_point(age);
            match first.joined(second).filter(|_| close) {
                Some(joined) => {
                    self.points[at] = joined;
                    self.points.remove(at + 1);
                    // The one before may have waited for what it is joined with.
                    at = (at - 1).max(1);
                }
                None => at += 1,
            }
        }
    }

    /// The time on this history's scale, which is moved along before it ends.
    fn millis(&mut self, at: Instant) -> Millis {
        if self.base == Base::default() {
            self.base = Base::of(at);
        }
        let passed =
            |base: Base| Millis::try_from(at.saturating_duration_since(base.instant(0)).as_millis()).ok();
        if let Some(passed) = passed(self.base) {
            return passed;
        }
        let shift = self.points.first().map_or(0, |point| point.at);
        let moved = Base::of(self.base.instant(shift));
        let Some(passed) = passed(moved) else {
            // Silent for 49 days.
            *self = Self { base: Base::of(at), covered: self.covered, ..Self::default() };
            return 0;
        };
        self.points.iter_mut().for_each(|point| point.at -= shift);
        self.at = self.at.saturating_sub(shift);
        self.fresh = self.fresh.saturating_sub(shift);
        self.base = moved;
        passed
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

impl Base {
    /// Before anything that a history holds: a test may look back an hour.
    fn epoch() -> Instant {
        static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
            let now = Instant::now();
            now.checked_sub(Duration::from_secs(86_400)).unwrap_or(now)
        });
        *EPOCH
    }

    fn of(at: Instant) -> Self {
        let passed = at.saturating_duration_since(Self::epoch()).as_nanos();
        Self(u64::try_from(passed).unwrap_or(u64::MAX).max(1))
    }

    fn instant(self, at: Millis) -> Instant {
        Self::epoch() + Duration::from_nanos(self.0) + Duration::from_millis(at.into())
    }
}

impl Reading {
    /// Its kind, and its numbers.
    fn split(self) -> (Option<Kind>, [f64; 2]) {
        match self {
            Self::Share { sum, weight } => (Some(Kind::Share), [sum, weight]),
            Self::Gauge(value) => (Some(Kind::Gauge), [value, 0.0]),
            Self::Rate(value) => (Some(Kind::Rate), [value, 0.0]),
        }
    }
}

impl Point {
    /// Both as one, with the gap between them if there is one; `None` if `next` begins a piece.
    fn joined(self, next: Self) -> Option<Self> {
        if next.weight <= 0.0 {
            return None;
        }
        let exact = f64::from(self.weight) + f64::from(next.weight);
        // The mean stays exact, whatever is lost in the weight's digits.
        let weight = exact as f32;
        let sum = (self.sum + next.sum) / exact * f64::from(weight);
        Some(Self { sum, weight, at: next.at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span {
        window: Duration::from_secs(60),
        shortest: Duration::from_secs(60),
        longest_step: Duration::from_secs(11),
    };

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
        let mean = Mean { value: 0.5, covered: 10.0, oldest: end - Duration::from_secs(10), at: end };
        assert_eq!(history.mean(SPAN.window, None), Some(mean));
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
    fn a_mean_says_what_it_is_made_of() {
        let (history, end) =
            history(&[Some((0.0, 0.0)), Some((5.0, 5.0)), None, Some((5.0, 15.0)), Some((5.0, 20.0))]);
        let ago = |seconds| end - Duration::from_secs(seconds);
        let of = |window, not_before| {
            let mean = history.mean(Duration::from_secs(window), not_before).unwrap();
            (mean.covered, mean.oldest, mean.at)
        };
        assert_eq!(of(60, None), (10.0, ago(20), end));
        assert_eq!(of(60, Some(ago(9))), (5.0, ago(5), end));
        assert_eq!(of(7, None), (5.0, ago(5), end));
        assert_eq!(of(3, None), (3.0, ago(3), end));
    }

    /// Scrapes of a load that is 1 for the last `busy` seconds and was 0 before.
    fn step(interval: Duration, scrapes: u32, busy: f64, span: &Span) -> History {
        let start = Instant::now();
        let mut history = History::default();
        let end = (interval * (scrapes - 1)).as_secs_f64();
        for scrape in 0..scrapes {
            let seconds = (interval * scrape).as_secs_f64();
            let reading = Reading::Share { sum: (seconds - (end - busy)).max(0.0), weight: seconds };
            history.push(start + interval * scrape, scrape.into(), reading, span);
        }
        history
    }

    #[test]
    fn a_window_takes_as_much_memory_however_often_it_is_scraped() {
        for interval in [100, 700, 1000, 1900, 2000, 3000, 5000] {
            let interval = Duration::from_millis(interval);
            let history = step(interval, 3000, 1e6, &Span::new(SPAN.window, interval));
            let points = history.points.len();
            assert!((10..=24).contains(&points), "{points} points at {interval:?}");
            assert!(history.points.capacity() <= points + 4, "{} for {points}", history.points.capacity());
        }
    }

    #[test]
    fn a_mean_is_over_exactly_the_window() {
        let interval = Duration::from_secs(2);
        for scrapes in 100..110 {
            let history = step(interval, scrapes, 33.0, &Span::new(SPAN.window, interval));
            let mean = history.mean(SPAN.window, None).unwrap();
            // The load changed within one of the points, which is less than a tenth of the window.
            assert!((mean.covered - 60.0).abs() < 1e-3, "{mean:?}");
            assert!((mean.value - 33.0 / 60.0).abs() < 1e-6, "{mean:?}");
            let half = history.mean(Duration::from_secs(31), None).unwrap();
            assert!((half.value - 1.0).abs() < 0.05 && (half.covered - 31.0).abs() < 1e-3, "{half:?}");
        }
    }

    #[test]
    fn a_short_window_beside_a_long_one_stays_exact_and_the_long_one_small() {
        let interval = Duration::from_secs(2);
        let (short, long) = (Duration::from_secs(30), Duration::from_secs(600));
        let span = Span { shortest: short, ..Span::new(long, interval) };
        let history = step(interval, 1000, 15.0, &span);
        let of = |window| history.mean(window, None).unwrap().value;
        assert!((of(short) - 0.5).abs() < 0.02, "{}", of(short));
        assert!((of(long) - 15.0 / 600.0).abs() < 0.002, "{}", of(long));
        assert!(history.points.len() < 80, "{}", history.points.len());
    }

    #[test]
    fn pieces_that_break_off_often_do_not_pile_up() {
        let interval = Duration::from_millis(100);
        let span = Span::new(SPAN.window, interval);
        let start = Instant::now();
        let mut history = History::default();
        for scrape in (0..5000u32).filter(|scrape| scrape % 3 != 0) {
            let seconds = 0.1 * f64::from(scrape);
            let reading = Reading::Share { sum: 0.5 * seconds, weight: seconds };
            history.push(start + interval * scrape, scrape.into(), reading, &span);
        }
        assert!(history.points.len() <= 30, "{}", history.points.len());
        let mean = history.mean(SPAN.window, None).unwrap();
        assert!((mean.value - 0.5).abs() < 1e-3 && (mean.covered - 20.0).abs() < 1.0, "{mean:?}");
    }

    #[test]
    fn no_points_are_left_that_could_be_one() {
        let span = Span::new(SPAN.window, Duration::from_secs(2));
        let start = Instant::now();
        let mut history = History::default();
        let (mut millis, mut scrape) = (0, 0);
        for round in 0u64..3000 {
            // Late, early, missing, standing still and beginning anew, in an order of no period.
            let chance = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
            millis += if round % 400 < 200 { 2000 } else { 300 } + 50 * chance;
            scrape += if chance == 3 { 2 } else { 1 };
            let seconds = if chance == 5 { 0.0 } else { millis as f64 / 1000.0 };
            let seconds = if chance == 7 { (millis - 2000) as f64 / 1000.0 } else { seconds };
            let reading = Reading::Share { sum: 0.5 * seconds, weight: seconds };
            history.push(start + Duration::from_millis(millis), scrape, reading, &span);
            for triple in history.points.windows(3) {
                let close = triple[2].at - triple[0].at <= span.longest_point(0);
                assert!(!close || triple[1].joined(triple[2]).is_none(), "{round}: {:?}", history.points);
            }
        }
        assert!(history.points.len() > 5, "{:?}", history.points);
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
        let span = Span::new(4 * step, step);
        for scrape in 0..scrapes {
            history.push(start + step * scrape, scrape.into(), Reading::Gauge(scrape.into()), &span);
        }
        let end = start + step * (scrapes - 1);
        let of = |history: &History| history.mean(span.window, None).map(|mean| (mean.value, mean.at));
        assert_eq!(of(&history), Some((1997.5, end)));
        assert_eq!(history.covered(), 3600.0 * f64::from(scrapes - 1));
        // Another 58 days of silence.
        let end = end + step * 1400;
        history.push(end, 2000, Reading::Gauge(1.0), &span);
        history.push(end + step, 2001, Reading::Gauge(2.0), &span);
        assert_eq!(of(&history), Some((2.0, end + step)));
    }

    #[test]
    fn a_series_takes_few_bytes() {
        assert!(size_of::<History>() <= 72 && size_of::<Point>() == 16, "{}", size_of::<History>());
        let readings: Vec<_> = (0..100).map(|i| Some((f64::from(i), f64::from(5 * i)))).collect();
        assert!(history(&readings).0.points.capacity() <= 16);
        // Of what never grows there may be many.
        assert!(history(&readings[..1]).0.points.capacity() <= 2);
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

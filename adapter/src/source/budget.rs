//! Shares out what may be kept of all exporters, so that no exporter takes the room of another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::page::{Limit, Room};

/// Bytes of names and labels that a series may have, on average. Pods with names of usual length
/// have half of it.
const TEXT_PER_SERIES: usize = 128;
/// How long a level holds. To find it, all exporters are looked at.
const LEVEL_AGE: Duration = Duration::from_secs(1);

/// `--max-series`, for all exporters together.
///
/// Each may use the same, and what others leave. One that needs less than the even share leaves the
/// rest to those that need more, evenly.
#[derive(Debug)]
pub struct Budget {
    all: Room,
    shares: Mutex<Shares>,
}

/// One exporter's part of it. Given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    id: u64,
}

#[derive(Debug, Default)]
struct Shares {
    by_id: HashMap<u64, Used>,
    next: u64,
    total: Room,
    /// How many want more than they may have.
    hungry: usize,
    /// The least that each may have, and since when.
    level: Option<(Room, Instant)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    room: Room,
    wants: Wants,
}

/// Whether it wants more than it has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Wants {
    series: bool,
    text: bool,
}

impl Budget {
    pub fn new(max_series: usize) -> Self {
        let all = Room { series: max_series, text: max_series.saturating_mul(TEXT_PER_SERIES) };
        Self { all, shares: Mutex::default() }
    }

    /// For one more exporter.
    pub fn share(self: &Arc<Self>) -> Share {
        let mut shares = self.shares.lock();
        let id = shares.next;
        shares.next += 1;
        shares.by_id.insert(id, Used::default());
        Share { budget: Arc::clone(self), id }
    }

    /// `--max-series`.
    pub fn max_series(&self) -> usize {
        self.all.series
    }

    /// Series that count against it.
    pub fn used_series(&self) -> usize {
        self.shares.lock().total.series
    }
}

impl Share {
    /// How much this exporter may use in all, now that it uses `used`.
    pub fn room(&self, used: Room, now: Instant) -> Room {
        let Budget { all, shares } = &*self.budget;
        let mut shares = shares.lock();
        let shares = &mut *shares;
        let Some(known) = shares.by_id.get_mut(&self.id) else { return Room::default() };
        shares.total = shares.total.less(known.room).plus(used);
        known.room = used;
        let level = shares.level(*all, now);
        // More than its level only as long as nobody else needs it.
        let room = |all: usize, total: usize, used: usize, level: usize| match all.checked_sub(total) {
            Some(left) => level.max(used + left),
            None => level,
        };
        Room {
            series: room(all.series, shares.total.series, used.series, level.series),
            text: room(all.text, shares.total.text, used.text, level.text),
        }
    }

    /// Says whether its newest page had room.
    pub fn limited(&self, by: Option<Limit>) {
        let wants = Wants { series: by == Some(Limit::Series), text: by == Some(Limit::Text) };
        let mut shares = self.budget.shares.lock();
        let shares = &mut *shares;
        let Some(known) = shares.by_id.get_mut(&self.id) else { return };
        shares.hungry = shares.hungry + usize::from(wants.any()) - usize::from(known.wants.any());
        known.wants = wants;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limited(None);
        let mut shares = self.budget.shares.lock();
        if let Some(known) = shares.by_id.remove(&self.id) {
            shares.total = shares.total.less(known.room);
        }
    }
}

impl Shares {
    /// The part that each may have, whatever the others use.
    fn level(&mut self, all: Room, now: Instant) -> Room {
        let exporters = self.by_id.len().max(1);
        let even = Room { series: all.series / exporters, text: all.text / exporters };
        let enough = self.total.series <= all.series && self.total.text <= all.text && self.hungry == 0;
        if enough {
            return even;
        }
        match self.level {
            Some((level, at)) if now.saturating_duration_since(at) < LEVEL_AGE => level,
            _ => {
                let of = |used: fn(&Used) -> usize| self.by_id.values().map(used).collect();
                let series = of(|used| if used.wants.series { usize::MAX } else { used.room.series });
                let text = of(|used| if used.wants.text { usize::MAX } else { used.room.text });
                let level = Room {
                    series: water_level(all.series, series).max(even.series),
                    text: water_level(all.text, text).max(even.text),
                };
                self.level = Some((level, now));
                level
            }
        }
    }
}

impl Wants {
    fn any(self) -> bool {
        self.series || self.text
    }
}

impl Room {
    fn plus(self, other: Self) -> Self {
        Self { series: self.series + other.series, text: self.text + other.text }
    }

    fn less(self, other: Self) -> Self {
        Self { series: self.series.saturating_sub(other.series), text: self.text.saturating_sub(other.text) }
    }
}

/// The most that each gets of those that want more, so that all of it is given away and none of them gets less than
/// another one.
fn water_level(all: usize, mut wanted: Vec<usize>) -> usize {
    wanted.sort_unstable();
    let mut left = all;
    for (at, wants) in wanted.iter().enumerate() {
        let even = left / (wanted.len() - at);
        if *wants > even {
            return even;
        }
        left -= wants;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(series: usize) -> Room {
        Room { series, text: 0 }
    }

    #[test]
    fn those_that_need_little_leave_the_rest_to_the_others_evenly() {
        assert_eq!(water_level(100, vec![10, 10, 10]), usize::MAX);
        assert_eq!(water_level(100, vec![10, 10, usize::MAX]), 80);
        assert_eq!(water_level(100, vec![usize::MAX, 20, usize::MAX]), 40);
        assert_eq!(water_level(100, vec![usize::MAX; 4]), 25);
    }

    #[test]
    fn one_exporter_may_have_what_nobody_else_needs() {
        let budget = Arc::new(Budget::new(1000));
        let now = Instant::now();
        let (one, other) = (budget.share(), budget.share());
        assert_eq!(other.room(room(100), now).series, 1000);
        assert_eq!(one.room(room(0), now).series, 900);
        drop(other);
        assert_eq!(one.room(room(0), now).series, 1000);
        assert_eq!(budget.used_series(), 0);
    }

    #[test]
    fn greedy_ones_share_what_modest_ones_leave() {
        let budget = Arc::new(Budget::new(1000));
        let start = Instant::now();
        let greedy: Vec<Share> = (0..3).map(|_| budget.share()).collect();
        // The first took all there was.
        greedy[0].room(room(1000), start);
        greedy.iter().for_each(|share| share.limited(Some(Limit::Series)));
        let modest: Vec<Share> = (0..10).map(|_| budget.share()).collect();
        for share in &modest {
            assert!(share.room(room(10), start).series >= 10, "there is room for it at once");
        }
        for share in &greedy {
            share.room(room(0), start);
        }
        // Each takes what it may have, and gives back what it no longer may.
        let mut used = [0; 3];
        for round in 1..6u32 {
            let now = start + 2 * LEVEL_AGE * round;
            for (share, used) in greedy.iter().zip(&mut used) {
                *used = share.room(room(*used), now).series;
                share.room(room(*used), now);
            }
        }
        assert_eq!(used, [300; 3]);
        assert_eq!(budget.used_series(), 1000);
        // One of them needs no more after all.
        greedy[0].limited(None);
        let later = start + 20 * LEVEL_AGE;
        greedy[0].room(room(100), later);
        assert_eq!(greedy[1].room(room(300), later + 2 * LEVEL_AGE).series, 500);
    }

    #[test]
    fn long_names_are_shared_out_as_series_are() {
        let budget = Arc::new(Budget::new(10));
        let (one, other) = (budget.share(), budget.share());
        let now = Instant::now();
        let text = |text| Room { series: 0, text };
        one.room(text(10 * TEXT_PER_SERIES), now);
        one.limited(Some(Limit::Text));
        assert_eq!(other.room(text(0), now).text, 10 * TEXT_PER_SERIES);
        other.room(text(5 * TEXT_PER_SERIES), now);
        other.limited(Some(Limit::Text));
        assert_eq!(one.room(text(0), now + 2 * LEVEL_AGE).text, 5 * TEXT_PER_SERIES);
    }
}

//! Owns the doubt whether a shared device's use can be given to its owners: under MPS the server is
//! credited with everything, and some processes cannot be read. Pure: slots in, verdict out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Unavailable, Whose};

/// Time over which the doubtful part of the use is judged.
const SPAN: Duration = Duration::from_secs(60);
/// Over so much of the use nothing is divided any more.
const ENTER: f64 = 0.2;
/// Below so much it is again.
const LEAVE: f64 = 0.1;
/// An MPS server is no passing process: that it takes more than its part is believed this soon.
const CERTAIN: Duration = Duration::from_secs(5);

/// Follows whom one device's use is credited to.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// When a slot ended, its active seconds, and why they are nobody's.
    slots: VecDeque<(Instant, f64, Option<Unavailable>)>,
    since: Option<Instant>,
    verdict: Option<Unavailable>,
}

// === impl Doubt ===

impl Doubt {
    /// Takes a slot in which the device was used by a process that is known or not.
    pub(crate) fn learn(&mut self, end: Instant, active_s: f64, whose: &Whose) {
        let reason = match whose {
            Whose::MpsServer => Some(Unavailable::MpsServer),
            Whose::Unknown => Some(Unavailable::ProcessesUnreadable),
            Whose::Pod { .. } | Whose::Outside => None,
        };
        self.since.get_or_insert(end);
        self.slots.push_back((end, active_s, reason));
    }

    /// Why the device's use is not divided now.
    pub(crate) fn verdict(&mut self, now: Instant) -> Option<Unavailable> {
        while self.slots.front().is_some_and(|(end, ..)| now.saturating_duration_since(*end) >= SPAN) {
            self.slots.pop_front();
        }
        let sum = |of: &dyn Fn(&Option<Unavailable>) -> bool| -> f64 {
            self.slots.iter().filter(|(_, _, reason)| of(reason)).map(|(_, active, _)| active).sum()
        };
        let all = sum(&|_| true);
        // An idle device proves nothing.
        if all <= 0.0 {
            return self.verdict;
        }
        let watched = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let mps = sum(&|reason| *reason == Some(Unavailable::MpsServer)) / all;
        let doubtful = sum(&Option::is_some) / all;
        self.verdict = if self.verdict.is_some() {
            self.verdict.filter(|_| doubtful >= LEAVE)
        } else if mps > ENTER && watched >= CERTAIN {
            Some(Unavailable::MpsServer)
        } else if doubtful > ENTER && watched >= SPAN {
            Some(if mps * 2.0 > doubtful { Unavailable::MpsServer } else { Unavailable::ProcessesUnreadable })
        } else {
            None
        };
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot each second, credited by what `whose` says of the second.
    fn run(
        seconds: std::ops::Range<u64>,
        doubt: &mut Doubt,
        start: Instant,
        whose: impl Fn(u64) -> Whose,
    ) -> Vec<Option<Unavailable>> {
        seconds
            .map(|second| {
                let now = start + Duration::from_secs(second);
                doubt.learn(now, 0.5, &whose(second));
                doubt.verdict(now)
            })
            .collect()
    }

    #[test]
    fn an_mps_server_ends_the_division_and_its_end_brings_it_back() {
        let start = Instant::now();
        let mut doubt = Doubt::default();
        let verdicts = run(0..20, &mut doubt, start, |_| Whose::MpsServer);
        assert_eq!(verdicts[4], None);
        assert_eq!(verdicts[5], Some(Unavailable::MpsServer));
        let verdicts = run(20..100, &mut doubt, start, |_| Whose::Outside);
        // 10 % of the last minute is from before second 20 for as long as six slots of it are.
        let back = verdicts.iter().position(Option::is_none).unwrap();
        assert!((50..60).contains(&back), "{back}");
    }

    #[test]
    fn unreadable_processes_need_a_minute_and_a_fifth_of_the_use() {
        let start = Instant::now();
        let every = |nth: u64| {
            move |second: u64| if second.is_multiple_of(nth) { Whose::Unknown } else { Whose::Outside }
        };
        let mut doubt = Doubt::default();
        assert!(run(0..200, &mut doubt, start, every(6)).iter().all(Option::is_none));
        let mut doubt = Doubt::default();
        let verdicts = run(0..100, &mut doubt, start, every(4));
        assert!(verdicts[..60].iter().all(Option::is_none));
        assert_eq!(verdicts[60], Some(Unavailable::ProcessesUnreadable));
        // 15 % is neither enough to begin nor little enough to end it.
        let verdicts = run(100..300, &mut doubt, start, every(7));
        assert!(verdicts.iter().all(Option::is_some));
        assert_eq!(doubt.verdict(start + Duration::from_secs(1000)), Some(Unavailable::ProcessesUnreadable));
    }
}

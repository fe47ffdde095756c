//! Who is judged next: the rules, with the time passed in.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use podgauge_common::http::network::counted_as;

/// Requests of one address that may wait.
const WAITING: usize = 4;
/// Wrong passwords of an address after which it pauses between two judgements.
const FREE_FAILURES: u32 = 10;
/// The shortest pause.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause in judgements: an address that guesses gets a tenth of a core at most …
const PAUSE_OF_ADDRESS: u32 = 9;
/// … and all such addresses together a quarter.
const PAUSE_OF_ALL: u32 = 3;
/// Time after which an address's wrong passwords are forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Addresses that are distinguished; further ones count as one.
const ADDRESSES: usize = 1024;

/// A request's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    from: IpAddr,
    number: u64,
}

/// Requests that wait to be judged.
#[derive(Debug, Default)]
pub(super) struct Queue {
    askers: HashMap<IpAddr, Asker>,
    /// Addresses that wait, the next one first.
    order: VecDeque<IpAddr>,
    /// The request that is being judged.
    current: Option<Ticket>,
    numbers: u64,
    /// When an address that guesses may be judged again.
    guessers: Option<Instant>,
}

#[derive(Debug)]
struct Asker {
    waiting: VecDeque<u64>,
    /// Wrong passwords since the last right one.
    failures: u32,
    failed: Instant,
    /// End of its pause.
    next: Instant,
}

impl Queue {
    /// A place for one more request. `None`: its address has too many.
    pub(super) fn enter(&mut self, from: IpAddr, now: Instant) -> Option<Ticket> {
        let from = counted_as(&mut self.askers, ADDRESSES, from, |asker| {
            !asker.waiting.is_empty() || now.saturating_duration_since(asker.failed) < FORGET
        });
        let fresh = || Asker { waiting: VecDeque::new(), failures: 0, failed: now, next: now };
        let asker = self.askers.entry(from).or_insert_with(fresh);
        if now.saturating_duration_since(asker.failed) >= FORGET {
            asker.failures = 0;
        }
        if asker.waiting.len() >= WAITING {
            return None;
        }
        let ticket = Ticket { from, number: self.numbers };
        self.numbers += 1;
        asker.waiting.push_back(ticket.number);
        if !self.order.contains(&from) {
            self.order.push_back(from);
        }
        Some(ticket)
    }

    /// The request that is being judged.
    pub(super) fn current(&self) -> Option<Ticket> {
        self.current
    }

    /// … or, if there is none, that is judged from now on.
    pub(super) fn next(&mut self, now: Instant) -> Option<Ticket> {
        if self.current.is_some() {
            return self.current;
        }
        let ready = self.order.iter().position(|from| self.is_ready(*from, now))?;
        let from = self.order.remove(ready)?;
        let asker = self.askers.get_mut(&from)?;
        let number = asker.waiting.pop_front()?;
        if !asker.waiting.is_empty() {
            self.order.push_back(from);
        }
        self.current = Some(Ticket { from, number });
        self.current
    }

    /// The result of a judgement, and how long it took.
    pub(super) fn judged(&mut self, ticket: Ticket, right: bool, took: Duration, now: Instant) {
        let Some(asker) = self.askers.get_mut(&ticket.from) else { return };
        if right {
            asker.failures = 0;
            return;
        }
        asker.failures = asker.failures.saturating_add(1);
        asker.failed = now;
        if asker.failures >= FREE_FAILURES {
            asker.next = now + PAUSE.max(took * PAUSE_OF_ADDRESS);
            self.guessers = Some(now + took * PAUSE_OF_ALL);
        }
    }

    /// The request is judged, or waits no longer.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if self.current == Some(ticket) {
            self.current = None;
        }
        let Some(asker) = self.askers.get_mut(&ticket.from) else { return };
        asker.waiting.retain(|number| *number != ticket.number);
        if asker.waiting.is_empty() {
            self.order.retain(|from| *from != ticket.from);
            let asks = self.current.is_some_and(|current| current.from == ticket.from);
            if self.askers.get(&ticket.from).is_some_and(|asker| asker.failures == 0) && !asks {
                self.askers.remove(&ticket.from);
            }
        }
    }

    fn is_ready(&self, from: IpAddr, now: Instant) -> bool {
        self.askers.get(&from).is_some_and(|asker| {
            let pauses = asker.failures >= FREE_FAILURES;
            !pauses || (now >= asker.next && self.guessers.is_none_or(|guessers| now >= guessers))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn host(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// A wrong password, judged at once and in this time.
    fn fail(queue: &mut Queue, from: IpAddr, took: Duration, now: Instant) -> bool {
        let Some(ticket) = queue.enter(from, now) else { return false };
        let judged = queue.next(now) == Some(ticket);
        if judged {
            queue.judged(ticket, false, took, now);
        }
        queue.leave(ticket);
        judged
    }

    #[test]
    fn addresses_take_turns_whatever_one_of_them_asks() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let flood: Vec<Option<Ticket>> = (0..10).map(|_| queue.enter(host(1), now)).collect();
        assert_eq!(flood.iter().flatten().count(), WAITING);
        let other = queue.enter(host(2), now).unwrap();
        let first = queue.next(now).unwrap();
        assert_eq!((Some(first), queue.next(now)), (flood[0], Some(first)), "one at a time");
        queue.leave(first);
        assert_eq!(queue.next(now), Some(other));
        queue.leave(other);
        assert_eq!(queue.next(now), flood[1]);
        // A request that is gone before its turn is passed over.
        queue.leave(flood[2].unwrap());
        queue.leave(flood[1].unwrap());
        assert_eq!(queue.next(now), flood[3]);
    }

    #[test]
    fn after_ten_failures_an_address_is_judged_once_a_second() {
        let (mut queue, start, took) = (Queue::default(), Instant::now(), Duration::from_millis(10));
        let mut judged = |millis: u64| fail(&mut queue, host(1), took, start + Duration::from_millis(millis));
        assert_eq!((0..30).filter(|_| judged(0)).count(), 10);
        assert!(!judged(999) && judged(1000) && !judged(1001) && judged(2000));
        assert!(fail(&mut queue, host(2), took, start), "another address is not held up");
        let later = start + Duration::from_secs(700);
        assert!(
            fail(&mut queue, host(1), took, later) && fail(&mut queue, host(1), took, later),
            "forgotten"
        );
    }

    #[test]
    fn guessers_together_have_a_part_of_a_core() {
        let (mut queue, start, took) = (Queue::default(), Instant::now(), Duration::from_secs(1));
        for n in 0..20 {
            (0..10).for_each(|_| assert!(fail(&mut queue, host(n), took, start)));
        }
        let seconds = (0..500).map(|second| start + Duration::from_secs(second));
        let judged: usize =
            seconds.map(|now| (0..20).filter(|n| fail(&mut queue, host(*n), took, now)).count()).sum();
        assert!((100..=167).contains(&judged), "{judged} judgements of a second each in 500 s");
    }

    #[test]
    fn a_right_password_ends_the_pause() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        (0..10).for_each(|_| assert!(fail(&mut queue, host(1), Duration::ZERO, now)));
        let later = now + PAUSE;
        let ticket = queue.enter(host(1), later).unwrap();
        assert_eq!(queue.next(later), Some(ticket));
        queue.judged(ticket, true, Duration::ZERO, later);
        queue.leave(ticket);
        assert!(queue.askers.is_empty() && fail(&mut queue, host(1), Duration::ZERO, later));
    }

    #[test]
    fn addresses_without_end_are_told_apart_within_bounds() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for n in 0..3000u32 {
            fail(&mut queue, Ipv4Addr::from_bits(0x0a00_0000 + n).into(), Duration::ZERO, now);
        }
        assert!(queue.askers.len() <= ADDRESSES + 1);
        assert!(queue.order.is_empty() && queue.current.is_none());
    }
}

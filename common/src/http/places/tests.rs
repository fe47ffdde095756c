//! The rules of places, at made-up times.

use std::time::Duration;

use super::table::Entered;
use super::*;

const CAPACITY: Capacity = Capacity {
    connections: 40,
    reserved: 10,
    of_address: 20,
    requests: 4,
    unsent: 1000,
    keep_answered: false,
};

/// A table, and the connections of it that are open.
struct Open {
    table: Table,
    start: Instant,
    entered: Vec<Entered>,
}

impl Open {
    fn new(capacity: Capacity) -> Self {
        Self { table: Table::new(capacity), start: Instant::now(), entered: Vec::new() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    /// Opens a connection of 10.0.0.`host`, and gives its index.
    fn enter(&mut self, host: u8, millis: u64) -> usize {
        let entered = self.table.enter(IpAddr::from([10, 0, 0, host]), self.at(millis));
        self.entered.push(entered);
        self.entered.len() - 1
    }

    fn id(&self, index: usize) -> u64 {
        self.entered[index].id
    }

    fn is_open(&self, index: usize) -> bool {
        // The sender is dropped with the place.
        self.entered[index].open.has_changed().is_ok()
    }

    fn count_open(&self) -> usize {
        (0..self.entered.len()).filter(|index| self.is_open(*index)).count()
    }

    fn verify(&mut self, index: usize, millis: u64) {
        let (id, now) = (self.id(index), self.at(millis));
        self.table.verified(id, now);
    }
}

#[test]
fn an_address_with_many_connections_makes_room_first() {
    let mut open = Open::new(CAPACITY);
    let probe = open.enter(1, 0);
    let many: Vec<usize> = (0..29).map(|n| open.enter(2 + (n % 2), 1 + u64::from(n))).collect();
    assert_eq!(open.count_open(), 30);
    let newcomer = open.enter(9, 100);
    assert!(open.is_open(probe), "it is the oldest of all, and its address has one");
    assert!(open.is_open(newcomer));
    assert!(!open.is_open(many[0]) && open.count_open() == 30);
}

#[test]
fn of_addresses_with_few_connections_the_longest_without_an_answer_makes_room() {
    let mut open = Open::new(CAPACITY);
    let all: Vec<usize> = (0..30).map(|n| open.enter(n, u64::from(n))).collect();
    let (first, now) = (open.id(all[0]), open.at(50));
    open.table.answered(first, now);
    open.enter(99, 60);
    assert!(open.is_open(all[0]) && !open.is_open(all[1]));
}

#[test]
fn one_address_replaces_its_own_connections() {
    let mut open = Open::new(CAPACITY);
    let other = open.enter(1, 0);
    let all: Vec<usize> = (0..25).map(|n| open.enter(2, 1 + n)).collect();
    assert!(open.is_open(other));
    let left: Vec<bool> = all.iter().map(|index| open.is_open(*index)).collect();
    assert_eq!(left.iter().filter(|open| **open).count(), 20);
    assert!(!left[4] && left[5], "the oldest go");
}

#[test]
fn verified_connections_are_closed_for_nobody_else() {
    let mut open = Open::new(CAPACITY);
    let api_server = open.enter(1, 0);
    open.verify(api_server, 1);
    for n in 0..200u8 {
        open.enter(2 + n, 10 + u64::from(n));
    }
    assert!(open.is_open(api_server));
    assert_eq!(open.count_open(), 31);
    // One more of it is kept from its first moment, and the places of those that are not stay.
    let again = open.enter(1, 300);
    for n in 0..200u8 {
        open.enter(2 + n, 400 + u64::from(n));
    }
    assert!(open.is_open(again) && open.count_open() == 32);
}

#[test]
fn verified_connections_leave_places_to_the_others() {
    let mut open = Open::new(CAPACITY);
    for n in 0..60u8 {
        let index = open.enter(n, u64::from(n));
        open.verify(index, u64::from(n));
    }
    assert_eq!(open.count_open(), 30);
    let probes: Vec<usize> = (0..10).map(|n| open.enter(100 + n, 100 + u64::from(n))).collect();
    assert!(probes.iter().all(|index| open.is_open(*index)));
    assert_eq!(open.count_open(), 40);
    open.enter(200, 200);
    assert!(!open.is_open(probes[0]));
    assert_eq!(open.count_open(), 40);
}

#[test]
fn an_address_that_was_served_keeps_places_if_the_program_says_so() {
    for keep_answered in [true, false] {
        let mut open = Open::new(Capacity { keep_answered, ..CAPACITY });
        let scrape = open.enter(1, 0);
        let (id, now) = (open.id(scrape), open.at(1));
        open.table.answered(id, now);
        open.table.leave(id);
        let next = open.enter(1, 2);
        assert_eq!(open.table.is_kept(open.id(next)), keep_answered);
        for n in 0..100u8 {
            open.enter(2 + n, 10 + u64::from(n));
        }
        assert_eq!(open.is_open(next), keep_answered);
    }
}

#[test]
fn pressure_is_logged_once() {
    let mut open = Open::new(CAPACITY);
    let logged: Vec<String> = (0..100u8)
        .filter_map(|n| {
            let index = open.enter(n, u64::from(n));
            open.entered[index].pressure.clone()
        })
        .collect();
    assert_eq!(logged.len(), 1, "{logged:?}");
    let later = open.enter(1, 200_000);
    assert!(open.entered[later].pressure.is_some(), "again after a quiet while");
}

/// Begins requests of a connection, with an answer of 10 bytes each if they are answered.
fn ask(
    open: &mut Open,
    index: usize,
    requests: usize,
    answered: bool,
    millis: u64,
) -> Result<usize, Refused> {
    let (id, now) = (open.id(index), open.at(millis));
    let mut closed = 0;
    for _ in 0..requests {
        closed += open.table.begin(id, now)?;
        if answered {
            open.table.hold(id, 10, now).unwrap();
        }
    }
    Ok(closed)
}

#[test]
fn an_address_has_a_few_requests_whatever_others_have() {
    let mut open = Open::new(Capacity { requests: 20, ..CAPACITY });
    let (busy, other) = (open.enter(1, 0), open.enter(2, 0));
    assert_eq!(ask(&mut open, busy, 20, false, 0), Ok(0));
    assert_eq!(ask(&mut open, busy, 1, false, 0), Err(Refused));
    assert_eq!(ask(&mut open, other, 8, false, 0), Ok(0));
    assert_eq!(ask(&mut open, other, 1, false, 0), Err(Refused), "nothing of the other waits to be read");
    // Those with a verified certificate have as many of their own.
    open.verify(other, 0);
    assert_eq!(ask(&mut open, other, 12, false, 0), Ok(0));
    assert!(open.is_open(busy));
}

#[test]
fn requests_of_a_client_that_does_not_read_give_way() {
    let mut open = Open::new(Capacity { requests: 20, ..CAPACITY });
    let (deaf, other) = (open.enter(1, 0), open.enter(2, 0));
    assert_eq!(ask(&mut open, deaf, 20, true, 0), Ok(0));
    assert_eq!(ask(&mut open, deaf, 1, true, 60_000), Err(Refused), "no address has more than it");
    assert_eq!(ask(&mut open, other, 9, true, 60_000), Ok(1));
    assert!(!open.is_open(deaf));
    // A later end of the closed one changes nothing.
    open.table.end(open.entered[deaf].id, Some(10), open.start);
}

#[test]
fn a_verified_client_has_a_second_to_read() {
    let mut open = Open::new(Capacity { requests: 20, ..CAPACITY });
    let (slow, other) = (open.enter(1, 0), open.enter(2, 0));
    open.verify(slow, 0);
    open.verify(other, 0);
    assert_eq!(ask(&mut open, slow, 20, true, 0), Ok(0));
    assert_eq!(ask(&mut open, other, 8, true, 0), Ok(0));
    assert_eq!(ask(&mut open, other, 1, true, 999), Err(Refused));
    // One answer was read meanwhile: it has another second.
    open.table.end(open.entered[slow].id, Some(10), open.at(999));
    assert_eq!(ask(&mut open, other, 1, true, 1500), Err(Refused));
    assert_eq!(ask(&mut open, other, 1, true, 1999), Ok(1));
}

#[test]
fn bytes_that_are_not_read_are_bounded_and_give_way() {
    let mut open = Open::new(Capacity { requests: 100, ..CAPACITY });
    let (deaf, other, api_server) = (open.enter(1, 0), open.enter(2, 0), open.enter(3, 0));
    open.verify(api_server, 0);
    let hold = |open: &mut Open, index: usize, bytes, millis| {
        let (id, now) = (open.id(index), open.at(millis));
        open.table.begin(id, now).and_then(|_| open.table.hold(id, bytes, now))
    };
    assert_eq!(hold(&mut open, other, 300, 0), Ok(0));
    assert_eq!(hold(&mut open, deaf, 600, 0), Ok(0));
    assert_eq!(hold(&mut open, deaf, 200, 2000), Err(Refused), "it has more than all others");
    assert_eq!(hold(&mut open, other, 1001, 2000), Err(Refused), "more than there is at all");
    assert!(open.is_open(deaf));
    assert_eq!(hold(&mut open, other, 200, 2000), Ok(1));
    assert!(!open.is_open(deaf));
    assert_eq!(hold(&mut open, api_server, 800, 4000), Ok(1));
    assert!(!open.is_open(other) && open.is_open(api_server), "{:?}", open.table);
}

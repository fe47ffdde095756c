//! The whole way from records to shares, against services of which all is known.

use std::time::{Duration, Instant};

use super::fit::Fit;
use super::records::{Kind, Record};
use super::residency::Residency;
use super::{Records, Slot};

const MS: u64 = 1_000_000;
const SLOT: u64 = 200 * MS;
/// The driver's time slice on an H100, ns, and its switch: saving one context, and restoring another.
const SLICE: u64 = 2_170_000;
const SAVING: u64 = 24_000;
const RESTORING: u64 = 60_000;
/// 2026, in ns since 1970.
const BEGIN: u64 = 1_790_000_000 * 1000 * MS;

#[derive(Debug, Clone, Copy)]
enum Arrival {
    Poisson,
    Metronome,
    /// The next request begins with the end of the one before.
    Saturated,
}

#[derive(Debug, Clone, Copy)]
struct Service {
    request_ms: f64,
    /// Percent of the GPU.
    load: f64,
    arrival: Arrival,
}

/// Numbers without order, the same in every run.
struct Chance(u64);

impl Chance {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn interval(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.next()).ln()
    }
}

/// Services that share a GPU as the driver lets them: the one that is there stays until another one has work, and
/// for a time slice while it has work itself.
struct Gpu {
    services: Vec<Service>,
    chance: Chance,
    now: u64,
    /// When each one's next request comes, and the work that it has, ns.
    next: Vec<f64>,
    work: Vec<u64>,
    here: Option<usize>,
    slice_left: u64,
    records: Vec<Record>,
    /// Service, from and to: its work, and the switches to it.
    busy: Vec<(usize, u64, u64)>,
}

impl Gpu {
    fn new(services: Vec<Service>, seed: u64) -> Self {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let first = |service: &Service| match service.arrival {
            Arrival::Saturated => f64::INFINITY,
            Arrival::Poisson | Arrival::Metronome => BEGIN as f64 + chance.next() * 20e6,
        };
        let next = services.iter().map(first).collect();
        let work = vec![0; services.len()];
        Self {
            services,
            chance,
            now: BEGIN,
            next,
            work,
            here: None,
            slice_left: 0,
            records: Vec::new(),
            busy: Vec::new(),
        }
    }

    fn pid(service: usize) -> u32 {
        1000 + service as u32
    }

    fn arrive(&mut self) {
        for (at, service) in self.services.iter().enumerate() {
            let length = service.request_ms * 1e6;
            let mean = length / service.load * 100.0;
            match service.arrival {
                Arrival::Saturated if self.work[at] == 0 => self.work[at] = length as u64,
                Arrival::Saturated => {}
                Arrival::Poisson | Arrival::Metronome => {
                    while self.next[at] <= self.now as f64 {
                        self.work[at] += length as u64;
                        self.next[at] += match service.arrival {
                            Arrival::Poisson => self.chance.interval(mean),
                            // A clock of a host is late by some µs.
                            _ => mean * (1.0 + 0.01 * (self.chance.next() - 0.5)),
                        };
                    }
                }
            }
        }
    }

    /// Runs until a time.
    fn run(&mut self, until: u64) {
        while self.now < until {
            self.arrive();
            let count = self.services.len();
            let after = self.here.map_or(0, |here| here + 1);
            let other = (after..after + count)
                .map(|at| at % count)
                .find(|at| Some(*at) != self.here && self.work[*at] > 0);
            let stays = self.here.is_some_and(|here| self.work[here] > 0 && self.slice_left > 0);
            if let Some(other) = other.filter(|_| !stays) {
                self.switch(other);
                continue;
            }
            let soonest = self.next.iter().copied().fold(until as f64, f64::min).ceil() as u64;
            match self.here {
                Some(here) if self.work[here] > 0 => {
                    if self.slice_left == 0 {
                        self.slice_left = SLICE;
                    }
                    let time =
                        self.work[here].min(self.slice_left).min(soonest.saturating_sub(self.now).max(1));
                    self.busy.push((here, self.now, self.now + time));
                    self.work[here] -= time;
                    self.slice_left -= time;
                    self.now += time;
                }
                _ => self.now = soonest.max(self.now + 1),
            }
        }
    }

    fn switch(&mut self, to: usize) {
        if let Some(here) = self.here {
            self.busy.push((here, self.now, self.now + SAVING));
            self.now += SAVING;
            self.records.push(Record { at_ns: self.now, kind: Kind::End { pid: Self::pid(here) } });
        }
        self.busy.push((to, self.now, self.now + RESTORING));
        self.now += RESTORING;
        self.records.push(Record { at_ns: self.now, kind: Kind::Start { pid: Self::pid(to) } });
        self.here = Some(to);
        self.slice_left = SLICE;
    }
}

/// What each service had, and what the trace says, percent of the time from the 15th second on.
fn shares(services: &[Service], seconds: u64, seed: u64) -> Vec<(f64, f64)> {
    let mut gpu = Gpu::new(services.to_vec(), seed);
    let (mut residency, mut fit) = (Residency::default(), Fit::default());
    let mut shares = vec![(0.0, 0.0); services.len()];
    let (mut taken, mut counted) = (0, 0);
    for slot in 0..seconds * 5 {
        let (begin, end) = (BEGIN + slot * SLOT, BEGIN + (slot + 1) * SLOT);
        gpu.run(end + 10 * MS);
        for record in &gpu.records[taken..] {
            residency.take(*record);
        }
        taken = gpu.records.len();
        if slot.is_multiple_of(5) {
            residency.learn();
        }
        let mut busy = vec![0.0; services.len()];
        gpu.busy.retain(|(_, _, to)| *to > begin);
        for (service, from, to) in &gpu.busy {
            busy[*service] += (*to).min(end).saturating_sub((*from).max(begin)) as f64 / 1e9;
        }
        // The driver tells whole percents.
        let active = (busy.iter().sum::<f64>() / 0.2 * 100.0).round() / 100.0 * 0.2;
        let Some(residents) = residency.of_slot(begin, end) else { continue };
        residency.forget_before(begin);
        fit.add(end, active, &residents);
        if slot % 25 == 24 {
            assert!(fit.solve());
        }
        if slot < 75 {
            continue;
        }
        counted += 1;
        let used = |pid: u32| {
            let of = residents.iter().find(|resident| resident.pid == pid);
            of.map_or(0.0, |of| fit.work_s(pid, &of.ages) + of.busy_s + of.switching_s)
        };
        let sum: f64 = residents.iter().map(|resident| used(resident.pid)).sum();
        for (at, share) in shares.iter_mut().enumerate() {
            share.0 += busy[at];
            share.1 += if sum > 0.0 { used(Gpu::pid(at)) / sum * active } else { 0.0 };
        }
    }
    let percent = |seconds: f64| seconds / (f64::from(counted) * 0.2) * 100.0;
    shares.into_iter().map(|(truth, said)| (percent(truth), percent(said))).collect()
}

const fn service(request_ms: f64, load: f64, arrival: Arrival) -> Service {
    Service { request_ms, load, arrival }
}

#[track_caller]
fn are_near(services: &[Service], points: f64) {
    let shares = shares(services, 60, 7);
    let off = |(truth, said): &(f64, f64)| (truth - said).abs() > points;
    assert!(!shares.iter().any(off), "true and said: {shares:.1?}");
}

const LONG: f64 = 5.1;
const SHORT: f64 = 0.44;

#[test]
fn requests_of_unlike_length_are_told_apart() {
    are_near(&[service(LONG, 40.0, Arrival::Poisson), service(SHORT, 20.0, Arrival::Poisson)], 3.0);
    are_near(
        &[
            service(LONG, 25.0, Arrival::Poisson),
            service(SHORT, 15.0, Arrival::Poisson),
            service(LONG, 10.0, Arrival::Poisson),
        ],
        3.0,
    );
}

#[test]
fn a_service_beside_a_saturated_one_has_its_share() {
    are_near(&[service(LONG, 100.0, Arrival::Saturated), service(SHORT, 20.0, Arrival::Poisson)], 2.0);
}

#[test]
fn services_like_clockwork_are_told_apart_by_the_time_slice() {
    are_near(&[service(LONG, 40.0, Arrival::Metronome), service(SHORT, 20.0, Arrival::Metronome)], 3.0);
}

#[test]
fn no_share_is_biased_over_random_services() {
    let mut chance = Chance(0x5851_f42d_4c95_7f2d);
    let (mut of_short, mut of_long, mut worst) = (Vec::new(), Vec::new(), 0.0f64);
    for seed in 0..24 {
        let count = 2 + (chance.next() * 4.0) as usize;
        let services: Vec<Service> = (0..count)
            .map(|_| {
                let request_ms = 0.3 * (chance.next() * 3.5).exp();
                service(request_ms, (5.0 + 60.0 * chance.next()) / count as f64, Arrival::Poisson)
            })
            .collect();
        let shares = shares(&services, 45, seed + 100);
        let longest = services.iter().map(|service| service.request_ms).fold(0.0, f64::max);
        for (service, (truth, said)) in services.iter().zip(shares) {
            worst = worst.max((said - truth).abs());
            let errors = if service.request_ms < longest { &mut of_short } else { &mut of_long };
            errors.push(said - truth);
        }
    }
    for errors in [&of_short, &of_long] {
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(mean.abs() <= 1.0, "{mean:.2} of {errors:.1?}");
    }
    assert!(worst <= 4.0, "{worst}");
}

#[test]
fn a_loss_is_a_gap_and_what_follows_counts_again() {
    let mut residency = Residency::default();
    let at = |ms: u64, kind| Record { at_ns: BEGIN + ms * MS, kind };
    let (start, end) = (|pid| Kind::Start { pid }, |pid| Kind::End { pid });
    for record in [at(0, end(1)), at(1, start(2)), at(300, end(2)), at(301, start(1))] {
        residency.take(record);
    }
    assert_eq!(residency.of_slot(BEGIN - SLOT, BEGIN), None, "who was there before the first record");
    let residents = residency.of_slot(BEGIN, BEGIN + SLOT).unwrap();
    assert_eq!(residents.len(), 1);
    assert_eq!((residents[0].pid, residents[0].switching_s), (2, 0.001));
    assert!((residents[0].ages.iter().sum::<f64>() - 0.199).abs() < 1e-9);
    residency.take(at(350, Kind::Lost { records: 3 }));
    residency.take(at(350, end(2)));
    assert_eq!(residency.of_slot(BEGIN + SLOT, BEGIN + 2 * SLOT), None);
    residency.take(at(351, start(1)));
    assert!(residency.of_slot(BEGIN + 2 * SLOT, BEGIN + 3 * SLOT).is_some_and(|all| all[0].pid == 1));
    // Two at once contradict each other.
    residency.take(at(700, start(3)));
    assert_eq!(residency.of_slot(BEGIN + 3 * SLOT, BEGIN + 4 * SLOT), None);
}

#[test]
fn a_slot_of_before_the_clock_was_set_back_waits_for_no_records() {
    let drained_ns = BEGIN + 3600 * 1000 * MS;
    let of = |end_ns: u64| {
        let length = Duration::from_millis(200);
        let timestamp_us = Some(end_ns / 1000);
        let slot = Slot { end: Instant::now(), length, percent: 0.0, timestamp_us, history: false };
        Records::of(&slot, drained_ns)
    };
    assert_eq!(of(drained_ns - 151 * MS), Records::Complete);
    assert_eq!(of(drained_ns - 149 * MS), Records::ToCome);
    assert_eq!(of(drained_ns + 900 * MS), Records::ToCome);
    assert_eq!(of(drained_ns + 3600 * 1000 * MS), Records::OfAnotherTime);
}

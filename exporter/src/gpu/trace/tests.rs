//! The whole way from records to shares, against services of which all is known.

use std::time::{Duration, Instant};

use podgauge_sim_nvml::switching::{Arrival, Chance, Requests, Switch, TimeSliced};

use super::Parts;
use super::bound::{LATE, MOST_RESIDUAL, is_complete};
use super::fit::Fit;
use super::records::{Kind, Record};
use super::residency::{Residency, Resident};
use crate::gpu::Slot;

const MS: u64 = 1_000_000;
const SLOT: u64 = 200 * MS;
/// 2026, in ns since 1970.
const BEGIN: u64 = 1_790_000_000 * 1000 * MS;

fn pid(service: usize) -> u32 {
    1000 + service as u32
}

fn record(switch: Switch) -> Record {
    let Switch { at_ns, pid, starts } = switch;
    Record { at_ns, kind: if starts { Kind::Start { pid } } else { Kind::End { pid } } }
}

/// A process that is not named has none.
fn part_of(parts: &Parts, pid: u32) -> f64 {
    parts.iter().find(|(of, _)| *of == pid).map_or(0.0, |(_, part)| *part)
}

/// What each service had, and what the trace says, percent of the time from the 15th second on.
fn shares(services: &[Requests], seconds: u64, seed: u64) -> Vec<(f64, f64)> {
    let by_pid = services.iter().enumerate().map(|(at, requests)| (pid(at), *requests)).collect();
    let mut gpu = TimeSliced::new(by_pid, seed, BEGIN);
    let (mut residency, mut fit) = (Residency::default(), Fit::default());
    let mut shares = vec![(0.0, 0.0); services.len()];
    let (mut taken, mut counted) = (0, 0);
    for slot in 0..seconds * 5 {
        let (begin, end) = (BEGIN + slot * SLOT, BEGIN + (slot + 1) * SLOT);
        gpu.run(end + 10 * MS);
        for switch in &gpu.switches[taken..] {
            residency.take(record(*switch));
        }
        taken = gpu.switches.len();
        if slot.is_multiple_of(5) {
            residency.learn();
        }
        let mut busy = vec![0.0; services.len()];
        gpu.busy.retain(|work| work.to_ns > begin);
        for work in &gpu.busy {
            let time_ns = work.to_ns.min(end).saturating_sub(work.from_ns.max(begin));
            busy[(work.pid - pid(0)) as usize] += time_ns as f64 / 1e9;
        }
        // The driver tells whole percents.
        let active = (busy.iter().sum::<f64>() / 0.2 * 100.0).round() / 100.0 * 0.2;
        let Some(residents) = residency.of_slot(begin, end) else { continue };
        residency.forget_before(begin);
        fit.add(end, 0.2, active, &residents);
        if slot % 25 == 24 {
            fit.solve();
        }
        if slot < 75 {
            continue;
        }
        counted += 1;
        let parts = fit.parts(&residents).unwrap_or_default();
        for (at, share) in shares.iter_mut().enumerate() {
            share.0 += busy[at];
            share.1 += part_of(&parts, pid(at)) * active;
        }
    }
    let percent = |seconds: f64| seconds / (f64::from(counted) * 0.2) * 100.0;
    shares.into_iter().map(|(truth, said)| (percent(truth), percent(said))).collect()
}

const fn service(ms: f64, percent: f64, arrival: Arrival) -> Requests {
    Requests { ms, percent, arrival }
}

#[track_caller]
fn are_near(services: &[Requests], points: f64) {
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
    let mut chance = Chance::new(0x5851_f42d_4c95_7f2d);
    let (mut of_short, mut of_long, mut worst) = (Vec::new(), Vec::new(), 0.0f64);
    for seed in 0..24 {
        let count = 2 + (chance.part() * 4.0) as usize;
        let services: Vec<Requests> = (0..count)
            .map(|_| {
                let ms = 0.3 * (chance.part() * 3.5).exp();
                service(ms, (5.0 + 60.0 * chance.part()) / count as f64, Arrival::Poisson)
            })
            .collect();
        let shares = shares(&services, 45, seed + 100);
        let longest = services.iter().map(|service| service.ms).fold(0.0, f64::max);
        for (service, (truth, said)) in services.iter().zip(shares) {
            worst = worst.max((said - truth).abs());
            let errors = if service.ms < longest { &mut of_short } else { &mut of_long };
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

/// A driver that is late hands out the records of a slot after others of a later tick.
#[test]
fn a_slot_waits_for_a_record_that_came_after_it() {
    let length = Duration::from_millis(200);
    let slot =
        |timestamp_us| Slot { end: Instant::now(), length, percent: 50.0, timestamp_us, history: false };
    let of = |waited_ms, newest_ns| {
        is_complete(&slot(Some(BEGIN / 1000)), Duration::from_millis(waited_ms), newest_ns)
    };
    assert!(of(0, BEGIN));
    assert!(!of(0, BEGIN - MS) && !of(1249, BEGIN - MS));
    assert!(of(1250, BEGIN - MS), "on an idle GPU no record comes");
    assert!(of(1250, BEGIN - 3600 * 1000 * MS), "whatever clocks say");
    assert!(is_complete(&slot(None), Duration::ZERO, 0), "a reading of the rates has no time");
}

/// One that was cut off and ended then does not wait for ever.
#[test]
fn a_process_that_was_killed_while_it_waited_makes_nobody_busy() {
    let services = [service(LONG, 100.0, Arrival::Saturated), service(SHORT, 20.0, Arrival::Poisson)];
    let by_pid = services.iter().enumerate().map(|(at, requests)| (pid(at), *requests)).collect();
    let mut gpu = TimeSliced::new(by_pid, 3, BEGIN);
    gpu.run(BEGIN + 20_000 * MS);
    let mut residency = Residency::default();
    let mut last = BEGIN;
    for (count, switch) in gpu.switches.iter().enumerate() {
        residency.take(record(*switch));
        if count % 500 == 0 {
            residency.learn();
        }
        last = switch.at_ns;
        // It has just been cut off.
        if switch.at_ns > BEGIN + 19_000 * MS && switch.pid == pid(0) && !switch.starts {
            break;
        }
    }
    // Two others take turns from now on, with idle time of their own.
    for turn in 0..100 {
        let at = last + (turn * 10 + 1) * MS;
        let other = pid(1 + turn as usize % 2);
        residency.take(Record { at_ns: at, kind: Kind::Start { pid: other } });
        residency.take(Record { at_ns: at + 9 * MS, kind: Kind::End { pid: other } });
    }
    let residents = residency.of_slot(last + 500 * MS, last + 700 * MS).unwrap();
    assert!(residents.iter().all(|resident| resident.busy_s <= 0.0), "{residents:?}");
}

/// A tenant with a process for each job has many.
#[test]
fn many_processes_are_fitted_together_and_new_ones_work_as_the_others() {
    let mut fit = Fit::default();
    let ages = |seconds: f64| [seconds, seconds, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    for slot in 0..200u64 {
        let of = |pid, seconds| Resident { pid, ages: ages(seconds), busy_s: 0.0, switching_s: 0.0 };
        let (here, passing) = (0.02 + 0.01 * (slot % 5) as f64, 0.01 + 0.01 * (slot % 3) as f64);
        let residents = vec![of(1, here), of(100 + slot as u32, passing)];
        // Both are busy in their first age, and idle after it.
        fit.add(BEGIN + slot * SLOT, 0.2, here + passing, &residents);
    }
    fit.solve();
    for pid in [1, 150, 5000] {
        let worked = fit.work_s(pid, &ages(0.01));
        assert!((worked - 0.01).abs() < 0.002, "{pid}: {worked}");
    }
    assert!(fit.residual().is_some_and(|residual| residual < 0.01), "{:?}", fit.residual());
    // The clock is set back: nothing of before counts.
    fit.add(BEGIN, 0.2, 0.1, &vec![]);
    assert_eq!(fit.slots(), 1);
}

/// A recording of a real GPU, from tests/data.
struct Recording {
    records: Vec<Record>,
    /// When each ended, ns, and for which part of it the device was in use.
    slots: Vec<(u64, f64)>,
    judged_from_ns: u64,
    /// Percent of the time from then on, by pid.
    occupied: Vec<(u32, f64)>,
}

impl Recording {
    fn read() -> Self {
        let json: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/data/h100-switches.json")).unwrap();
        let numbers = |name: &str| -> Vec<Vec<u64>> {
            let lists = json[name].as_array().unwrap().iter();
            lists.map(|list| list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()).collect()
        };
        let mut at_ns = json["begin_ns"].as_u64().unwrap();
        let mut record = |numbers: Vec<u64>| {
            at_ns += numbers[0];
            let pid = numbers[1] as u32;
            Record { at_ns, kind: if numbers[2] == 0 { Kind::Start { pid } } else { Kind::End { pid } } }
        };
        Self {
            records: numbers("records").into_iter().map(&mut record).collect(),
            slots: numbers("slots").iter().map(|slot| (slot[0] * 1000, slot[1] as f64 / 100.0)).collect(),
            judged_from_ns: json["judged_from_us"].as_u64().unwrap() * 1000,
            occupied: json["occupied_percent"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(pid, percent)| (pid.parse().unwrap(), percent.as_f64().unwrap()))
                .collect(),
        }
    }
}

/// Between the two services that end and the three that begin nobody was on the GPU for 4 s.
#[test]
fn services_that_come_after_others_have_what_they_used_on_a_recorded_gpu() {
    let recording = Recording::read();
    let mut records = recording.records.iter().peekable();
    let (mut residency, mut fit) = (Residency::default(), Fit::default());
    let mut seconds = vec![0.0; recording.occupied.len()];
    let mut judged_s = 0.0;
    for (at, pair) in recording.slots.windows(2).enumerate() {
        let (begin, (end, active)) = (pair[0].0, pair[1]);
        // A slot waits for a record after it.
        while residency.newest_ns() < end
            && let Some(record) = records.next_if(|record| record.at_ns < end + LATE.as_nanos() as u64)
        {
            residency.take(*record);
        }
        let Some(residents) = residency.of_slot(begin, end).filter(|residents| !residents.is_empty()) else {
            continue;
        };
        let length_s = (end - begin) as f64 / 1e9;
        fit.add(end, length_s, active * length_s, &residents);
        if at % 5 == 0 {
            residency.learn();
        }
        if at % 25 == 24 && fit.slots() >= 50 {
            fit.solve();
            assert!(fit.residual().unwrap() <= MOST_RESIDUAL, "slot {at}: {:?}", fit.residual());
        }
        if end >= recording.judged_from_ns {
            judged_s += length_s;
            let parts = fit.parts(&residents).unwrap_or_default();
            for ((pid, _), seconds) in recording.occupied.iter().zip(&mut seconds) {
                *seconds += part_of(&parts, *pid) * active * length_s;
            }
        }
    }
    assert!(judged_s > 12.0, "{judged_s}");
    let shares: Vec<f64> = seconds.iter().map(|seconds| seconds / judged_s * 100.0).collect();
    for ((pid, truth), share) in recording.occupied.iter().zip(&shares) {
        assert!((share - truth).abs() <= 2.0, "{pid}: {truth} true, {shares:.1?}");
    }
}

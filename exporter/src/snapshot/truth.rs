//! Shares of shared GPUs against the truth: a thousand random nodes whose process samples come late,
//! get lost or come without a ring, and whose exporter restarts. No answer is biased.

use std::collections::BTreeMap;

use podgauge_common::exposition::write::Value;

use super::*;
use crate::attribution::allocations::{Allocations, ReplicaCounts, Watchers};
use crate::attribution::kubelet::api::{ContainerDevices, ContainerResources, PodResources};
use crate::attribution::processes::{Holder, Processes};
use crate::gpu::sample_match::{Row, SampleMatch};

const UUID: &str = "GPU-1";
const SLOT: Duration = Duration::from_millis(200);
const SLOT_US: u64 = 200_000;
const SECONDS: u64 = 120;
const LEDGER: Windows = Windows { utilization: Duration::from_secs(15), recent: Duration::from_secs(60) };

/// A fault that keeps the exporter from seeing every sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Nothing,
    /// Questions come late, at random.
    Late,
    /// No question in a part of each second, as without CPU.
    Starved,
    /// Rows are lacking in answers, at random.
    Lost,
    /// The ring is silent for a while: readings take the place of slots.
    NoRing,
    /// The exporter starts again in the middle.
    Restart,
    /// Containers become known late.
    LateNames,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::Nothing,
    Trouble::Late,
    Trouble::Starved,
    Trouble::Lost,
    Trouble::NoRing,
    Trouble::Restart,
    Trouble::LateNames,
];

/// A generator of numbers (splitmix64): the same nodes in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.part()
    }
}

/// An owner's load: on for a part of each period.
struct Load {
    percent: f64,
    period_s: f64,
    duty: f64,
    phase: f64,
}

impl Load {
    fn at(&self, second: f64) -> f64 {
        let into = (second / self.period_s + self.phase).fract();
        if into < self.duty { self.percent } else { 0.0 }
    }
}

/// A slot of the driver's ring: whom the driver names, and the device's percent.
#[derive(Clone, Copy)]
struct Truth {
    end_us: u64,
    percent: u32,
    owner: Option<usize>,
}

/// The ring of two minutes: each slot names the owner that is owed most.
fn ring(numbers: &mut Numbers, owners: usize) -> Vec<Truth> {
    let loads: Vec<Load> = (0..owners)
        .map(|_| Load {
            percent: numbers.between(0.0, 100.0 / owners as f64),
            period_s: numbers.between(0.4, 8.0),
            duty: numbers.between(0.2, 1.0),
            phase: numbers.part(),
        })
        .collect();
    let mut owed = vec![0.0; owners];
    (1..=SECONDS * 5)
        .map(|number| {
            let now: Vec<f64> = loads.iter().map(|load| load.at(number as f64 * 0.2)).collect();
            let percent = now.iter().sum::<f64>().round() as u32;
            owed.iter_mut().zip(&now).for_each(|(owed, now)| *owed += now);
            let most = (0..owners).max_by(|a, b| owed[*a].total_cmp(&owed[*b]));
            let owner = most.filter(|_| percent > 0);
            if let Some(owner) = owner {
                owed[owner] -= f64::from(percent);
            }
            Truth { end_us: number * SLOT_US, percent, owner }
        })
        .collect()
}

fn owner(number: usize, named: bool) -> Arc<Owner> {
    let container = if named { "main" } else { "" };
    Arc::new(Owner { namespace: "ml".into(), pod: format!("p{number}"), container: container.into() })
}

fn whose(number: usize, named: bool) -> Whose {
    Whose::Pod { owner: owner(number, named), uid: format!("uid-{number}").into() }
}

/// One replica for each owner.
fn knowledge(owners: usize) -> Knowledge {
    let pods: Vec<PodResources> = (0..owners)
        .map(|number| PodResources {
            name: format!("p{number}"),
            namespace: "ml".into(),
            containers: vec![ContainerResources {
                name: "main".into(),
                devices: vec![ContainerDevices {
                    resource_name: "nvidia.com/gpu".into(),
                    device_ids: vec![format!("{UUID}::{number}")],
                }],
                ..ContainerResources::default()
            }],
        })
        .collect();
    let list = Allocations::from_list(&pods, &Watchers::default(), None);
    Knowledge::Known(Arc::new(list.completed(&ReplicaCounts::default(), |_, _| None)))
}

fn readings(
    slots: Vec<(Slot, Credit)>,
    loose_samples: Vec<crate::gpu::LooseSample>,
    owners: usize,
    named: bool,
    now: Instant,
) -> Readings {
    let holders = (0..owners).map(|number| Holder { whose: whose(number, named), live: true }).collect();
    let reading = DeviceReading {
        unmeasured: None,
        sharing: None,
        identity: Arc::new(Identity::of_test(UUID)),
        lost: None,
        values: Vec::<Option<Value>>::new(),
        texts: Arc::new([]),
        events: EventCounts::default(),
        nvlink_bytes: None,
        gpu_slots: slots,
        loose_samples,
        memory_slots: Vec::new(),
        processes: Processes { holders, memory: Some(Vec::new()), ..Processes::default() },
    };
    Readings { generation: 0, taken_at: now, devices: vec![reading] }
}

/// The slots that ended after one moment and not after another.
fn within(ring: &[Truth], after_us: u64, until_us: u64) -> &[Truth] {
    let first = ring.partition_point(|slot| slot.end_us <= after_us);
    &ring[first..ring.partition_point(|slot| slot.end_us <= until_us)]
}

/// The questions of one second, µs into it.
fn questions(trouble: Trouble, numbers: &mut Numbers, severity: f64) -> Vec<u64> {
    let starved_us = (severity * 600_000.0) as u64;
    (0..5)
        .map(|slot| slot * SLOT_US + SLOT_US / 2)
        .filter(|at| match trouble {
            Trouble::Late => numbers.part() >= severity * 0.6,
            Trouble::Starved => *at >= starved_us,
            _ => true,
        })
        .collect()
}

/// Two minutes of one node. Percent that the counters say of each owner, and that is true of it; none
/// if the counters stood still.
fn run(trouble: Trouble, seed: u64) -> Vec<(f64, f64)> {
    let mut numbers = Numbers(seed);
    let owners = 2 + (numbers.next() % 3) as usize;
    let severity = numbers.part();
    let ring = ring(&mut numbers, owners);
    let knowledge = knowledge(owners);
    let start = Instant::now() + Duration::from_secs(100);
    let at = |us: u64| start + Duration::from_micros(us);
    let mut node = Node::new(LEDGER);
    let mut samples = SampleMatch::new(0);
    let mut asked_us = 0;
    let mut held: Option<Truth> = None;
    let mut counted = vec![(0.0, 0.0); owners];
    let mut before: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for second in 0..SECONDS {
        let (from_us, now_us) = (second * 1_000_000, (second + 1) * 1_000_000);
        let named = trouble != Trouble::LateNames || second > SECONDS / 3;
        let is_silent = trouble == Trouble::NoRing && (30..90).contains(&second);
        for question in questions(trouble, &mut numbers, severity) {
            let question_us = from_us + question;
            let is_late = question_us - asked_us > 280_000;
            asked_us = question_us;
            let mut newest: BTreeMap<usize, Truth> = BTreeMap::new();
            let seen_us = samples.last_seen_us();
            for slot in within(&ring, seen_us, question_us) {
                if let Some(owner) = slot.owner {
                    newest.insert(owner, *slot);
                }
            }
            let is_lost = |numbers: &mut Numbers| trouble == Trouble::Lost && numbers.part() < severity * 0.5;
            let rows: Vec<Row> = newest
                .into_iter()
                .filter(|_| !is_lost(&mut numbers))
                .map(|(owner, slot)| Row {
                    end_us: slot.end_us,
                    percent: slot.percent,
                    whose: whose(owner, named),
                })
                .collect();
            samples.take(rows, is_late);
        }
        let new = within(&ring, from_us, now_us).iter().copied();
        let mut new: Vec<Truth> = held.take().into_iter().chain(new).collect();
        held = if is_silent { None } else { new.pop() };
        let slots = new
            .iter()
            .map(|truth| {
                let slot = Slot {
                    end: at(truth.end_us),
                    timestamp_us: (!is_silent).then_some(truth.end_us),
                    length: SLOT,
                    percent: f64::from(truth.percent),
                    history: false,
                };
                (slot, samples.credit(&slot))
            })
            .collect();
        let now = at(now_us);
        let loose = if is_silent { samples.take_loose(SLOT, now) } else { Vec::new() };
        samples.forget(now_us);
        if trouble == Trouble::Restart && second == SECONDS / 2 {
            node = Node::new(LEDGER);
            before.clear();
        }
        node.learn(readings(slots, loose, owners, named, now), &knowledge, now);
        let snapshot = node.snapshot(&knowledge, now);
        for (owner, balance) in &snapshot.devices[0].accounts {
            let Some(number) = owner.as_ref().and_then(|owner| owner.pod[1..].parse::<usize>().ok()) else {
                continue;
            };
            let total = (balance.total.active_s, balance.total.observed_s);
            let was = before.insert(number, total).unwrap_or_default();
            assert!(balance.recent.is_none_or(|recent| {
                recent.observed_s <= 61.0 && recent.active_s <= recent.observed_s + 1e-3
            }));
            counted[number].0 += total.0 - was.0;
            counted[number].1 += total.1 - was.1;
        }
    }
    let truth = |number: usize| {
        let used = ring.iter().filter(|slot| slot.owner == Some(number)).map(|slot| f64::from(slot.percent));
        used.sum::<f64>() / ring.len() as f64
    };
    // Half a minute is too short for the truth of two.
    let known = counted.iter().enumerate().filter(|(_, (_, observed))| *observed >= 60.0);
    known.map(|(number, (active, observed))| (active / observed * 100.0, truth(number))).collect()
}

/// Mean of the errors, the largest one, and the number of answers.
fn errors(answers: &[(f64, f64)]) -> (f64, f64, usize) {
    let errors: Vec<f64> = answers.iter().map(|(said, truth)| said - truth).collect();
    let largest = errors.iter().map(|error| error.abs()).fold(0.0, f64::max);
    (errors.iter().sum::<f64>() / errors.len().max(1) as f64, largest, errors.len())
}

#[test]
fn shares_of_a_thousand_nodes_are_unbiased_whatever_samples_are_lacking() {
    let nodes = 1000usize.div_ceil(TROUBLES.len());
    let play = |number: usize| {
        let seeds = (0..nodes).map(move |node| (number * 1000 + node) as u64);
        seeds.flat_map(|seed| run(TROUBLES[number], seed)).collect::<Vec<_>>()
    };
    // Every core takes its part: it is a lot of arithmetic.
    let played = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..TROUBLES.len()).map(|number| scope.spawn(move || play(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = Vec::new();
    for (trouble, answers) in TROUBLES.into_iter().zip(played) {
        let (mean, largest, count) = errors(&answers);
        println!("{trouble:?}: {count} answers, mean error {mean:.3}, largest {largest:.2}");
        assert!(mean.abs() < 0.5, "{trouble:?}: {mean} points on average");
        // In most troubles most nodes go on answering.
        assert!(count >= nodes, "{trouble:?}: {count} answers of {nodes} nodes");
        let worst = if trouble == Trouble::Lost { 6.0 } else { 3.0 };
        assert!(largest < worst, "{trouble:?}: {largest} points off");
        all.extend(answers);
    }
    let (mean, ..) = errors(&all);
    assert!(mean.abs() < 0.2, "{mean}");
}

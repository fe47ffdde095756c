//! Owns how processes take turns on a time-sliced GPU: which is on the engine when, and when it works there.
//! A function of the services and the clock alone, so that whoever asks agrees on it: NVML's slots, the
//! driver's trace and a test's truth.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::model::mix;

/// The driver's time slice on an H100, ns, and its switch: saving one context, and restoring another.
pub const SLICE_NS: u64 = 2_170_000;
const SAVING_NS: u64 = 24_000;
const RESTORING_NS: u64 = 60_000;
/// Every block of the clock begins with nobody on the engine, so that any time can be asked for at once.
const BLOCK_NS: u64 = 10_000_000_000;
/// Blocks that are remembered.
const REMEMBERED: usize = 16;

/// A process that answers requests on a GPU which it shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// Length of a request alone on the GPU, ms.
    pub ms: f64,
    /// Of the GPU's time, without the switches to it.
    pub percent: f64,
    #[serde(default)]
    pub arrival: Arrival,
}

/// When requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrival {
    /// Each by chance, whenever the last one did.
    #[default]
    Poisson,
    /// As regularly as a host's clock lets them.
    Metronome,
    /// The next one begins with the end of the one before.
    Saturated,
}

/// A process that came onto the engine, or left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// Since 1970, ns.
    pub at_ns: u64,
    pub pid: u32,
    /// It runs from now on; else it has left.
    pub starts: bool,
}

/// A stretch of work, or of switching to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    pub pid: u32,
    pub from_ns: u64,
    pub to_ns: u64,
}

/// A GPU that lets services take turns as the driver does: the one that is there stays until another one has
/// work, and for a time slice while it has work itself.
#[derive(Debug)]
pub struct TimeSliced {
    services: Vec<(u32, Requests)>,
    chance: Chance,
    now_ns: u64,
    /// When each one's next request comes, and the work that it has, ns.
    next: Vec<f64>,
    work: Vec<u64>,
    here: Option<usize>,
    slice_left_ns: u64,
    /// So far, in order of time.
    pub switches: Vec<Switch>,
    pub busy: Vec<Work>,
}

/// Numbers without order, the same in every run.
#[derive(Debug)]
pub struct Chance(u64);

/// One block of a GPU's clock.
#[derive(Debug)]
struct Block {
    services: Vec<(u32, Requests)>,
    number: u64,
    switches: Vec<Switch>,
    busy: Vec<Work>,
}

static BLOCKS: Mutex<VecDeque<Arc<Block>>> = Mutex::new(VecDeque::new());

// === impl Requests ===

impl Requests {
    /// Says what is wrong with it, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(0.01..=10_000.0).contains(&self.ms) {
            return Err(format!("requests of {} ms: want 0.01 to 10000", self.ms));
        }
        if !(0.0..=100.0).contains(&self.percent) {
            return Err(format!("requests for {} %: want 0 to 100", self.percent));
        }
        Ok(())
    }
}

// === impl Chance ===

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    /// From 0 to 1.
    pub fn part(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn interval(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.part()).ln()
    }
}

// === impl TimeSliced ===

impl TimeSliced {
    /// Begins with nobody on the engine. Services go by their pids.
    pub fn new(services: Vec<(u32, Requests)>, seed: u64, begin_ns: u64) -> Self {
        let mut chance = Chance::new(seed);
        let first = |(_, requests): &(u32, Requests)| match requests.arrival {
            Arrival::Saturated => f64::INFINITY,
            Arrival::Poisson | Arrival::Metronome => begin_ns as f64 + chance.part() * 20e6,
        };
        let next = services.iter().map(first).collect();
        let work = vec![0; services.len()];
        Self {
            services,
            chance,
            now_ns: begin_ns,
            next,
            work,
            here: None,
            slice_left_ns: 0,
            switches: Vec::new(),
            busy: Vec::new(),
        }
    }

    /// Runs until a time, or a little longer.
    pub fn run(&mut self, until_ns: u64) {
        while self.now_ns < until_ns {
            self.arrive();
            let count = self.services.len();
            let after = self.here.map_or(0, |here| here + 1);
            let other = (after..after + count)
                .map(|at| at % count)
                .find(|at| Some(*at) != self.here && self.work[*at] > 0);
            let stays = self.here.is_some_and(|here| self.work[here] > 0 && self.slice_left_ns > 0);
            if let Some(other) = other.filter(|_| !stays) {
                self.switch(other);
                continue;
            }
            let soonest = self.next.iter().copied().fold(until_ns as f64, f64::min).ceil() as u64;
            match self.here {
                Some(here) if self.work[here] > 0 => {
                    if self.slice_left_ns == 0 {
                        self.slice_left_ns = SLICE_NS;
                    }
                    let wait = soonest.saturating_sub(self.now_ns).max(1);
                    let time = self.work[here].min(self.slice_left_ns).min(wait);
                    self.works(here, time);
                    self.work[here] -= time;
                    self.slice_left_ns -= time;
                }
                _ => self.now_ns = soonest.max(self.now_ns + 1),
            }
        }
    }

    fn arrive(&mut self) {
        for (at, (_, requests)) in self.services.iter().enumerate() {
            let length = requests.ms * 1e6;
            match requests.arrival {
                Arrival::Saturated if self.work[at] == 0 => self.work[at] = length as u64,
                Arrival::Saturated => {}
                Arrival::Poisson | Arrival::Metronome => {
                    let mean = if requests.percent > 0.0 {
                        length / requests.percent * 100.0
                    } else {
                        self.next[at] = f64::INFINITY;
                        continue;
                    };
                    while self.next[at] <= self.now_ns as f64 {
                        self.work[at] += length as u64;
                        self.next[at] += match requests.arrival {
                            Arrival::Poisson => self.chance.interval(mean),
                            // A clock of a host is late by some µs.
                            _ => mean * (1.0 + 0.01 * (self.chance.part() - 0.5)),
                        };
                    }
                }
            }
        }
    }

    fn switch(&mut self, to: usize) {
        if let Some(here) = self.here {
            self.works(here, SAVING_NS);
            self.note(here, false);
        }
        self.works(to, RESTORING_NS);
        self.note(to, true);
        self.here = Some(to);
        self.slice_left_ns = SLICE_NS;
    }

    fn works(&mut self, service: usize, time_ns: u64) {
        let (from_ns, to_ns) = (self.now_ns, self.now_ns + time_ns);
        self.busy.push(Work { pid: self.services[service].0, from_ns, to_ns });
        self.now_ns = to_ns;
    }

    fn note(&mut self, service: usize, starts: bool) {
        self.switches.push(Switch { at_ns: self.now_ns, pid: self.services[service].0, starts });
    }
}

// === impl Block ===

impl Block {
    fn of(services: &[(u32, Requests)], number: u64) -> Arc<Self> {
        let mut blocks = BLOCKS.lock();
        if let Some(at) = blocks.iter().position(|block| block.number == number && block.services == services)
        {
            return Arc::clone(&blocks[at]);
        }
        let (begin_ns, end_ns) = (number * BLOCK_NS, (number + 1) * BLOCK_NS);
        let seed = services.iter().fold(number, |seed, (pid, _)| mix(seed ^ u64::from(*pid)));
        let mut gpu = TimeSliced::new(services.to_vec(), seed, begin_ns);
        gpu.run(end_ns);
        let TimeSliced { mut switches, mut busy, .. } = gpu;
        switches.retain(|switch| switch.at_ns < end_ns);
        busy.iter_mut().for_each(|work| work.to_ns = work.to_ns.min(end_ns));
        busy.retain(|work| work.from_ns < work.to_ns);
        if let Some(last) = switches.last().filter(|last| last.starts).copied() {
            switches.push(Switch { at_ns: end_ns - 1, starts: false, ..last });
        }
        let block = Arc::new(Self { services: services.to_vec(), number, switches, busy });
        blocks.push_back(Arc::clone(&block));
        if blocks.len() > REMEMBERED {
            blocks.pop_front();
        }
        block
    }

    fn all(services: &[(u32, Requests)], from_ns: u64, to_ns: u64) -> impl Iterator<Item = Arc<Self>> {
        let last = to_ns.saturating_sub(1).max(from_ns) / BLOCK_NS;
        (from_ns / BLOCK_NS..=last).map(move |number| Self::of(services, number))
    }
}

/// Seconds for which each process worked, or was switched to, within a span of the clock; in the order of
/// the services.
pub fn busy_s(services: &[(u32, Requests)], from_ns: u64, to_ns: u64) -> Vec<f64> {
    let mut seconds = vec![0.0; services.len()];
    for block in Block::all(services, from_ns, to_ns) {
        let first = block.busy.partition_point(|work| work.to_ns <= from_ns);
        for work in block.busy[first..].iter().take_while(|work| work.from_ns < to_ns) {
            let time_ns = work.to_ns.min(to_ns).saturating_sub(work.from_ns.max(from_ns));
            if let Some(at) = services.iter().position(|(pid, _)| *pid == work.pid) {
                seconds[at] += time_ns as f64 / 1e9;
            }
        }
    }
    seconds
}

/// The switches after one time and up to another.
pub fn switches(services: &[(u32, Requests)], after_ns: u64, until_ns: u64) -> Vec<Switch> {
    let within = |switch: &Switch| switch.at_ns > after_ns && switch.at_ns <= until_ns;
    let of_block = |block: Arc<Block>| block.switches.iter().copied().filter(within).collect::<Vec<_>>();
    Block::all(services, after_ns, until_ns + 1).flat_map(of_block).collect()
}

/// The process that is on the engine, working or not.
pub fn resident(services: &[(u32, Requests)], at_ns: u64) -> Option<u32> {
    let block = Block::of(services, at_ns / BLOCK_NS);
    let before = block.switches.partition_point(|switch| switch.at_ns <= at_ns);
    block.switches[..before].last().filter(|last| last.starts).map(|last| last.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: u64 = 1_790_000_000 * 1_000_000_000;

    fn requests(ms: f64, percent: f64) -> Requests {
        Requests { ms, percent, arrival: Arrival::Poisson }
    }

    #[test]
    fn services_have_the_load_that_they_ask_for_and_their_switches() {
        let services = [(7, requests(5.3, 40.0)), (8, requests(0.43, 20.0))];
        let shares = busy_s(&services, BEGIN, BEGIN + 100 * 1_000_000_000);
        assert!((39.0..44.0).contains(&shares[0]) && (20.0..26.0).contains(&shares[1]), "{shares:?}");
    }

    #[test]
    fn switches_come_in_turns_and_asking_in_pieces_changes_nothing() {
        let services = [(7, requests(2.0, 30.0)), (8, requests(1.0, 30.0)), (9, requests(0.5, 10.0))];
        let all = switches(&services, BEGIN, BEGIN + 25_000_000_000);
        assert!(all.len() > 2000, "{}", all.len());
        let mut here = None;
        for switch in &all {
            match here {
                None => assert!(switch.starts, "{switch:?}"),
                Some(pid) => assert_eq!((switch.starts, switch.pid), (false, pid)),
            }
            here = switch.starts.then_some(switch.pid);
        }
        let pieces: Vec<Switch> = (0..250)
            .flat_map(|piece| {
                let from = BEGIN + piece * 100_000_000;
                switches(&services, from, from + 100_000_000)
            })
            .collect();
        assert_eq!(all, pieces);
        for pair in all.windows(2) {
            let middle = u64::midpoint(pair[0].at_ns, pair[1].at_ns);
            assert_eq!(resident(&services, middle), pair[0].starts.then_some(pair[0].pid));
        }
    }

    #[test]
    fn one_that_is_alone_stays_and_none_does_nothing() {
        let alone = [(7, requests(5.0, 50.0))];
        assert!(switches(&alone, BEGIN, BEGIN + 9_000_000_000).len() <= 1);
        assert_eq!(resident(&alone, BEGIN + 5_000_000_000), Some(7));
        assert_eq!(busy_s(&[], BEGIN, BEGIN + 1_000_000_000), Vec::<f64>::new());
        let idle = [(7, requests(5.0, 0.0))];
        assert_eq!(busy_s(&idle, BEGIN, BEGIN + 1_000_000_000), [0.0]);
    }
}

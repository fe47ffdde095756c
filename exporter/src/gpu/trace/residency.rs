//! Which process was on the engine when, by the records of the trace: per slot, how long each was there,
//! by its age since it was switched in. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::quantum::Quantum;
use super::records::{Kind, Record};

/// Ages after which a process's chance of being busy may change, ns: finer where requests are short.
const AGES_NS: [u64; BINS - 1] =
    [300_000, 600_000, 1_200_000, 2_300_000, 4_600_000, 9_000_000, 18_000_000, 36_000_000];
/// Number of stretches that the ages divide a visit into.
pub(super) const BINS: usize = 9;

/// The longest switch from one process to another, ns: H100s take 85 µs, seldom 0.6 ms. When nobody was there
/// for longer, as after a process's end, the time is nobody's.
const LONGEST_SWITCH_NS: u64 = 2_000_000;

/// Most visits that wait for their slots: a GPU that switches every 50 µs fills them in 3 s.
const MOST: usize = 60_000;

/// A stretch of time for which one process was on the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Visit {
    pid: u32,
    /// When the process before it had left, ns: the switch is this one's.
    switched_ns: u64,
    from_ns: u64,
    /// `None`: it is there.
    to_ns: Option<u64>,
    /// It was busy throughout.
    busy: bool,
}

/// Seconds of a process on the engine, by age.
pub(super) type Ages = [f64; BINS];

/// One process's part of a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Resident {
    pub(super) pid: u32,
    /// Seconds of visits in which it may have been idle.
    pub(super) ages: Ages,
    /// Seconds of visits in which it was busy throughout.
    pub(super) busy_s: f64,
    /// Seconds of switching to it.
    pub(super) switching_s: f64,
}

pub(super) type Residents = Vec<Resident>;

/// The visits of late.
#[derive(Debug, Default)]
pub(super) struct Residency {
    visits: VecDeque<Visit>,
    /// All since this time is known, ns.
    known_since_ns: Option<u64>,
    /// The newest record's time, ns.
    newest_ns: u64,
    /// When the last one left.
    left_ns: Option<u64>,
    quantum: Quantum,
    /// Those that were cut off, and wait since then, ns.
    waiting: BTreeMap<u32, u64>,
}

impl Residency {
    /// Takes the next record. What contradicts the ones before it is a gap.
    pub(super) fn take(&mut self, record: Record) {
        let Record { at_ns, kind } = record;
        if at_ns < self.newest_ns {
            // The driver's clock was set back, or this is noise.
            self.forget();
        }
        self.newest_ns = at_ns;
        let open = self.visits.back().filter(|visit| visit.to_ns.is_none()).map(|visit| visit.pid);
        match (kind, open) {
            (Kind::Lost { .. } | Kind::Reset, _) => self.forget(),
            (Kind::Start { pid }, None) => {
                let left_ns = self.left_ns.unwrap_or(at_ns);
                self.begin(pid, left_ns, at_ns);
            }
            (Kind::Start { pid }, Some(_)) => {
                self.forget();
                self.begin(pid, at_ns, at_ns);
            }
            (Kind::End { pid }, Some(open)) if pid == open => self.end(at_ns),
            (Kind::End { .. }, open) => {
                // The first one that is seen leaves.
                if open.is_some() || self.known_since_ns.is_some() {
                    self.forget();
                }
                self.known_since_ns = Some(at_ns);
                self.left_ns = Some(at_ns);
            }
        }
        if self.visits.len() > MOST {
            self.forget();
        }
    }

    /// The newest record's time, ns.
    pub(super) fn newest_ns(&self) -> u64 {
        self.newest_ns
    }

    /// Nothing that came before is known to be all.
    pub(super) fn forget(&mut self) {
        self.visits.clear();
        self.left_ns = None;
        self.waiting.clear();
        self.quantum.forget();
        self.known_since_ns = None;
    }

    /// Looks at how long processes stay, by which the visits that follow are judged.
    pub(super) fn learn(&mut self) {
        self.quantum.find();
    }

    /// Who was on the engine in a slot of the driver's clock; `None` if not all of it is known.
    pub(super) fn of_slot(&self, begin_ns: u64, end_ns: u64) -> Option<Residents> {
        self.known_since_ns.filter(|since| *since <= begin_ns)?;
        let mut residents = Residents::new();
        let first = self.visits.partition_point(|visit| visit.to_ns.is_some_and(|to| to <= begin_ns));
        for visit in self.visits.range(first..).take_while(|visit| visit.switched_ns < end_ns) {
            let at = residents.iter().position(|resident| resident.pid == visit.pid).unwrap_or_else(|| {
                residents.push(Resident { pid: visit.pid, ages: [0.0; BINS], busy_s: 0.0, switching_s: 0.0 });
                residents.len() - 1
            });
            let within = |from: u64, to: u64| to.min(end_ns).saturating_sub(from.max(begin_ns)) as f64 / 1e9;
            residents[at].switching_s += within(visit.switched_ns, visit.from_ns);
            let to_ns = visit.to_ns.unwrap_or(end_ns).min(end_ns);
            if visit.busy {
                residents[at].busy_s += within(visit.from_ns, to_ns);
                continue;
            }
            let mut from_ns = visit.from_ns;
            for (bin, ages) in residents[at].ages.iter_mut().enumerate() {
                let until_ns = AGES_NS.get(bin).map_or(to_ns, |age| to_ns.min(visit.from_ns + age));
                if until_ns > from_ns {
                    *ages += within(from_ns, until_ns);
                }
                from_ns = from_ns.max(until_ns);
            }
        }
        Some(residents)
    }

    /// Forgets visits that ended before any slot that is still to come.
    pub(super) fn forget_before(&mut self, ns: u64) {
        while self.visits.front().is_some_and(|visit| visit.to_ns.is_some_and(|to| to <= ns)) {
            self.visits.pop_front();
        }
    }

    fn begin(&mut self, pid: u32, left_ns: u64, from_ns: u64) {
        self.known_since_ns.get_or_insert(from_ns);
        let is_switch = from_ns.saturating_sub(left_ns) <= LONGEST_SWITCH_NS;
        let switched_ns = if is_switch { left_ns } else { from_ns };
        self.waiting.remove(&pid);
        self.visits.push_back(Visit { pid, switched_ns, from_ns, to_ns: None, busy: false });
    }

    /// The process that is there leaves.
    fn end(&mut self, at_ns: u64) {
        let quantum = &self.quantum;
        self.waiting.retain(|_, since_ns| quantum.may_wait(at_ns.saturating_sub(*since_ns)));
        let Some(visit) = self.visits.back_mut() else { return };
        let length_ns = at_ns - visit.from_ns;
        let cut_off = self.quantum.cut_off(length_ns);
        visit.to_ns = Some(at_ns);
        self.left_ns = Some(at_ns);
        visit.busy = cut_off || !self.waiting.is_empty();
        self.quantum.take(visit.pid, length_ns);
        if cut_off {
            self.waiting.insert(visit.pid, at_ns);
        }
    }
}

//! Finds how much each process uses of the time for which it is on the engine. Pure.
//!
//! A context stays on the engine after its work is done, until another one needs it. So being there is not
//! being busy: the chance that a process is still busy falls with the time since it was switched in, at a pace
//! that depends on how long its requests are. The driver tells how busy the device was in each slot, and the
//! trace who was there, and for how long already. One least-squares fit over the slots of a window gives the
//! falls: for slot k
//!
//! ```text
//! busy(k) - switching(k)  =  Σ over processes i and ages b of  w(i, b) × seconds(i, b, k)
//! ```
//!
//! where w(i, ·) begins at 1 and never rises. It is written as a mixture: `ends[c]` is the part of a process's
//! visits that are busy up to age c and no longer; they are never negative and add up to 1.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Parts;
use super::residency::{Ages, BINS, Resident, Residents};

/// Slots that are fitted together.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Most processes that are fitted one by one; work grows with the square of their number. Those that are there
/// least are fitted as one.
const MOST_PROCESSES: usize = 24;
/// … and so are those that were there in fewer slots: they tell too little each.
const FEW_ROWS: u32 = 20;
/// The pid that they are fitted under, which no process has.
const OTHERS: u32 = 0;
/// Most rows, whatever clocks do: a minute has 300.
const MOST_ROWS: usize = 1024;

/// A weak wish for even falls, as a part of the mean weight of the evidence. It decides where there is no
/// evidence, which a short window or a regular load leaves.
const EVEN: f64 = 1e-2;
/// Most rounds over all processes; the last fit is where each one begins, so that a few are enough.
const ROUNDS: usize = 200;
/// A round that moves less ends the fit.
const STILL: f64 = 1e-5;

/// A slot of which all is known.
#[derive(Debug, Clone)]
struct Row {
    end_ns: u64,
    length_s: f64,
    /// Seconds of work, without those of switching. Below 0 where the trace has more work than the device.
    work_s: f64,
    residents: Vec<(u32, Ages)>,
}

/// The fit over a sliding window.
#[derive(Debug, Default)]
pub(super) struct Fit {
    rows: VecDeque<Row>,
    ends: BTreeMap<u32, Ages>,
    /// Root mean square of what the fit leaves unexplained, as a part of the slots' time.
    residual: Option<f64>,
}

impl Fit {
    /// Adds a slot of `length_s` of which all is known: `busy_s` of it the device was in use.
    pub(super) fn add(&mut self, end_ns: u64, length_s: f64, busy_s: f64, residents: &Residents) {
        if self.rows.back().is_some_and(|newest| end_ns <= newest.end_ns) {
            // The driver's clock was set back.
            self.rows.clear();
        }
        let known_s: f64 = residents.iter().map(|resident| resident.switching_s + resident.busy_s).sum();
        let ages = residents.iter().map(|resident| (resident.pid, resident.ages)).collect();
        self.rows.push_back(Row { end_ns, length_s, work_s: busy_s - known_s, residents: ages });
        let oldest = end_ns.saturating_sub(WINDOW.as_nanos() as u64);
        while self.rows.len() > MOST_ROWS || self.rows.front().is_some_and(|row| row.end_ns <= oldest) {
            self.rows.pop_front();
        }
    }

    /// Number of slots that it is made of.
    pub(super) fn slots(&self) -> usize {
        self.rows.len()
    }

    /// Root mean square of what is unexplained, as a part of a slot; `None` before the first fit.
    pub(super) fn residual(&self) -> Option<f64> {
        self.residual
    }

    /// Fits again.
    pub(super) fn solve(&mut self) {
        let pids = self.pids();
        let mut problem = Problem::of(&self.rows, &pids);
        let before = |pid: &u32| self.ends.get(pid).copied().unwrap_or([1.0 / BINS as f64; BINS]);
        let mut ends: Vec<Ages> = pids.iter().map(before).collect();
        problem.solve(&mut ends);
        self.ends = pids.into_iter().zip(ends).collect();
        self.residual = self.unexplained();
    }

    /// The processes that are fitted, sorted: [`OTHERS`] comes first, if there are any.
    fn pids(&self) -> Vec<u32> {
        let mut seen: BTreeMap<u32, (u32, f64)> = BTreeMap::new();
        for (pid, ages) in self.rows.iter().flat_map(|row| &row.residents) {
            let (rows, seconds) = seen.entry(*pid).or_default();
            *rows += 1;
            *seconds += ages.iter().sum::<f64>();
        }
        let mut known: Vec<(u32, f64)> = seen
            .iter()
            .filter(|(_, (rows, _))| *rows >= FEW_ROWS)
            .map(|(pid, (_, seconds))| (*pid, *seconds))
            .collect();
        known.sort_by(|a, b| b.1.total_cmp(&a.1));
        known.truncate(MOST_PROCESSES);
        let others = (known.len() < seen.len()).then_some(OTHERS);
        let mut pids: Vec<u32> = known.into_iter().map(|(pid, _)| pid).chain(others).collect();
        pids.sort_unstable();
        pids
    }

    /// The part that each process has of the use of a slot; `None` if the trace knows of no work in it.
    pub(super) fn parts(&self, residents: &Residents) -> Option<Parts> {
        let used = |resident: &Resident| {
            self.work_s(resident.pid, &resident.ages) + resident.busy_s + resident.switching_s
        };
        let sum: f64 = residents.iter().map(used).sum();
        (sum > 0.0).then(|| residents.iter().map(|resident| (resident.pid, used(resident) / sum)).collect())
    }

    /// Seconds that a process worked, of those for which it was there. One that no fit has yet worked as
    /// the others did.
    pub(super) fn work_s(&self, pid: u32, ages: &Ages) -> f64 {
        let known = self.ends.get(&pid).or_else(|| self.ends.get(&OTHERS)).copied();
        let ends = match known {
            Some(ends) => ends,
            None if self.ends.is_empty() => return ages.iter().sum(),
            None => {
                let count = self.ends.len() as f64;
                std::array::from_fn(|bin| self.ends.values().map(|ends| ends[bin]).sum::<f64>() / count)
            }
        };
        let mut still = 1.0;
        let mut sum = 0.0;
        for (seconds, end) in ages.iter().zip(ends) {
            sum += still * seconds;
            still = f64::max(still - end, 0.0);
        }
        sum
    }

    fn unexplained(&self) -> Option<f64> {
        let squares = self.rows.iter().map(|row| {
            let explained: f64 = row.residents.iter().map(|(pid, ages)| self.work_s(*pid, ages)).sum();
            ((row.work_s - explained) / row.length_s).powi(2)
        });
        (!self.rows.is_empty()).then(|| (squares.sum::<f64>() / self.rows.len() as f64).sqrt())
    }
}

/// The normal equations: the matrix and the vector of the quadratic form that is to become least.
struct Problem {
    size: usize,
    matrix: Vec<f64>,
    gradient: Vec<f64>,
    target: Vec<f64>,
    /// The mean of the matrix's diagonal.
    scale: f64,
}

impl Problem {
    fn of(rows: &VecDeque<Row>, pids: &[u32]) -> Self {
        let size = pids.len() * BINS;
        let (mut matrix, mut target) = (vec![0.0; size * size], vec![0.0; size]);
        let mut columns: Vec<(usize, f64)> = Vec::new();
        for row in rows {
            columns.clear();
            for (pid, ages) in &row.residents {
                let known = pids.binary_search(pid).or_else(|_| pids.binary_search(&OTHERS));
                let Ok(process) = known else { continue };
                // Busy up to an age means busy in all of the ages before it.
                let mut seconds = 0.0;
                for (bin, age) in ages.iter().enumerate() {
                    seconds += age;
                    columns.push((process * BINS + bin, seconds));
                }
            }
            for &(at, seconds) in &columns {
                target[at] += seconds * row.work_s;
                for &(other, with) in &columns {
                    matrix[at * size + other] += seconds * with;
                }
            }
        }
        let scale = (0..size).map(|at| matrix[at * size + at]).sum::<f64>() / size.max(1) as f64;
        for at in 0..size {
            matrix[at * size + at] += EVEN * scale;
            target[at] += EVEN * scale / BINS as f64;
        }
        Self { size, matrix, gradient: Vec::new(), target, scale }
    }

    /// Moves weight between two ends of one process at a time, which keeps their sum, as long as that helps.
    fn solve(&mut self, ends: &mut [Ages]) {
        let size = self.size;
        let all: Vec<f64> = ends.iter().flatten().copied().collect();
        let row = |at: usize| &self.matrix[at * size..(at + 1) * size];
        let product = |at: usize| row(at).iter().zip(&all).map(|(a, b)| a * b).sum::<f64>();
        self.gradient = (0..size).map(|at| product(at) - self.target[at]).collect();
        for _ in 0..ROUNDS {
            let mut moved = 0.0f64;
            for (process, ends) in ends.iter_mut().enumerate() {
                for _ in 0..BINS {
                    let Some(step) = self.step(process * BINS, ends) else { break };
                    moved = moved.max(step);
                }
            }
            if moved < STILL {
                break;
            }
        }
    }

    /// The best move within one process, whose first end is `first`; `None` if none helps.
    fn step(&mut self, first: usize, ends: &mut Ages) -> Option<f64> {
        let size = self.size;
        let slope = |end: usize| self.gradient[first + end];
        let to = (0..BINS).min_by(|a, b| slope(*a).total_cmp(&slope(*b)))?;
        let from = (0..BINS).filter(|end| ends[*end] > 0.0).max_by(|a, b| slope(*a).total_cmp(&slope(*b)))?;
        let gain = slope(from) - slope(to);
        if gain <= 1e-9 * self.scale {
            return None;
        }
        let (to_row, from_row) = (first + to, first + from);
        let at = |row: usize, column: usize| self.matrix[row * size + column];
        let curve = at(to_row, to_row) + at(from_row, from_row) - 2.0 * at(to_row, from_row);
        let step = (gain / curve.max(f64::MIN_POSITIVE)).min(ends[from]);
        ends[to] += step;
        ends[from] -= step;
        for other in 0..size {
            let change = self.matrix[to_row * size + other] - self.matrix[from_row * size + other];
            self.gradient[other] += step * change;
        }
        Some(step)
    }
}

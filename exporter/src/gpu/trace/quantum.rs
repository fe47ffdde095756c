//! Finds the driver's time slice: how long a busy process keeps the engine while another one waits. Pure.
//!
//! A visit of exactly that length was cut off, so its process was busy throughout and waits to come back. And
//! while somebody waits, nobody keeps the engine with nothing to do. So much of the time is known to be busy
//! without any fit.

use std::collections::{BTreeMap, VecDeque};

/// Visits that are looked at.
const KEPT: usize = 4096;
/// Lengths are counted in steps of so many ns …
const STEP_NS: u64 = 20_000;
/// … up to this.
const LONGEST_NS: u64 = 50_000_000;
/// Shorter peaks are requests that are all of one length.
const SHORTEST_NS: u64 = 1_000_000;
/// A visit that was cut off is so much longer or shorter at most, ns.
const TOLERANCE_NS: u64 = 30_000;
/// Visits of a length that make a peak, at least …
const PEAK: u32 = 40;
/// … and so many times as many as of other lengths beside it.
const SHARP: f64 = 5.0;
/// Steps beside a peak that are compared with it.
const BESIDE: usize = 10;
/// Part of the visits that may contradict a time slice.
const CONTRADICTED: f64 = 0.02;
/// One that was cut off and has not come back for so many slices does not wait any more: it is gone. 32 that
/// are all busy come back sooner.
const WAITED: u64 = 40;

/// The time slice, as the visits of late show it.
#[derive(Debug, Default)]
pub(super) struct Quantum {
    visits: VecDeque<(u32, u64)>,
    slice_ns: Option<u64>,
}

impl Quantum {
    /// Whether a visit of this length was cut off.
    pub(super) fn cut_off(&self, length_ns: u64) -> bool {
        self.slice_ns.is_some_and(|slice| length_ns.abs_diff(slice) <= TOLERANCE_NS)
    }

    /// Whether one that was cut off so long ago may still wait.
    pub(super) fn may_wait(&self, since_ns: u64) -> bool {
        self.slice_ns.is_some_and(|slice| since_ns <= WAITED * slice)
    }

    /// Takes the length of a visit.
    pub(super) fn take(&mut self, pid: u32, length_ns: u64) {
        if self.visits.len() >= KEPT {
            self.visits.pop_front();
        }
        self.visits.push_back((pid, length_ns));
    }

    /// Visits before a gap are not followed by those after it.
    pub(super) fn forget(&mut self) {
        self.visits.clear();
    }

    /// Looks for it again: the shortest sharp peak that nothing contradicts.
    pub(super) fn find(&mut self) {
        let mut counts = vec![0u32; (LONGEST_NS / STEP_NS) as usize + 1];
        for (_, length) in self.visits.iter().filter(|(_, length)| *length < LONGEST_NS) {
            counts[(length / STEP_NS) as usize] += 1;
        }
        let first = (SHORTEST_NS / STEP_NS) as usize;
        let near = |at: usize| counts[at - 1] + counts[at] + counts[at + 1];
        let is_peak = |at: &usize| {
            let beside = || counts[at - BESIDE..at - 2].iter().chain(&counts[at + 3..=at + BESIDE]);
            let mean = f64::from(beside().sum::<u32>()) / beside().count() as f64;
            counts[*at] >= counts[at - 1]
                && counts[*at] > counts[at + 1]
                && near(*at) >= PEAK
                && f64::from(near(*at)) >= SHARP * 3.0 * mean
        };
        let peaks = (first..counts.len() - BESIDE).filter(is_peak);
        let middle = |at: usize| {
            let weighted: u64 = (at - 1..=at + 1).map(|at| u64::from(counts[at]) * at as u64).sum();
            weighted * STEP_NS / u64::from(near(at)) + STEP_NS / 2
        };
        self.slice_ns = peaks.map(middle).find(|slice| self.is_upheld(*slice));
    }

    /// Whether nobody stays longer while one that was cut off waits.
    fn is_upheld(&self, slice_ns: u64) -> bool {
        // By pid: when it was cut off, counted in the time of the visits.
        let mut waiting = BTreeMap::new();
        let (mut others, mut longer, mut passed_ns) = (0u32, 0u32, 0u64);
        for &(pid, length_ns) in &self.visits {
            waiting.remove(&pid);
            waiting.retain(|_, since_ns| passed_ns - *since_ns <= WAITED * slice_ns);
            passed_ns += length_ns;
            if !waiting.is_empty() {
                others += 1;
                longer += u32::from(length_ns > slice_ns + TOLERANCE_NS);
            }
            if length_ns.abs_diff(slice_ns) <= TOLERANCE_NS {
                waiting.insert(pid, passed_ns);
            }
        }
        others >= PEAK && f64::from(longer) <= CONTRADICTED * f64::from(others)
    }
}

//! Owns what loads one GPU when: the load of each scenario seen, since it was seen. A scenario
//! that changes never changes the past.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::load::{self, Load};
use crate::recording::{RecordedSlot, Recording};
use crate::switching::{self, Requests};

/// Longest span in which processes take their turns one by one, µs. Of a longer one their means are told.
const TURNS_US: i64 = 60_000_000;
/// Length of a recorded slot that has no predecessor, µs.
const SLOT_US: i64 = 200_000;

/// What makes the load of one GPU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// Loads, each with the pid that is credited with it; `None` for load of no listed process.
    Loads(Vec<(Option<u32>, Load)>),
    Replay(Played),
}

/// A recording and when it began.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Played {
    pub(crate) recording: Arc<Recording>,
    pub(crate) start_us: i64,
}

/// Use of a GPU by pid, in percent-seconds.
pub(crate) type Parts = BTreeMap<Option<u32>, f64>;

/// The eras of one GPU, oldest first. The first reaches back for ever: loads are functions of the
/// clock alone.
#[derive(Debug)]
pub(crate) struct Timeline {
    eras: VecDeque<(i64, Source)>,
}

// === impl Played ===

impl Played {
    /// Slots that ended after one moment and not after another, with the moment they ended.
    pub(crate) fn slots(
        &self,
        after_us: i64,
        until_us: i64,
    ) -> impl Iterator<Item = (i64, RecordedSlot)> + '_ {
        self.recording
            .slots()
            .iter()
            .map(|slot| (slot.offset_us.saturating_add(self.start_us), *slot))
            .filter(move |(end, _)| *end > after_us && *end <= until_us)
    }

    /// When its first and last slots ended.
    pub(crate) fn span_us(&self) -> (i64, i64) {
        let first = self.recording.slots().first().map_or(0, |slot| slot.offset_us);
        (self.start_us.saturating_add(first), self.start_us.saturating_add(self.recording.end_us()))
    }

    /// Percent-seconds by pid: each slot's percent holds from its predecessor's end to its own.
    fn parts(&self, from_us: i64, to_us: i64, parts: &mut Parts) {
        let mut previous = None;
        for slot in self.recording.slots() {
            let end = slot.offset_us.saturating_add(self.start_us);
            let begin = previous.unwrap_or(end - SLOT_US);
            previous = Some(end);
            let seconds = (end.min(to_us) - begin.max(from_us)).max(0) as f64 / 1e6;
            *parts.entry(slot.pid).or_default() += f64::from(slot.percent) * seconds;
        }
    }
}

// === impl Timeline ===

impl Timeline {
    pub(crate) fn new(source: Source) -> Self {
        Self { eras: VecDeque::from([(i64::MIN, source)]) }
    }

    /// What loads the GPU now.
    pub(crate) fn current(&self) -> &Source {
        &self.eras.back().expect("because an era is only ever replaced by a later one").1
    }

    /// From this moment on another source loads the GPU.
    pub(crate) fn change(&mut self, at_us: i64, source: Source) {
        self.eras.push_back((at_us, source));
    }

    /// Forgets eras that ended before a moment.
    pub(crate) fn forget_before(&mut self, moment_us: i64) {
        while self.eras.get(1).is_some_and(|(from, _)| *from <= moment_us) {
            self.eras.pop_front();
        }
    }

    /// The sources of a span, each with its piece of the span.
    pub(crate) fn pieces(&self, from_us: i64, to_us: i64) -> impl Iterator<Item = (&Source, i64, i64)> {
        self.eras
            .iter()
            .enumerate()
            .map(move |(i, (from, source))| {
                let until = self.eras.get(i + 1).map_or(i64::MAX, |(from, _)| *from);
                (source, (*from).max(from_us), until.min(to_us))
            })
            .filter(|(_, from, to)| from < to)
    }

    /// Use by pid over a span. The parts add up to what the device did.
    pub(crate) fn parts(&self, from_us: i64, to_us: i64) -> Parts {
        let mut parts = Parts::new();
        for (source, from, to) in self.pieces(from_us, to_us) {
            match source {
                Source::Loads(loads) => match services(loads).filter(|_| to - from <= TURNS_US) {
                    Some(services) => turns(&services, from, to, &mut parts),
                    None => load_parts(loads, from, to, &mut parts),
                },
                Source::Replay(played) => played.parts(from, to, &mut parts),
            }
        }
        parts
    }

    /// The processes that take turns on the GPU, if they do.
    fn services(&self, moment_us: i64) -> Option<Vec<(u32, Requests)>> {
        let (source, ..) = self.pieces(moment_us - 1, moment_us).next()?;
        match source {
            Source::Loads(loads) => services(loads),
            Source::Replay(_) => None,
        }
    }

    /// Whether processes take turns on the GPU at a moment.
    pub(crate) fn takes_turns(&self, moment_us: i64) -> bool {
        self.services(moment_us).is_some()
    }

    /// The process that is on the GPU at a moment, where processes take turns on it.
    pub(crate) fn resident(&self, moment_us: i64) -> Option<u32> {
        switching::resident(&self.services(moment_us)?, ns(moment_us))
    }

    /// Use of the device over a span, in percent-seconds.
    pub(crate) fn integral(&self, from_us: i64, to_us: i64) -> f64 {
        self.parts(from_us, to_us).values().sum()
    }

    /// Mean use of the device over the span that ends at a moment, in percent.
    pub(crate) fn mean_before(&self, moment_us: i64, span_us: i64) -> f64 {
        self.integral(moment_us - span_us, moment_us) / (span_us as f64 / 1e6)
    }
}

fn load_parts(loads: &[(Option<u32>, Load)], from_us: i64, to_us: i64, parts: &mut Parts) {
    let only: Vec<&Load> = loads.iter().map(|(_, load)| load).collect();
    let (from_s, to_s) = (from_us as f64 / 1e6, to_us as f64 / 1e6);
    let integrals = load::integrals(&only, from_s, to_s);
    // Seconds since the epoch are coarse against 20 ms; their span is not.
    let exact = (to_us - from_us) as f64 / 1e6 / (to_s - from_s);
    for ((pid, _), integral) in loads.iter().zip(integrals) {
        *parts.entry(*pid).or_default() += integral * exact;
    }
}

fn turns(services: &[(u32, Requests)], from_us: i64, to_us: i64, parts: &mut Parts) {
    let seconds = switching::busy_s(services, ns(from_us), ns(to_us));
    for ((pid, _), seconds) in services.iter().zip(seconds) {
        *parts.entry(Some(*pid)).or_default() += 100.0 * seconds;
    }
}

/// The processes of a GPU on which they take turns.
pub(crate) fn services(loads: &[(Option<u32>, Load)]) -> Option<Vec<(u32, Requests)>> {
    let services = loads.iter().map(|(pid, load)| match load {
        Load::Requests(requests) => Some(((*pid)?, *requests)),
        Load::Constant(_) | Load::Square(_) | Load::Trace(_) => None,
    });
    services.collect::<Option<Vec<_>>>().filter(|services| !services.is_empty())
}

fn ns(us: i64) -> u64 {
    us.max(0).cast_unsigned() * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(pid: u32, percent: f64) -> Source {
        Source::Loads(vec![(Some(pid), Load::Constant(percent))])
    }

    #[test]
    fn a_change_of_load_leaves_the_past_as_it_was() {
        let mut timeline = Timeline::new(constant(1, 20.0));
        timeline.change(10_000_000, constant(2, 80.0));
        assert!((timeline.integral(9_000_000, 11_000_000) - 100.0).abs() < 1e-6);
        let parts = timeline.parts(9_500_000, 11_000_000);
        assert!((parts[&Some(1)] - 10.0).abs() < 1e-6 && (parts[&Some(2)] - 80.0).abs() < 1e-6);
        timeline.forget_before(9_000_000);
        assert!((timeline.integral(9_000_000, 11_000_000) - 100.0).abs() < 1e-6);
        timeline.forget_before(10_000_000);
        assert!((timeline.integral(10_000_000, 11_000_000) - 80.0).abs() < 1e-6);
    }
}

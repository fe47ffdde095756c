//! Owns a trace that is bound: what its records say of slots, and whether they are to be believed.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::binding::Binding;
use super::fit::Fit;
use super::records::{Kind, Record};
use super::residency::Residency;
use super::{Counts, Parts, booked};
use crate::attribution::Whose;
use crate::gpu::{Credit, Slot};

/// A slot waits so long for a record that came after it: records are handed out in order, so that its own are
/// there by then. Drivers hand them out 30 times a second, those before 545 once a second. On an idle GPU no
/// record comes.
pub(super) const LATE: Duration = Duration::from_millis(1250);
/// Slots that a fit needs before it is used: 10 s of the driver's 200 ms.
const ENOUGH_SLOTS: usize = 50;
/// The most that a fit may leave unexplained, as a part of a slot: more means that the trace and the
/// utilization are of different things.
pub(super) const MOST_RESIDUAL: f64 = 0.1;
/// How often the fit is made again.
const FIT_EVERY: Duration = Duration::from_secs(5);
/// GPUs that were bound together fit in so many different ticks.
const PHASES: usize = 5;
/// So many contexts that came are looked at together; most of them must be of processes that NVML lists.
const STARTS: u32 = 1000;
/// Slots by which a trace is judged: 10 s.
const JUDGED: usize = 50;
/// The part of their use that the trace divides, if it is said to.
const MOSTLY: f64 = 0.8;
/// So many of them in which NVML names somebody whom the trace does not end it.
const CONTRADICTED: usize = JUDGED / 2;
/// No record for so long, while NVML names several owners, ends it.
const SILENT: Duration = Duration::from_secs(10);

/// A trace that is bound.
#[derive(Debug)]
pub(super) struct Bound {
    binding: Binding,
    residency: Residency,
    fit: Fit,
    fitted_at: Option<Instant>,
    /// The last fit is one that explains the GPU's use.
    trusted: bool,
    phase: usize,
    /// When the last slot ended that was taken for complete, ns in the driver's clock.
    complete_ns: u64,
    /// Since when the GPU has one owner.
    alone_since: Option<Instant>,
    listed: u32,
    unlisted: u32,
    /// A process that NVML lists was seen.
    listed_seen: bool,
    record_at: Option<Instant>,
    /// Slots in a row of which not all records are there, though some came.
    incomplete: usize,
    /// Whom NVML named since the last record.
    named: BTreeSet<Whose>,
    judgements: VecDeque<Judgement>,
}

/// How a slot was divided.
#[derive(Debug, Clone, Copy)]
struct Judgement {
    active_s: f64,
    divided: bool,
    contradicted: bool,
}

impl Bound {
    pub(super) fn new(binding: Binding, gpu: u32) -> Self {
        Self {
            binding,
            residency: Residency::default(),
            fit: Fit::default(),
            fitted_at: None,
            trusted: false,
            phase: gpu as usize % PHASES,
            complete_ns: 0,
            alone_since: None,
            listed: 0,
            unlisted: 0,
            listed_seen: false,
            record_at: None,
            incomplete: 0,
            named: BTreeSet::new(),
            judgements: VecDeque::new(),
        }
    }

    /// For how long the GPU has had one owner.
    pub(super) fn alone_for(&mut self, shared: bool, now: Instant) -> Duration {
        self.alone_since = if shared { None } else { Some(self.alone_since.unwrap_or(now)) };
        self.alone_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether the GPU's use of late was divided by it.
    pub(super) fn is_followed(&self) -> bool {
        let sum = |of: fn(&Judgement) -> bool| {
            self.judgements
                .iter()
                .filter(|judgement| of(judgement))
                .map(|judgement| judgement.active_s)
                .sum::<f64>()
        };
        self.trusted && sum(|judgement| judgement.divided) >= MOSTLY * sum(|_| true)
    }

    /// What the last fit leaves unexplained, as a part of a slot.
    pub(super) fn residual(&self) -> Option<f64> {
        self.fit.residual()
    }

    /// Reads the records since the last time. `listed`: the processes that NVML lists.
    ///
    /// # Errors
    /// Why the trace cannot be used any more.
    pub(super) fn read(
        &mut self,
        listed: &BTreeSet<u32>,
        counts: &mut Counts,
        now: Instant,
    ) -> Result<(), String> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        let mut records: Vec<Record> = Vec::new();
        booked("rm_read", || self.binding.drain(now_ns, &mut records)).map_err(|error| error.to_string())?;
        if !records.is_empty() || self.record_at.is_none() {
            self.record_at = Some(now);
            self.named.clear();
        }
        for record in records {
            self.take(record, listed, counts)?;
        }
        self.doubt(now)?;
        self.residency.learn();
        let is_due = self.fitted_at.is_none_or(|at| now.saturating_duration_since(at) >= FIT_EVERY);
        if is_due && self.fit.slots() >= ENOUGH_SLOTS + PHASES * self.phase {
            self.fitted_at = Some(now);
            self.fit.solve();
            self.trusted =
                self.listed_seen && self.fit.residual().is_some_and(|residual| residual <= MOST_RESIDUAL);
        }
        Ok(())
    }

    fn take(&mut self, record: Record, listed: &BTreeSet<u32>, counts: &mut Counts) -> Result<(), String> {
        match record.kind {
            Kind::Lost { records } => counts.lost += u64::from(records),
            Kind::Reset => {}
            Kind::Start { .. } | Kind::End { .. } => {
                counts.records += 1;
                if record.at_ns < self.complete_ns {
                    let late_ms = (self.complete_ns - record.at_ns) / 1_000_000;
                    return Err(format!(
                        "a record came after its slot was divided, which ended {late_ms} ms after it"
                    ));
                }
            }
        }
        if let Kind::Start { pid } = record.kind {
            let is_listed = listed.contains(&pid);
            self.listed_seen |= is_listed;
            *(if is_listed { &mut self.listed } else { &mut self.unlisted }) += 1;
        }
        self.residency.take(record);
        Ok(())
    }

    /// # Errors
    /// What is wrong between the trace and NVML.
    fn doubt(&mut self, now: Instant) -> Result<(), String> {
        if self.listed + self.unlisted >= STARTS {
            if self.listed == 0 {
                return Err("it names none of the processes that NVML lists".to_owned());
            }
            if self.listed < self.unlisted {
                return Err("most of the processes that it names are not on NVML's list".to_owned());
            }
            (self.listed, self.unlisted) = (0, 0);
        }
        let contradicted =
            self.judgements.iter().filter(|judgement| judgement.contradicted).count() >= CONTRADICTED;
        let quiet = self.record_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        // Without records the last process is there for ever, so that NVML contradicts it as well.
        if quiet >= SILENT && self.named.len() > 1 || quiet >= LATE && contradicted {
            let quiet_s = quiet.as_secs();
            return Err(format!("no record came for {quiet_s} s, while NVML names several processes"));
        }
        if contradicted {
            return Err("NVML names processes that it says were not on the GPU".to_owned());
        }
        if self.incomplete >= JUDGED {
            return Err(
                "no slot of 10 s has all of its records: they are lost, or of another clock".to_owned()
            );
        }
        Ok(())
    }

    /// Whether all records of a slot have been handed out; `waited`: since it was read.
    pub(super) fn is_complete(&self, slot: &Slot, waited: Duration) -> bool {
        is_complete(slot, waited, self.residency.newest_ns())
    }

    /// Learns from a complete slot, and gives its parts if they can be told.
    pub(super) fn parts(&mut self, slot: &Slot) -> Option<Parts> {
        // A reading of the rates has no time of the driver's.
        let end_ns = slot.timestamp_us?.checked_mul(1000)?;
        let begin_ns = end_ns.saturating_sub(u64::try_from(slot.length.as_nanos()).ok()?);
        self.complete_ns = end_ns;
        let Some(residents) = self.residency.of_slot(begin_ns, end_ns) else {
            self.incomplete += usize::from(self.residency.newest_ns() > 0);
            return None;
        };
        self.incomplete = 0;
        self.residency.forget_before(begin_ns);
        if residents.is_empty() {
            return None;
        }
        self.fit.add(end_ns, slot.length.as_secs_f64(), slot.active_seconds(), &residents);
        if !self.trusted || slot.percent <= 0.0 {
            return None;
        }
        self.fit.parts(&residents)
    }

    /// How a slot was divided, unless NVML names somebody who has no part of it.
    pub(super) fn judge(&mut self, slot: &Slot, by_nvml: &Credit, divided: Option<Credit>) -> Option<Credit> {
        let mut contradicted = false;
        if let Credit::Of(whose) = by_nvml {
            self.named.insert(whose.clone());
            if let Some(Credit::Divided(parts)) = &divided {
                contradicted = parts.iter().all(|(known, _)| known != whose);
            }
        }
        let divided = divided.filter(|_| !contradicted);
        if self.judgements.len() >= JUDGED {
            self.judgements.pop_front();
        }
        let active_s = slot.active_seconds();
        self.judgements.push_back(Judgement { active_s, divided: divided.is_some(), contradicted });
        divided
    }
}

/// Whether all records of a slot have been handed out, the newest of which is of `newest_ns`.
pub(super) fn is_complete(slot: &Slot, waited: Duration, newest_ns: u64) -> bool {
    let is_followed = slot.timestamp_us.is_none_or(|end_us| newest_ns / 1000 >= end_us);
    is_followed || waited >= LATE
}

//! The driver's context-switch trace of a shared GPU: which process was on the engine when. With the
//! utilization of each slot it tells how much each process used, which NVML's own samples do not: they name
//! one process per slot, the one that is there when the driver looks.
//!
//! ```text
//! rm ─► binding ─► records ─► residency ─► fit ─┐
//!   ring's slots, NVML's credits ───────────────┴─► Trace ─► credits
//! ```
//!
//! The trace is an interface that NVIDIA does not document for others. So it is bound only while a GPU has
//! several owners, everything that comes out of it is checked, and each slot of which it does not tell all
//! keeps the credit that NVML gives.

mod binding;
mod fit;
mod quantum;
mod records;
mod residency;
mod rm;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use binding::{BindError, Binding, Place};
use fit::Fit;
use records::{Kind, Record};
use residency::{Residency, Residents};

use super::{Credit, Identity, Slot};

#[cfg(test)]
mod tests;

/// `--process-source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProcessSource {
    /// The trace where it can be had, else NVML.
    Auto,
    /// NVML's samples of processes.
    Nvml,
}

/// A slot waits so long for the driver to hand out its records, which it does 30 times a second.
const HANDED_OUT: Duration = Duration::from_millis(150);
/// A slot cannot end so long after the trace was read, unless the clock was set back in between.
const AHEAD: Duration = Duration::from_secs(1);
/// Slots that a fit needs before it is used: 10 s of the driver's 200 ms.
const ENOUGH_SLOTS: usize = 50;
/// The most that a fit may leave unexplained, as a part of a slot: more means that the trace and the
/// utilization are of different things.
const MOST_RESIDUAL: f64 = 0.1;
/// How often the fit is made again.
const FIT_EVERY: Duration = Duration::from_secs(5);
/// A trace is given up after a GPU has had one owner for so long.
const ALONE: Duration = Duration::from_secs(30);
/// A trace that was refused or lost is tried again after so long.
const AGAIN: Duration = Duration::from_secs(300);
/// So many records of processes that NVML does not list, and none of one that it does, end a trace.
const UNLISTED: u32 = 1000;

/// What a trace is bound with.
#[derive(Debug, Clone)]
pub(crate) struct TraceSettings {
    pub(crate) source: ProcessSource,
    /// Of the device files.
    pub(crate) device_files: PathBuf,
}

/// How the use of a shared GPU is divided.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sharing {
    /// By the trace; else by NVML's samples, which are an estimate.
    pub(crate) traced: bool,
    /// `None` if no trace was ever bound.
    pub(crate) counts: Option<Counts>,
    /// What the last fit leaves unexplained, as a part of a slot.
    pub(crate) residual: Option<f64>,
}

/// The trace of one GPU.
#[derive(Debug)]
pub(super) struct Trace {
    settings: TraceSettings,
    state: State,
    /// Slots, with NVML's credits, whose records may be still to come.
    waiting: VecDeque<(Slot, Credit)>,
    /// Why it was last not to be had, as it was logged.
    said: Option<String>,
    counts: Option<Counts>,
}

#[derive(Debug)]
enum State {
    /// Not bound: the GPU has one owner.
    Unbound,
    Refused {
        since: Instant,
    },
    Bound(Box<Bound>),
}

/// Of all records since the exporter began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) records: u64,
    pub(crate) lost: u64,
}

#[derive(Debug)]
struct Bound {
    binding: Binding,
    residency: Residency,
    fit: Fit,
    /// When it was last drained.
    drained_ns: u64,
    fitted_at: Option<Instant>,
    trusted: bool,
    /// Since when the GPU has one owner.
    alone_since: Option<Instant>,
    listed_seen: bool,
    unlisted: u32,
}

/// What is known of a slot's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Records {
    /// All have been handed out.
    Complete,
    ToCome,
    /// The slot is of a time before the clock was set back, or a reading of the rates, which has no time of
    /// the driver's: there are none.
    OfAnotherTime,
}

/// The part of a slot's use that a process had, of one.
pub(super) type Parts = Vec<(u32, f64)>;

// === impl TraceSettings ===

impl TraceSettings {
    pub(super) fn is_wanted(&self) -> bool {
        self.source != ProcessSource::Nvml
    }
}

// === impl Trace ===

impl Trace {
    pub(super) fn new(settings: &TraceSettings) -> Self {
        Self {
            settings: settings.clone(),
            state: State::Unbound,
            waiting: VecDeque::new(),
            said: None,
            counts: None,
        }
    }

    pub(super) fn sharing(&self) -> Sharing {
        let (traced, residual) = match &self.state {
            State::Bound(bound) => (bound.trusted, bound.fit.residual()),
            State::Unbound | State::Refused { .. } => (false, None),
        };
        Sharing { traced, counts: self.counts, residual }
    }

    /// Once a tick: binds or releases it, and reads its records. `unfit`: why this GPU's use cannot be
    /// told by contexts; `listed`: the processes that NVML lists.
    pub(super) fn tick(
        &mut self,
        identity: &Identity,
        shared: bool,
        unfit: Option<&'static str>,
        listed: &BTreeSet<u32>,
        now: Instant,
    ) {
        match &mut self.state {
            State::Unbound if shared => self.bind(identity, unfit, now),
            State::Refused { since } if shared && now.saturating_duration_since(*since) >= AGAIN => {
                self.bind(identity, unfit, now);
            }
            State::Unbound | State::Refused { .. } => {}
            State::Bound(bound) => {
                let alone_since = if shared { None } else { Some(bound.alone_since.unwrap_or(now)) };
                bound.alone_since = alone_since;
                if alone_since.is_some_and(|since| now.saturating_duration_since(since) >= ALONE) {
                    self.state = State::Unbound;
                    return;
                }
                let read = match unfit {
                    Some(reason) => Err(reason.to_owned()),
                    None => bound.read(listed, self.counts.get_or_insert_default(), now),
                };
                if let Err(reason) = read {
                    self.refused(identity, reason, now);
                }
            }
        }
    }

    /// The credits of slots, those of NVML replaced where the trace knows better: `named` gives a process's
    /// owner. The newest slots may wait for the next tick.
    pub(super) fn credit(
        &mut self,
        slots: Vec<(Slot, Credit)>,
        mut named: impl FnMut(Parts) -> Credit,
    ) -> Vec<(Slot, Credit)> {
        self.waiting.extend(slots);
        let State::Bound(bound) = &mut self.state else { return self.waiting.drain(..).collect() };
        let mut ready = Vec::new();
        while let Some(records) = self.waiting.front().map(|(slot, _)| Records::of(slot, bound.drained_ns))
            && records != Records::ToCome
            && let Some((slot, credit)) = self.waiting.pop_front()
        {
            let parts = if records == Records::Complete { bound.parts(&slot) } else { None };
            ready.push((slot, parts.map_or(credit, &mut named)));
        }
        ready
    }

    fn bind(&mut self, identity: &Identity, unfit: Option<&'static str>, now: Instant) {
        let bound = match (unfit, place(identity)) {
            (Some(reason), _) => Err(reason.to_owned()),
            (None, None) => Err("the driver does not tell its PCI address or minor number".to_owned()),
            (None, Some(place)) => {
                Binding::bind(&self.settings.device_files, &place).map_err(|error| error.to_string())
            }
        };
        match bound {
            Ok(binding) => {
                tracing::info!("GPU {} ({}): context switches are traced", identity.index, identity.uuid);
                self.said = None;
                self.state = State::Bound(Box::new(Bound::new(binding)));
            }
            Err(reason) => self.refused(identity, reason, now),
        }
    }

    fn refused(&mut self, identity: &Identity, reason: String, now: Instant) {
        if self.said.as_ref() != Some(&reason) {
            tracing::info!(
                "GPU {} ({}): context switches are not traced: {reason}; shares are taken from NVML's samples, \
                 which are an estimate",
                identity.index,
                identity.uuid
            );
            self.said = Some(reason);
        }
        self.state = State::Refused { since: now };
    }
}

impl Records {
    /// `drained_ns`: when the trace was last read.
    fn of(slot: &Slot, drained_ns: u64) -> Self {
        let Some(end_us) = slot.timestamp_us else { return Self::OfAnotherTime };
        let end_ns = u128::from(end_us) * 1000;
        let drained_ns = u128::from(drained_ns);
        if end_ns + HANDED_OUT.as_nanos() <= drained_ns {
            Self::Complete
        } else if end_ns > drained_ns + AHEAD.as_nanos() {
            Self::OfAnotherTime
        } else {
            Self::ToCome
        }
    }
}

impl Bound {
    fn new(binding: Binding) -> Self {
        Self {
            binding,
            residency: Residency::default(),
            fit: Fit::default(),
            drained_ns: 0,
            fitted_at: None,
            trusted: false,
            alone_since: None,
            listed_seen: false,
            unlisted: 0,
        }
    }

    /// # Errors
    /// Why the trace cannot be used any more.
    fn read(&mut self, listed: &BTreeSet<u32>, counts: &mut Counts, now: Instant) -> Result<(), String> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        let mut records: Vec<Record> = Vec::new();
        self.binding.drain(now_ns, &mut records).map_err(|error: BindError| error.to_string())?;
        for record in records {
            counts.records += 1;
            match record.kind {
                Kind::Lost { records } => counts.lost += u64::from(records),
                Kind::Start { pid } if listed.contains(&pid) => self.listed_seen = true,
                Kind::Start { .. } => self.unlisted += 1,
                Kind::End { .. } | Kind::Reset => {}
            }
            self.residency.take(record);
        }
        if !self.listed_seen && self.unlisted >= UNLISTED {
            return Err("it names none of the processes that NVML lists".to_owned());
        }
        self.drained_ns = now_ns;
        self.residency.learn();
        let is_due = self.fitted_at.is_none_or(|at| now.saturating_duration_since(at) >= FIT_EVERY);
        if is_due && self.fit.slots() >= ENOUGH_SLOTS {
            self.fitted_at = Some(now);
            let fits = self.fit.solve();
            self.trusted = fits
                && self.listed_seen
                && self.fit.residual().is_some_and(|residual| residual <= MOST_RESIDUAL);
        }
        Ok(())
    }

    /// Learns from a slot, and gives its parts if they can be told.
    fn parts(&mut self, slot: &Slot) -> Option<Parts> {
        let end_ns = slot.timestamp_us?.checked_mul(1000)?;
        let begin_ns = end_ns.saturating_sub(u64::try_from(slot.length.as_nanos()).ok()?);
        let residents: Residents = self.residency.of_slot(begin_ns, end_ns)?;
        self.residency.forget_before(begin_ns);
        if residents.is_empty() {
            return None;
        }
        self.fit.add(end_ns, slot.active_seconds(), &residents);
        if !self.trusted || slot.percent <= 0.0 {
            return None;
        }
        let used: Vec<f64> = residents
            .iter()
            .map(|resident| {
                self.fit.work_s(resident.pid, &resident.ages) + resident.busy_s + resident.switching_s
            })
            .collect();
        let sum: f64 = used.iter().sum();
        (sum > 0.0)
            .then(|| residents.iter().zip(used).map(|(resident, used)| (resident.pid, used / sum)).collect())
    }
}

/// Where a GPU is, by its PCI bus id, such as `00000000:41:00.0`.
fn place(identity: &Identity) -> Option<Place> {
    let minor = identity.minor?;
    let (domain, rest) = identity.pci_bus_id.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, _) = rest.split_once('.')?;
    let [bus, slot] = [bus, slot].map(|part| u16::from_str_radix(part, 16).ok());
    Some(Place { minor, domain: u32::from_str_radix(domain, 16).ok()?, bus: bus?, slot: slot? })
}

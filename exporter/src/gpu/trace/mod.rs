//! The driver's context-switch trace of a shared GPU: which process was on the engine when. With the
//! utilization of each slot it tells how much each process used, which NVML's own samples do not: they name
//! one process per slot, the one that is there when the driver looks.
//!
//! ```text
//! rm ─► binding ─► records ─► residency ─► fit ─┐
//!   ring's slots, NVML's credits ───────────────┴─► bound ─► Trace ─► credits
//! ```
//!
//! The trace is an interface that NVIDIA does not document for others. So it is bound only while a GPU has
//! several owners, everything that comes out of it is checked, and each slot of which it does not tell all
//! keeps the credit that NVML gives, or has none if the trace alone is to be used.

mod binding;
mod bound;
mod fit;
mod quantum;
mod records;
mod residency;
mod rm;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use binding::{Binding, Place};
use bound::Bound;

use super::{Credit, Identity, Slot, account};
use crate::attribution::Whose;

#[cfg(test)]
mod tests;

/// `--process-source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProcessSource {
    /// The trace where it can be had, else NVML.
    Auto,
    /// NVML's samples of processes.
    Nvml,
    /// The trace alone: without it a shared GPU is not divided.
    ContextSwitches,
}

/// A trace is given up after a GPU has had one owner for so long.
const ALONE: Duration = Duration::from_secs(30);
/// A trace that was refused or lost is tried again after so long.
const AGAIN: Duration = Duration::from_secs(300);

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
    pub(crate) by: DividedBy,
    /// `None` if no trace was ever bound.
    pub(crate) counts: Option<Counts>,
    /// What the last fit leaves unexplained, as a part of a slot.
    pub(crate) residual: Option<f64>,
}

/// Who tells how a shared GPU's use is divided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum DividedBy {
    Trace,
    /// An estimate.
    #[default]
    Nvml,
    /// There is no trace, and nobody else may tell.
    Nobody,
}

/// The trace of one GPU.
#[derive(Debug)]
pub(super) struct Trace {
    settings: TraceSettings,
    state: State,
    /// Slots, with NVML's credits and when they were read, whose records may be still to come.
    waiting: VecDeque<(Slot, Credit, Instant)>,
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
            State::Bound(bound) => (bound.is_followed(), bound.residual()),
            State::Unbound | State::Refused { .. } => (false, None),
        };
        let by = match (traced, self.is_strict()) {
            (true, _) => DividedBy::Trace,
            (false, true) => DividedBy::Nobody,
            (false, false) => DividedBy::Nvml,
        };
        Sharing { by, counts: self.counts, residual }
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
                if bound.alone_for(shared, now) >= ALONE {
                    self.release(State::Unbound);
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
        now: Instant,
    ) -> Vec<(Slot, Credit)> {
        self.waiting.extend(slots.into_iter().map(|(slot, credit)| (slot, credit, now)));
        let is_strict = self.is_strict();
        let untraced = |credit| if is_strict { without_nvml(credit) } else { credit };
        let State::Bound(bound) = &mut self.state else {
            let waiting = self.waiting.drain(..);
            return waiting.map(|(slot, credit, _)| (slot, untraced(credit))).collect();
        };
        let mut ready = Vec::new();
        while let Some((slot, credit, read_at)) = self.waiting.pop_front() {
            if !bound.is_complete(&slot, now.saturating_duration_since(read_at)) {
                self.waiting.push_front((slot, credit, read_at));
                break;
            }
            let divided = bound.parts(&slot).map(&mut named);
            let divided = bound.judge(&slot, &credit, divided);
            ready.push((slot, divided.unwrap_or_else(|| untraced(credit))));
        }
        ready
    }

    fn bind(&mut self, identity: &Identity, unfit: Option<&'static str>, now: Instant) {
        let bound = match (unfit, place(identity)) {
            (Some(reason), _) => Err(reason.to_owned()),
            (None, None) => Err("the driver does not tell its PCI address or minor number".to_owned()),
            (None, Some(place)) => booked("rm_bind", || Binding::bind(&self.settings.device_files, &place))
                .map_err(|error| error.to_string()),
        };
        match bound {
            Ok(binding) => {
                tracing::info!("GPU {} ({}): context switches are traced", identity.index, identity.uuid);
                self.said = None;
                self.state = State::Bound(Box::new(Bound::new(binding, identity.index)));
            }
            Err(reason) => self.refused(identity, reason, now),
        }
    }

    fn refused(&mut self, identity: &Identity, reason: String, now: Instant) {
        // Numbers in it may differ each time.
        let without_numbers = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        if self.said.as_deref().map(without_numbers) != Some(without_numbers(&reason)) {
            let instead = if self.is_strict() {
                "its use is not divided, since --process-source=context-switches allows nothing else"
            } else {
                "shares are taken from NVML's samples, which are an estimate"
            };
            tracing::info!(
                "GPU {} ({}): context switches are not traced: {reason}; {instead}",
                identity.index,
                identity.uuid
            );
            self.said = Some(reason);
        }
        self.release(State::Refused { since: now });
    }

    fn is_strict(&self) -> bool {
        self.settings.source == ProcessSource::ContextSwitches
    }

    fn release(&mut self, next: State) {
        let before = std::mem::replace(&mut self.state, next);
        if let State::Bound(bound) = before {
            booked("rm_release", || drop(bound));
        }
    }
}

/// The credit of a slot of which NVML's sample is not to count: a gap, since idle slots alone would make all
/// read too low, and what one owner had before says nothing of the slot. That an MPS server serves several
/// processes is not told by the trace.
fn without_nvml(credit: Credit) -> Credit {
    match credit {
        Credit::Of(Whose::MpsServer) => credit,
        _ => Credit::Unsampled,
    }
}

/// Makes calls of the kernel driver and books them beside those of NVML: one that hangs is seen.
fn booked<T>(call: &'static str, run: impl FnOnce() -> T) -> T {
    match account::timed(call, || Ok(run())) {
        Ok(done) => done,
        Err(error) => unreachable!("because nothing fails here: {error}"),
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

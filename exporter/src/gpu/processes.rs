//! Follows the processes of a GPU: the lists of those that run, every tick, and while the GPU has more
//! than one owner, the use of each process slot by slot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};

use super::driver::{Device, Fault, NvmlError};
use super::process_calls::{self, ProcessSamples, Running, RunningProcess};
use super::rhythm::Rhythm;
use super::ring::{SetBack, Slot};
use super::sample_match::{Row, SampleMatch};
use super::trace::{Parts, Sharing, Trace, TraceSettings};
use super::{Credit, Identity, LooseSample};
use crate::attribution::process_table::{Process, ProcessTable};
use crate::attribution::processes::HolderBook;
use crate::attribution::{Knowledge, Processes, Unavailable, Whose, count_owners};

/// Without a sample for so long the driver is asked once for all it has: its clock may have gone back.
const SILENT: Duration = Duration::from_secs(2);

/// So many spacings after the last question newer slots may hide older ones. In time it is one.
const LATE: f64 = 1.4;

/// The NVML thread's source of pods for processes.
#[derive(Debug)]
pub(crate) struct ProcessWatch {
    knowledge: watch::Receiver<Knowledge>,
    table: ProcessTable,
    /// Notified when a new pid shows up: its pod may be new to the kubelet poll too.
    unknown_pid: Arc<Notify>,
    samples: ProcessSamples,
    unavailable: Option<Unavailable>,
    trace: TraceSettings,
}

/// One GPU's processes during a session.
#[derive(Debug, Default)]
pub(super) struct DeviceProcesses {
    book: HolderBook,
    known: Processes,
    /// The last lists had clients of an MPS server.
    has_mps_clients: bool,
    /// The driver was asked for such clients since the last lists.
    asked_for_mps_clients: bool,
    /// The driver has no use per process.
    unsupported: bool,
    sampling: Option<Sampling>,
    /// The newest slot, whose process sample may come with the next tick.
    held: Option<Slot>,
    /// When the driver's slots end.
    rhythm: Rhythm,
    /// From the first time that it is shared on.
    trace: Option<Trace>,
    /// It has several owners.
    shared: bool,
    /// The pids of the last lists.
    listed: BTreeSet<u32>,
}

/// Process samples of a shared GPU.
#[derive(Debug)]
struct Sampling {
    samples: SampleMatch,
    /// When to ask next.
    due: Instant,
    /// When the driver was asked last.
    asked_at: Option<Instant>,
    /// Time from one slot's end to the next one's, usually.
    spacing: Duration,
    /// Since when no sample has come, and whether all were asked for because of it.
    silent: Option<(Instant, bool)>,
    set_back: Option<SetBack>,
}

/// The new slots of a ring, for [`DeviceProcesses::tick`].
#[derive(Debug)]
pub(super) struct NewSlots {
    pub(super) slots: Vec<Slot>,
    /// Time from one slot's end to the next one's, usually.
    pub(super) spacing: Duration,
    /// The driver's clock went back: what was sampled by it belongs to no slot of these.
    pub(super) clock_went_back: bool,
}

/// The new slots with their users.
#[derive(Debug, Default)]
pub(super) struct Credited {
    pub(super) slots: Vec<(Slot, Credit)>,
    pub(super) loose: Vec<LooseSample>,
}

// === impl ProcessWatch ===

impl ProcessWatch {
    pub(crate) fn new(
        knowledge: watch::Receiver<Knowledge>,
        table: ProcessTable,
        unknown_pid: Arc<Notify>,
        trace: TraceSettings,
    ) -> Self {
        Self { knowledge, table, unknown_pid, samples: ProcessSamples::new(), unavailable: None, trace }
    }

    /// Once a tick, before the devices.
    pub(super) fn begin_tick(&mut self, now: Instant) {
        self.unavailable = self.table.unavailable();
        self.table.forget(now);
    }

    /// The owner of a process. Its name makes it the MPS server only where the driver lists clients
    /// of one, and only outside every pod that was given a GPU: anybody can choose a name.
    fn owner(&self, process: Process, has_mps_clients: bool) -> Whose {
        let Process { whose, named_mps } = process;
        let may_serve = match &whose {
            Whose::Outside => true,
            Whose::Pod { owner, .. } => match &*self.knowledge.borrow() {
                Knowledge::Known(all) => !all.is_holder(&owner.namespace, &owner.pod),
                _ => false,
            },
            Whose::MpsServer | Whose::Gone | Whose::Unreadable => false,
        };
        if named_mps && has_mps_clients && may_serve { Whose::MpsServer } else { whose }
    }
}

// === impl DeviceProcesses ===

impl DeviceProcesses {
    /// The processes as of the last tick.
    pub(super) fn known(&self) -> Processes {
        self.known.clone()
    }

    /// How its use is divided; `None` while nobody shares the GPU.
    pub(super) fn sharing(&self) -> Option<Sharing> {
        self.shared.then(|| self.trace.as_ref().map(Trace::sharing).unwrap_or_default())
    }

    /// When use per process is to be asked for; `None` while nobody shares the GPU.
    pub(super) fn due(&self) -> Option<Instant> {
        self.sampling.as_ref().map(|sampling| sampling.due)
    }

    /// Reads the lists, begins or ends sampling, and finds who used the new slots.
    pub(super) fn tick(
        &mut self,
        device: &Device<'_>,
        identity: &Identity,
        new: NewSlots,
        watch: &mut ProcessWatch,
        now: Instant,
    ) -> Result<Credited, NvmlError> {
        let newest_us = new.slots.iter().filter_map(|slot| slot.timestamp_us).max();
        if let Some(ended_us) = newest_us {
            self.rhythm.follow(ended_us, new.spacing, SystemTime::now(), now);
        }
        self.known = self.read_lists(device, watch, now)?;
        self.known.holders = self.book.holders(now);
        let owners = count_owners(&watch.knowledge.borrow(), identity, &self.known);
        self.shared = owners > 1 && self.known.unavailable.is_none();
        if !self.shared || self.unsupported {
            self.sampling = None;
        } else if let Some(sampling) = &mut self.sampling
            && !new.clock_went_back
        {
            sampling.spacing = new.spacing;
        } else if new.clock_went_back && self.sampling.is_some() {
            self.held = None;
            let oldest_us = new.slots.iter().filter_map(|slot| slot.timestamp_us).min();
            let since_us = oldest_us.map_or(0, |oldest| oldest.saturating_sub(1));
            let set_back = newest_us.map(|at_us| SetBack { at_us, at: now });
            self.sampling = Some(Sampling { set_back, ..Sampling::new(since_us, new.spacing, now) });
        } else {
            let since_us = newest_us.or(self.held.and_then(|slot| slot.timestamp_us)).unwrap_or(0);
            self.sampling = Some(Sampling::new(since_us, new.spacing, now));
        }
        if self.due().is_some_and(|due| due <= now) {
            self.poll(device, watch)?;
        }
        self.known.no_utilization = self.unsupported;
        // A process that came and went between two lists has shown in its use.
        self.known.holders = self.book.holders(now);
        let mut credited = self.credit(new.slots, new.spacing, now);
        self.trace(identity, &mut credited.slots, watch, now);
        Ok(credited)
    }

    /// Follows the trace, and divides the slots that it tells of.
    fn trace(
        &mut self,
        identity: &Identity,
        slots: &mut Vec<(Slot, Credit)>,
        watch: &mut ProcessWatch,
        now: Instant,
    ) {
        if !watch.trace.is_wanted() || (!self.shared && self.trace.is_none()) {
            return;
        }
        let unfit = self.has_mps_clients.then_some("its processes run through an MPS server");
        let trace = self.trace.get_or_insert_with(|| Trace::new(&watch.trace));
        trace.tick(identity, self.shared, unfit, &self.listed, now);
        let has_mps_clients = self.has_mps_clients;
        let named = |parts: Parts| {
            let mut divided: Vec<(Whose, f64)> = Vec::with_capacity(parts.len());
            for (pid, part) in parts {
                let process = watch.table.sampled(pid, now);
                let whose = watch.owner(process, has_mps_clients);
                match divided.iter_mut().find(|(known, _)| *known == whose) {
                    Some((_, sum)) => *sum += part,
                    None => divided.push((whose, part)),
                }
            }
            Credit::Divided(divided)
        };
        *slots = trace.credit(std::mem::take(slots), named, now);
    }

    /// Reads what processes used since the last time, if it is sampled.
    pub(super) fn poll(&mut self, device: &Device<'_>, watch: &mut ProcessWatch) -> Result<(), NvmlError> {
        let Some(sampling) = &mut self.sampling else { return Ok(()) };
        let asked_at = Instant::now();
        sampling.due = self.rhythm.middle_after(asked_at);
        let is_late = sampling.is_late(asked_at);
        let asks_for_all = sampling.asks_for_all(asked_at);
        let last_seen_us = if asks_for_all { 0 } else { sampling.samples.last_seen_us() };
        let rows: Vec<process_calls::ProcessSample> = match watch.samples.read(device, last_seen_us) {
            Ok(rows) => rows.collect(),
            Err(error) => {
                return match Fault::of(&error) {
                    Fault::Lost | Fault::Reload => Err(error),
                    Fault::Unsupported => {
                        self.unsupported = true;
                        self.sampling = None;
                        Ok(())
                    }
                    // Nobody used it since.
                    Fault::NoValue => {
                        sampling.heard_nothing(Instant::now());
                        Ok(())
                    }
                };
            }
        };
        let now = Instant::now();
        if asks_for_all && !sampling.went_back(&rows, now) {
            return Ok(());
        }
        let mut taken = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(|row| sampling.is_news(row, now)) {
            let process = watch.table.sampled(row.pid, now);
            // A server that began since the last lists is none of those outside every pod.
            if process.named_mps && !self.has_mps_clients && !self.asked_for_mps_clients {
                self.asked_for_mps_clients = true;
                let clients = process_calls::running(device, Running::MpsClients);
                self.has_mps_clients = clients.is_ok_and(|clients| !clients.is_empty());
            }
            let whose = watch.owner(process, self.has_mps_clients);
            self.book.seen(&whose, now);
            taken.push(Row { end_us: row.timestamp_us, percent: row.percent, whose });
        }
        if taken.is_empty() {
            sampling.heard_nothing(now);
        } else {
            sampling.silent = None;
            sampling.samples.take(taken, is_late);
        }
        Ok(())
    }

    fn read_lists(
        &mut self,
        device: &Device<'_>,
        watch: &mut ProcessWatch,
        now: Instant,
    ) -> Result<Processes, NvmlError> {
        if let Some(reason) = watch.unavailable {
            return Ok(Processes { unavailable: Some(reason), ..Processes::default() });
        }
        let mut running: BTreeMap<u32, Option<u64>> = BTreeMap::new();
        self.asked_for_mps_clients = false;
        let had_mps_clients = std::mem::replace(&mut self.has_mps_clients, false);
        for list in [Running::Compute, Running::Graphics, Running::MpsClients] {
            let listed = match process_calls::running(device, list) {
                Ok(listed) => listed,
                Err(error) => match (Fault::of(&error), list) {
                    (Fault::Lost | Fault::Reload, _) => return Err(error),
                    (_, Running::Compute) => {
                        let unavailable = Some(if error.is_missing() {
                            Unavailable::DriverTooOld
                        } else {
                            Unavailable::ProcessesUnreadable
                        });
                        return Ok(Processes { unavailable, ..Processes::default() });
                    }
                    // A driver without one of the others has no such processes; one that fails now
                    // has said so before.
                    (_, list) => {
                        self.has_mps_clients |=
                            list == Running::MpsClients && had_mps_clients && !error.is_missing();
                        Vec::new()
                    }
                },
            };
            self.has_mps_clients |= list == Running::MpsClients && !listed.is_empty();
            for RunningProcess { pid, memory } in listed {
                // A process of several lists has the same memory in each.
                let known = running.entry(pid).or_insert(memory);
                *known = known.and_then(|known| memory.map(|memory| memory.max(known)));
            }
        }
        self.listed = running.keys().copied().collect();
        let mut memory = Some(Vec::with_capacity(running.len()));
        for (pid, bytes) in running {
            let (process, is_news) = watch.table.listed(pid, now);
            if is_news {
                watch.unknown_pid.notify_one();
            }
            let whose = watch.owner(process, self.has_mps_clients);
            self.book.seen(&whose, now);
            match (&mut memory, bytes, &whose) {
                (_, Some(0), _) => {}
                (Some(known), Some(bytes), Whose::Pod { .. } | Whose::Outside | Whose::MpsServer) => {
                    known.push((whose, bytes));
                }
                _ => memory = None,
            }
        }
        Ok(Processes { memory, ..Processes::default() })
    }

    /// Finds for each slot who used it. The newest one may have to wait for its process sample.
    fn credit(&mut self, slots: Vec<Slot>, spacing: Duration, now: Instant) -> Credited {
        let slots = self.held.take().into_iter().chain(slots);
        let Some(Sampling { samples, .. }) = &mut self.sampling else {
            let slots = slots.map(|slot| (slot, Credit::Unsampled)).collect();
            return Credited { slots, loose: Vec::new() };
        };
        let mut slots: Vec<Slot> = slots.collect();
        let ring_is_silent = !slots.is_empty() && slots.iter().all(|slot| slot.timestamp_us.is_none());
        let newest = slots.pop();
        let mut credited: Vec<(Slot, Credit)> =
            slots.into_iter().map(|slot| (slot, samples.credit(&slot))).collect();
        if let Some(newest) = newest {
            match samples.credit(&newest) {
                Credit::Missed(_) if newest.timestamp_us.is_some() => self.held = Some(newest),
                credit => credited.push((newest, credit)),
            }
        }
        if let Some(at) = credited.iter().filter_map(|(slot, _)| slot.timestamp_us).max() {
            samples.forget(at);
        }
        let loose = if ring_is_silent { samples.take_loose(spacing, now) } else { Vec::new() };
        Credited { slots: credited, loose }
    }
}

// === impl Sampling ===

impl Sampling {
    fn new(since_us: u64, spacing: Duration, due: Instant) -> Self {
        Self {
            samples: SampleMatch::new(since_us),
            due,
            asked_at: None,
            spacing,
            silent: None,
            set_back: None,
        }
    }

    /// Whether more than one slot can have ended since the driver was asked last.
    fn is_late(&mut self, now: Instant) -> bool {
        let before = self.asked_at.replace(now);
        before.is_none_or(|before| now.saturating_duration_since(before) > self.spacing.mul_f64(LATE))
    }

    fn is_news(&self, row: &process_calls::ProcessSample, now: Instant) -> bool {
        let is_past = self.set_back.is_none_or(|set_back| set_back.is_past(row.timestamp_us, now));
        row.timestamp_us > self.samples.last_seen_us() && is_past
    }

    /// The driver has no sample newer than the last one.
    fn heard_nothing(&mut self, now: Instant) {
        self.silent.get_or_insert((now, false));
    }

    /// Whether all samples are to be asked for, however old: once in every silence.
    fn asks_for_all(&mut self, now: Instant) -> bool {
        match &mut self.silent {
            Some((since, asked)) if !*asked && now.saturating_duration_since(*since) >= SILENT => {
                *asked = true;
                true
            }
            _ => false,
        }
    }

    /// Begins again at the newest of all samples if it is older than the last one seen, and tells
    /// whether. Samples from before the clock went back may still be among them: those of the future.
    fn went_back(&mut self, all: &[process_calls::ProcessSample], now: Instant) -> bool {
        let present_us = present_us();
        let past = all.iter().map(|row| row.timestamp_us).filter(|at| *at <= present_us);
        match past.max() {
            Some(newest_us) if newest_us < self.samples.last_seen_us() => {
                self.samples = SampleMatch::new(newest_us);
                self.silent = None;
                self.set_back = Some(SetBack { at_us: newest_us, at: now });
                true
            }
            _ => false,
        }
    }
}

/// The wall clock's time, µs. A later timestamp is of another clock, or of another setting of this one.
fn present_us() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Duration = Duration::from_millis(200);

    fn slot(end_us: u64, percent: f64) -> Slot {
        Slot { end: Instant::now(), timestamp_us: Some(end_us), length: SLOT, percent, history: false }
    }

    fn sampled() -> DeviceProcesses {
        DeviceProcesses {
            sampling: Some(Sampling::new(0, SLOT, Instant::now())),
            ..DeviceProcesses::default()
        }
    }

    fn take(processes: &mut DeviceProcesses, end_us: u64, whose: Whose) {
        let samples = &mut processes.sampling.as_mut().unwrap().samples;
        samples.take(vec![Row { end_us, percent: 40, whose }], false);
    }

    fn credits(processes: &mut DeviceProcesses, slots: Vec<Slot>) -> Vec<Credit> {
        let credited = processes.credit(slots, SLOT, Instant::now());
        credited.slots.into_iter().map(|(_, credit)| credit).collect()
    }

    #[test]
    fn the_newest_slot_waits_one_tick_for_its_sample() {
        let mut processes = sampled();
        assert_eq!(credits(&mut processes, vec![slot(200_000, 40.0)]), []);
        take(&mut processes, 200_000, Whose::Outside);
        let credited = credits(&mut processes, vec![slot(400_000, 0.0)]);
        assert_eq!(credited, [Credit::Of(Whose::Outside), Credit::Idle]);
        assert_eq!(credits(&mut processes, vec![slot(600_000, 40.0)]), []);
        // It did not come: missed, and never counted twice.
        let credited = credits(&mut processes, vec![slot(800_000, 0.0)]);
        assert_eq!(credited, [Credit::Missed(Vec::new()), Credit::Idle]);
        assert_eq!(credits(&mut processes, Vec::new()), []);
    }

    #[test]
    fn readings_of_the_rates_wait_for_nothing_and_loosen_the_samples() {
        let mut processes = sampled();
        take(&mut processes, 200_000, Whose::Outside);
        let reading = |percent| Slot { timestamp_us: None, ..slot(0, percent) };
        let slots = vec![reading(0.0), reading(20.0)];
        let credited = processes.credit(slots, SLOT, Instant::now());
        let credits: Vec<_> = credited.slots.into_iter().map(|(_, credit)| credit).collect();
        assert_eq!(credits, [Credit::Idle, Credit::Missed(Vec::new())]);
        assert_eq!(credited.loose.iter().map(|sample| sample.active_s).sum::<f64>(), 0.08);
        let mut alone = DeviceProcesses::default();
        let credited = alone.credit(vec![slot(200_000, 20.0)], SLOT, Instant::now());
        assert_eq!(credited.slots[0].1, Credit::Unsampled);
    }

    #[test]
    fn samples_start_again_when_the_drivers_clock_went_back() {
        let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        let hour_us = 3_600_000_000;
        let now = Instant::now();
        let mut sampling = Sampling::new(wall_us + hour_us, SLOT, now);
        sampling.heard_nothing(now);
        assert!(!sampling.asks_for_all(now));
        assert!(sampling.asks_for_all(now + SILENT) && !sampling.asks_for_all(now + 2 * SILENT));
        let row = |timestamp_us| process_calls::ProcessSample { pid: 1, timestamp_us, percent: 5 };
        assert!(!sampling.went_back(&[row(wall_us + hour_us)], now), "only what was seen before");
        assert!(sampling.went_back(&[row(wall_us + hour_us), row(wall_us)], now));
        assert_eq!(sampling.samples.last_seen_us(), wall_us);
        let second = Duration::from_secs(1);
        assert!(sampling.is_news(&row(wall_us + 200_000), now + second));
        assert!(!sampling.is_news(&row(wall_us + hour_us), now + second), "from before it went back");
        let row = row(wall_us + hour_us + 31_000_000);
        assert!(sampling.is_news(&row, now + 31 * second), "it was set right again");
    }
}

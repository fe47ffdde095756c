//! Owns the processes of a GPU: the lists of those that run, every tick, and while it has more than
//! one owner what each process used, slot by slot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};

use super::driver::{Device, Fault, NvmlError};
use super::process_calls::{self, ProcessSamples, Running, RunningProcess};
use super::rhythm::Rhythm;
use super::ring::Slot;
use super::{Credit, Identity};
use crate::attribution::process_table::ProcessTable;
use crate::attribution::processes::HolderBook;
use crate::attribution::{Knowledge, Processes, Unavailable, Whose, count_owners};

/// A process's slot is the device's if their ends are not further apart, µs. The driver takes both
/// from one ring; a quarter of a slot is for one that does not.
const SAME_SLOT_US: u64 = 50_000;
/// Process samples older than this are of slots that were drained, µs.
const KEPT_US: u64 = 15_000_000;
/// Most process samples that wait for their slot.
const MAX_WAITING: usize = 1024;

/// What the NVML thread asks about processes.
#[derive(Debug)]
pub(crate) struct ProcessWatch {
    knowledge: watch::Receiver<Knowledge>,
    table: ProcessTable,
    /// Told when a pid shows up that was not there: its pod may be new to the kubelet poll too.
    unknown_pid: Arc<Notify>,
    samples: ProcessSamples,
    unavailable: Option<Unavailable>,
}

/// One GPU's processes during a session.
#[derive(Debug, Default)]
pub(super) struct DeviceProcesses {
    book: HolderBook,
    known: Processes,
    /// The driver has no use per process.
    unsupported: bool,
    sampling: Option<Sampling>,
    /// The newest slot, whose process sample may come with the next tick.
    held: Option<Slot>,
    /// When the driver's slots end.
    rhythm: Rhythm,
}

/// Process samples of a shared GPU.
#[derive(Debug)]
struct Sampling {
    /// Slots from then on are sampled, µs in the driver's clock.
    since_us: u64,
    last_seen_us: u64,
    /// Samples whose slot was not drained yet: by its end, whose it is.
    waiting: BTreeMap<u64, (u32, Whose)>,
    /// When to ask next.
    due: Instant,
}

// === impl ProcessWatch ===

impl ProcessWatch {
    pub(crate) fn new(
        knowledge: watch::Receiver<Knowledge>,
        table: ProcessTable,
        unknown_pid: Arc<Notify>,
    ) -> Self {
        Self { knowledge, table, unknown_pid, samples: ProcessSamples::new(), unavailable: None }
    }

    /// Once a tick, before the devices.
    pub(super) fn begin_tick(&mut self, now: Instant) {
        self.unavailable = self.table.unavailable();
        self.table.forget(now);
    }
}

// === impl DeviceProcesses ===

impl DeviceProcesses {
    /// What is known of them as of the last tick.
    pub(super) fn known(&self) -> Processes {
        self.known.clone()
    }

    /// When use per process is to be asked for; `None` while nobody shares the GPU.
    pub(super) fn due(&self) -> Option<Instant> {
        self.sampling.as_ref().map(|sampling| sampling.due)
    }

    /// Reads the lists, begins or ends sampling, and finds out whose the new slots are.
    pub(super) fn tick(
        &mut self,
        device: &Device<'_>,
        identity: &Identity,
        slots: Vec<Slot>,
        spacing: Duration,
        watch: &mut ProcessWatch,
        now: Instant,
    ) -> Result<Vec<(Slot, Credit)>, NvmlError> {
        let newest_us = slots.iter().filter_map(|slot| slot.timestamp_us).max();
        if let Some(ended_us) = newest_us {
            self.rhythm.follow(ended_us, spacing, SystemTime::now(), now);
        }
        self.known = self.read_lists(device, watch, now)?;
        self.known.holders = self.book.holders(now);
        let owners = count_owners(&watch.knowledge.borrow(), identity, &self.known);
        if owners <= 1 || self.known.unavailable.is_some() || self.unsupported {
            self.sampling = None;
        } else if self.sampling.is_none() {
            let since_us = newest_us.or(self.held.and_then(|slot| slot.timestamp_us)).unwrap_or(0);
            self.sampling = Some(Sampling::new(since_us, now));
        }
        if self.due().is_some_and(|due| due <= now) {
            self.poll(device, watch)?;
        }
        self.known.no_utilization = self.unsupported;
        // A process that came and went between two lists has shown in its use.
        self.known.holders = self.book.holders(now);
        Ok(self.credit(slots))
    }

    /// Reads what processes used since the last time, if it is sampled.
    pub(super) fn poll(&mut self, device: &Device<'_>, watch: &mut ProcessWatch) -> Result<(), NvmlError> {
        let Some(sampling) = &mut self.sampling else { return Ok(()) };
        sampling.due = self.rhythm.middle_after(Instant::now());
        let rows = match watch.samples.read(device, sampling.last_seen_us) {
            Ok(rows) => rows,
            Err(error) => {
                return match Fault::of(&error) {
                    Fault::Lost | Fault::Reload => Err(error),
                    Fault::Unsupported => {
                        self.unsupported = true;
                        self.sampling = None;
                        Ok(())
                    }
                    // Nobody used it since.
                    Fault::NoValue => Ok(()),
                };
            }
        };
        let now = Instant::now();
        for row in rows {
            sampling.last_seen_us = sampling.last_seen_us.max(row.timestamp_us);
            let whose = watch.table.whose(row.pid, now);
            self.book.seen(&whose, now);
            sampling.take(row.timestamp_us, row.percent, whose);
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
                    // A driver without one of the others has no such processes.
                    _ => Vec::new(),
                },
            };
            for RunningProcess { pid, memory } in listed {
                // A process of several lists has the same memory in each.
                let known = running.entry(pid).or_insert(memory);
                *known = known.and_then(|known| memory.map(|memory| memory.max(known)));
            }
        }
        let mut memory = Some(Vec::with_capacity(running.len()));
        for (pid, bytes) in running {
            let (whose, is_news) = watch.table.look_up(pid, now);
            if is_news {
                watch.unknown_pid.notify_one();
            }
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

    /// Finds for each slot whose it is. The newest one may have to wait for its process sample.
    fn credit(&mut self, slots: Vec<Slot>) -> Vec<(Slot, Credit)> {
        let slots = self.held.take().into_iter().chain(slots);
        let Some(sampling) = &mut self.sampling else {
            return slots.map(|slot| (slot, Credit::Unsampled)).collect();
        };
        let mut slots: Vec<Slot> = slots.collect();
        let newest = slots.pop();
        let mut credited: Vec<(Slot, Credit)> =
            slots.into_iter().map(|slot| (slot, sampling.credit(&slot))).collect();
        if let Some(newest) = newest {
            match sampling.credit(&newest) {
                Credit::Missed if newest.timestamp_us.is_some() => self.held = Some(newest),
                credit => credited.push((newest, credit)),
            }
        }
        if let Some(at) = credited.iter().filter_map(|(slot, _)| slot.timestamp_us).max() {
            sampling.forget_before(at.saturating_sub(KEPT_US));
        }
        credited
    }
}

// === impl Sampling ===

impl Sampling {
    fn new(since_us: u64, due: Instant) -> Self {
        Self { since_us, last_seen_us: since_us, waiting: BTreeMap::new(), due }
    }

    /// Takes a process's sample. Where two have one slot the greater counts: a slot credits one.
    fn take(&mut self, end_us: u64, percent: u32, whose: Whose) {
        if percent == 0 || self.waiting.len() >= MAX_WAITING {
            return;
        }
        let known = self.waiting.entry(end_us).or_insert_with(|| (percent, whose.clone()));
        if percent > known.0 {
            *known = (percent, whose);
        }
    }

    fn credit(&mut self, slot: &Slot) -> Credit {
        let Some(end_us) = slot.timestamp_us else {
            // A reading of the rates: it is no slot, and process samples say nothing of it.
            return if slot.percent > 0.0 { Credit::Missed } else { Credit::Idle };
        };
        if end_us <= self.since_us {
            return Credit::Unsampled;
        }
        if slot.percent <= 0.0 {
            return Credit::Idle;
        }
        let near = self.waiting.range(end_us.saturating_sub(SAME_SLOT_US)..=end_us + SAME_SLOT_US);
        let nearest = near.map(|(at, _)| *at).min_by_key(|at| at.abs_diff(end_us));
        match nearest.and_then(|at| self.waiting.remove(&at)) {
            Some((_, whose)) => Credit::Of(whose),
            None => Credit::Missed,
        }
    }

    fn forget_before(&mut self, at_us: u64) {
        self.waiting = self.waiting.split_off(&at_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(end_us: u64, percent: f64) -> Slot {
        Slot {
            end: Instant::now(),
            timestamp_us: Some(end_us),
            length: Duration::from_millis(200),
            percent,
            history: false,
        }
    }

    fn sampled(since_us: u64) -> DeviceProcesses {
        DeviceProcesses {
            sampling: Some(Sampling::new(since_us, Instant::now())),
            ..DeviceProcesses::default()
        }
    }

    fn take(processes: &mut DeviceProcesses, end_us: u64, percent: u32, whose: Whose) {
        processes.sampling.as_mut().unwrap().take(end_us, percent, whose);
    }

    fn credits(credited: Vec<(Slot, Credit)>) -> Vec<Credit> {
        credited.into_iter().map(|(_, credit)| credit).collect()
    }

    #[test]
    fn a_slot_is_its_process_samples_whose_and_one_of_zero_is_everybodys() {
        let mut processes = sampled(1_000_000);
        take(&mut processes, 1_400_000, 0, Whose::Unknown);
        take(&mut processes, 1_600_000, 30, Whose::Outside);
        take(&mut processes, 1_600_000, 10, Whose::Unknown);
        take(&mut processes, 1_801_000, 30, Whose::MpsServer);
        let slots = vec![
            slot(1_000_000, 50.0),
            slot(1_200_000, 50.0),
            slot(1_400_000, 0.0),
            slot(1_600_000, 30.0),
            slot(1_800_000, 30.0),
        ];
        assert_eq!(
            credits(processes.credit(slots)),
            [
                Credit::Unsampled,
                Credit::Missed,
                Credit::Idle,
                Credit::Of(Whose::Outside),
                Credit::Of(Whose::MpsServer)
            ]
        );
    }

    #[test]
    fn the_newest_slot_waits_one_tick_for_its_sample() {
        let mut processes = sampled(0);
        assert_eq!(credits(processes.credit(vec![slot(200_000, 40.0)])), []);
        take(&mut processes, 200_000, 40, Whose::Outside);
        let credited = processes.credit(vec![slot(400_000, 0.0)]);
        assert_eq!(credits(credited), [Credit::Of(Whose::Outside), Credit::Idle]);
        assert_eq!(credits(processes.credit(vec![slot(600_000, 40.0)])), []);
        // It did not come: missed, and never counted twice.
        assert_eq!(credits(processes.credit(vec![slot(800_000, 0.0)])), [Credit::Missed, Credit::Idle]);
        assert_eq!(credits(processes.credit(Vec::new())), []);
    }

    #[test]
    fn a_reading_of_the_rates_is_nobodys_unless_it_is_zero() {
        let mut processes = sampled(0);
        let reading = |percent| Slot { timestamp_us: None, ..slot(0, percent) };
        assert_eq!(
            credits(processes.credit(vec![reading(0.0), reading(20.0)])),
            [Credit::Idle, Credit::Missed]
        );
        let mut alone = DeviceProcesses::default();
        assert_eq!(credits(alone.credit(vec![slot(200_000, 20.0)])), [Credit::Unsampled]);
    }
}

//! Owns what was seen of each GPU's events: XIDs and clock event reasons, counted.
//!
//! Pure but for its lock: the XID thread and the sampler write, the sampler reads once a tick. It
//! outlives a session, so that no counter starts again when the driver is loaded anew.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podgauge_common::catalogue::clock_event::REASONS;

/// Events of one kind that are kept of one GPU; the oldest go first.
const MOST_KEPT: usize = 100_000;
/// Different XIDs that are counted of one GPU or MIG instance: NVIDIA has numbered fewer than 200.
const MOST_XIDS: usize = 256;
/// MIG instances of one GPU whose XIDs are kept; more than any GPU has.
const MOST_INSTANCES: usize = 64;

/// How long an event counts for the families with a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventWindows {
    pub(crate) xids: Duration,
    pub(crate) clock_events: Duration,
}

/// The events of every GPU, by UUID.
#[derive(Debug)]
pub(crate) struct EventLog {
    windows: EventWindows,
    gpus: Mutex<HashMap<String, GpuEvents>>,
}

#[derive(Debug, Default)]
struct GpuEvents {
    /// Whether the driver delivers XIDs of it.
    listening: bool,
    /// How many XIDs came.
    came: u64,
    /// Attributed to no MIG instance.
    xids: Xids,
    /// By id of the MIG instance.
    instances: HashMap<u32, Xids>,
    clocks: ClockEvents,
}

/// XIDs of one origin.
#[derive(Debug, Default)]
struct Xids {
    /// The last one, after its place in the order in which the GPU's came.
    last: (u64, u64),
    counts: BTreeMap<u64, u64>,
    recent: VecDeque<(Instant, u64)>,
}

/// Readings of the clock event reasons.
#[derive(Debug, Default)]
struct ClockEvents {
    /// Bits of the last reading; `None` before the first.
    last: Option<u64>,
    recent: VecDeque<(Instant, u64)>,
    begun: [u64; REASONS.len()],
}

/// What one tick knows of the events of one GPU or MIG instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EventCounts {
    /// 0 until the first XID; `None` if XIDs of this GPU cannot be seen.
    pub(crate) last_xid: Option<u64>,
    /// By XID: how many within the window.
    pub(crate) xids_in_window: BTreeMap<u64, u64>,
    /// By XID: how many since the exporter started.
    pub(crate) xids: BTreeMap<u64, u64>,
    /// By reason: readings within the window that showed it. `None` if there was none.
    pub(crate) clock_events_in_window: Option<[u64; REASONS.len()]>,
    /// By reason: how often it began since the exporter started.
    pub(crate) clock_events: [u64; REASONS.len()],
}

// === impl EventLog ===

impl EventLog {
    pub(crate) fn new(windows: EventWindows) -> Self {
        Self { windows, gpus: Mutex::default() }
    }

    /// The driver will deliver XIDs of this GPU.
    pub(super) fn listens(&self, uuid: &str) {
        self.gpus.lock().entry(uuid.to_owned()).or_default().listening = true;
    }

    /// An XID happened, on this MIG instance if the driver says so.
    pub(super) fn xid(&self, uuid: &str, instance: Option<u32>, xid: u64, now: Instant) {
        let mut gpus = self.gpus.lock();
        let gpu = gpus.entry(uuid.to_owned()).or_default();
        gpu.came += 1;
        let has_room = gpu.instances.len() < MOST_INSTANCES;
        let xids = match instance {
            Some(id) if has_room || gpu.instances.contains_key(&id) => gpu.instances.entry(id).or_default(),
            _ => &mut gpu.xids,
        };
        xids.last = (gpu.came, xid);
        if xids.counts.len() < MOST_XIDS || xids.counts.contains_key(&xid) {
            *xids.counts.entry(xid).or_default() += 1;
            push(&mut xids.recent, (now, xid));
        }
    }

    /// The instance is gone: its id may come to mean another.
    pub(super) fn forget_instance(&self, uuid: &str, instance: u32) {
        if let Some(gpu) = self.gpus.lock().get_mut(uuid) {
            gpu.instances.remove(&instance);
        }
    }

    /// The clock event reasons were read.
    pub(super) fn clock_reasons(&self, uuid: &str, bits: u64, now: Instant) {
        let mut gpus = self.gpus.lock();
        let clocks = &mut gpus.entry(uuid.to_owned()).or_default().clocks;
        // What was set at the first reading began at a moment that nobody knows.
        let appeared = bits & !clocks.last.unwrap_or(bits);
        for (reason, begun) in clocks.begun.iter_mut().enumerate() {
            *begun += appeared >> reason & 1;
        }
        clocks.last = Some(bits);
        push(&mut clocks.recent, (now, bits));
    }

    /// What is known of a GPU now. For a MIG instance: XIDs of its own and of the whole GPU.
    pub(super) fn counts(&self, uuid: &str, instance: Option<u32>, now: Instant) -> EventCounts {
        let mut gpus = self.gpus.lock();
        let Some(gpu) = gpus.get_mut(uuid) else { return EventCounts::default() };
        forget(&mut gpu.clocks.recent, self.windows.clock_events, now);
        let mut counts = EventCounts { clock_events: gpu.clocks.begun, ..EventCounts::default() };
        let mut last = (0, 0);
        let own = instance.and_then(|id| gpu.instances.get_mut(&id));
        for xids in own.into_iter().chain([&mut gpu.xids]) {
            forget(&mut xids.recent, self.windows.xids, now);
            last = last.max(xids.last);
            for (xid, count) in &xids.counts {
                *counts.xids.entry(*xid).or_default() += count;
            }
            for (_, xid) in &xids.recent {
                *counts.xids_in_window.entry(*xid).or_default() += 1;
            }
        }
        counts.last_xid = gpu.listening.then_some(last.1);
        if !gpu.clocks.recent.is_empty() {
            let mut readings = [0; REASONS.len()];
            for (_, bits) in &gpu.clocks.recent {
                for (reason, count) in readings.iter_mut().enumerate() {
                    *count += bits >> reason & 1;
                }
            }
            counts.clock_events_in_window = Some(readings);
        }
        counts
    }
}

fn push(recent: &mut VecDeque<(Instant, u64)>, event: (Instant, u64)) {
    if recent.len() >= MOST_KEPT {
        recent.pop_front();
    }
    recent.push_back(event);
}

fn forget(recent: &mut VecDeque<(Instant, u64)>, window: Duration, now: Instant) {
    while recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= window) {
        recent.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn log() -> EventLog {
        EventLog::new(EventWindows { xids: 10 * SECOND, clock_events: 5 * SECOND })
    }

    #[test]
    fn xids_age_out_of_the_window_and_never_out_of_the_total() {
        let (log, start) = (log(), Instant::now());
        assert_eq!(log.counts("a", None, start), EventCounts::default());
        log.listens("a");
        assert_eq!(log.counts("a", None, start).last_xid, Some(0));
        log.xid("a", None, 79, start);
        log.xid("a", None, 31, start + 4 * SECOND);
        log.xid("a", None, 79, start + 4 * SECOND);
        let counts = log.counts("a", None, start + 9 * SECOND);
        assert_eq!(counts.last_xid, Some(79));
        assert_eq!(counts.xids_in_window, BTreeMap::from([(31, 1), (79, 2)]));
        assert_eq!(
            log.counts("a", None, start + 10 * SECOND).xids_in_window,
            BTreeMap::from([(31, 1), (79, 1)])
        );
        let counts = log.counts("a", None, start + 14 * SECOND);
        assert_eq!((counts.xids_in_window.len(), counts.xids), (0, BTreeMap::from([(31, 1), (79, 2)])));
        assert_eq!(log.counts("b", None, start), EventCounts::default());
    }

    #[test]
    fn an_instance_has_its_own_xids_and_the_gpus() {
        let (log, now) = (log(), Instant::now());
        let last = |of| log.counts("a", of, now).last_xid;
        assert_eq!(last(None), None);
        log.listens("a");
        log.xid("a", Some(7), 13, now);
        assert_eq!([None, Some(7), Some(8)].map(last), [Some(0), Some(13), Some(0)]);
        log.xid("a", None, 79, now);
        assert_eq!([None, Some(7), Some(8)].map(last), [Some(79); 3]);
        log.xid("a", Some(8), 31, now);
        let both = BTreeMap::from([(31, 1), (79, 1)]);
        let counts = log.counts("a", Some(8), now);
        assert_eq!((counts.last_xid, &counts.xids, &counts.xids_in_window), (Some(31), &both, &both));
        assert_eq!(log.counts("a", Some(7), now).xids, BTreeMap::from([(13, 1), (79, 1)]));
        log.forget_instance("a", 8);
        assert_eq!(last(Some(8)), Some(79));
    }

    #[test]
    fn a_clock_event_counts_when_it_begins_and_not_if_it_was_there_from_the_start() {
        let (log, start) = (log(), Instant::now());
        for (second, bits) in (0..).zip([0x1, 0x1, 0x4, 0x4, 0x5, 0x100]) {
            log.clock_reasons("a", bits, start + second * SECOND);
        }
        let counts = log.counts("a", None, start + 5 * SECOND);
        assert_eq!(counts.clock_events, [1, 0, 1, 0, 0, 0, 0, 0, 1]);
        // The reading at second 0 is five seconds old.
        assert_eq!(counts.clock_events_in_window, Some([2, 0, 3, 0, 0, 0, 0, 0, 1]));
        assert_eq!(log.counts("a", None, start + 60 * SECOND).clock_events_in_window, None);
    }
}

//! Owns the ring of one trace: writes the scenario's switches into it as they come.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use podgauge_sim_nvml::scenario::SwitchTrace;
use podgauge_sim_nvml::switching::{self, Switch};

use crate::scene::Scene;
use crate::shared::Shared;
use crate::{DeviceFile, driver};

/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 32;
/// Where the next record's place is, in the header.
const PUT: usize = 4;
/// How often records are handed out.
const HANDED_OUT: Duration = Duration::from_millis(33);
/// The usual type of a record.
const CONTEXT_SWITCH: u16 = 2;
const SIMPLE_START: u8 = 6;
const SIMPLE_END: u8 = 7;
/// Records that are lost at once.
const LOST: u16 = 3;
/// The first record's number: near the end, where numbers begin again.
const FIRST: u16 = 65_400;

/// A buffer for records, of a client's.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) gpu: usize,
    pub(crate) count: u32,
    pub(crate) header: Arc<Shared>,
    pub(crate) records: Arc<Shared>,
    /// How far the program has read.
    pub(crate) get: AtomicU32,
}

/// Who is on the engine by the records so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Here {
    NotKnown,
    Nobody,
    Process(u32),
}

/// What writes one ring.
#[derive(Debug)]
struct Writer {
    scene: Scene,
    put: u32,
    number: u16,
    written: u32,
    here: Here,
    /// Up to when switches have been written, ns since 1970.
    until_ns: u64,
}

/// Writes into the ring from now on, until it or the client's file is gone.
pub(crate) fn follow(ring: &Arc<Ring>, control: RawFd) {
    let ring = Arc::downgrade(ring);
    let mut writer = Writer {
        scene: Scene::default(),
        put: 0,
        number: FIRST,
        written: 0,
        here: Here::NotKnown,
        until_ns: now_ns(),
    };
    std::thread::spawn(move || {
        while writer.hand_out(&ring) {
            std::thread::sleep(HANDED_OUT);
            if DeviceFile::of(control) != Some(DeviceFile::Control) {
                driver::closed(control, &ring);
                return;
            }
        }
    });
}

impl Writer {
    /// Gives whether anybody is there to read it.
    fn hand_out(&mut self, ring: &Weak<Ring>) -> bool {
        let Some(ring) = ring.upgrade() else { return false };
        let Some(scenario) = self.scene.now() else { return true };
        let Some(gpu) = scenario.gpus.get(ring.gpu) else { return true };
        let faults = gpu.switch_trace.clone();
        let late =
            Duration::from_secs_f64(faults.late_s.unwrap_or(HANDED_OUT.as_secs_f64()).clamp(0.0, 3600.0));
        let until_ns = now_ns().saturating_sub(late.as_nanos() as u64);
        if until_ns <= self.until_ns {
            return true;
        }
        let services = scenario.services(ring.gpu);
        // The one that was there has ended: the next one comes at once.
        if let Here::Process(pid) = self.here
            && services.iter().all(|(known, _)| *known != pid)
            && !faults.silent
        {
            let at_ns = self.until_ns;
            self.write(&ring, &faults, Switch { at_ns, pid, starts: false });
            self.here = Here::Nobody;
            if let Some(pid) = switching::resident(&services, at_ns) {
                self.write(&ring, &faults, Switch { at_ns, pid, starts: true });
                self.here = Here::Process(pid);
            }
        }
        let switches = switching::switches(&services, self.until_ns, until_ns);
        self.until_ns = until_ns;
        if faults.silent {
            return true;
        }
        for switch in switches {
            // Another scenario may have begun in between.
            match (self.here, switch.starts) {
                (Here::Process(here), true) => {
                    self.write(&ring, &faults, Switch { pid: here, starts: false, ..switch });
                }
                (here, false) if here != Here::NotKnown && here != Here::Process(switch.pid) => continue,
                _ => {}
            }
            self.write(&ring, &faults, switch);
            self.here = if switch.starts { Here::Process(switch.pid) } else { Here::Nobody };
        }
        ring.header.release_u32(PUT, self.put);
        true
    }

    fn write(&mut self, ring: &Ring, faults: &SwitchTrace, switch: Switch) {
        let number = self.number;
        self.number = number.wrapping_add(1);
        self.written += 1;
        if faults.loses_after.is_some_and(|after| self.written.is_multiple_of(after.max(1))) {
            self.number = self.number.wrapping_add(LOST);
        }
        let next = (self.put + 1) % ring.count;
        // The oldest are kept: there is no room for this one.
        if next == ring.get.load(Ordering::Acquire) % ring.count {
            return;
        }
        let pid = if faults.hides { 0 } else { switch.pid + faults.pids_off };
        let tag = if switch.starts { SIMPLE_START } else { SIMPLE_END };
        let ahead_ns = (faults.clock_s * 1e9) as i64;
        let words = [
            u64::from(faults.record_type.unwrap_or(CONTEXT_SWITCH)),
            u64::from(tag) | u64::from(number) << 16,
            u64::from(pid),
            switch.at_ns.saturating_add_signed(ahead_ns),
        ];
        for (word, value) in words.into_iter().enumerate() {
            ring.records.write_u64(self.put as usize * RECORD_BYTES + 8 * word, value);
        }
        self.put = next;
    }
}

fn now_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

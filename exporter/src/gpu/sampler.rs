//! Owns the NVML thread: loads the library, ticks, sends what it learned, loads anew when the
//! driver goes away.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use podgauge_common::catalogue::{Engine, Metric, Reading, Text};
use tokio::sync::mpsc::Sender;

use super::account::{self, timed};
use super::device::{Rings, SampledDevice};
use super::events::{EventLog, EventWindows};
use super::fields::FieldPlan;
use super::gpm::GpmPlan;
use super::library::{self, LibraryError};
use super::mig::InstancePlan;
use super::processes::ProcessWatch;
use super::xid;
use super::{CallTimes, DeviceSelection, Message, Readings, Report};

/// Rings are drained and the page is rendered this often.
const TICK: Duration = Duration::from_secs(1);
/// The second tick comes so soon if the first page lacks what is a mean between two readings.
/// Profiling counters need 100 ms.
const SETTLE: Duration = Duration::from_millis(150);
/// Utilization rates are read this often where a ring is dry.
const RATES: Duration = Duration::from_millis(200);
/// A ring holds 14 s: a tick that comes later than this starts a new rhythm.
const LATE: Duration = Duration::from_secs(1);
/// Pause before the library is loaded anew.
const RELOAD_PAUSE: Duration = Duration::from_secs(2);
/// How often the number of GPUs is compared.
const RECOUNT: Duration = Duration::from_secs(5);
/// A driver that was replaced under the process for so long needs a new container: only then is
/// the new library mounted.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What to read.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Another number for every plan, so that values are told apart from those of an earlier one.
    pub(crate) generation: u64,
    /// Values of a [`DeviceReading`](super::DeviceReading) are in this order.
    pub(crate) metrics: Vec<&'static Metric>,
    /// Texts of a [`DeviceReading`](super::DeviceReading) are in this order.
    pub(crate) texts: Vec<Text>,
    pub(crate) windows: EventWindows,
    /// How often values other than utilization are read.
    pub(super) interval: Duration,
    pub(super) memory_utilization: bool,
    pub(super) fields: FieldPlan,
    pub(super) gpm: GpmPlan,
    /// Whether clock events are counted.
    pub(super) clock_events: bool,
    /// What MIG instances have of their own.
    pub(super) instance: InstancePlan,
}

/// Why a session ended.
enum End {
    /// Nobody listens any more: the program ends.
    Done,
    Reload(String),
    /// The library does not fit the driver any more.
    Mismatch(String),
    /// Only a new container helps.
    GiveUp(String),
    /// What was asked for cannot be served here.
    Refused(String),
}

impl Plan {
    /// `interval` is `-c`.
    pub(crate) fn new(
        generation: u64,
        metrics: Vec<&'static Metric>,
        texts: Vec<Text>,
        interval: Duration,
        windows: EventWindows,
    ) -> Self {
        let memory_utilization =
            metrics.iter().any(|metric| metric.reading == Reading::Utilization(Engine::Memory));
        let clock_events = metrics
            .iter()
            .any(|metric| matches!(metric.reading, Reading::ClockEventsInWindow | Reading::ClockEventsTotal));
        Self {
            generation,
            fields: FieldPlan::new(&metrics),
            gpm: GpmPlan::new(&metrics),
            instance: InstancePlan::new(&metrics),
            clock_events,
            texts,
            windows,
            interval,
            memory_utilization,
            metrics,
        }
    }
}

/// Starts the thread; `processes` are looked at if pods are asked for. It reads by the plan of the
/// moment, and ends when the receiver is dropped.
pub(crate) fn start(
    library: Option<PathBuf>,
    selection: DeviceSelection,
    plan: Arc<ArcSwap<Plan>>,
    processes: Option<ProcessWatch>,
    messages: Sender<Message>,
    times: Arc<CallTimes>,
) -> std::io::Result<()> {
    let supervisor = Supervisor {
        library,
        selection,
        selection_checked: false,
        plan,
        processes,
        messages,
        times,
        rings: HashMap::new(),
        said_no_gpm: false,
    };
    std::thread::Builder::new().name("nvml".into()).spawn(move || supervisor.run())?;
    Ok(())
}

struct Supervisor {
    library: Option<PathBuf>,
    selection: DeviceSelection,
    /// Only at the first look: a GPU that leaves later is a loss, no mistake.
    selection_checked: bool,
    plan: Arc<ArcSwap<Plan>>,
    processes: Option<ProcessWatch>,
    messages: Sender<Message>,
    times: Arc<CallTimes>,
    /// By UUID, kept from session to session.
    rings: HashMap<String, Rings>,
    /// Whether it was logged that GPUs have no profiling counters.
    said_no_gpm: bool,
}

// === impl Supervisor ===

impl Supervisor {
    fn run(mut self) {
        let events = EventLog::new(self.plan.load().windows);
        let mut mismatch_since = None;
        loop {
            account::seen();
            let loaded = library::load(self.library.as_deref());
            account::seen();
            let began = Instant::now();
            let end = match loaded {
                Ok(nvml) => self.session(&nvml, &events),
                Err(error @ LibraryError::Init { source: NvmlError::LibRmVersionMismatch, .. }) => {
                    End::Mismatch(error.to_string())
                }
                Err(error) => End::Reload(error.to_string()),
            };
            let report = match end {
                End::Done => return,
                End::Reload(reason) => {
                    mismatch_since = None;
                    Report::Failing(reason)
                }
                End::Mismatch(reason) => {
                    // A session that lasted has ended an earlier mismatch.
                    if began.elapsed() >= RECOUNT {
                        mismatch_since = None;
                    }
                    let since = *mismatch_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= GIVE_UP { Report::GiveUp(reason) } else { Report::Failing(reason) }
                }
                End::GiveUp(reason) => Report::GiveUp(reason),
                End::Refused(reason) => Report::Refused(reason),
            };
            if self.messages.blocking_send(Message::Report(report)).is_err() {
                return;
            }
            std::thread::sleep(RELOAD_PAUSE);
        }
    }

    fn session(&mut self, nvml: &Nvml, events: &EventLog) -> End {
        let gpus = match timed("nvmlDeviceGetCount_v2", || nvml.device_count()) {
            Ok(0) => return End::Reload("NVML sees no GPU on this node".to_owned()),
            Ok(gpus) => gpus,
            Err(error) => return End::Reload(format!("nvmlDeviceGetCount: {error}")),
        };
        let is_first = !std::mem::replace(&mut self.selection_checked, true);
        let unknown =
            || self.selection.unknown_gpu(gpus).or_else(|| self.selection.unknown_instance(&[], gpus));
        if is_first && let Some(reason) = unknown() {
            return End::Refused(reason);
        }
        let selected: Vec<u32> = (0..gpus).filter(|index| self.selection.concerns(*index)).collect();
        if selected.is_empty() {
            return End::Reload(format!("--devices selects none of the {gpus} GPUs"));
        }
        let mut devices = Vec::new();
        for index in selected {
            match SampledDevice::open(nvml, index) {
                Ok(mut device) => {
                    device.rings = self.rings.remove(&device.identity.uuid).unwrap_or_default();
                    devices.push(device);
                }
                Err(error) => tracing::error!("GPU {index} cannot be opened and is left out: {error}"),
            }
        }
        if devices.is_empty() {
            return End::Reload(format!("none of the {gpus} GPUs can be opened"));
        }
        if is_first && let Some(reason) = self.check_instances(&mut devices, gpus, events) {
            return End::Refused(reason);
        }
        let over = AtomicBool::new(false);
        let xids = xid::listen(nvml, gpus, events);
        let mut processes = self.processes.take();
        let end = std::thread::scope(|scope| {
            if let Some(xids) = xids {
                let over = &over;
                scope.spawn(move || xid::watch(&xids, events, over));
            }
            let end = self.sample(nvml, gpus, &mut devices, events, processes.as_mut());
            over.store(true, Ordering::Relaxed);
            end
        });
        self.processes = processes;
        self.rings.extend(devices.into_iter().map(|device| (device.identity.uuid.clone(), device.rings)));
        end
    }

    fn sample(
        &mut self,
        nvml: &Nvml,
        gpus: u32,
        devices: &mut [SampledDevice<'_>],
        events: &EventLog,
        mut processes: Option<&mut ProcessWatch>,
    ) -> End {
        let opened = devices.len();
        if self.messages.blocking_send(Message::Report(Report::Serving { gpus: opened })).is_err() {
            return End::Done;
        }
        let mut next_tick = Instant::now();
        let mut next_rates = next_tick;
        let mut census = Census { gpus, counted_at: Instant::now(), unknown_since: None };
        loop {
            account::seen();
            let plan = self.plan.load_full();
            let started = Instant::now();
            let is_tick = started >= next_tick;
            if is_tick && let Some(processes) = processes.as_deref_mut() {
                processes.begin_tick(started);
            }
            for device in devices.iter_mut() {
                let mut read = Ok(());
                if is_tick {
                    read = device.tick(&plan, events, processes.as_deref_mut());
                } else if started >= next_rates {
                    read = device.read_rates_if_dry(&plan);
                }
                if !is_tick
                    && read.is_ok()
                    && let Some(processes) = processes.as_deref_mut()
                {
                    read = device.poll_processes(processes, started);
                }
                if let Err(error) = read {
                    self.times.add(started.elapsed());
                    return end_of(&device.identity.uuid, &error);
                }
            }
            if is_tick {
                self.say_no_gpm(&plan, devices);
                let settling = devices.iter().any(SampledDevice::is_settling);
                let devices = devices
                    .iter_mut()
                    .flat_map(|device| device.take_readings(&plan, events, &self.selection))
                    .collect();
                let readings = Readings { generation: plan.generation, taken_at: Instant::now(), devices };
                self.times.add(started.elapsed());
                if self.messages.blocking_send(Message::Readings(readings)).is_err() {
                    return End::Done;
                }
                if let Some(end) = census.check(nvml) {
                    return end;
                }
                next_tick = if settling {
                    started + SETTLE
                } else if started > next_tick + LATE {
                    started + TICK
                } else {
                    next_tick + TICK
                };
            } else {
                self.times.add(started.elapsed());
            }
            if is_tick || started >= next_rates {
                next_rates = started + RATES;
            }
            let rates = devices.iter().any(|device| device.is_dry(&plan)).then_some(next_rates);
            let shared = devices.iter().filter_map(SampledDevice::processes_due);
            let wake = rates.into_iter().chain(shared).fold(next_tick, Instant::min);
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
        }
    }
}

impl Supervisor {
    /// Which instance is named that is not there, if one is; says where there is none at all.
    fn check_instances(
        &self,
        devices: &mut [SampledDevice<'_>],
        gpus: u32,
        events: &EventLog,
    ) -> Option<String> {
        let mut counts = Vec::new();
        for device in devices {
            // A GPU that does not answer now is met at the first tick.
            if let Ok(count) = device.count_instances(events) {
                counts.push((device.identity.index, count));
            }
        }
        let unknown = self.selection.unknown_instance(&counts, gpus);
        let is_empty = counts.iter().all(|(_, count)| *count == 0);
        if unknown.is_none() && is_empty && self.selection.is_of_instances_alone() {
            tracing::warn!(
                "--devices selects MIG instances alone, and no GPU has any; they are served once it has"
            );
        }
        unknown
    }

    fn say_no_gpm(&mut self, plan: &Plan, devices: &[SampledDevice<'_>]) {
        let without: Vec<String> = devices
            .iter()
            .filter(|device| plan.gpm.is_asked_for && !self.said_no_gpm && device.lacks_gpm())
            .map(|device| format!("{} ({})", device.identity.index, device.identity.model))
            .collect();
        if !without.is_empty() {
            self.said_no_gpm = true;
            tracing::warn!(
                "DCGM_FI_PROF_… is left out for GPU {}: NVML has profiling counters (GPM) of Hopper and newer GPUs",
                without.join(", ")
            );
        }
    }
}

/// Looks from time to time whether GPUs came or went.
struct Census {
    gpus: u32,
    counted_at: Instant,
    /// Since when the driver answers nothing but "unknown error".
    unknown_since: Option<Instant>,
}

// === impl Census ===

impl Census {
    fn check(&mut self, nvml: &Nvml) -> Option<End> {
        if self.counted_at.elapsed() < RECOUNT {
            return None;
        }
        self.counted_at = Instant::now();
        match timed("nvmlDeviceGetCount_v2", || nvml.device_count()) {
            Ok(count) if count != self.gpus => {
                Some(End::Reload(format!("the number of GPUs changed from {} to {count}", self.gpus)))
            }
            Ok(_) => {
                self.unknown_since = None;
                None
            }
            // In a container: access to /dev/nvidia* was taken away; only a new container gets it back.
            Err(error @ NvmlError::Unknown) => {
                let since = *self.unknown_since.get_or_insert_with(Instant::now);
                (since.elapsed() >= GIVE_UP).then(|| End::GiveUp(format!("nvmlDeviceGetCount: {error}")))
            }
            Err(error) => Some(End::Reload(format!("nvmlDeviceGetCount: {error}"))),
        }
    }
}

fn end_of(uuid: &str, error: &NvmlError) -> End {
    let reason = format!("{uuid}: {error}; loading the library anew");
    if matches!(error, NvmlError::LibRmVersionMismatch) { End::Mismatch(reason) } else { End::Reload(reason) }
}

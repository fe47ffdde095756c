//! Owns the NVML thread: loads the library, ticks, sends what it learned, loads anew when the
//! driver goes away.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use podgauge_common::catalogue::{Engine, Metric, Reading};
use tokio::sync::mpsc::Sender;

use super::device::{Rings, SampledDevice};
use super::fields::FieldPlan;
use super::library::{self, LibraryError};
use super::mig::InstancePlan;
use super::xid::{self, XidLog};
use super::{CallTimes, Message, Readings, Report};

/// Rings are drained and the page is rendered this often.
const TICK: Duration = Duration::from_secs(1);
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
    /// Values of a [`DeviceReading`](super::DeviceReading) are in this order.
    pub(crate) metrics: Vec<&'static Metric>,
    /// How often values other than utilization are read.
    pub(super) interval: Duration,
    pub(super) memory_utilization: bool,
    pub(super) fields: FieldPlan,
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
}

impl Plan {
    /// `interval` is `-c`.
    pub(crate) fn new(metrics: Vec<&'static Metric>, interval: Duration) -> Self {
        let memory_utilization =
            metrics.iter().any(|metric| metric.reading == Reading::Utilization(Engine::Memory));
        let instance = InstancePlan::new(&metrics);
        Self { fields: FieldPlan::new(&metrics), instance, interval, memory_utilization, metrics }
    }
}

/// Starts the thread. It ends when the receiver is dropped.
pub(crate) fn start(
    library: Option<PathBuf>,
    plan: Plan,
    messages: Sender<Message>,
    times: Arc<CallTimes>,
) -> std::io::Result<()> {
    let supervisor = Supervisor { library, plan, messages, times, rings: HashMap::new() };
    std::thread::Builder::new().name("nvml".into()).spawn(move || supervisor.run())?;
    Ok(())
}

struct Supervisor {
    library: Option<PathBuf>,
    plan: Plan,
    messages: Sender<Message>,
    times: Arc<CallTimes>,
    /// By UUID, kept from session to session.
    rings: HashMap<String, Rings>,
}

// === impl Supervisor ===

impl Supervisor {
    fn run(mut self) {
        let xids = XidLog::default();
        let mut mismatch_since = None;
        loop {
            let end = match library::load(self.library.as_deref()) {
                Ok(nvml) => self.session(&nvml, &xids),
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
                    let since = *mismatch_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= GIVE_UP { Report::GiveUp(reason) } else { Report::Failing(reason) }
                }
                End::GiveUp(reason) => Report::GiveUp(reason),
            };
            if self.messages.blocking_send(Message::Report(report)).is_err() {
                return;
            }
            std::thread::sleep(RELOAD_PAUSE);
        }
    }

    fn session(&mut self, nvml: &Nvml, xids: &XidLog) -> End {
        let gpus = match nvml.device_count() {
            Ok(0) => return End::Reload("NVML sees no GPU on this node".to_owned()),
            Ok(gpus) => gpus,
            Err(error) => return End::Reload(format!("nvmlDeviceGetCount: {error}")),
        };
        let mut devices = Vec::new();
        for index in 0..gpus {
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
        let over = AtomicBool::new(false);
        let end = std::thread::scope(|scope| {
            scope.spawn(|| xid::watch(nvml, gpus, xids, &over));
            let end = self.sample(nvml, gpus, &mut devices, xids);
            over.store(true, Ordering::Relaxed);
            end
        });
        self.rings.extend(devices.into_iter().map(|device| (device.identity.uuid.clone(), device.rings)));
        end
    }

    fn sample(&self, nvml: &Nvml, gpus: u32, devices: &mut [SampledDevice<'_>], xids: &XidLog) -> End {
        let driver_version = nvml.sys_driver_version().ok();
        let opened = devices.len();
        if self.messages.blocking_send(Message::Report(Report::Serving { gpus: opened })).is_err() {
            return End::Done;
        }
        let mut next_tick = Instant::now();
        let mut census = Census { gpus, counted_at: Instant::now(), unknown_since: None };
        loop {
            let started = Instant::now();
            let is_tick = started >= next_tick;
            for device in devices.iter_mut() {
                let read = if is_tick {
                    device.tick(&self.plan, xids)
                } else {
                    device.read_rates_if_dry(&self.plan)
                };
                if let Err(error) = read {
                    self.times.add(started.elapsed());
                    return end_of(&device.identity.uuid, &error);
                }
            }
            if is_tick {
                let devices =
                    devices.iter_mut().flat_map(|device| device.take_readings(&self.plan, xids)).collect();
                let readings =
                    Readings { taken_at: Instant::now(), driver_version: driver_version.clone(), devices };
                self.times.add(started.elapsed());
                if self.messages.blocking_send(Message::Readings(readings)).is_err() {
                    return End::Done;
                }
                if let Some(end) = census.check(nvml) {
                    return end;
                }
                next_tick = if started > next_tick + LATE { started + TICK } else { next_tick + TICK };
            } else {
                self.times.add(started.elapsed());
            }
            let rates_due = devices.iter().any(|device| device.is_dry(&self.plan)).then(|| started + RATES);
            let wake = rates_due.map_or(next_tick, |rates| rates.min(next_tick));
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
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
        match nvml.device_count() {
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

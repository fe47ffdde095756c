//! The NVML thread: loads the library, ticks, sends what it learned, loads it again when the driver
//! goes away.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Sender;

use super::census::Census;
use super::device::SampledDevice;
use super::driver::Driver;
use super::end::{End, GIVE_UP, end_of, end_of_loading};
use super::events::EventLog;
use super::library;
use super::plan::Plan;
use super::processes::ProcessWatch;
use super::rings::Rings;
use super::unopened::{ASK_AGAIN, Unopened};
use super::xid::{Opened, Xids};
use super::{DeviceSelection, Message, Readings, Report};

/// Rings are drained and the page is rendered this often.
const TICK: Duration = Duration::from_secs(1);
/// The second tick comes so soon if the first page lacks what is a mean between two readings.
/// Profiling counters need 100 ms. A process's utilization slot takes 200 ms, so that one ends between
/// the two ticks.
const SETTLE: Duration = Duration::from_millis(250);
/// Utilization rates are read this often where a ring is dry.
const RATES: Duration = Duration::from_millis(200);
/// A ring holds 14 s: a tick that comes later than this starts a new rhythm.
const LATE: Duration = Duration::from_secs(1);
/// Pause before the library is loaded again.
const RELOAD_PAUSE: Duration = Duration::from_secs(2);
/// A session of this length has ended an earlier trouble.
const SETTLED: Duration = Duration::from_secs(5);

/// Starts the thread; `processes` are looked at if pods are asked for. It reads by the plan of the
/// moment, and ends when the receiver is dropped.
pub(crate) fn start(
    library: Option<PathBuf>,
    selection: DeviceSelection,
    plan: Arc<ArcSwap<Plan>>,
    processes: Option<ProcessWatch>,
    messages: Sender<Message>,
) -> std::io::Result<()> {
    let supervisor = Supervisor {
        library,
        selection,
        selection_checked: false,
        plan,
        processes,
        messages,
        rings: HashMap::new(),
        said_no_gpm: false,
        said_unopened: BTreeMap::new(),
        said_no_minor: Vec::new(),
    };
    std::thread::Builder::new().name("nvml".into()).spawn(move || supervisor.run())?;
    Ok(())
}

/// The GPUs of a session, those that were opened by index.
struct Gpus<'nvml> {
    devices: Vec<SampledDevice<'nvml>>,
    unopened: Vec<Unopened>,
}

struct Supervisor {
    library: Option<PathBuf>,
    selection: DeviceSelection,
    /// Only at the first look: a GPU that leaves later is a loss, no mistake.
    selection_checked: bool,
    plan: Arc<ArcSwap<Plan>>,
    processes: Option<ProcessWatch>,
    messages: Sender<Message>,
    /// By UUID, kept from session to session.
    rings: HashMap<String, Rings>,
    /// Whether it was logged that GPUs have no profiling counters.
    said_no_gpm: bool,
    /// By index: why a GPU cannot be opened, as it was logged.
    said_unopened: BTreeMap<u32, String>,
    /// UUIDs of GPUs of which it was logged that their minor number is not known.
    said_no_minor: Vec<String>,
}

// === impl Supervisor ===

impl Supervisor {
    fn run(mut self) {
        let events = EventLog::new(self.plan.load().windows);
        let mut stuck_since = None;
        loop {
            let loaded = library::load(self.library.as_deref());
            let began = Instant::now();
            let end = match loaded {
                Ok(driver) => {
                    let end = self.session(&driver, &events);
                    driver.shut_down();
                    end
                }
                Err(error) => end_of_loading(&error),
            };
            let report = match end {
                End::Done => return,
                End::Reload(reason) => {
                    stuck_since = None;
                    Report::Failing(reason)
                }
                End::Stuck(reason, advice) => {
                    if began.elapsed() >= SETTLED {
                        stuck_since = None;
                    }
                    let since = *stuck_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= GIVE_UP {
                        Report::GiveUp(format!("{reason}, for {} s; {advice}", GIVE_UP.as_secs()))
                    } else {
                        Report::Failing(reason)
                    }
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

    fn session(&mut self, driver: &Driver, events: &EventLog) -> End {
        let gpus = match driver.device_count() {
            Ok(0) => return End::Reload("NVML sees no GPU on this node".to_owned()),
            Ok(gpus) => gpus,
            Err(error) => return end_of(None, &error),
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
        let mut all = Gpus { devices: Vec::new(), unopened: Vec::new() };
        for index in selected {
            match SampledDevice::open(driver, index) {
                Ok(device) => self.opened(device, &mut all),
                Err(gpu) if gpu.needs_reload() => return end_of(None, &gpu.error),
                Err(gpu) => self.not_opened(gpu, &mut all),
            }
        }
        if is_first && let Some(reason) = self.check_instances(&mut all.devices, gpus, events) {
            return End::Refused(reason);
        }
        let over = AtomicBool::new(false);
        let newly = Opened::default();
        let xids = Xids::new(driver).map(|mut xids| {
            // Before the first reading, so that the first page has its 0.
            for device in &all.devices {
                xids.listen(device.identity.index, events);
            }
            xids
        });
        let mut processes = self.processes.take();
        let end = std::thread::scope(|scope| {
            if let Some(xids) = xids {
                let (newly, over) = (&newly, &over);
                scope.spawn(move || xids.watch(events, newly, over));
            }
            let end = self.sample(driver, Census::new(gpus), &mut all, &newly, events, processes.as_mut());
            over.store(true, Ordering::Relaxed);
            end
        });
        self.processes = processes;
        let devices = all.devices.into_iter();
        self.rings.extend(devices.map(|device| (device.identity.uuid.clone(), device.rings)));
        end
    }

    /// Takes up a GPU that was opened.
    fn opened<'nvml>(&mut self, mut device: SampledDevice<'nvml>, all: &mut Gpus<'nvml>) {
        let identity = Arc::clone(&device.identity);
        device.rings = self.rings.remove(&identity.uuid).unwrap_or_default();
        if self.said_unopened.remove(&identity.index).is_some() {
            tracing::info!("GPU {} ({}) can be opened now", identity.index, identity.uuid);
        }
        if identity.minor.is_none()
            && self.processes.is_some()
            && !self.said_no_minor.contains(&identity.uuid)
        {
            self.said_no_minor.push(identity.uuid.clone());
            tracing::warn!(
                "GPU {} ({}): the driver does not report its minor number (nvmlDeviceGetMinorNumber); device ids \
                 like nvidia0, as GKE's device plugin writes them, are not matched with it",
                identity.index,
                identity.uuid
            );
        }
        all.devices.push(device);
        all.devices.sort_by_key(|device| device.identity.index);
    }

    /// Takes up a GPU that cannot be opened. The reason is logged when it changes.
    fn not_opened(&mut self, gpu: Unopened, all: &mut Gpus<'_>) {
        let (index, reason) = (gpu.identity.index, gpu.error.to_string());
        if self.said_unopened.get(&index) != Some(&reason) {
            tracing::error!("GPU {index} cannot be opened: {reason}; asked again every {ASK_AGAIN:?}");
            self.said_unopened.insert(index, reason);
        }
        all.unopened.push(gpu);
    }

    /// Opens those GPUs that could not be opened and can be now.
    fn open_again<'nvml>(
        &mut self,
        driver: &'nvml Driver,
        all: &mut Gpus<'nvml>,
        newly: &Opened,
        now: Instant,
    ) {
        for gpu in std::mem::take(&mut all.unopened) {
            if !gpu.is_due(now) {
                all.unopened.push(gpu);
                continue;
            }
            match SampledDevice::open(driver, gpu.identity.index) {
                Ok(device) => {
                    newly.lock().push(device.identity.index);
                    self.opened(device, all);
                }
                Err(gpu) => self.not_opened(gpu, all),
            }
        }
    }

    fn sample<'nvml>(
        &mut self,
        driver: &'nvml Driver,
        mut census: Census,
        all: &mut Gpus<'nvml>,
        newly: &Opened,
        events: &EventLog,
        mut processes: Option<&mut ProcessWatch>,
    ) -> End {
        let serving = Report::Serving { gpus: all.devices.len(), of: all.devices.len() + all.unopened.len() };
        if self.messages.blocking_send(Message::Report(serving)).is_err() {
            return End::Done;
        }
        let mut next_tick = Instant::now();
        let mut next_rates = next_tick;
        loop {
            let plan = self.plan.load_full();
            let started = Instant::now();
            let is_tick = started >= next_tick;
            if is_tick {
                self.open_again(driver, all, newly, started);
                if let Some(processes) = processes.as_deref_mut() {
                    processes.begin_tick(started);
                }
            }
            for device in &mut all.devices {
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
                    return end_of(Some(&device.identity.uuid), &error);
                }
            }
            if is_tick {
                self.say_no_gpm(&plan, &all.devices);
                let settling = all.devices.iter().any(SampledDevice::is_settling);
                let readings = self.readings(&plan, all, events);
                if self.messages.blocking_send(Message::Readings(readings)).is_err() {
                    return End::Done;
                }
                if let Some(end) = census.check(driver, all.are_unknown()) {
                    return end;
                }
                next_tick = if settling {
                    started + SETTLE
                } else if started > next_tick + LATE {
                    started + TICK
                } else {
                    next_tick + TICK
                };
            }
            if is_tick || started >= next_rates {
                next_rates = started + RATES;
            }
            let rates = all.devices.iter().any(|device| device.is_dry(&plan)).then_some(next_rates);
            let shared = all.devices.iter().filter_map(SampledDevice::processes_due);
            let wake = rates.into_iter().chain(shared).fold(next_tick, Instant::min);
            std::thread::sleep(wake.saturating_duration_since(Instant::now()));
        }
    }

    fn readings(&self, plan: &Plan, all: &mut Gpus<'_>, events: &EventLog) -> Readings {
        let unopened = all.unopened.iter().map(|gpu| gpu.reading(plan));
        let opened =
            all.devices.iter_mut().flat_map(|device| device.take_readings(plan, events, &self.selection));
        let mut devices: Vec<_> = opened.chain(unopened).collect();
        devices.sort_by_key(|device| device.identity.index);
        Readings { generation: plan.generation, taken_at: Instant::now(), devices }
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

// === impl Gpus ===

impl Gpus<'_> {
    /// Whether the driver answers UNKNOWN for every GPU, and nothing else.
    fn are_unknown(&self) -> bool {
        self.devices.iter().all(SampledDevice::is_unknown)
            && self.unopened.iter().all(|gpu| gpu.error.is_unknown())
    }
}

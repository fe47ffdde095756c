//! Owns the simulated driver: the scenario in force, the GPUs, the handles to them, and which
//! errors and blocks a call meets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::device::Device;
use super::events::{Event, Events};
use super::gpm::{Sample, Samples};
use super::mig;
use super::reading::Reading;
use super::watch::{Loaded, Watch};
use crate::abi;
use crate::pci::PciAddress;
use crate::scenario::{Gpu, Instance, Scenario, ScenarioError};
use crate::status::{Answer, Failure};

/// Calls that `all` does not mean.
const NEVER_ALL: [&str; 4] = ["nvmlInit", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString"];
/// What a call costs on the hardware because it measures that long.
const MEASURES_FOR: [(&str, Duration); 1] = [("nvmlDeviceGetPcieThroughput", Duration::from_millis(20))];

/// The driver.
#[derive(Debug)]
pub(crate) struct Node {
    /// How often it was initialised and not shut down.
    initialised: u32,
    watched: Option<(Watch, Loaded)>,
    /// By UUID; those that left the scenario too.
    devices: BTreeMap<String, Device>,
    /// UUIDs; a handle is a place in here plus 1, and is never given to another GPU.
    handles: Vec<String>,
    pub(crate) events: Events,
    pub(crate) samples: Samples,
}

impl Node {
    pub(crate) const fn new() -> Self {
        Self {
            initialised: 0,
            watched: None,
            devices: BTreeMap::new(),
            handles: Vec::new(),
            events: Events::new(),
            samples: Samples::new(),
        }
    }

    /// Is there a user?
    pub(crate) fn is_initialised(&self) -> bool {
        self.initialised > 0
    }

    /// Reads the scenario file anew, for nvmlInit. A file that is no good leaves no scenario.
    pub(crate) fn open(&mut self, path: PathBuf, now_us: i64) -> Result<(), ScenarioError> {
        self.watched = None;
        let (watch, loaded) = Watch::open(path, now_us)?;
        self.adopt(watch, loaded, now_us, now_us);
        Ok(())
    }

    /// Counts one more user.
    pub(crate) fn initialise(&mut self) {
        self.initialised += 1;
    }

    /// Counts one user less; the last takes samples and event sets along.
    pub(crate) fn shut_down(&mut self) -> Answer {
        self.initialised = self.initialised.checked_sub(1).ok_or(Failure::UNINITIALIZED)?;
        if self.initialised == 0 {
            self.events.free_all();
            self.samples.free_all();
        }
        Ok(())
    }

    /// Takes up a changed scenario file. Every call begins with it.
    pub(crate) fn refresh(&mut self, now_us: i64) {
        let Some((mut watch, loaded)) = self.watched.take() else { return };
        match watch.poll(now_us) {
            Some((loaded, changed_us)) => self.adopt(watch, loaded, changed_us, now_us),
            None => self.watched = Some((watch, loaded)),
        }
    }

    fn adopt(&mut self, watch: Watch, loaded: Loaded, changed_us: i64, now_us: i64) {
        let scenario = loaded.scenario.clone();
        for (index, gpu) in scenario.gpus.iter().enumerate() {
            let uuid = gpu.uuid(index);
            let recording = loaded.recordings[index].as_ref();
            if let Some(device) = self.devices.get_mut(&uuid) {
                device.adopt(&scenario, index, recording, changed_us);
            } else {
                self.handles.push(uuid.clone());
                self.devices.insert(uuid.clone(), Device::new(&scenario, index, recording, now_us));
            }
            self.events.name(&uuid, None, &gpu.xids);
            for instance in gpu.instances() {
                self.adopt_instance(&scenario, index, instance, changed_us, now_us);
                self.events.name(&uuid, Some((instance.gi, instance.ci)), &instance.xids);
            }
        }
        self.watched = Some((watch, loaded));
    }

    fn adopt_instance(
        &mut self,
        scenario: &Scenario,
        index: usize,
        instance: &Instance,
        changed_us: i64,
        now_us: i64,
    ) {
        let uuid = instance.uuid(&scenario.gpus[index], index);
        if let Some(device) = self.devices.get_mut(&uuid) {
            device.adopt_instance(scenario, index, instance, changed_us);
        } else {
            self.handles.push(uuid.clone());
            self.devices.insert(uuid, Device::of_instance(scenario, index, instance, now_us));
        }
    }

    fn loaded(&self) -> Result<&Loaded, Failure> {
        match &self.watched {
            Some((_, loaded)) if self.initialised > 0 => Ok(loaded),
            _ => Err(Failure::UNINITIALIZED),
        }
    }

    /// The scenario in force, for calls that need NVML initialised.
    pub(crate) fn scenario(&self) -> Result<&Scenario, Failure> {
        self.loaded().map(|loaded| loaded.scenario.as_ref())
    }

    /// How long a call blocks before it does anything; `handle` 0 is no GPU.
    pub(crate) fn block(&self, call: &str, handle: usize) -> Duration {
        let Some((_, loaded)) = &self.watched else { return Duration::ZERO };
        let gpu = self.place(handle).ok().and_then(|(index, _)| loaded.scenario.gpus.get(index));
        let seconds = gpu
            .and_then(|gpu| look_up(&gpu.blocks, call))
            .or_else(|| look_up(&loaded.scenario.blocks, call))
            .copied()
            .unwrap_or(0.0);
        let measures = MEASURES_FOR.iter().find(|(name, _)| *name == call).map_or(Duration::ZERO, |it| it.1);
        Duration::from_secs_f64(seconds) + measures
    }

    /// The error that the scenario has for a call that concerns no GPU.
    pub(crate) fn check(&self, call: &str) -> Answer {
        let Some((_, loaded)) = &self.watched else { return Ok(()) };
        failure(look_up(&loaded.scenario.errors, call))
    }

    /// The error that the scenario has for a call on a GPU.
    pub(crate) fn check_gpu(&self, call: &str, gpu: &Gpu) -> Answer {
        failure(look_up(&gpu.errors, call))?;
        self.check(call)
    }

    /// One GPU now. Answers the scenario's error for the call, if it has one.
    pub(crate) fn reading(&mut self, call: &str, handle: usize, now_us: i64) -> Result<Reading<'_>, Failure> {
        let (index, position) = self.place(handle)?;
        let gpu = &self.scenario()?.gpus[index];
        self.check_gpu(call, gpu)?;
        mig::check(call, gpu, position.map(|position| &gpu.instances()[position]))?;
        let uuid = self.handles[handle - 1].clone();
        self.advanced(&uuid, now_us)?;
        let (_, loaded) = self.watched.as_ref().ok_or(Failure::UNINITIALIZED)?;
        let gpu = &loaded.scenario.gpus[index];
        Ok(Reading {
            index,
            gpu,
            instance: position.map(|position| &gpu.instances()[position]),
            scenario: &loaded.scenario,
            device: self.devices.get(&uuid).ok_or(Failure::UNKNOWN)?,
            now_us,
        })
    }

    /// A GPU or an instance by UUID, brought up to a moment.
    pub(super) fn advanced(&mut self, uuid: &str, now_us: i64) -> Result<&Device, Failure> {
        let device = self.devices.get_mut(uuid).ok_or(Failure::UNKNOWN)?;
        device.advance(now_us);
        Ok(device)
    }

    /// The index of a handle's GPU, and for an instance its position in the GPU's list. A GPU that
    /// left the scenario is lost; an instance that is gone has no valid handle any more.
    fn place(&self, handle: usize) -> Result<(usize, Option<usize>), Failure> {
        let scenario = self.scenario()?;
        let uuid = handle.checked_sub(1).and_then(|place| self.handles.get(place));
        let uuid = uuid.ok_or(Failure::INVALID_ARGUMENT)?;
        for (index, gpu) in scenario.gpus.iter().enumerate() {
            if gpu.uuid(index) == *uuid {
                return Ok((index, None));
            }
            let mut instances = gpu.instances().iter();
            if let Some(position) = instances.position(|instance| instance.uuid(gpu, index) == *uuid) {
                return Ok((index, Some(position)));
            }
        }
        Err(if uuid.starts_with("MIG-") { Failure::INVALID_ARGUMENT } else { Failure::GPU_IS_LOST })
    }

    /// The handle of the GPU or the instance with this UUID, for a call that looks it up.
    pub(crate) fn handle_by_uuid(&self, call: &str, uuid: &str) -> Result<usize, Failure> {
        let gpus = self.scenario()?.gpus.iter().enumerate();
        let mut holders = gpus
            .filter(|(index, gpu)| gpu.instances().iter().any(|instance| instance.uuid(gpu, *index) == uuid));
        match holders.next() {
            Some((_, gpu)) => {
                self.check_gpu(call, gpu)?;
                self.handle(uuid)
            }
            None => self.handle_of(call, |index, gpu| gpu.uuid(index) == uuid),
        }
    }

    /// The handle of a GPU by UUID, if it ever was in a scenario; never 0.
    pub(crate) fn handle(&self, uuid: &str) -> Result<usize, Failure> {
        let place = self.handles.iter().position(|known| known == uuid);
        place.map(|place| place + 1).ok_or(Failure::NOT_FOUND)
    }

    /// The handle of the GPU at an index, for a call that looks it up.
    pub(crate) fn handle_by_index(&self, call: &str, index: usize) -> Result<usize, Failure> {
        let gpu = self.scenario()?.gpus.get(index).ok_or(Failure::INVALID_ARGUMENT)?;
        self.check_gpu(call, gpu)?;
        self.handle(&gpu.uuid(index))
    }

    /// The handle of the first GPU, given its index, that is the one looked for.
    pub(crate) fn handle_of(&self, call: &str, is: impl Fn(usize, &Gpu) -> bool) -> Result<usize, Failure> {
        let gpus = &self.scenario()?.gpus;
        let index = gpus.iter().enumerate().position(|(index, gpu)| is(index, gpu));
        self.handle_by_index(call, index.ok_or(Failure::NOT_FOUND)?)
    }

    /// The handle of the GPU at a PCI address.
    pub(crate) fn handle_by_pci(&self, call: &str, address: &str) -> Result<usize, Failure> {
        let wanted = PciAddress::parse(address).ok_or(Failure::INVALID_ARGUMENT)?;
        self.handle_of(call, |index, gpu| PciAddress::parse(&gpu.pci_bus_id(index)) == Some(wanted))
    }

    /// Brings a GPU up to now and takes a GPM sample of it.
    pub(crate) fn take_sample(&mut self, call: &str, handle: usize, sample: usize, now_us: i64) -> Answer {
        let reading = self.reading(call, handle, now_us)?;
        if !reading.gpu.gpm {
            return Err(Failure::NOT_SUPPORTED);
        }
        let taken = Sample::of(&reading);
        self.samples.fill(sample, taken)
    }

    /// The next event of a set: with the GPU's handle. A GPU of the set that has an error
    /// for this very call fails it once no event is left.
    pub(crate) fn next_event(&mut self, call: &str, set: usize) -> Result<Option<(usize, Event)>, Failure> {
        self.scenario()?;
        if let Some(event) = self.events.take(set)? {
            return Ok(Some((self.handle(&event.uuid)?, event)));
        }
        let scenario = self.scenario()?;
        for uuid in self.events.registered(set) {
            let mut gpus = scenario.gpus.iter().enumerate();
            if let Some((_, gpu)) = gpus.find(|(index, gpu)| gpu.uuid(*index) == uuid) {
                failure(named(&gpu.errors, call))?;
            }
        }
        Ok(None)
    }
}

/// What a scenario has for a call by name, or for all calls.
fn look_up<'a, T>(entries: &'a BTreeMap<String, T>, call: &str) -> Option<&'a T> {
    let spared = NEVER_ALL.contains(&abi::base(call));
    named(entries, call).or_else(|| entries.get("all").filter(|_| !spared))
}

/// What a scenario has for a call by name, with or without its version. The ways to initialise
/// are one call to whoever writes a scenario.
fn named<'a, T>(entries: &'a BTreeMap<String, T>, call: &str) -> Option<&'a T> {
    let base = abi::base(call);
    let same: &[&str] =
        if base.starts_with("nvmlInit") { &["nvmlInit_v2", "nvmlInit", "nvmlInitWithFlags"] } else { &[] };
    [call, base].into_iter().chain(same.iter().copied()).find_map(|name| entries.get(name))
}

fn failure(name: Option<&String>) -> Answer {
    match name.and_then(|name| Failure::named(name)) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_277_919_232_070;

    fn node(yaml: &str) -> (Node, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        let mut node = Node::new();
        node.open(file.path().to_owned(), NOW).unwrap();
        node.initialise();
        (node, file)
    }

    #[test]
    fn a_gpus_error_goes_before_the_nodes_and_a_calls_before_all() {
        let (mut node, _file) = node(
            "gpus: [{errors: {all: GPU_IS_LOST, nvmlDeviceGetName: NO_PERMISSION}}, {}]\n\
             errors: {nvmlDeviceGetName: UNKNOWN}",
        );
        let mut ask = |call: &str, index: usize| node.reading(call, index + 1, NOW).err();
        assert_eq!(ask("nvmlDeviceGetName", 0), Some(Failure::NO_PERMISSION));
        assert_eq!(ask("nvmlDeviceGetUUID", 0), Some(Failure::GPU_IS_LOST));
        assert_eq!(ask("nvmlDeviceGetName", 1), Some(Failure::UNKNOWN));
        assert_eq!(ask("nvmlDeviceGetUUID", 1), None);
        assert_eq!(node.handle_by_index("nvmlDeviceGetHandleByIndex_v2", 0), Err(Failure::GPU_IS_LOST));
        assert_eq!(node.handle_by_index("nvmlDeviceGetHandleByIndex_v2", 2), Err(Failure::INVALID_ARGUMENT));
    }

    #[test]
    fn an_error_of_any_way_to_initialise_is_an_error_of_every_one_and_all_is_of_none() {
        let (first, _file) = node("errors: {nvmlInit_v2: DRIVER_NOT_LOADED}");
        assert_eq!(first.check("nvmlInitWithFlags"), Err(Failure::DRIVER_NOT_LOADED));
        let (second, _file) = node("errors: {all: UNKNOWN}");
        assert_eq!(second.check("nvmlInit_v2"), Ok(()));
        assert_eq!(second.check("nvmlSystemGetDriverVersion"), Err(Failure::UNKNOWN));
    }

    #[test]
    fn a_gpu_that_left_the_scenario_is_lost_and_its_handle_is_nobody_elses() {
        let (mut node, file) = node("gpus: [{uuid: GPU-a}, {uuid: GPU-b}]");
        std::fs::write(file.path(), "gpus: [{uuid: GPU-b}]").unwrap();
        node.refresh(NOW + 1_000_000);
        assert_eq!(node.reading("nvmlDeviceGetName", 1, NOW + 1_000_000).err(), Some(Failure::GPU_IS_LOST));
        assert_eq!(node.reading("nvmlDeviceGetName", 2, NOW + 1_000_000).unwrap().index, 0);
        assert_eq!(node.handle_by_index("nvmlDeviceGetHandleByIndex_v2", 0), Ok(2));
    }
}

//! Owns the MIG instances of one GPU: which there are, their memory, and their use by GPM.
//!
//! An instance is a GPU instance; its compute instances share its memory and are told apart only
//! where containers hold them. What it has not of its own is its GPU's: [`InstancePlan`] says
//! which metrics it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError as Cause;
use podgauge_common::catalogue::{Metric, Reading, Scope};
use podgauge_common::exposition::write::Value;

use super::driver::{Device, Fault, NvmlError, known};
use super::events::EventLog;
use super::fields::{FieldPlan, Memo};
use super::gpm::{Gpm, GpmPlan, MOST_PERCENT, SHORTEST};
use super::gpm_calls::{self, Sample};
use super::{ComputeInstance, Credit, DeviceReading, Identity, MigInstance, Slot, Unmeasured, calls};
use crate::attribution::Processes;

/// How often a GPU without MIG is asked whether it has got it.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Time between two samples above which whose it was is not known any more: a gap.
const LONGEST: Duration = Duration::from_secs(5);
/// More slots than any GPU has for instances; it bounds what a wrong answer can cost.
const MAX_SLOTS: u32 = 64;
/// `NVML_GPM_METRIC_GRAPHICS_UTIL`.
const GRAPHICS_UTIL: u32 = 1;

/// Which metrics an instance has of its own, and how they are read from its handle.
#[derive(Debug)]
pub(super) struct InstancePlan {
    /// Their positions in the whole plan.
    positions: Vec<usize>,
    metrics: Vec<&'static Metric>,
    fields: FieldPlan,
    gpm: GpmPlan,
}

/// How one GPU is cut.
#[derive(Debug, Default)]
pub(super) struct Partition<'nvml> {
    enabled: bool,
    looked_at: Option<Instant>,
    /// UUIDs that NVML listed when the instances were last described, and when that was.
    listed: Vec<String>,
    cut_at: Option<Instant>,
    /// Whether GPM knows this GPU's instances; `None` if that was not learned yet.
    gpm: Option<bool>,
    instances: Vec<Instance<'nvml>>,
}

/// One instance.
#[derive(Debug)]
struct Instance<'nvml> {
    identity: Arc<Identity>,
    gi: u32,
    /// Of its first compute instance.
    handle: Device<'nvml>,
    /// The last sample of GPM and when it was taken.
    baseline: Option<(Instant, Sample<'nvml>)>,
    slots: Vec<Slot>,
    unmeasured: Option<Unmeasured>,
    memo: Memo,
    gpm: Gpm<'nvml>,
    /// In the order of the [`InstancePlan`].
    values: Vec<Option<Value>>,
}

/// A compute instance as NVML lists it.
struct Listed<'nvml> {
    handle: Device<'nvml>,
    uuid: String,
}

// === impl InstancePlan ===

impl InstancePlan {
    pub(super) fn new(all: &[&'static Metric]) -> Self {
        let own = |metric: &Metric| {
            metric.scope == Scope::Instance
                && !matches!(metric.reading, Reading::Utilization(_))
                && !metric.reading.is_event()
        };
        let positions: Vec<usize> =
            all.iter().enumerate().filter(|(_, metric)| own(metric)).map(|(position, _)| position).collect();
        let metrics: Vec<&'static Metric> = positions.iter().map(|position| all[*position]).collect();
        Self { fields: FieldPlan::new(&metrics), gpm: GpmPlan::new(&metrics), positions, metrics }
    }
}

// === impl Partition ===

impl<'nvml> Partition<'nvml> {
    /// Whether MIG is on, also without any instance.
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Of the last look.
    pub(super) fn len(&self) -> usize {
        self.instances.len()
    }

    /// Looks how the GPU is cut now. Answers whether that has changed.
    pub(super) fn follow(
        &mut self,
        gpu: &Device<'nvml>,
        of: &Identity,
        events: &EventLog,
    ) -> Result<bool, NvmlError> {
        let now = Instant::now();
        let fresh = |at: Instant| now.saturating_duration_since(at) < LOOK_EVERY;
        if !self.enabled && self.looked_at.is_some_and(fresh) {
            return Ok(false);
        }
        self.looked_at = Some(now);
        let enabled = known(gpu.mig_mode())?.is_some_and(|mode| mode.current == 1);
        let mut changed = std::mem::replace(&mut self.enabled, enabled) != enabled;
        let listed = if enabled { listed(gpu)? } else { Vec::new() };
        let uuids: Vec<String> = listed.iter().map(|it| it.uuid.clone()).collect();
        let described: usize = self
            .instances
            .iter()
            .filter_map(|it| it.identity.instance.as_ref())
            .map(|it| it.compute.len())
            .sum();
        let again = described < uuids.len() && !self.cut_at.is_some_and(fresh);
        if uuids != self.listed || again {
            self.cut(listed, of, events)?;
            (self.listed, self.cut_at) = (uuids, Some(now));
            changed = true;
        }
        if enabled && self.gpm.is_none() {
            self.gpm = match gpu.gpm_support() {
                Ok(supported) => Some(supported),
                Err(error) => match Fault::of(&error) {
                    Fault::Unsupported => Some(false),
                    Fault::NoValue => None,
                    Fault::Lost | Fault::Reload => return Err(error),
                },
            };
        }
        Ok(changed)
    }

    /// Takes up another partition. Instances that stay keep what was sampled of them.
    fn cut(&mut self, listed: Vec<Listed<'nvml>>, of: &Identity, events: &EventLog) -> Result<(), NvmlError> {
        let mut old = std::mem::take(&mut self.instances);
        let before: Vec<Arc<Identity>> = old.iter().map(|it| Arc::clone(&it.identity)).collect();
        let mut parts: Vec<(u32, Vec<(ComputeInstance, Device<'nvml>)>)> = Vec::new();
        for Listed { handle, uuid } in listed {
            // One that vanished meanwhile is no longer listed the next time.
            let Some((gi, ci)) = known(calls::instance_ids(&handle))? else { continue };
            let slices = known(handle.attributes())?
                .map(|it| (it.compute_instance_slice_count, it.gpu_instance_slice_count))
                .filter(|(slices, of)| slices <= of);
            let compute = (ComputeInstance { ci, uuid, slices }, handle);
            match parts.iter_mut().find(|(id, _)| *id == gi) {
                Some((_, computes)) => computes.push(compute),
                None => parts.push((gi, vec![compute])),
            }
        }
        for (gi, computes) in parts {
            let (compute, mut handles): (Vec<_>, Vec<_>) = computes.into_iter().unzip();
            let handle = handles.remove(0);
            let profile = profile(&handle)?.unwrap_or_default();
            let key = format!("{}/{gi}/{profile}", of.uuid);
            let instance = Some(MigInstance { gi, profile, compute, key });
            let identity = Identity { instance, ..of.clone() };
            match old.iter().position(|known| *known.identity == identity) {
                Some(at) => self.instances.push(Instance { handle, ..old.swap_remove(at) }),
                None => self.instances.push(Instance::new(identity, gi, handle)),
            }
        }
        self.instances.sort_by_key(|instance| instance.gi);
        // Only of those that are gone: an event may come before the first look at its instance.
        let stays = |it: &Arc<Identity>| self.instances.iter().any(|other| other.identity == *it);
        for gone in before.iter().filter(|it| !stays(it)).filter_map(|it| it.instance.as_ref()) {
            events.forget_instance(&of.uuid, gone.gi);
        }
        if before.iter().ne(self.instances.iter().map(|it| &it.identity)) {
            let compute = self.instances.iter().filter_map(|it| it.identity.instance.as_ref());
            let names: Vec<String> = compute.map(ToString::to_string).collect();
            tracing::info!(
                "GPU {} ({}) has {} MIG instances: {}",
                of.index,
                of.uuid,
                names.len(),
                names.join(", ")
            );
        }
        Ok(())
    }

    /// Adds the use of every instance since the last time.
    pub(super) fn sample(&mut self, gpu: &Device<'nvml>) -> Result<(), NvmlError> {
        for instance in &mut self.instances {
            instance.sample(gpu, self.gpm)?;
        }
        Ok(())
    }

    /// Reads what the instances have of their own.
    pub(super) fn read(&mut self, gpu: &Device<'nvml>, plan: &InstancePlan) -> Result<(), NvmlError> {
        for instance in &mut self.instances {
            instance.read(gpu, plan)?;
        }
        Ok(())
    }

    /// Values are read by another plan from now on, or the GPU was lost meanwhile.
    pub(super) fn forget_values(&mut self) {
        for instance in &mut self.instances {
            instance.memo = Memo::default();
            instance.gpm = Gpm::default();
            instance.values.clear();
        }
    }

    /// What was learned of every instance since the last time, taken out. `gpu` are the values of
    /// the GPU, in the order of the whole plan.
    pub(super) fn take_readings(
        &mut self,
        plan: &InstancePlan,
        gpu: &DeviceReading,
        events: &EventLog,
        now: Instant,
    ) -> Vec<DeviceReading> {
        self.instances
            .iter_mut()
            .map(|instance| {
                let mut values = gpu.values.clone();
                for (at, position) in plan.positions.iter().enumerate() {
                    if let Some(of_gpu) = values.get_mut(*position) {
                        let own = instance.values.get(at).copied().flatten();
                        *of_gpu = own.filter(|_| gpu.lost.is_none());
                    }
                }
                let slots = std::mem::take(&mut instance.slots).into_iter();
                DeviceReading {
                    identity: Arc::clone(&instance.identity),
                    lost: gpu.lost.clone(),
                    values,
                    texts: Arc::clone(&gpu.texts),
                    events: events.counts(&gpu.identity.uuid, Some(instance.gi), now),
                    // The links are the GPU's, and no sum over instances may count them twice.
                    nvlink_bytes: None,
                    unmeasured: instance.unmeasured,
                    gpu_slots: slots.map(|slot| (slot, Credit::Unsampled)).collect(),
                    loose_samples: Vec::new(),
                    memory_slots: Vec::new(),
                    // NVML tells no use of a process on an instance.
                    processes: Processes { no_utilization: true, ..Processes::default() },
                    sharing: None,
                }
            })
            .collect()
    }
}

// === impl Instance ===

impl<'nvml> Instance<'nvml> {
    fn new(identity: Identity, gi: u32, handle: Device<'nvml>) -> Self {
        Self {
            identity: Arc::new(identity),
            gi,
            handle,
            baseline: None,
            slots: Vec::new(),
            unmeasured: None,
            memo: Memo::default(),
            gpm: Gpm::default(),
            values: Vec::new(),
        }
    }

    /// GPM's samples count since the driver was loaded: the difference of two is the mean between
    /// them, whatever happened.
    fn sample(&mut self, gpu: &Device<'nvml>, supported: Option<bool>) -> Result<(), NvmlError> {
        if supported == Some(false) {
            self.cannot(Unmeasured::MigWithoutGpm);
            return Ok(());
        }
        let sample = match Sample::take(gpu, Some(self.gi)) {
            Ok(sample) => sample,
            Err(error) => {
                match (Fault::of(&error), &error.cause) {
                    (Fault::Lost | Fault::Reload, _) => return Err(error),
                    (Fault::Unsupported, _) => self.cannot(Unmeasured::MigWithoutGpm),
                    (Fault::NoValue, Cause::NoPermission) => self.cannot(Unmeasured::MigNotPermitted),
                    (Fault::NoValue, _) => {}
                }
                return Ok(());
            }
        };
        let now = Instant::now();
        self.unmeasured = None;
        if let Some((since, earlier)) = &self.baseline {
            let length = now.saturating_duration_since(*since);
            if length < SHORTEST {
                return Ok(());
            }
            if length <= LONGEST
                && let Some(percent) = graphics_activity(gpu, earlier, &sample)
            {
                self.slots.push(Slot { end: now, timestamp_us: None, length, percent, history: false });
            }
        }
        self.baseline = Some((now, sample));
        Ok(())
    }

    fn cannot(&mut self, why: Unmeasured) {
        self.baseline = None;
        if self.unmeasured.replace(why) != Some(why)
            && let Some(instance) = &self.identity.instance
        {
            tracing::warn!(
                "GPU {} ({}), MIG instance {instance}: no utilization, {}",
                self.identity.index,
                self.identity.uuid,
                match why {
                    Unmeasured::MigWithoutGpm => "NVML has GPM of instances from Hopper on",
                    Unmeasured::MigNotPermitted =>
                        "GPM is refused: the container needs NVIDIA_MIG_MONITOR_DEVICES=all and the privileges for it",
                    Unmeasured::NotOpened => "it could not be opened",
                }
            );
        }
    }

    fn read(&mut self, gpu: &Device<'nvml>, plan: &InstancePlan) -> Result<(), NvmlError> {
        self.values.resize(plan.metrics.len(), None);
        self.gpm.read(gpu, Some(self.gi), &plan.gpm, &mut self.values)?;
        match plan.fields.read(&self.handle, &plan.metrics, &mut self.memo, false, &mut self.values) {
            // A handle that is lost is the instance's end; the GPU's own calls tell whether it is lost.
            Err(error) if Fault::of(&error) == Fault::Lost => {
                self.values.fill(None);
                Ok(())
            }
            read => read,
        }
    }
}

impl std::fmt::Display for MigInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.gi, self.profile)
    }
}

/// The compute instances of a GPU by slot. Slots between may be empty.
fn listed<'nvml>(gpu: &Device<'nvml>) -> Result<Vec<Listed<'nvml>>, NvmlError> {
    let slots = known(gpu.mig_device_count())?.unwrap_or(0).min(MAX_SLOTS);
    let mut listed = Vec::new();
    for slot in 0..slots {
        let Some(handle) = known(gpu.mig_device_by_index(slot))? else { continue };
        let Some(uuid) = known(handle.uuid())? else { continue };
        listed.push(Listed { handle, uuid });
    }
    Ok(listed)
}

/// What the name of the instance ends in, as newer drivers write it, else slices and memory.
fn profile(instance: &Device<'_>) -> Result<Option<String>, NvmlError> {
    if let Some(name) = known(instance.name())?
        && let Some((_, profile)) = name.rsplit_once(" MIG ")
    {
        return Ok(Some(of_gpu_instance(profile).to_owned()));
    }
    Ok(known(instance.attributes())?
        .map(|it| format!("{}g.{}gb", it.gpu_instance_slice_count, it.memory_size_mb.div_ceil(1024))))
}

/// A profile without what it says of the compute instance: `1c.2g.20gb` is `2g.20gb`.
fn of_gpu_instance(profile: &str) -> &str {
    match profile.split_once("c.") {
        Some((slices, rest)) if !slices.is_empty() && slices.bytes().all(|byte| byte.is_ascii_digit()) => {
            rest
        }
        _ => profile,
    }
}

/// Percent of the time between two samples; `None` if GPM does not tell.
fn graphics_activity(gpu: &Device<'_>, earlier: &Sample<'_>, later: &Sample<'_>) -> Option<f64> {
    let means = gpm_calls::metrics(gpu.driver(), earlier, later, &[GRAPHICS_UTIL]).ok()?;
    let percent = means.into_iter().next()??;
    (0.0..=MOST_PERCENT).contains(&percent).then(|| percent.min(100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_the_gpu_instances() {
        for (written, profile) in [
            ("1g.10gb", "1g.10gb"),
            ("1g.10gb+me", "1g.10gb+me"),
            ("1c.2g.20gb", "2g.20gb"),
            ("10c.7g.80gb+gfx", "7g.80gb+gfx"),
            ("c.1g", "c.1g"),
        ] {
            assert_eq!(of_gpu_instance(written), profile, "{written}");
        }
    }
}

//! Owns what a scenario says of MIG: how a GPU is cut into instances, and how device plugins call
//! them.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Container, Gpu, Pod, Scenario, made_hex};
use crate::load::Load;

/// Places for instances on one GPU.
pub(crate) const MAX_INSTANCES: u32 = 7;
/// Compute slices of one GPU: a load of an instance is so much less of the GPU.
const SLICES: u32 = 7;
/// Highest id of an instance that the driver gives.
const MAX_ID: u32 = 31;

/// MIG on one GPU: the mode is on, also without any instance.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mig {
    #[serde(default)]
    pub instances: Vec<Instance>,
}

/// One compute instance, in a GPU instance that it usually has for itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// As NVML ends the name with it, such as `1g.10gb`, `1g.10gb+me` or `1c.2g.20gb`.
    pub profile: String,
    /// Id of the GPU instance.
    pub gi: u32,
    /// Id of the compute instance.
    #[serde(default)]
    pub ci: u32,
    /// Index at which NVML lists it, 0 to 6; its place in the list if absent. Those between are
    /// empty.
    pub slot: Option<u32>,
    /// `MIG-…`; made from the GPU, the profile and the ids if absent.
    pub uuid: Option<String>,
    /// Of the GPU instance; by its slices of 8 of the GPU's if absent.
    pub memory_mib: Option<u64>,
    /// How many replicas the device plugin makes of it. Absent: it is not shared.
    pub replicas: Option<u32>,
    /// Load that no listed process makes, in percent of the instance.
    pub load: Option<Load>,
    /// XIDs that the driver attributes to it, delivered as a GPU's are.
    #[serde(default)]
    pub xids: Vec<u64>,
}

/// How a device plugin writes device ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdForm {
    /// `GPU-…`, `MIG-…`, replicas `::<n>`: NVIDIA's plugin.
    #[default]
    Uuid,
    /// As before driver 470: `MIG-GPU-…/<gi>/<ci>`; GPUs as [`IdForm::Uuid`].
    Legacy,
    /// GKE's plugin: `nvidia0`, `nvidia0/gi7`, replicas `/vgpu<n>`.
    Gke,
}

/// A device that a container holds, as the scenario writes it: `<index>`, `<index>/gi<id>` or
/// `<index>/gi<id>/ci<id>`, and `::<replica>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held<'a> {
    pub gpu: usize,
    /// Ids of the GPU instance and the compute instance.
    pub instance: Option<(u32, u32)>,
    pub replica: Option<&'a str>,
}

// === impl Held ===

impl<'a> Held<'a> {
    /// `None` if it is not of that form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (device, replica) = match text.split_once("::") {
            Some((device, replica)) => (device, Some(replica)),
            None => (text, None),
        };
        let mut parts = device.split('/');
        let gpu = parts.next()?.parse().ok()?;
        let mut id = |prefix| match parts.next() {
            None => Some(None),
            Some(part) => Some(Some(part.strip_prefix(prefix)?.parse::<u32>().ok()?)),
        };
        let (gi, ci) = (id("gi")?, id("ci")?);
        parts.next().is_none().then_some(Self { gpu, instance: gi.map(|gi| (gi, ci.unwrap_or(0))), replica })
    }

    /// The id that a device plugin gives it; `None` if the scenario has no such device.
    pub fn id(&self, scenario: &Scenario, form: IdForm) -> Option<String> {
        let Self { gpu: index, .. } = *self;
        let gpu = scenario.gpus.get(index)?;
        let instance = match self.instance {
            Some((gi, ci)) => Some(gpu.instances().iter().find(|other| (other.gi, other.ci) == (gi, ci))?),
            None => None,
        };
        let device = match (form, instance) {
            (IdForm::Gke, None) => format!("nvidia{}", gpu.minor(index)),
            (IdForm::Gke, Some(instance)) => format!("nvidia{}/gi{}", gpu.minor(index), instance.gi),
            (_, None) => gpu.uuid(index),
            (IdForm::Uuid, Some(instance)) => instance.uuid(gpu, index),
            (IdForm::Legacy, Some(instance)) => {
                format!("MIG-{}/{}/{}", gpu.uuid(index), instance.gi, instance.ci)
            }
        };
        Some(match (self.replica, form) {
            (None, _) => device,
            (Some(replica), IdForm::Gke) => format!("{device}/vgpu{replica}"),
            (Some(replica), _) => format!("{device}::{replica}"),
        })
    }
}

// === impl Gpu ===

impl Gpu {
    /// Its instances; none without MIG.
    pub fn instances(&self) -> &[Instance] {
        self.mig.as_ref().map_or(&[], |mig| &mig.instances)
    }

    /// The instance that NVML lists at an index.
    pub(crate) fn instance_at(&self, slot: u32) -> Option<&Instance> {
        let mut all = self.instances().iter().zip(0..);
        all.find(|(instance, place)| instance.slot.unwrap_or(*place) == slot).map(|(instance, _)| instance)
    }

    pub(super) fn check_mig(&self) -> Result<(), String> {
        let Some(mig) = &self.mig else { return Ok(()) };
        if self.replay.is_some() || self.replicas.is_some() || self.mps_server.is_some() {
            return Err("mig goes with neither replay, replicas nor mps_server of the GPU".into());
        }
        let (mut ids, mut slots) = (BTreeSet::new(), BTreeSet::new());
        for (instance, place) in mig.instances.iter().zip(0..) {
            instance.check().map_err(|why| format!("instance {}: {why}", instance.gi))?;
            if !ids.insert((instance.gi, instance.ci)) {
                return Err(format!("gi {} ci {} is listed twice", instance.gi, instance.ci));
            }
            let slot = instance.slot.unwrap_or(place);
            if slot >= MAX_INSTANCES || !slots.insert(slot) {
                return Err(format!("slot {slot}: want one of its own below {MAX_INSTANCES}"));
            }
        }
        Ok(())
    }
}

// === impl Instance ===

impl Instance {
    /// Its UUID, given its GPU and that one's index.
    pub fn uuid(&self, gpu: &Gpu, index: usize) -> String {
        self.uuid.clone().unwrap_or_else(|| {
            let of = format!("{}/{}/{}/{}", gpu.uuid(index), self.profile, self.gi, self.ci);
            let hex = made_hex(&of, 32);
            format!("MIG-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
        })
    }

    /// Compute slices of its GPU instance and of itself, by its profile.
    pub(crate) fn slices(&self) -> (u32, u32) {
        self.slices_told().unwrap_or((1, 1))
    }

    fn slices_told(&self) -> Option<(u32, u32)> {
        let count = |suffix| {
            let mut parts = self.profile.split(['.', '+']);
            parts.find_map(|part| part.strip_suffix(suffix)?.parse::<u32>().ok())
        };
        let gpu_instance = count("g")?;
        Some((gpu_instance, count("c").unwrap_or(gpu_instance)))
    }

    /// Bytes of its GPU instance.
    pub(crate) fn memory_bytes(&self, gpu: &Gpu) -> u64 {
        let eighths = match self.slices().0 {
            3 | 4 => 4,
            7 => 8,
            slices => u64::from(slices),
        };
        self.memory_mib.unwrap_or(gpu.memory_mib * eighths.min(8) / 8) << 20
    }

    /// The part of the GPU that it is, for what only the whole GPU has.
    pub(crate) fn part(&self) -> f64 {
        f64::from(self.slices().1) / f64::from(SLICES)
    }

    fn check(&self) -> Result<(), String> {
        if !self
            .slices_told()
            .is_some_and(|(of, part)| (1..=SLICES).contains(&of) && (1..=of).contains(&part))
        {
            return Err(format!("profile {:?}: want one such as 1g.10gb", self.profile));
        }
        if self.gi > MAX_ID || self.ci > MAX_ID {
            return Err(format!("ids {} and {}: want at most {MAX_ID}", self.gi, self.ci));
        }
        if self.uuid.as_ref().is_some_and(|uuid| !uuid.starts_with("MIG-")) {
            return Err("uuid: want MIG-…".into());
        }
        if self.replicas == Some(0) {
            return Err("replicas is 0: leave it out for an instance that is not shared".into());
        }
        self.load.as_ref().map_or(Ok(()), Load::check)
    }
}

// === impl Scenario ===

impl Scenario {
    /// The mean load of an instance over a span of wall-clock time, in percent of the instance.
    /// `None` if there is no such instance.
    pub fn mean_instance_load(&self, gpu: usize, gi: u32, ci: u32, from_s: f64, to_s: f64) -> Option<f64> {
        let instance = self.gpus.get(gpu)?.instances().iter().find(|it| (it.gi, it.ci) == (gi, ci))?;
        let loads: Vec<&Load> = self.instance_loads(gpu, instance).map(|(_, load)| load).collect();
        Some(crate::load::mean_of_sum(&loads, from_s, to_s))
    }

    /// The loads of an instance, each with the pid that makes it.
    pub(crate) fn instance_loads<'a>(
        &'a self,
        gpu: usize,
        instance: &'a Instance,
    ) -> impl Iterator<Item = (Option<u32>, &'a Load)> {
        let processes = self
            .all_processes()
            .filter(move |(_, process)| process.is_on(gpu, instance))
            .filter_map(|(_, process)| Some((Some(process.pid), process.load.as_ref()?)));
        instance.load.iter().map(|load| (None, load)).chain(processes)
    }

    /// Refuses a device that a container cannot hold.
    pub(super) fn check_held(&self, pod: &Pod, container: &Container) -> Result<(), String> {
        for device in &container.devices {
            if Held::parse(device).and_then(|held| held.id(self, IdForm::Uuid)).is_none() {
                return Err(format!(
                    "pod {}/{} holds device {device:?}: want a GPU index below {}, <index>/gi<id> or \
                     <index>/gi<id>/ci<id> of an instance of it, with ::<replica> if it is shared",
                    pod.namespace,
                    pod.name,
                    self.gpus.len()
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "
gpus:
  - {}
  - mig: {instances: [{profile: 1g.10gb, gi: 7}, {profile: 3g.40gb+me, gi: 2, slot: 4, load: {constant: 50}}]}
processes: [{pid: 7, gpu: 1, gi: 2, load: {constant: 20}}]
";

    #[test]
    fn every_form_of_an_id() {
        let scenario = Scenario::parse(NODE).unwrap();
        let id = |text, form| Held::parse(text).unwrap().id(&scenario, form).unwrap();
        let uuid = scenario.gpus[1].instances()[0].uuid(&scenario.gpus[1], 1);
        let gpu = scenario.gpus[1].uuid(1);
        assert!(uuid.starts_with("MIG-") && uuid.len() == 40, "{uuid}");
        for (text, form, expected) in [
            ("1/gi7", IdForm::Uuid, uuid.clone()),
            ("1/gi7::3", IdForm::Uuid, format!("{uuid}::3")),
            ("1/gi7/ci0", IdForm::Legacy, format!("MIG-{gpu}/7/0")),
            ("1/gi7", IdForm::Gke, "nvidia1/gi7".into()),
            ("1/gi7::1", IdForm::Gke, "nvidia1/gi7/vgpu1".into()),
            ("0", IdForm::Gke, "nvidia0".into()),
            ("0::1", IdForm::Gke, "nvidia0/vgpu1".into()),
            ("1::2", IdForm::Legacy, format!("{gpu}::2")),
        ] {
            assert_eq!(id(text, form), expected, "{text}");
        }
        for wrong in ["", "x", "1/7", "1/gi7/ci0/x", "1/gix"] {
            assert_eq!(Held::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_instance_has_its_part_of_the_gpu() {
        let scenario = Scenario::parse(NODE).unwrap();
        let gpu = &scenario.gpus[1];
        assert_eq!(gpu.instance_at(4).unwrap().gi, 2);
        assert_eq!(gpu.instance_at(1), None);
        let memory: Vec<u64> = gpu.instances().iter().map(|it| it.memory_bytes(gpu) >> 20).collect();
        assert_eq!(memory, [81559 / 8, 81559 / 2]);
        assert_eq!(scenario.mean_instance_load(1, 2, 0, 0.0, 1.0), Some(70.0));
        assert!((scenario.mean_load(1, 0.0, 1.0).unwrap() - 30.0).abs() < 1e-9);
    }

    #[test]
    fn mistakes_are_refused() {
        for (mig, why) in [
            ("instances: [{profile: big, gi: 1}]", "instance 1: profile"),
            ("instances: [{profile: 1g.10gb, gi: 1}, {profile: 1g.10gb, gi: 1}]", "twice"),
            ("instances: [{profile: 1g.10gb, gi: 1, slot: 1}, {profile: 1g.10gb, gi: 2}]", "slot 1"),
            ("instances: [{profile: 1g.10gb, gi: 1, uuid: x}]", "uuid"),
            ("instances: [{profile: 1g.10gb, gi: 99}]", "ids 99"),
        ] {
            let error = Scenario::parse(&format!("gpus: [{{mig: {{{mig}}}}}]")).unwrap_err();
            assert!(error.contains(why), "{mig}: {error}");
        }
        let error = Scenario::parse("gpus: [{mig: {}, replicas: 2}]").unwrap_err();
        assert!(error.contains("mig goes with"), "{error}");
        let error = Scenario::parse("gpus: [{mig: {}}]\nprocesses: [{pid: 1, gpu: 0, gi: 3}]").unwrap_err();
        assert!(error.contains("process 1") && error.contains("instance 3"), "{error}");
    }
}

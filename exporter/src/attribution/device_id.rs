//! The forms in which device plugins write device ids, and the device that each one names.

use crate::gpu::{ComputeInstance, Identity};

/// A device id, understood.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DeviceId {
    pub(crate) device: Device,
    /// Which replica of a shared device, as the plugin numbers them.
    pub(crate) replica: Option<String>,
}

/// Which device an id names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Device {
    /// `GPU-<uuid>`, or anything else that a plugin may call a whole device.
    Gpu(String),
    /// `nvidia<minor>`, as GKE's plugin writes it: the name of the device node. NVML's index is
    /// another number, which changes when a GPU is lost.
    Minor(u32),
    /// `MIG-<uuid>`: a compute instance.
    Instance(String),
    /// `MIG-<GPU's UUID>/<gi>/<ci>`, as drivers before 470 name a compute instance.
    OldInstance { gpu: String, gi: u32, ci: u32 },
    /// `nvidia<minor>/gi<id>`: a GPU instance, as GKE's plugin writes it.
    MinorInstance { minor: u32, gi: u32 },
    /// `GPU-<uuid>-<n>`, as HAMi's and Volcano's plugins write it, or `GPU-<uuid>-_-<n>`, as gpushare's
    /// does for each GiB. The kubelet chose it among equals: the card in it is not the one that is used.
    Virtual(String),
}

/// Length of a UUID without its prefix.
const UUID_LENGTH: usize = 36;

impl DeviceId {
    /// Understands an id. Nothing is refused: an unknown form is a device of that name.
    pub(crate) fn parse(id: &str) -> Self {
        let (base, replica) = match id.split_once("::") {
            Some((base, replica)) => (base, Some(replica.to_owned())),
            None => match id.split_once("/vgpu") {
                Some((base, replica)) => (base, Some(replica.to_owned())),
                None => (id, None),
            },
        };
        let device = old_instance(base)
            .or_else(|| device_node(base))
            .or_else(|| base.starts_with("MIG-").then(|| Device::Instance(base.to_owned())))
            .or_else(|| is_virtual(base).then(|| Device::Virtual(base.to_owned())))
            .unwrap_or_else(|| Device::Gpu(base.to_owned()));
        Self { device, replica }
    }
}

/// Whether a resource means GPUs by its name: NVIDIA's, Volcano's, or one of `more`. Any other may
/// turn out to, by its ids.
pub(crate) fn is_gpu_resource(name: &str, more: &[String]) -> bool {
    name.starts_with("nvidia.com/")
        || name.starts_with("volcano.sh/vgpu")
        || more.iter().any(|other| other == name)
}

impl Device {
    /// Whether it is a GPU or a part of one by the look of its id, or by its resource's name.
    pub(crate) fn is_like_gpu(&self, resource: &str) -> bool {
        match self {
            Self::Gpu(id) => id.starts_with("GPU-") || is_gpu_resource(resource, &[]),
            _ => true,
        }
    }

    /// Whether it is the GPU, or the MIG instance or a part of it, of that identity.
    pub(crate) fn is_of(&self, identity: &Identity) -> bool {
        self.compute(identity).is_some()
            || match (self, &identity.instance) {
                (Self::Gpu(id), None) => *id == identity.uuid,
                (Self::Minor(minor), None) => Some(*minor) == identity.minor,
                (Self::MinorInstance { minor, gi }, Some(instance)) => {
                    (Some(*minor), *gi) == (identity.minor, instance.gi)
                }
                _ => false,
            }
    }

    /// How much of the device of that identity it is: all of it, or a compute instance's slices of
    /// a GPU instance that has several. `None` if the driver does not tell slices.
    pub(crate) fn part_of(&self, identity: &Identity) -> Option<f64> {
        match (self.compute(identity), &identity.instance) {
            (Some(compute), Some(instance)) if instance.compute.len() > 1 => {
                let (slices, of) = compute.slices.filter(|(_, of)| *of > 0)?;
                Some(f64::from(slices) / f64::from(of))
            }
            _ => Some(1.0),
        }
    }

    /// The compute instance that it names, if it is one of that identity's.
    fn compute<'a>(&self, identity: &'a Identity) -> Option<&'a ComputeInstance> {
        let compute = identity.instance.iter().flat_map(|instance| &instance.compute);
        match self {
            Self::Instance(uuid) => compute.into_iter().find(|compute| compute.uuid == *uuid),
            Self::OldInstance { gpu, gi, ci }
                if *gpu == identity.uuid && identity.instance.as_ref().is_some_and(|it| it.gi == *gi) =>
            {
                compute.into_iter().find(|compute| compute.ci == *ci)
            }
            _ => None,
        }
    }
}

/// Whether an id is a GPU's UUID with a number behind it.
fn is_virtual(id: &str) -> bool {
    let Some((uuid, number)) = id.strip_prefix("GPU-").and_then(|rest| rest.split_at_checked(UUID_LENGTH))
    else {
        return false;
    };
    let number = number.strip_prefix("-_-").or_else(|| number.strip_prefix('-')).unwrap_or_default();
    is_uuid(uuid) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a text is a UUID without a prefix.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == UUID_LENGTH
        && text.bytes().zip(0..).all(|(byte, at)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn old_instance(id: &str) -> Option<Device> {
    let mut parts = id.strip_prefix("MIG-").filter(|rest| rest.starts_with("GPU-"))?.split('/');
    let (gpu, gi, ci) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then(|| Device::OldInstance { gpu: gpu.to_owned(), gi, ci })
}

fn device_node(id: &str) -> Option<Device> {
    let mut parts = id.strip_prefix("nvidia")?.split('/');
    let minor = parts.next()?.parse().ok()?;
    match (parts.next(), parts.next()) {
        (None, _) => Some(Device::Minor(minor)),
        (Some(instance), None) => {
            Some(Device::MinorInstance { minor, gi: instance.strip_prefix("gi")?.parse().ok()? })
        }
        (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::MigInstance;

    const UUID: &str = "GPU-00000000-0000-0000-0000-000000000003";

    fn gpu() -> Identity {
        Identity {
            // A GPU before it is lost: NVML has counted it out.
            index: 2,
            minor: Some(3),
            uuid: UUID.into(),
            pci_bus_id: String::new(),
            model: String::new(),
            instance: None,
        }
    }

    /// The instance 2 of the GPU, with compute instances `MIG-a`, and `MIG-b` of twice its slices.
    fn instance(computes: u32) -> Identity {
        let compute = (0..computes)
            .map(|ci| ComputeInstance {
                ci,
                uuid: format!("MIG-{}", ["a", "b"][ci as usize]),
                slices: Some((ci + 1, 3)),
            })
            .collect();
        Identity { instance: Some(MigInstance::of_test(2, compute)), ..gpu() }
    }

    #[test]
    fn every_form() {
        for (id, of_gpu, of_instance, replica) in [
            (UUID.to_owned(), true, false, None),
            (format!("{UUID}::3"), true, false, Some("3")),
            ("nvidia3".to_owned(), true, false, None),
            ("nvidia3/vgpu1".to_owned(), true, false, Some("1")),
            ("nvidia3/gi2".to_owned(), false, true, None),
            ("nvidia3/gi2/vgpu1".to_owned(), false, true, Some("1")),
            ("nvidia3/gi1".to_owned(), false, false, None),
            ("nvidia2/gi2".to_owned(), false, false, None),
            ("MIG-a".to_owned(), false, true, None),
            ("MIG-a::7".to_owned(), false, true, Some("7")),
            ("MIG-c".to_owned(), false, false, None),
            (format!("MIG-{UUID}/2/0"), false, true, None),
            (format!("MIG-{UUID}/2/0::1"), false, true, Some("1")),
            (format!("MIG-{UUID}/2/1"), false, false, None),
            (format!("MIG-{UUID}/1/0"), false, false, None),
            ("MIG-GPU-1/2/0".to_owned(), false, false, None),
            ("GPU-other".to_owned(), false, false, None),
        ] {
            let parsed = DeviceId::parse(&id);
            assert_eq!(parsed.device.is_of(&gpu()), of_gpu, "{id}");
            assert_eq!(parsed.device.is_of(&instance(1)), of_instance, "{id}");
            assert_eq!(parsed.replica.as_deref(), replica, "{id}");
        }
    }

    #[test]
    fn a_virtual_gpu_names_no_card() {
        for (id, virtual_gpu) in [("-0", true), ("-_-17", true), ("-", false), ("-_-", false), ("-a", false)]
        {
            let parsed = DeviceId::parse(&format!("{UUID}{id}"));
            assert_eq!(matches!(parsed.device, Device::Virtual(_)), virtual_gpu, "{id}");
            assert!(!parsed.device.is_of(&gpu()), "{id}");
        }
    }

    #[test]
    fn without_a_minor_number_no_device_node_is_matched() {
        let gpu = Identity { minor: None, ..gpu() };
        for id in ["nvidia2", "nvidia3", "nvidia0"] {
            assert!(!DeviceId::parse(id).device.is_of(&gpu), "{id}");
        }
    }

    #[test]
    fn a_compute_instance_is_a_part_of_a_gpu_instance_that_has_several() {
        let part = |id: &str, identity: &Identity| DeviceId::parse(id).device.part_of(identity);
        assert_eq!(part("MIG-a", &instance(1)), Some(1.0));
        assert_eq!(part("MIG-a", &instance(2)), Some(1.0 / 3.0));
        assert_eq!(part("MIG-b", &instance(2)), Some(2.0 / 3.0));
        assert_eq!(part("nvidia3/gi2", &instance(2)), Some(1.0));
        assert_eq!(part(UUID, &gpu()), Some(1.0));
    }
}

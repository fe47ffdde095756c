//! Owns the forms in which device plugins write device ids.

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
    /// `nvidia<index>`, as GKE's plugin writes it.
    Index(u32),
    /// `MIG-…` or `nvidia<index>/gi<id>`: an instance of a GPU, by its raw id without the replica.
    Instance(String),
}

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
        let index = base.strip_prefix("nvidia").and_then(|rest| rest.split('/').next()?.parse::<u32>().ok());
        let device = match index {
            _ if base.starts_with("MIG-") => Device::Instance(base.to_owned()),
            Some(_) if base.contains("/gi") => Device::Instance(base.to_owned()),
            Some(index) => Device::Index(index),
            None => Device::Gpu(base.to_owned()),
        };
        Self { device, replica }
    }

    /// Whether this names the whole GPU of that UUID and index, or a replica of it.
    pub(crate) fn is_of(&self, uuid: &str, index: u32) -> bool {
        match &self.device {
            Device::Gpu(id) => id == uuid,
            Device::Index(id) => *id == index,
            Device::Instance(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let uuid = "GPU-00000000-0000-0000-0000-000000000003";
        for (id, whole, replica) in [
            (uuid.to_owned(), true, None),
            (format!("{uuid}::3"), true, Some("3")),
            ("nvidia3".to_owned(), true, None),
            ("nvidia3/vgpu1".to_owned(), true, Some("1")),
            ("nvidia3/gi2".to_owned(), false, None),
            ("nvidia3/gi2/vgpu1".to_owned(), false, Some("1")),
            ("MIG-1::7".to_owned(), false, Some("7")),
            ("MIG-GPU-1/2/0".to_owned(), false, None),
            ("GPU-other".to_owned(), false, None),
        ] {
            let parsed = DeviceId::parse(&id);
            assert_eq!(parsed.is_of(uuid, 3), whole, "{id}");
            assert_eq!(parsed.replica.as_deref(), replica, "{id}");
        }
    }
}

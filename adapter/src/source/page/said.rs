//! Reads a sample's labels once, into the ones that matter.

use std::borrow::Cow;
use std::time::Duration;

use podgauge_common::duration::parse_go_duration;
use podgauge_common::exposition::parse::{MAX_LABELS, Sample, labels};

use super::MAX_LABEL_BYTES;
use crate::source::labels::Labels;

/// Labels of one sample; those that are empty are absent.
#[derive(Debug, Default)]
pub(super) struct Said<'a> {
    uuid: Spelled<'a>,
    gpu: Text<'a>,
    pci_bus_id: Text<'a>,
    device: Text<'a>,
    model: Text<'a>,
    profile: Text<'a>,
    instance: Text<'a>,
    hostname: Spelled<'a>,
    namespace: Spelled<'a>,
    pod: Spelled<'a>,
    container: Spelled<'a>,
    pod_uid: Text<'a>,
    window: Text<'a>,
    reason: Text<'a>,
    vgpu: bool,
    hpc_job: bool,
    /// One of them is longer than what is kept.
    pub(super) too_long: bool,
}

type Text<'a> = Option<Cow<'a, str>>;
/// Under its present name, and under another one.
type Spelled<'a> = [Text<'a>; 2];

impl<'a> Said<'a> {
    /// Of the text between a sample's braces; `None` if it is no list of labels, or too long a one.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        let mut said = Self::default();
        let mut rest = labels(text);
        for (count, label) in rest.by_ref().enumerate() {
            let (name, value) = label.ok().filter(|_| count < MAX_LABELS)?;
            said.take(name, value);
        }
        rest.is_at_end().then_some(said)
    }

    pub(super) fn of(sample: &'a Sample<'_>) -> Self {
        let mut said = Self::default();
        for (name, value) in &sample.labels {
            said.take(name, Cow::Borrowed(value));
        }
        said
    }

    fn take(&mut self, name: &str, value: Cow<'a, str>) {
        self.too_long |= value.len() > MAX_LABEL_BYTES;
        if value.is_empty() {
            return;
        }
        let place = match name {
            "UUID" => &mut self.uuid[0],
            "uuid" => &mut self.uuid[1],
            "gpu" => &mut self.gpu,
            "pci_bus_id" => &mut self.pci_bus_id,
            "device" => &mut self.device,
            "modelName" => &mut self.model,
            "GPU_I_PROFILE" => &mut self.profile,
            "GPU_I_ID" => &mut self.instance,
            "hostname" => &mut self.hostname[0],
            "Hostname" => &mut self.hostname[1],
            "namespace" => &mut self.namespace[0],
            "pod_namespace" => &mut self.namespace[1],
            "pod" => &mut self.pod[0],
            "pod_name" => &mut self.pod[1],
            "container" => &mut self.container[0],
            "container_name" => &mut self.container[1],
            "pod_uid" => &mut self.pod_uid,
            "window" => &mut self.window,
            "reason" => &mut self.reason,
            "vgpu" => return self.vgpu = true,
            "hpc_job" => return self.hpc_job = true,
            _ => return,
        };
        place.get_or_insert(value);
    }

    /// UUID or number, with `/GI` for a MIG instance.
    pub(super) fn device_key(&self) -> Option<Cow<'_, str>> {
        let gpu = first(&self.uuid).or(self.gpu.as_deref())?;
        Some(match &self.instance {
            Some(instance) => format!("{gpu}/{instance}").into(),
            None => gpu.into(),
        })
    }

    /// The labels that distinguish its device from others.
    pub(super) fn device_labels(&self) -> Labels {
        Labels::of(|name| match name {
            "gpu" => self.gpu.as_deref(),
            "UUID" => first(&self.uuid),
            "pci_bus_id" => self.pci_bus_id.as_deref(),
            "device" => self.device.as_deref(),
            "modelName" => self.model.as_deref(),
            "GPU_I_PROFILE" => self.profile.as_deref(),
            "GPU_I_ID" => self.instance.as_deref(),
            "hostname" => first(&self.hostname),
            _ => None,
        })
    }

    /// Namespace, pod and container; `None` for a sample without a pod.
    pub(super) fn owner(&self) -> Option<(&str, &str, &str)> {
        Some((first(&self.namespace)?, first(&self.pod)?, first(&self.container).unwrap_or_default()))
    }

    pub(super) fn pod_uid(&self) -> Option<&str> {
        self.pod_uid.as_deref()
    }

    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The time that the sample sums up.
    pub(super) fn window(&self) -> Option<Duration> {
        parse_go_duration(self.window.as_deref()?).ok()
    }

    pub(super) fn is_replica(&self) -> bool {
        self.vgpu
    }

    /// Whether it may be one of several copies: once per replica of a device, once per batch job.
    /// Samples that differ in any other label, like a link's or an error's number, are no value of
    /// the device.
    pub(super) fn is_copy(&self) -> bool {
        self.vgpu || self.hpc_job
    }
}

fn first<'s>(spelled: &'s Spelled<'_>) -> Option<&'s str> {
    spelled.iter().find_map(Option::as_deref)
}

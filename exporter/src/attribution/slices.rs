//! Owns which device a name in a claim is: the ResourceSlices that NVIDIA's driver for dynamic
//! resource allocation publishes of this node, watched at the API server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use podgauge_common::cluster;
use podgauge_common::cluster::outages::{Cause, Watches};
use podgauge_common::hpa::milli;
use serde::Deserialize;
use tokio::sync::watch;

use super::claims::Reference;

/// The driver whose devices are GPUs and MIG instances.
pub(crate) const DRIVER: &str = "gpu.nvidia.com";
/// Most slices that are kept: of one node and one driver there are one to a few.
const MAX_SLICES: usize = 1_000;

/// What is known of the slices.
#[derive(Debug, Clone, Default)]
pub(crate) enum Slices {
    /// The API server has neither answered nor failed yet.
    #[default]
    Waiting,
    /// They are not watched, or have never been listed.
    Unknown,
    /// As last listed and watched, also while the watch fails.
    Known(Arc<Devices>),
}

/// The devices of this node by pool and name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Devices(HashMap<String, Pool>);

/// The devices of a pool's newest generation.
#[derive(Debug, Default, PartialEq)]
struct Pool {
    generation: i64,
    devices: HashMap<String, SliceDevice>,
}

/// What a slice says of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SliceDevice {
    /// `GPU-…` or `MIG-…`; `None` for one that is made only when it is claimed.
    pub(crate) uuid: Option<String>,
    /// Of a MIG device, such as `1g.10gb`.
    pub(crate) profile: Option<String>,
    /// By name, in thousandths of a unit.
    pub(crate) capacity: BTreeMap<String, i64>,
}

/// What is kept of one slice.
#[derive(Debug)]
struct Published {
    pool: String,
    generation: i64,
    devices: Vec<(String, SliceDevice)>,
}

/// The part of a ResourceSlice that is read: serde skips the rest unallocated.
#[derive(Debug, Clone, Deserialize, kube::Resource)]
#[resource(inherit = "ResourceSlice")]
struct SlimSlice {
    metadata: ObjectMeta,
    spec: SlimSpec,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimSpec {
    #[serde(default)]
    driver: String,
    pool: SlimPool,
    devices: Option<Vec<SlimDevice>>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimPool {
    #[serde(default)]
    name: String,
    #[serde(default)]
    generation: i64,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimDevice {
    name: String,
    attributes: Option<HashMap<String, SlimAttribute>>,
    capacity: Option<BTreeMap<String, SlimCapacity>>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimCapacity {
    value: Quantity,
}

/// An attribute; those read here are strings.
#[derive(Debug, Clone, Deserialize)]
struct SlimAttribute {
    string: Option<String>,
}

// === impl Slices ===

impl Slices {
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting)
    }

    /// The capacity of a claim's device.
    pub(crate) fn capacity(&self, reference: &Reference) -> Option<&BTreeMap<String, i64>> {
        match self {
            Self::Known(devices) => Some(&devices.find(&reference.pool, &reference.device)?.capacity),
            Self::Waiting | Self::Unknown => None,
        }
    }
}

// === impl Devices ===

impl Devices {
    pub(crate) fn find(&self, pool: &str, device: &str) -> Option<&SliceDevice> {
        self.0.get(pool)?.devices.get(device)
    }

    /// A pool's slices of an older generation are left over from before its devices changed.
    fn new<'a>(slices: impl Iterator<Item = &'a Published>) -> Self {
        let mut pools: HashMap<String, Pool> = HashMap::new();
        for Published { pool, generation, devices } in slices {
            let generation = *generation;
            let pool =
                pools.entry(pool.clone()).or_insert_with(|| Pool { generation, devices: HashMap::new() });
            if generation > pool.generation {
                *pool = Pool { generation, devices: HashMap::new() };
            }
            if generation == pool.generation {
                pool.devices.extend(devices.iter().cloned());
            }
        }
        Self(pools)
    }
}

// === impl Published ===

impl Published {
    /// The API server selects by driver; what it should not have sent has no devices.
    fn new(spec: SlimSpec) -> Self {
        let devices = spec.devices.unwrap_or_default().into_iter();
        Self {
            pool: spec.pool.name,
            generation: spec.pool.generation,
            devices: devices
                .filter(|_| spec.driver == DRIVER)
                .map(|device| (device.name.clone(), SliceDevice::new(device)))
                .collect(),
        }
    }
}

// === impl SliceDevice ===

impl SliceDevice {
    fn new(device: SlimDevice) -> Self {
        let mut attributes = device.attributes.unwrap_or_default();
        let capacity = device.capacity.unwrap_or_default().into_iter();
        let capacity = capacity.filter_map(|(name, amount)| Some((name, milli(&amount.value.0)?))).collect();
        // A name without a domain is of the driver's.
        let mut text = |name: &str| {
            let attribute =
                attributes.remove(name).or_else(|| attributes.remove(&format!("{DRIVER}/{name}")))?;
            attribute.string.filter(|text| !text.is_empty())
        };
        Self { uuid: text("uuid"), profile: text("profile"), capacity }
    }
}

/// Follows the slices of a node for as long as somebody listens. The last state stays while the watch
/// fails.
pub(crate) async fn follow(client: Client, watches: Watches, node: String, slices: watch::Sender<Slices>) {
    let fields = format!("spec.nodeName={node},spec.driver={DRIVER}");
    let config = watcher::Config::default().fields(&fields).any_semantic();
    let watched = watches.add_with_advice(format!("ResourceSlices of {node}"), advice);
    let mut known: HashMap<String, Published> = HashMap::new();
    let following =
        cluster::watch::follow(Api::<SlimSlice>::all(client), config, watched, |event| match event {
            // Init only says that a list is about to be asked for.
            Ok(Event::Init) => known.clear(),
            Ok(event) => {
                if apply(event, &mut known) {
                    publish(&slices, Devices::new(known.values()));
                }
            }
            Err(_) => {
                slices.send_if_modified(|known| {
                    known.is_waiting() && {
                        *known = Slices::Unknown;
                        true
                    }
                });
            }
        });
    tokio::select! {
        () = following => {}
        () = slices.closed() => {}
    }
}

/// Takes an event; whether the slices are whole after it.
fn apply(event: Event<SlimSlice>, known: &mut HashMap<String, Published>) -> bool {
    let is_whole = !matches!(event, Event::Init | Event::InitApply(_));
    match event {
        Event::Init | Event::InitDone => {}
        Event::InitApply(slice) | Event::Apply(slice) => {
            let name = slice.metadata.name.unwrap_or_default();
            if known.len() < MAX_SLICES || known.contains_key(&name) {
                known.insert(name, Published::new(slice.spec));
            }
        }
        Event::Delete(slice) => {
            known.remove(slice.metadata.name.as_deref().unwrap_or_default());
        }
    }
    is_whole
}

fn publish(slices: &watch::Sender<Slices>, devices: Devices) {
    slices.send_if_modified(|known| {
        let is_news = !matches!(known, Slices::Known(before) if **before == devices);
        if is_news {
            *known = Slices::Known(Arc::new(devices));
        }
        is_news
    });
}

/// The remedy for a watch that the API server refuses.
fn advice(cause: Cause) -> Option<&'static str> {
    match cause {
        Cause::Refused(404) => Some(
            "this cluster does not serve resource.k8s.io/v1, which Kubernetes has from 1.34 on: upgrade it, or leave --kubernetes-enable-dra out",
        ),
        Cause::Refused(401 | 403) => Some(
            "the API server refuses: let this service account list and watch resourceslices of resource.k8s.io in a ClusterRole",
        ),
        Cause::Refused(_) | Cause::NoAnswer => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(yaml: &str) -> Devices {
        let slices: Vec<SlimSlice> = serde_saphyr::from_str(yaml).unwrap();
        let published: Vec<Published> = slices.into_iter().map(|slice| Published::new(slice.spec)).collect();
        Devices::new(published.iter())
    }

    const HEAD: &str = "apiVersion: resource.k8s.io/v1, kind: ResourceSlice";

    #[test]
    fn devices_of_the_newest_generation_alone() {
        let slice = |name: &str, generation: u32, device: &str, uuid: &str| {
            format!(
                "- {{{HEAD}, metadata: {{name: {name}}}, spec: {{driver: gpu.nvidia.com, nodeName: n, \
                 pool: {{name: n, generation: {generation}, resourceSliceCount: 2}}, \
                 devices: [{{name: {device}, attributes: {{uuid: {{string: {uuid}}}, cores: {{int: 7}}}}}}]}}}}\n"
            )
        };
        let old = slice("a", 1, "gpu-0", "GPU-old");
        let new = [slice("b", 2, "gpu-0", "GPU-new"), slice("c", 2, "gpu-1", "GPU-1")].concat();
        for text in [format!("{old}{new}"), format!("{new}{old}")] {
            let devices = slices(&text);
            let uuid = |device| devices.find("n", device).and_then(|device| device.uuid.clone());
            assert_eq!(
                (uuid("gpu-0").as_deref(), uuid("gpu-1").as_deref()),
                (Some("GPU-new"), Some("GPU-1"))
            );
            assert_eq!(devices.find("other", "gpu-0"), None);
        }
        // A newer generation without the device ends it.
        let devices = slices(&format!("{}{}", slice("a", 2, "gpu-9", "GPU-9"), slice("b", 1, "gpu-0", "x")));
        assert_eq!(devices.find("n", "gpu-0"), None);
    }

    #[test]
    fn attributes_with_and_without_a_domain_and_devices_that_are_not_made_yet() {
        let devices = slices(
            "
- apiVersion: resource.k8s.io/v1
  kind: ResourceSlice
  metadata: {name: a}
  spec:
    driver: gpu.nvidia.com
    pool: {name: n, generation: 1, resourceSliceCount: 1}
    sharedCounters: []
    devices:
    - name: gpu-0-mig-1g10gb-19-0
      attributes: {type: {string: mig}, parentUUID: {string: GPU-1}, profile: {string: 1g.10gb}}
    - name: gpu-1
      attributes: {gpu.nvidia.com/uuid: {string: GPU-1}, driverVersion: {version: 580.95.5}}
    - {name: bare}
- apiVersion: resource.k8s.io/v1
  kind: ResourceSlice
  metadata: {name: b}
  spec: {driver: other.example.com, pool: {name: m, generation: 1}, devices: [{name: x}]}
",
        );
        let unmade = devices.find("n", "gpu-0-mig-1g10gb-19-0").unwrap();
        assert_eq!((unmade.uuid.as_deref(), unmade.profile.as_deref()), (None, Some("1g.10gb")));
        assert_eq!(devices.find("n", "gpu-1").unwrap().uuid.as_deref(), Some("GPU-1"));
        assert_eq!(devices.find("n", "bare"), Some(&SliceDevice::default()));
        assert_eq!(devices.find("m", "x"), None);
    }
}

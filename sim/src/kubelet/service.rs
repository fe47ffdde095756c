//! Owns the answers of the pod-resources service: what the scenario says, in the kubelet's shapes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use podgauge_sim_nvml::scenario::{Claim, Held, IdForm, Scenario};
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::rate_limit::RateLimit;
use super::v1::pod_resources_lister_server::PodResourcesLister;
use super::v1::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
    ContainerResources, DynamicResource, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use super::{Calls, KubeletOptions};

/// The resource that a device is offered under if no container of the scenario holds it.
const DEFAULT_RESOURCE: &str = "nvidia.com/gpu";
/// Length of the container names that fill an answer up: Kubernetes' longest DNS label.
const PADDING_NAME_LENGTH: usize = 63;

/// What a test can change while the kubelet runs.
#[derive(Debug)]
pub(crate) struct Switches {
    /// A watch, so that ending a hang also ends it for the calls that hang.
    pub(crate) hang: watch::Sender<Duration>,
    pad_to_bytes: AtomicUsize,
    empty_for_ms: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    list: AtomicU64,
    allocatable: AtomicU64,
    rejected: AtomicU64,
    pending: AtomicU64,
}

/// A call without an answer; dropped with it, or when the client waits no longer.
struct Pending<'a>(&'a AtomicU64);

/// The service as of one start of the kubelet.
pub(crate) struct Lister {
    scenario: watch::Receiver<Arc<Scenario>>,
    limit: Arc<RateLimit>,
    switches: Arc<Switches>,
    counters: Arc<Counters>,
    started: Instant,
    /// At the start: a later change is for the next one.
    empty_for: Duration,
}

// === impl Switches ===

impl Switches {
    pub(crate) fn new(options: &KubeletOptions) -> Self {
        let switches = Self {
            hang: watch::Sender::new(options.hang),
            pad_to_bytes: AtomicUsize::new(options.pad_to_bytes),
            empty_for_ms: AtomicU64::new(0),
        };
        switches.set_empty_for(options.empty_for);
        switches
    }

    pub(crate) fn set_padding(&self, bytes: usize) {
        self.pad_to_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_empty_for(&self, empty_for: Duration) {
        let ms = u64::try_from(empty_for.as_millis()).unwrap_or(u64::MAX);
        self.empty_for_ms.store(ms, Ordering::Relaxed);
    }
}

// === impl Counters ===

impl Counters {
    pub(crate) fn read(&self) -> Calls {
        Calls {
            list: self.list.load(Ordering::Relaxed),
            allocatable: self.allocatable.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Relaxed),
        }
    }
}

// === impl Pending ===

impl<'a> Pending<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Lister ===

impl Lister {
    pub(crate) fn new(
        scenario: watch::Receiver<Arc<Scenario>>,
        limit: Arc<RateLimit>,
        switches: Arc<Switches>,
        counters: Arc<Counters>,
        started: Instant,
    ) -> Self {
        let empty_for = Duration::from_millis(switches.empty_for_ms.load(Ordering::Relaxed));
        Self { scenario, limit, switches, counters, started, empty_for }
    }

    /// Rejects, or waits as long as the switch says.
    async fn admit(&self) -> Result<(), Status> {
        let _pending = Pending::new(&self.counters.pending);
        let asked = Instant::now();
        if !self.limit.allows(asked) {
            self.counters.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        let mut hang = self.switches.hang.subscribe();
        loop {
            let until = asked + *hang.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                changed = hang.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.counters.list.fetch_add(1, Ordering::Relaxed);
        self.admit().await?;
        if self.started.elapsed() < self.empty_for {
            return Ok(Response::new(ListPodResourcesResponse::default()));
        }
        let scenario = Arc::clone(&self.scenario.borrow());
        let mut answer = ListPodResourcesResponse { pod_resources: active_pods(&scenario) };
        pad(&mut answer, self.switches.pad_to_bytes.load(Ordering::Relaxed));
        Ok(Response::new(answer))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.counters.allocatable.fetch_add(1, Ordering::Relaxed);
        self.admit().await?;
        let scenario = Arc::clone(&self.scenario.borrow());
        Ok(Response::new(AllocatableResourcesResponse { devices: allocatable(&scenario) }))
    }
}

/// Every pod that has not finished, also those without devices.
fn active_pods(scenario: &Scenario) -> Vec<PodResources> {
    scenario
        .pods
        .iter()
        .filter(|pod| pod.phase != "Succeeded" && pod.phase != "Failed")
        .map(|pod| PodResources {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            containers: pod
                .containers
                .iter()
                .map(|container| {
                    let device_ids = container.device_ids(scenario);
                    let devices = (!device_ids.is_empty())
                        .then(|| ContainerDevices { resource_name: container.resource.clone(), device_ids });
                    ContainerResources {
                        name: container.name.clone(),
                        devices: devices.into_iter().collect(),
                        dynamic_resources: scenario
                            .claims_of(pod, container)
                            .map(|claim| dynamic_resource(scenario, claim))
                            .collect(),
                    }
                })
                .collect(),
        })
        .collect()
}

/// A claim that a container holds, device by device.
fn dynamic_resource(scenario: &Scenario, claim: &Claim) -> DynamicResource {
    let devices = claim.device_names(scenario).into_iter();
    DynamicResource {
        claim_name: claim.name.clone(),
        claim_namespace: claim.namespace.clone(),
        claim_resources: devices
            .map(|device| ClaimResource {
                cdi_devices: claim.cdi_names(&device).into_iter().map(|name| CdiDevice { name }).collect(),
                driver_name: claim.driver.clone(),
                pool_name: claim.pool(&scenario.node).to_owned(),
                device_name: device,
                share_id: claim.share.clone(),
            })
            .collect(),
    }
}

/// One entry per healthy device, or per replica of one that is shared. Replicas are counted from
/// 0, as NVIDIA's device plugin does. A GPU with MIG on is offered as its instances.
fn allocatable(scenario: &Scenario) -> Vec<ContainerDevices> {
    // Under which resource, and in which form of ids.
    let mut held: BTreeMap<Held<'_>, (&str, IdForm)> = BTreeMap::new();
    for container in scenario.pods.iter().flat_map(|pod| &pod.containers) {
        for device in container.devices.iter().filter_map(|device| Held::parse(device)) {
            let device = Held { replica: None, ..device };
            held.entry(device).or_insert((&container.resource, container.id_form));
        }
    }
    let mut offered = Vec::new();
    for (gpu, of) in scenario.gpus.iter().enumerate().filter(|(_, gpu)| gpu.healthy) {
        let whole = (None, of.replicas, DEFAULT_RESOURCE.to_owned());
        let instances = of.instances().iter().map(|instance| {
            let resource = format!("nvidia.com/mig-{}", instance.profile.replace('+', "."));
            (Some((instance.gi, instance.ci)), instance.replicas, resource)
        });
        let devices: Vec<_> =
            if of.mig.is_some() { instances.collect() } else { std::iter::once(whole).collect() };
        for (instance, replicas, resource) in devices {
            let (resource, form) = match held.get(&Held { gpu, instance, replica: None }) {
                Some((resource, form)) => ((*resource).to_owned(), *form),
                None => (resource, IdForm::default()),
            };
            let names: Vec<String> =
                (0..replicas.unwrap_or_default()).map(|number| number.to_string()).collect();
            let replicas: Vec<Option<&str>> = if replicas.is_some() {
                names.iter().map(|name| Some(name.as_str())).collect()
            } else {
                vec![None]
            };
            offered.extend(replicas.into_iter().filter_map(|replica| {
                let id = Held { gpu, instance, replica }.id(scenario, form)?;
                Some(ContainerDevices { resource_name: resource.clone(), device_ids: vec![id] })
            }));
        }
    }
    offered
}

/// Fills an answer up with pods without devices.
fn pad(answer: &mut ListPodResourcesResponse, to_bytes: usize) {
    let mut size = answer.encoded_len();
    let mut number = 0usize;
    while size < to_bytes {
        let pod = PodResources {
            name: format!("padding-{number}"),
            namespace: "padding".to_owned(),
            containers: vec![ContainerResources {
                name: "x".repeat(PADDING_NAME_LENGTH),
                devices: Vec::new(),
                dynamic_resources: Vec::new(),
            }],
        };
        // Two bytes at least for the tag and the length of the entry.
        size += pod.encoded_len() + 2;
        number += 1;
        answer.pod_resources.push(pod);
    }
}

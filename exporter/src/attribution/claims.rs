//! Claims of dynamic resource allocation: what the kubelet lists of them, and the device of each. A
//! device that is not certain is left out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use podgauge_common::exposition::write::LabelText;
use tokio::sync::watch;

use super::device_id::{Device, DeviceId, is_uuid};
use super::kubelet::api::{ClaimResource, DynamicResource, PodResources};
use super::resource_claims::ResourceClaims;
use super::slices::{DRIVER, Slices};

/// Devices that one log line names.
const NAMED: usize = 5;
/// What samples of a claimed device say of the claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) reference: Reference,
    /// Such as `1g.10gb`; of a MIG device alone.
    pub(crate) mig_profile: Option<String>,
    /// `MIG-…`.
    pub(crate) mig_uuid: Option<String>,
}

/// A device that a claim holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClaimedDevice {
    pub(crate) device: Device,
    pub(crate) claim: Arc<Claim>,
    /// Consumed capacity ÷ the device's, if both are known.
    pub(crate) part: Option<f64>,
}

/// A device as the kubelet names it in a claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pool: String,
    pub(crate) device: String,
    /// Which part of the device's capacity it is, where several claims share one.
    pub(crate) share: Option<String>,
}

/// The device of each listed claim.
#[derive(Debug)]
pub(crate) struct Claims {
    slices: watch::Receiver<Slices>,
    resources: ResourceClaims,
    /// Those of the last list that are told.
    told: HashMap<Reference, Told>,
    untold: BTreeMap<Reference, Untold>,
}

#[derive(Debug, Clone)]
struct Told {
    device: Device,
    claim: Arc<Claim>,
    part: Option<f64>,
}

/// Why a device is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Untold {
    /// Nothing is known of slices, which has been said.
    NoSlices,
    Unlisted,
    /// It is a MIG device that was made for the claim.
    NoUuid,
}

// === impl Claim ===

impl Claim {
    /// Adds its labels, under dcgm-exporter's names.
    pub(crate) fn add_to(&self, labels: &mut LabelText) {
        let Reference { namespace, name, pool, device, .. } = &self.reference;
        labels.push("dra_claim_name", name);
        labels.push("dra_claim_namespace", namespace);
        labels.push("dra_device_name", device);
        labels.push("dra_driver_name", DRIVER);
        labels.push("dra_mig_device_uuid", self.mig_uuid.as_deref().unwrap_or_default());
        labels.push("dra_mig_profile", self.mig_profile.as_deref().unwrap_or_default());
        labels.push("dra_pool_name", pool);
    }
}

// === impl Reference ===

impl Reference {
    /// Namespace and name of the claim.
    pub(crate) fn claim(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }
}

// === impl Claims ===

impl Claims {
    pub(crate) fn new(slices: watch::Receiver<Slices>, resources: ResourceClaims) -> Self {
        Self { slices, resources, told: HashMap::new(), untold: BTreeMap::new() }
    }

    /// Waits until the API server has answered or failed, so that no series begins without labels
    /// that it has a moment later.
    pub(crate) async fn first_slices(&mut self, limit: Duration) {
        // If nobody follows them any more, what is known is all.
        drop(tokio::time::timeout(limit, self.slices.wait_for(|slices| !slices.is_waiting())).await);
    }

    /// Waits until slices say something else.
    pub(crate) async fn changed(&mut self) {
        if self.slices.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Reads what the kubelet does not list of the claims in a new list.
    pub(crate) async fn read(&mut self, pods: &[PodResources]) {
        let containers = pods.iter().flat_map(|pod| &pod.containers);
        let claims = containers.flat_map(|container| &container.dynamic_resources);
        let wanted: Vec<Reference> = claims.flat_map(references).map(|(reference, _)| reference).collect();
        self.resources.follow(&wanted).await;
    }

    /// Takes the claims of a new list.
    pub(crate) fn learn(&mut self, pods: &[PodResources]) {
        let slices = self.slices.borrow_and_update().clone();
        let before = std::mem::take(&mut self.told);
        let mut untold = BTreeMap::new();
        let containers = pods.iter().flat_map(|pod| &pod.containers);
        for claim in containers.flat_map(|container| &container.dynamic_resources) {
            for (reference, resource) in references(claim) {
                if self.told.contains_key(&reference) || untold.contains_key(&reference) {
                    continue;
                }
                let grant = self.resources.grant(&reference);
                if grant.is_some_and(|grant| grant.is_admin) {
                    continue;
                }
                match tell(&reference, resource, &slices, &before) {
                    Ok(mut told) => {
                        let capacity = slices.capacity(&reference);
                        told.part = grant.zip(capacity).and_then(|(grant, capacity)| grant.part(capacity));
                        self.told.insert(reference, told);
                    }
                    Err(why) => {
                        untold.insert(reference, why);
                    }
                }
            }
        }
        if untold != self.untold {
            report(&untold, &self.untold);
            self.untold = untold;
        }
    }

    /// The devices that a container's claim holds, as far as they are told.
    pub(crate) fn of(&self, claim: &DynamicResource) -> Vec<ClaimedDevice> {
        references(claim)
            .filter_map(|(reference, _)| self.told.get(&reference))
            .map(|told| ClaimedDevice {
                device: told.device.clone(),
                claim: Arc::clone(&told.claim),
                part: told.part,
            })
            .collect()
    }

    /// How many of the listed devices are not told.
    pub(crate) fn untold(&self) -> usize {
        self.untold.len()
    }
}

// === impl Told ===

impl Told {
    fn new(reference: &Reference, uuid: &str, profile: Option<String>) -> Self {
        let device = DeviceId::parse(uuid).device;
        let is_mig = matches!(device, Device::Instance(_) | Device::OldInstance { .. });
        let claim = Claim {
            reference: reference.clone(),
            mig_profile: profile.filter(|_| is_mig),
            mig_uuid: is_mig.then(|| uuid.to_owned()),
        };
        Self { device, claim: Arc::new(claim), part: None }
    }
}

/// The devices of a claim that are this driver's.
fn references(claim: &DynamicResource) -> impl Iterator<Item = (Reference, &ClaimResource)> {
    claim.claim_resources.iter().filter(|resource| resource.driver_name == DRIVER).map(|resource| {
        let reference = Reference {
            namespace: claim.claim_namespace.clone(),
            name: claim.claim_name.clone(),
            pool: resource.pool_name.clone(),
            device: resource.device_name.clone(),
            share: resource.share_id.clone().filter(|share| !share.is_empty()),
        };
        (reference, resource)
    })
}

/// By the slices; else as it was while the claim has been held, since a driver that is replaced
/// takes its slices away under running pods; else by the UUID in the name of its CDI device.
fn tell(
    reference: &Reference,
    resource: &ClaimResource,
    slices: &Slices,
    before: &HashMap<Reference, Told>,
) -> Result<Told, Untold> {
    let by_cdi = || cdi_uuid(resource).map(|uuid| Told::new(reference, uuid, None));
    let listed = match slices {
        Slices::Known(devices) => devices.find(&reference.pool, &reference.device).ok_or(Untold::Unlisted),
        Slices::Waiting | Slices::Unknown => Err(Untold::NoSlices),
    };
    match listed {
        Ok(device) => match &device.uuid {
            Some(uuid) => Ok(Told::new(reference, uuid, device.profile.clone())),
            None => by_cdi().ok_or(Untold::NoUuid),
        },
        Err(why) => before.get(reference).cloned().or_else(by_cdi).ok_or(why),
    }
}

/// The one UUID that the names of its CDI devices hold, such as `nvidia.com/gpu=GPU-…`.
fn cdi_uuid(resource: &ClaimResource) -> Option<&str> {
    let mut uuids = resource.cdi_devices.iter().filter_map(|device| {
        let (_, name) = device.name.rsplit_once('=')?;
        let uuid = name.strip_prefix("GPU-").or_else(|| name.strip_prefix("MIG-"))?;
        is_uuid(uuid).then_some(name)
    });
    let first = uuids.next()?;
    uuids.all(|other| other == first).then_some(first)
}

/// Says once which devices are not told, and once when all are again.
fn report(untold: &BTreeMap<Reference, Untold>, before: &BTreeMap<Reference, Untold>) {
    let unsaid = |untold: &BTreeMap<Reference, Untold>| {
        let said = |(_, why): &(&Reference, &Untold)| **why != Untold::NoSlices;
        untold.iter().filter(said).map(|(reference, why)| (reference.clone(), *why)).collect::<Vec<_>>()
    };
    let (now, before) = (unsaid(untold), unsaid(before));
    if now == before {
        return;
    }
    if now.is_empty() {
        if untold.is_empty() {
            tracing::info!("claims: every device is known now");
        }
        return;
    }
    let named: Vec<String> = now
        .iter()
        .take(NAMED)
        .map(|(Reference { namespace, name, pool, device, .. }, why)| {
            let why = match why {
                Untold::NoSlices | Untold::Unlisted => "no ResourceSlice of this node has it",
                Untold::NoUuid => {
                    "its ResourceSlice has no UUID: a MIG device that was made for the claim is not known yet"
                }
            };
            format!("device {device} of pool {pool}, claim {namespace}/{name}: {why}")
        })
        .collect();
    let more = if now.len() > NAMED { format!("; and {} more", now.len() - NAMED) } else { String::new() };
    tracing::warn!(
        "{} claimed devices of {DRIVER} are not known and have no pod labels until they are: {}{more}",
        now.len(),
        named.join("; ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::kubelet::api::CdiDevice;

    const UUID: &str = "GPU-13719f71-412c-d11e-b236-a262f530a4fc";

    fn resource(cdi: &[&str]) -> ClaimResource {
        ClaimResource {
            cdi_devices: cdi.iter().map(|name| CdiDevice { name: (*name).into() }).collect(),
            driver_name: DRIVER.into(),
            pool_name: "n".into(),
            device_name: "gpu-0".into(),
            share_id: None,
        }
    }

    #[test]
    fn a_cdi_name_tells_a_device_only_if_it_is_one_uuid() {
        let other = UUID.replace("13719f71", "23719f71");
        for (names, told) in [
            (vec![format!("nvidia.com/gpu={UUID}")], true),
            (vec![format!("nvidia.com/gpu={UUID}"), "k8s.gpu.nvidia.com/claim=7-gpu-0".into()], true),
            (vec![format!("nvidia.com/gpu={UUID}"), format!("nvidia.com/gpu={other}")], false),
            (vec!["k8s.gpu.nvidia.com/claim=7f0c-gpu-0".into()], false),
            (vec!["nvidia.com/gpu=GPU-0".into()], false),
            (vec![format!("nvidia.com/gpu={UUID}::1")], false),
            (vec![UUID.to_owned()], false),
            (vec![], false),
        ] {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            assert_eq!(cdi_uuid(&resource(&names)), told.then_some(UUID), "{names:?}");
        }
    }
}

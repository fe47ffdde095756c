//! Makes ResourceSlices and allocated ResourceClaims from scenarios, as NVIDIA's driver for dynamic
//! resource allocation publishes a node's devices and the scheduler gives them away.

use jiff::Timestamp;
use podgauge_sim_nvml::scenario::{Claim, DRIVER, Held, Instance, Scenario};
use serde_json::{Value, json};

use super::ApiServerHandle;
use super::kinds::Kind;
use super::pods::rfc3339;

// === impl ApiServerHandle ===

impl ApiServerHandle {
    /// ResourceSlices besides those of the scenarios, from now on.
    pub fn set_resource_slices(&self, slices: Vec<Value>) {
        self.state.store.replace(Kind::ResourceSlice, "given", slices);
    }

    /// Whether a group that this server knows is served from now on, as an older cluster has none
    /// of the newer ones: 404. Watches that are under way go on; see [`Self::end_watches`].
    pub fn set_group_served(&self, group: &str, served: bool) {
        let mut unserved = self.state.unserved.write();
        if served {
            unserved.remove(group);
        } else {
            unserved.insert(group.to_owned());
        }
    }
}

/// The node's slice, if the scenario publishes one. A GPU with MIG on is in it too, beside its
/// instances, as the driver has it.
pub(crate) fn resource_slices(scenario: &Scenario, since: Timestamp) -> Vec<Value> {
    let Some(slices) = &scenario.resource_slices else { return Vec::new() };
    let devices: Vec<Value> = (0..scenario.gpus.len()).flat_map(|gpu| devices(scenario, gpu)).collect();
    vec![json!({
        "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1",
        "metadata": {
            "name": format!("{}-{DRIVER}-00000", scenario.node), "uid": format!("resource-slice-{}", scenario.node),
            "creationTimestamp": rfc3339(since),
        },
        "spec": {
            "driver": DRIVER, "nodeName": scenario.node,
            "pool": {"name": scenario.node, "generation": slices.generation, "resourceSliceCount": 1},
            "devices": devices,
        },
    })]
}

/// The scenario's claims, each allocated.
pub(crate) fn resource_claims(scenario: &Scenario, since: Timestamp) -> Vec<Value> {
    let claim = |claim: &Claim| {
        let result = |device: String| {
            let mut result = json!({
                "request": "gpu", "driver": claim.driver, "pool": claim.pool(&scenario.node), "device": device,
            });
            if claim.admin {
                result["adminAccess"] = json!(true);
            }
            if let Some(share) = &claim.share {
                result["shareID"] = json!(share);
            }
            if !claim.consumed.is_empty() {
                result["consumedCapacity"] = json!(claim.consumed);
            }
            result
        };
        let results: Vec<Value> = claim.device_names(scenario).into_iter().map(result).collect();
        json!({
            "kind": "ResourceClaim", "apiVersion": "resource.k8s.io/v1",
            "metadata": {
                "name": claim.name, "namespace": claim.namespace,
                "uid": format!("claim-{}-{}", claim.namespace, claim.name), "creationTimestamp": rfc3339(since),
            },
            "spec": {"devices": {}},
            "status": {"allocation": {"devices": {"results": results}}},
        })
    };
    scenario.claims.iter().map(claim).collect()
}

fn devices(scenario: &Scenario, index: usize) -> Vec<Value> {
    let gpu = &scenario.gpus[index];
    let uuid = gpu.uuid(index);
    let device = |instance: Option<&Instance>| {
        let held = Held { gpu: index, instance: instance.map(|it| (it.gi, it.ci)), replica: None };
        let mut attributes = json!({
            "type": {"string": "gpu"}, "uuid": {"string": uuid}, "productName": {"string": gpu.model},
            "brand": {"string": "Nvidia"}, "cudaComputeCapability": {"version": "9.0.0"},
            "resource.kubernetes.io/pciBusID": {"string": gpu.pci_bus_id(index)},
        });
        if let Some(instance) = instance {
            attributes["type"] = json!({"string": "mig"});
            attributes["uuid"] = json!({"string": instance.uuid(gpu, index)});
            attributes["parentUUID"] = json!({"string": uuid});
            attributes["profile"] = json!({"string": instance.profile});
        }
        json!({
            "name": held.dra_name(scenario), "attributes": attributes,
            "capacity": {"memory": {"value": format!("{}Mi", gpu.memory_mib)}},
        })
    };
    std::iter::once(None).chain(gpu.instances().iter().map(Some)).map(device).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::ResourceSlice;

    use super::*;

    #[test]
    fn a_slice_is_of_its_kind_and_names_every_device() {
        let yaml =
            "gpus: [{}, {mig: {instances: [{profile: 1g.10gb, gi: 7}]}}]\nresource_slices: {generation: 3}";
        let scenario = Scenario::parse(yaml).unwrap();
        let slice = resource_slices(&scenario, Timestamp::UNIX_EPOCH).remove(0);
        let slice: ResourceSlice = serde_json::from_value(slice).unwrap();
        assert_eq!((slice.spec.pool.generation, slice.spec.node_name.as_deref()), (3, Some("gpu-node-0")));
        let text = |device: usize, name: &str| {
            slice.spec.devices.as_ref().unwrap()[device].attributes.as_ref().unwrap()[name].string.clone()
        };
        assert_eq!(slice.spec.devices.as_ref().unwrap().len(), 3);
        assert_eq!(text(2, "profile").as_deref(), Some("1g.10gb"));
        assert_eq!(text(2, "parentUUID"), text(1, "uuid"));
        assert!(resource_slices(&Scenario::parse("gpus: [{}]").unwrap(), Timestamp::UNIX_EPOCH).is_empty());
    }
}

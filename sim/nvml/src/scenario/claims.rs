//! Owns what a scenario says of dynamic resource allocation: claims that are allocated, and what the
//! driver publishes of the node's devices.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Container, Held, IdForm, Pod, Scenario};

/// NVIDIA's driver for GPUs and MIG instances.
pub const DRIVER: &str = "gpu.nvidia.com";

/// A ResourceClaim that is allocated and prepared.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    #[serde(default = "super::default_namespace")]
    pub namespace: String,
    pub name: String,
    #[serde(default = "default_driver")]
    pub driver: String,
    /// The node's name if absent, as NVIDIA's driver calls its pool.
    pub pool: Option<String>,
    /// As [`Container::devices`]: a GPU's index, `<index>/gi<id>` for a MIG instance.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Further devices by the names that their driver gives them.
    #[serde(default)]
    pub device_names: Vec<String>,
    /// Names of the CDI devices, of every device of the claim; made from the claim if none.
    #[serde(default)]
    pub cdi: Vec<String>,
    /// Which share of the device's capacity it is.
    pub share: Option<String>,
    /// True: it has admin access, for watching the devices while others use them.
    #[serde(default)]
    pub admin: bool,
    /// Capacity of each device that it consumes, by name, as Kubernetes quantities.
    #[serde(default)]
    pub consumed: BTreeMap<String, String>,
}

/// How the driver publishes the node's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceSlices {
    /// Of the node's pool.
    pub generation: i64,
}

// === impl Claim ===

impl Claim {
    /// Its pool, given the node's name.
    pub fn pool<'a>(&'a self, node: &'a str) -> &'a str {
        self.pool.as_deref().unwrap_or(node)
    }

    /// The names of all its devices, in the driver's words.
    pub fn device_names(&self, scenario: &Scenario) -> Vec<String> {
        let held = self.devices.iter().filter_map(|device| Held::parse(device)?.dra_name(scenario));
        held.chain(self.device_names.iter().cloned()).collect()
    }

    /// The names of a device's CDI devices.
    pub fn cdi_names(&self, device: &str) -> Vec<String> {
        if self.cdi.is_empty() {
            vec![format!("k8s.{}/claim={}-{}-{device}", self.driver, self.namespace, self.name)]
        } else {
            self.cdi.clone()
        }
    }

    fn check(&self, scenario: &Scenario) -> Result<(), String> {
        for device in &self.devices {
            let held = Held::parse(device).filter(|held| held.replica.is_none());
            if held.and_then(|held| held.id(scenario, IdForm::Uuid)).is_none() {
                return Err(format!(
                    "claim {}/{} holds device {device:?}: want a GPU index below {}, or <index>/gi<id> of an \
                     instance of it",
                    self.namespace,
                    self.name,
                    scenario.gpus.len()
                ));
            }
        }
        Ok(())
    }
}

impl Default for ResourceSlices {
    fn default() -> Self {
        Self { generation: 1 }
    }
}

// === impl Held ===

impl Held<'_> {
    /// What NVIDIA's driver calls it; `None` if the scenario has no such device.
    pub fn dra_name(&self, scenario: &Scenario) -> Option<String> {
        let gpu = scenario.gpus.get(self.gpu)?;
        let Some((gi, ci)) = self.instance else { return Some(format!("gpu-{}", self.gpu)) };
        let instance = gpu.instances().iter().find(|other| (other.gi, other.ci) == (gi, ci))?;
        let profile: String = instance.profile.chars().filter(char::is_ascii_alphanumeric).collect();
        Some(format!("gpu-{}-mig-{profile}-{gi}-{ci}", self.gpu))
    }
}

// === impl Scenario ===

impl Scenario {
    /// The claims of a pod's container.
    pub fn claims_of<'a>(
        &'a self,
        pod: &'a Pod,
        container: &'a Container,
    ) -> impl Iterator<Item = &'a Claim> {
        container.claims.iter().filter_map(|name| {
            self.claims.iter().find(|claim| (&claim.namespace, &claim.name) == (&pod.namespace, name))
        })
    }

    pub(super) fn check_claims(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for claim in &self.claims {
            claim.check(self)?;
            if !names.insert((&claim.namespace, &claim.name)) {
                return Err(format!("claim {}/{} is listed twice", claim.namespace, claim.name));
            }
        }
        for pod in &self.pods {
            for name in pod.containers.iter().flat_map(|container| &container.claims) {
                if !names.contains(&(&pod.namespace, name)) {
                    return Err(format!(
                        "pod {}/{} has the claim {name:?}, and there is none of this name in its namespace",
                        pod.namespace, pod.name
                    ));
                }
            }
        }
        Ok(())
    }
}

fn default_driver() -> String {
    DRIVER.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_name_devices_as_their_driver_does() {
        let scenario = Scenario::parse(
            "
gpus: [{}, {mig: {instances: [{profile: 1g.10gb+me, gi: 7}]}}]
claims: [{name: both, devices: ['0', 1/gi7], device_names: [gpu-9]}]
pods: [{name: a, containers: [{claims: [both]}]}]
",
        )
        .unwrap();
        let claim = scenario.claims_of(&scenario.pods[0], &scenario.pods[0].containers[0]).next().unwrap();
        assert_eq!(claim.device_names(&scenario), ["gpu-0", "gpu-1-mig-1g10gbme-7-0", "gpu-9"]);
        assert_eq!(claim.pool(&scenario.node), "gpu-node-0");
        assert_eq!(claim.cdi_names("gpu-0"), ["k8s.gpu.nvidia.com/claim=demo-both-gpu-0"]);
    }

    #[test]
    fn mistakes_are_refused() {
        for (yaml, why) in [
            ("claims: [{name: a, devices: ['0']}]", "claim demo/a holds device \"0\""),
            ("claims: [{name: a}, {name: a}]", "twice"),
            ("pods: [{name: p, containers: [{claims: [x]}]}]", "the claim \"x\""),
        ] {
            let error = Scenario::parse(yaml).unwrap_err();
            assert!(error.contains(why), "{yaml}: {error}");
        }
    }
}

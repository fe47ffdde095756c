//! Reads the ResourceClaims that pods of this node hold: whether a device was given for watching
//! alone (`adminAccess`), and how much of its capacity a claim has. The kubelet lists neither.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::Api;
use podgauge_common::cluster::one_line;
use podgauge_common::hpa::milli;
use serde::Deserialize;

use super::claims::Reference;
use super::slices::DRIVER;

/// Time for the claims of one list. The list itself does not wait longer.
const LIMIT: Duration = Duration::from_secs(2);
/// Pause after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Pause after a refusal: a right does not come within seconds.
const RETRY_REFUSED: Duration = Duration::from_secs(60);
/// Most claims that are read of one list: the others are read with the next ones.
const MAX_READ: usize = 64;

/// A claim, by namespace and name.
type ClaimName = (String, String);
/// A device of a claim: pool, name and share.
type Place = (String, String, Option<String>);

/// The part of one device that a claim was given.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Grant {
    /// For watching: others use the device at the same time, and this claim's pods do not.
    pub(crate) is_admin: bool,
    /// Consumed capacity by its name, in thousandths of a unit.
    pub(crate) consumed: BTreeMap<String, i64>,
}

/// The claims as far as they were read.
pub(crate) struct ResourceClaims {
    /// `None`: the API server is not asked.
    client: Option<Client>,
    known: HashMap<ClaimName, HashMap<Place, Grant>>,
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    retry_at: Instant,
    /// Of what is logged once.
    is_refusal: bool,
}

/// The part of a ResourceClaim that is read.
#[derive(Debug, Clone, Deserialize, kube::Resource)]
#[resource(inherit = "ResourceClaim")]
struct SlimClaim {
    #[serde(default)]
    metadata: ObjectMeta,
    status: Option<SlimStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimStatus {
    allocation: Option<SlimAllocation>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimAllocation {
    devices: Option<SlimDevices>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimDevices {
    results: Option<Vec<SlimResult>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimResult {
    #[serde(default)]
    driver: String,
    #[serde(default)]
    pool: String,
    #[serde(default)]
    device: String,
    admin_access: Option<bool>,
    #[serde(rename = "shareID")]
    share_id: Option<String>,
    consumed_capacity: Option<BTreeMap<String, Quantity>>,
}

// === impl ResourceClaims ===

impl std::fmt::Debug for ResourceClaims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResourceClaims").field("known", &self.known).finish_non_exhaustive()
    }
}

impl ResourceClaims {
    pub(crate) fn new(client: Option<Client>) -> Self {
        Self { client, known: HashMap::new(), failed: None }
    }

    /// Reads the claims of these devices that were not read yet, within a time limit, and forgets the
    /// others. A claim that cannot be read is tried again later.
    pub(crate) async fn follow(&mut self, wanted: &[Reference]) {
        let held: HashSet<ClaimName> = wanted.iter().map(Reference::claim).collect();
        self.known.retain(|name, _| held.contains(name));
        let Some(client) = self.client.clone() else { return };
        if self.failed.as_ref().is_some_and(|failed| Instant::now() < failed.retry_at) {
            return;
        }
        let mut unread: Vec<ClaimName> =
            wanted.iter().filter(|reference| self.grant(reference).is_none()).map(Reference::claim).collect();
        unread.sort_unstable();
        unread.dedup();
        unread.truncate(MAX_READ);
        // Nobody is asked, so that nobody has answered.
        if unread.is_empty() {
            return;
        }
        let mut has_read = false;
        let read = async {
            for (namespace, name) in unread {
                let api: Api<SlimClaim> = Api::namespaced(client.clone(), &namespace);
                let claim = api.get_opt(&name).await?;
                has_read = true;
                self.known.insert((namespace, name), claim.map(grants).unwrap_or_default());
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(LIMIT, read).await {
            Ok(Ok(())) => self.works(),
            Ok(Err(error)) => {
                let is_refusal =
                    matches!(&error, kube::Error::Api(status) if matches!(status.code, 401 | 403));
                self.fails(is_refusal, &one_line(&error));
            }
            // Those that were read stay; the rest comes with the next list.
            Err(_) if has_read => {}
            Err(_) => self.fails(false, &format!("no answer within {LIMIT:?}")),
        }
    }

    /// The part of a device that a claim was given, if it was read.
    pub(crate) fn grant(&self, reference: &Reference) -> Option<&Grant> {
        let place = (reference.pool.clone(), reference.device.clone(), reference.share.clone());
        self.known.get(&reference.claim())?.get(&place)
    }

    fn works(&mut self) {
        if self.failed.take().is_some() {
            tracing::info!("ResourceClaims: the API server answers again");
        }
    }

    fn fails(&mut self, is_refusal: bool, error: &str) {
        let pause = if is_refusal { RETRY_REFUSED } else { RETRY_AFTER };
        let before = self.failed.replace(Failed { retry_at: Instant::now() + pause, is_refusal });
        if before.is_some_and(|before| before.is_refusal == is_refusal) {
            return;
        }
        let meanwhile = "until then a claim with adminAccess of another pod than this one counts as an owner of its devices, and parts of consumable capacity are unknown";
        if is_refusal {
            tracing::warn!(
                "ResourceClaims: the API server refuses: let this service account get resourceclaims of resource.k8s.io in a ClusterRole; {meanwhile}: {error}"
            );
        } else {
            tracing::warn!("ResourceClaims cannot be read; {meanwhile}: {error}");
        }
    }
}

/// The part of each device of NVIDIA's driver that a claim was given.
fn grants(claim: SlimClaim) -> HashMap<Place, Grant> {
    let allocation = claim.status.and_then(|status| status.allocation);
    let results = allocation.and_then(|allocation| allocation.devices).and_then(|devices| devices.results);
    results
        .into_iter()
        .flatten()
        .filter(|result| result.driver == DRIVER)
        .map(|result| {
            let consumed = result.consumed_capacity.unwrap_or_default();
            let consumed = consumed.into_iter().filter_map(|(name, amount)| Some((name, milli(&amount.0)?)));
            let grant =
                Grant { is_admin: result.admin_access.unwrap_or_default(), consumed: consumed.collect() };
            ((result.pool, result.device, result.share_id.filter(|id| !id.is_empty())), grant)
        })
        .collect()
}

// === impl Grant ===

impl Grant {
    /// The part of the device that was given: consumed capacity ÷ the device's. `None` where several
    /// capacities disagree, or nothing is known of them.
    pub(crate) fn part(&self, capacity: &BTreeMap<String, i64>) -> Option<f64> {
        let mut parts = self.consumed.iter().filter_map(|(name, consumed)| {
            let whole = capacity.get(name).filter(|whole| **whole > 0)?;
            Some(*consumed as f64 / *whole as f64)
        });
        let first = parts.next().filter(|part| *part > 0.0 && *part <= 1.0)?;
        parts.all(|other| (other - first).abs() < 1e-3).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(device: &str, share: Option<&str>) -> Place {
        ("node".into(), device.into(), share.map(str::to_owned))
    }

    /// A dead node or a network policy: packets go nowhere.
    #[tokio::test]
    async fn an_api_server_that_is_silent_has_failed_and_is_not_asked_with_each_list() {
        // The only TLS provider of the program, as its start installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let mut claims = ResourceClaims::new(Some(client));
        // Nobody is asked about nothing.
        claims.follow(&[]).await;
        assert!(claims.failed.is_none());
        let wanted = Reference {
            namespace: "ml".into(),
            name: "c".into(),
            pool: "node".into(),
            device: "gpu-0".into(),
            share: None,
        };
        claims.follow(std::slice::from_ref(&wanted)).await;
        assert!(claims.failed.as_ref().is_some_and(|failed| !failed.is_refusal));
        // Its pod is gone: that is no answer of the API server.
        claims.failed.as_mut().unwrap().retry_at = Instant::now();
        claims.follow(&[]).await;
        assert!(claims.failed.is_some());
    }

    #[test]
    fn grants_of_nvidias_driver_with_admin_access_and_shares() {
        let claim: SlimClaim = serde_saphyr::from_str(
            "
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: c, namespace: ml}
spec: {devices: {}}
status:
  reservedFor: []
  allocation:
    devices:
      results:
      - {request: a, driver: gpu.nvidia.com, pool: node, device: gpu-0, adminAccess: true}
      - {request: b, driver: gpu.nvidia.com, pool: node, device: gpu-1, shareID: s1, consumedCapacity: {memory: 20Gi}}
      - {request: c, driver: nic.example.com, pool: node, device: gpu-2}
",
        )
        .unwrap();
        let grants = grants(claim);
        assert_eq!(grants.len(), 2);
        assert!(grants[&reference("gpu-0", None)].is_admin);
        let share = &grants[&reference("gpu-1", Some("s1"))];
        let capacity = |pairs: &[(&str, &str)]| -> BTreeMap<String, i64> {
            pairs.iter().map(|(name, amount)| ((*name).to_owned(), milli(amount).unwrap())).collect()
        };
        assert_eq!(share.part(&capacity(&[("memory", "80Gi"), ("cores", "100")])), Some(0.25));
        assert_eq!(share.part(&capacity(&[])), None);
        let both = Grant { is_admin: false, consumed: capacity(&[("memory", "20Gi"), ("cores", "50")]) };
        assert_eq!(both.part(&capacity(&[("memory", "80Gi"), ("cores", "100")])), None, "they disagree");
        assert_eq!(both.part(&capacity(&[("memory", "40Gi"), ("cores", "100")])), Some(0.5));
        assert_eq!(both.part(&capacity(&[("memory", "10Gi")])), None, "more than there is");
    }

    #[test]
    fn a_claim_without_an_allocation_gives_nothing() {
        for status in
            ["{}", "{status: {}}", "{status: {allocation: {}}}", "{status: {allocation: {devices: {}}}}"]
        {
            assert_eq!(grants(serde_saphyr::from_str(status).unwrap()).len(), 0, "{status}");
        }
    }
}

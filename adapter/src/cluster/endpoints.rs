//! Owns the watch of a Service's EndpointSlices: which exporters there are, and on which node
//! each runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{Config, Event};
use podgauge_common::cluster::outages::Watched;
use podgauge_common::cluster::watch::follow;
use tokio::sync::watch;
use tracing::warn;

use crate::args::ServiceName;
use crate::args::exporters::Scheme;
use crate::source::Target;

/// The port that is scraped where a Service has several.
const PORT_NAME: &str = "metrics";
/// Most exporters taken from one Service: four times the nodes that Kubernetes is documented for.
const MAX_TARGETS: usize = 20_000;

/// The exporters of each watched Service, `None` until they are known.
pub type ServiceTargets = Vec<Option<Vec<Target>>>;

/// Watches the Service's slices and publishes its exporters at place `at`.
pub async fn watch_service(
    client: Client,
    watched: Watched,
    service: ServiceName,
    scheme: Scheme,
    at: usize,
    targets: Arc<watch::Sender<ServiceTargets>>,
) {
    let api: Api<EndpointSlice> = Api::namespaced(client, &service.namespace);
    let config = Config::default().labels(&format!("kubernetes.io/service-name={}", service.name));
    let mut slices: BTreeMap<String, Slice> = BTreeMap::new();
    let mut listing = false;
    let mut complaint = None;
    follow(api, config, watched, |event| {
        match event {
            Ok(Event::Init) => {
                slices.clear();
                listing = true;
            }
            Ok(Event::InitDone) => listing = false,
            Ok(Event::Apply(slice) | Event::InitApply(slice)) => {
                let kept = Slice::of(&slice, scheme);
                slices.insert(slice.metadata.name.unwrap_or_default(), kept);
            }
            Ok(Event::Delete(slice)) => {
                slices.remove(slice.metadata.name.as_deref().unwrap_or_default());
            }
            Err(_) => return,
        }
        // Half a list would end exporters that are in its other half.
        if listing {
            return;
        }
        let (found, problem) = targets_of(slices.values());
        if problem != complaint {
            if let Some(problem) = &problem {
                warn!("Service {service}: {problem}");
            }
            complaint = problem;
        }
        targets.send_if_modified(|known| {
            let changed = known[at].as_ref() != Some(&found);
            known[at] = Some(found);
            changed
        });
    })
    .await;
}

/// What is kept of a slice: of what the API server says of each endpoint, this is a small part.
#[derive(Debug)]
struct Slice {
    listed: Vec<Listed>,
    without_node: usize,
    /// It has several ports, and none that can be scraped.
    without_port: bool,
}

/// An endpoint that can be scraped.
#[derive(Debug)]
struct Listed {
    /// The UID of its pod; where that is not known, its address.
    pod: Box<str>,
    is_v4: bool,
    target: Target,
}

impl Slice {
    fn of(slice: &EndpointSlice, scheme: Scheme) -> Self {
        let mut kept = Self { listed: Vec::new(), without_node: 0, without_port: false };
        let Some(port) = port(slice) else {
            kept.without_port = !slice.endpoints.is_empty();
            return kept;
        };
        for endpoint in &slice.endpoints {
            let Some(Ok(address)) = endpoint.addresses.first().map(|address| address.parse::<IpAddr>())
            else {
                continue;
            };
            let Some(node) = endpoint.node_name.as_deref().filter(|node| !node.is_empty()) else {
                kept.without_node += 1;
                continue;
            };
            let host = match address {
                IpAddr::V4(v4) => format!("{v4}:{port}"),
                IpAddr::V6(v6) => format!("[{v6}]:{port}"),
            };
            let Ok(url) = format!("{}://{host}/metrics", scheme.as_str()).parse() else { continue };
            let pod = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or(&host);
            let target = Target { node: Some(node.into()), url };
            kept.listed.push(Listed { pod: pod.into(), is_v4: address.is_ipv4(), target });
        }
        kept.listed.shrink_to_fit();
        kept
    }
}

/// The exporters behind the slices, one per pod, and what kept some from being scraped.
fn targets_of<'a>(slices: impl Iterator<Item = &'a Slice>) -> (Vec<Target>, Option<String>) {
    // By pod where known: a dual-stack Service lists each pod once per address family.
    let mut found: BTreeMap<&str, &Listed> = BTreeMap::new();
    let mut without_node = 0;
    let (mut several_ports, mut too_many) = (false, false);
    for slice in slices {
        without_node += slice.without_node;
        several_ports |= slice.without_port;
        for listed in &slice.listed {
            match found.get(&*listed.pod) {
                Some(known) if known.is_v4 => {}
                _ if found.len() >= MAX_TARGETS => too_many = true,
                _ => {
                    found.insert(&listed.pod, listed);
                }
            }
        }
    }
    let problems: Vec<String> = [
        several_ports.then(|| format!("it has several ports and none named {PORT_NAME:?}: not scraped")),
        too_many.then(|| format!("it has more than {MAX_TARGETS} endpoints: the rest is not scraped")),
        (without_node > 0).then(|| {
            format!(
                "{without_node} endpoints have no nodeName and are not scraped: what they say could be about any node's pods"
            )
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    let mut targets: Vec<Target> = found.into_values().map(|listed| listed.target.clone()).collect();
    targets.sort();
    targets.dedup();
    (targets, problem)
}

/// The port named `metrics`, or else the only one.
fn port(slice: &EndpointSlice) -> Option<i32> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
    let only = if let [only] = ports { Some(only) } else { None };
    named.or(only)?.port
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(slices: serde_json::Value) -> (Vec<String>, Option<String>) {
        let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
        let slices: Vec<Slice> = slices.iter().map(|slice| Slice::of(slice, Scheme::Http)).collect();
        let (targets, problem) = targets_of(slices.iter());
        let text = |target: Target| format!("{}={}", target.node.unwrap(), target.url);
        (targets.into_iter().map(text).collect(), problem)
    }

    #[test]
    fn one_target_per_pod_with_a_node() {
        let (targets, problem) = found(json!([
            {"addressType": "IPv6", "ports": [{"name": "x", "port": 9400}], "endpoints": [
                {"addresses": ["fd00::1"], "nodeName": "gpu-1", "targetRef": {"kind": "Pod", "uid": "1"}},
                {"addresses": ["fd00::2"], "nodeName": "gpu-2", "targetRef": {"kind": "Pod", "uid": "2"}}]},
            {"addressType": "IPv4", "ports": [{"name": "x", "port": 9400}], "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "gpu-1", "targetRef": {"kind": "Pod", "uid": "1"}},
                {"addresses": ["10.0.0.3"]}]},
        ]));
        assert_eq!(targets, ["gpu-1=http://10.0.0.1:9400/metrics", "gpu-2=http://[fd00::2]:9400/metrics"]);
        assert!(problem.unwrap().starts_with("1 endpoints have no nodeName"));
    }

    #[test]
    fn the_port_named_metrics_or_the_only_one() {
        let slice = |ports| {
            found(json!([{"addressType": "IPv4", "ports": ports,
                "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n"}]}]))
        };
        let (targets, problem) = slice(json!([{"name": "web", "port": 80}, {"name": "metrics", "port": 9}]));
        assert_eq!((targets.len(), problem), (1, None));
        assert_eq!(targets[0], "n=http://10.0.0.1:9/metrics");
        let (targets, problem) = slice(json!([{"name": "web", "port": 80}, {"name": "x", "port": 9}]));
        assert!(targets.is_empty() && problem.is_some());
    }
}

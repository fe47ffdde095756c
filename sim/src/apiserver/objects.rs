//! Owns the making of the objects that do not come from scenarios: the exporter's Service and
//! EndpointSlices, the authentication ConfigMap, the APIServices.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::pods::rfc3339;
use crate::aggregator::Availability;
use crate::certs::{Certificates, FRONT_PROXY_CLIENT};

/// Where the aggregation layer's facts are.
pub(crate) const AUTHENTICATION_CONFIG_MAP: (&str, &str) =
    ("kube-system", "extension-apiserver-authentication");

/// One endpoint of the exporter's service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exporter {
    /// The node it runs on. `None` makes an endpoint without `nodeName`, as a cluster has for
    /// endpoints that are no pods.
    pub node: Option<String>,
    /// Where it listens. Loopback is fine here; a real API server refuses an EndpointSlice with
    /// an address of 127.0.0.0/8.
    pub address: SocketAddr,
    pub ready: bool,
}

/// A Service or another namespaced thing, as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

/// A text that is not `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not NAMESPACE/NAME")]
pub struct NotAServiceName(String);

/// A text that is not `NODE=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not NODE=IP:PORT, such as gpu-node-0=127.0.0.1:9400")]
pub struct NotAnExporter(String);

// === impl ServiceName ===

impl std::str::FromStr for ServiceName {
    type Err = NotAServiceName;

    fn from_str(text: &str) -> Result<Self, NotAServiceName> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(NotAServiceName(text.to_owned())),
        }
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl Exporter ===

impl std::str::FromStr for Exporter {
    type Err = NotAnExporter;

    fn from_str(text: &str) -> Result<Self, NotAnExporter> {
        let refused = || NotAnExporter(text.to_owned());
        let (node, address) = text.split_once('=').ok_or_else(refused)?;
        Ok(Self {
            node: (!node.is_empty()).then(|| node.to_owned()),
            address: address.parse().map_err(|_| refused())?,
            ready: true,
        })
    }
}

/// The exporter's Service: one port, named metrics.
pub(crate) fn service(name: &ServiceName, since: Timestamp) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": name.name, "namespace": name.namespace, "uid": format!("service-{name}"),
            "creationTimestamp": rfc3339(since), "labels": {"app.kubernetes.io/name": name.name},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"],
            "selector": {"app.kubernetes.io/name": name.name},
            "ports": [{"name": "metrics", "port": 9400, "targetPort": "metrics", "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The exporters' EndpointSlices. One each: on loopback every exporter has its own port, and a
/// slice has one set of ports for all its endpoints.
pub(crate) fn endpoint_slices(service: &ServiceName, exporters: &[Exporter], since: Timestamp) -> Vec<Value> {
    exporters
        .iter()
        .enumerate()
        .map(|(index, exporter)| {
            let mut endpoint = json!({
                "addresses": [exporter.address.ip().to_string()],
                "conditions": {"ready": exporter.ready, "serving": exporter.ready, "terminating": false},
            });
            if let Some(node) = &exporter.node {
                endpoint["nodeName"] = node.as_str().into();
                endpoint["targetRef"] = json!({
                    "kind": "Pod", "namespace": service.namespace, "name": format!("{}-{index}", service.name),
                });
            }
            json!({
                "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {
                    "name": format!("{}-{index:05}", service.name), "namespace": service.namespace,
                    "uid": format!("slice-{service}-{index}"), "creationTimestamp": rfc3339(since),
                    "labels": {
                        "kubernetes.io/service-name": service.name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": if exporter.address.is_ipv4() { "IPv4" } else { "IPv6" },
                "endpoints": [endpoint],
                "ports": [{"name": "metrics", "port": exporter.address.port(), "protocol": "TCP"}],
            })
        })
        .collect()
}

/// What an aggregated API server must know of the front proxy, with the keys that were recorded.
pub(crate) fn authentication_config_map(certificates: &Certificates, since: Timestamp) -> Value {
    let (namespace, name) = AUTHENTICATION_CONFIG_MAP;
    let list = |text: &str| json!([text]).to_string();
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": namespace, "uid": "config-map-authentication",
            "creationTimestamp": rfc3339(since),
        },
        "data": {
            "client-ca-file": certificates.client.pem(),
            "requestheader-client-ca-file": certificates.front_proxy.pem(),
            "requestheader-allowed-names": list(FRONT_PROXY_CLIENT),
            "requestheader-username-headers": list("X-Remote-User"),
            "requestheader-group-headers": list("X-Remote-Group"),
            "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
        },
    })
}

/// A ConfigMap with this data.
pub(crate) fn config_map(
    namespace: &str,
    name: &str,
    data: &std::collections::BTreeMap<String, String>,
    since: Timestamp,
) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("config-map-{namespace}-{name}"),
            "creationTimestamp": rfc3339(since),
        },
        "data": data,
    })
}

/// An APIService with its Available condition. Without a CA bundle it has no such field, as the
/// shipped manifests have none.
pub(crate) fn api_service(
    availability: &Availability,
    service: &ServiceName,
    ca_bundle: &str,
    since: Timestamp,
) -> Value {
    let api = &availability.api_service;
    let mut object = json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {
            "name": api.name(), "uid": format!("api-service-{}", api.name()), "creationTimestamp": rfc3339(since),
        },
        "spec": {
            "group": api.group, "version": api.version,
            "groupPriorityMinimum": 100, "versionPriority": api.version_priority,
            "service": {"namespace": service.namespace, "name": service.name, "port": 443},
        },
        "status": api_service_status(availability),
    });
    if !ca_bundle.is_empty() {
        object["spec"]["caBundle"] = STANDARD.encode(ca_bundle).into();
    }
    object
}

/// An APIService's Available condition.
pub(crate) fn api_service_status(availability: &Availability) -> Value {
    json!({"conditions": [{
        "type": "Available", "status": availability.status.as_str(),
        "reason": availability.reason, "message": availability.message,
        "lastTransitionTime": rfc3339(availability.changed),
    }]})
}

/// The CA bundle of an APIService, PEM; empty if it has none that can be read.
pub(crate) fn ca_bundle(api_service: &Value) -> String {
    let encoded = api_service["spec"]["caBundle"].as_str().unwrap_or_default();
    STANDARD.decode(encoded).ok().and_then(|pem| String::from_utf8(pem).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Service};
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    use super::*;

    #[test]
    fn objects_are_of_their_kinds() {
        let now = Timestamp::constant(1_795_000_000, 0);
        let name: ServiceName = "podgauge/podgauge-exporter".parse().unwrap();
        let exporters = ["n1=127.0.0.1:9400".parse().unwrap(), "=127.0.0.1:9401".parse().unwrap()];
        let slices: Vec<EndpointSlice> = endpoint_slices(&name, &exporters, now)
            .into_iter()
            .map(|slice| serde_json::from_value(slice).unwrap())
            .collect();
        assert_eq!(slices[0].endpoints[0].node_name.as_deref(), Some("n1"));
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(9400));
        assert_eq!(slices[1].endpoints[0].node_name, None);
        let _: Service = serde_json::from_value(service(&name, now)).unwrap();
        let map: ConfigMap =
            serde_json::from_value(authentication_config_map(&Certificates::new().unwrap(), now)).unwrap();
        assert_eq!(map.data.unwrap()["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    }

    #[test]
    fn names_are_checked() {
        "podgauge-exporter".parse::<ServiceName>().unwrap_err();
        "127.0.0.1:9400".parse::<Exporter>().unwrap_err();
        "n1=localhost".parse::<Exporter>().unwrap_err();
    }
}

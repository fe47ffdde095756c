//! Owns the documents that tell what is served: discovery, OpenAPI, version. Made once at start
//! from the metric list, so never empty.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::Full;
use podgauge_common::http::Response;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::path::{GROUP, VERSIONS, Version};
use crate::metric::Metrics;

/// A document with its entity tag.
#[derive(Debug)]
struct Document {
    content_type: &'static str,
    body: Bytes,
    tag: HeaderValue,
}

/// All documents.
#[derive(Debug)]
pub struct Documents {
    groups: Document,
    groups_v2: Document,
    groups_v2beta1: Document,
    group: Document,
    versions: [Document; 2],
    openapi_v2: Document,
    openapi_v3: Document,
    openapi_v3_version: Document,
    program_version: Document,
}

const JSON: &str = "application/json";
const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

// === impl Document ===

impl Document {
    fn new(content_type: &'static str, document: &Value) -> Self {
        let body = serde_json::to_vec(document).expect("because a Value has string keys");
        let hash: String = Sha256::digest(&body).iter().take(16).map(|byte| format!("{byte:02X}")).collect();
        let tag = HeaderValue::from_str(&format!("\"{hash}\"")).expect("because digits are visible ASCII");
        Self { content_type, body: body.into(), tag }
    }

    /// Whether a tag of If-None-Match means this document: weakly compared, `*` is any.
    fn is_tagged(&self, tag: &str) -> bool {
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.tag.as_bytes()
    }

    /// 304 where the client has it already.
    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
            value.to_str().is_ok_and(|tags| tags.split(',').any(|tag| self.is_tagged(tag.trim())))
        });
        let mut response = Response::new(Full::new(if known { Bytes::new() } else { self.body.clone() }));
        let answer = response.headers_mut();
        answer.insert(header::ETAG, self.tag.clone());
        answer.insert(header::VARY, HeaderValue::from_static("Accept"));
        answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        response
    }
}

// === impl Documents ===

impl Documents {
    pub fn new(metrics: &Metrics) -> Self {
        let version_entry =
            |version: Version| json!({"groupVersion": group_version(version), "version": version.as_str()});
        let group = json!({
            "name": GROUP,
            "versions": VERSIONS.map(version_entry),
            "preferredVersion": version_entry(VERSIONS[0]),
        });
        let mut group_document = json!({"kind": "APIGroup", "apiVersion": "v1"});
        merge(&mut group_document, &group);
        let info = json!({"title": "podgauge-adapter", "version": env!("CARGO_PKG_VERSION")});
        let openapi_v3_version = Document::new(JSON, &json!({"openapi": "3.0.0", "info": info, "paths": {}}));
        let hash = openapi_v3_version.tag.to_str().unwrap_or_default().trim_matches('"').to_owned();
        let v3_paths: serde_json::Map<String, Value> = VERSIONS
            .iter()
            .map(|version| {
                let path = format!("apis/{}", group_version(*version));
                let url = format!("/openapi/v3/{path}?hash={hash}");
                (path, json!({"serverRelativeURL": url}))
            })
            .collect();
        Self {
            groups: Document::new(
                JSON,
                &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}),
            ),
            groups_v2: Document::new(AGGREGATED_V2, &aggregated("v2", metrics)),
            groups_v2beta1: Document::new(AGGREGATED_V2BETA1, &aggregated("v2beta1", metrics)),
            group: Document::new(JSON, &group_document),
            versions: VERSIONS.map(|version| Document::new(JSON, &resources(version, metrics))),
            openapi_v2: Document::new(JSON, &json!({"swagger": "2.0", "info": info, "paths": {}})),
            openapi_v3: Document::new(JSON, &json!({"paths": v3_paths})),
            openapi_v3_version,
            program_version: Document::new(JSON, &program_version()),
        }
    }

    /// `/apis`: in the form asked for first that is known, else as a plain list.
    pub fn groups(&self, headers: &HeaderMap) -> Response {
        let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let known = accepted.flat_map(|value| value.split(',')).find_map(|form| {
            let form: Vec<&str> = form.split(';').map(str::trim).collect();
            let has = |part| form.contains(&part);
            let discovery = has(JSON) && has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList");
            match form[..] {
                _ if discovery && has("v=v2") => Some(&self.groups_v2),
                _ if discovery && has("v=v2beta1") => Some(&self.groups_v2beta1),
                [JSON | "*/*", ..] if !discovery => Some(&self.groups),
                _ => None,
            }
        });
        known.unwrap_or(&self.groups).answer(headers)
    }

    pub fn group(&self, headers: &HeaderMap) -> Response {
        self.group.answer(headers)
    }

    pub fn group_version(&self, version: Version, headers: &HeaderMap) -> Response {
        let [v1beta2, v1beta1] = &self.versions;
        match version {
            Version::V1beta2 => v1beta2,
            Version::V1beta1 => v1beta1,
        }
        .answer(headers)
    }

    pub fn openapi_v2(&self, headers: &HeaderMap) -> Response {
        self.openapi_v2.answer(headers)
    }

    pub fn openapi_v3(&self, headers: &HeaderMap) -> Response {
        self.openapi_v3.answer(headers)
    }

    pub fn openapi_v3_version(&self, headers: &HeaderMap) -> Response {
        self.openapi_v3_version.answer(headers)
    }

    pub fn program_version(&self, headers: &HeaderMap) -> Response {
        self.program_version.answer(headers)
    }
}

fn group_version(version: Version) -> String {
    format!("{GROUP}/{}", version.as_str())
}

fn merge(into: &mut Value, from: &Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from.clone());
    }
}

/// The resources that have metrics, and whether they are in namespaces.
const RESOURCES: [(&str, bool); 3] = [("pods", true), ("nodes", false), ("namespaces", false)];

fn resources(version: Version, metrics: &Metrics) -> Value {
    let entry = |resource: &str, namespaced: bool, metric: &str| {
        json!({
            "name": format!("{resource}/{metric}"),
            "singularName": "",
            "namespaced": namespaced,
            "kind": "MetricValueList",
            "verbs": ["get"],
        })
    };
    let resources: Vec<Value> = RESOURCES
        .iter()
        .flat_map(|(resource, namespaced)| {
            metrics.served().iter().map(|metric| entry(resource, *namespaced, &metric.name))
        })
        .collect();
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(version),
        "resources": resources,
    })
}

/// A name with a slash is a subresource here, of a resource that has nothing else.
fn aggregated(document_version: &str, metrics: &Metrics) -> Value {
    let version = |version: Version| {
        let subresources: Vec<Value> = metrics
            .served()
            .iter()
            .map(|metric| {
                json!({
                    "subresource": metric.name,
                    "responseKind": {"group": GROUP, "version": version.as_str(), "kind": "MetricValueList"},
                    "verbs": ["get"],
                })
            })
            .collect();
        let resources = RESOURCES.map(|(resource, namespaced)| {
            json!({
                "resource": resource,
                "responseKind": {"group": "", "version": "", "kind": ""},
                "scope": if namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": "",
                "verbs": [],
                "subresources": subresources,
            })
        });
        json!({"version": version.as_str(), "resources": resources, "freshness": "Current"})
    };
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{document_version}"),
        "metadata": {},
        "items": [{"metadata": {"name": GROUP, "creationTimestamp": null}, "versions": VERSIONS.map(version)}],
    })
}

fn program_version() -> Value {
    json!({
        "major": env!("CARGO_PKG_VERSION_MAJOR"),
        "minor": env!("CARGO_PKG_VERSION_MINOR"),
        "gitVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Documents {
        Documents::new(&Metrics::new(&[]))
    }

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn metrics_are_listed_below_their_resource() {
        let list: Value = serde_json::from_slice(&documents().versions[1].body).unwrap();
        assert_eq!(list["groupVersion"], "custom.metrics.k8s.io/v1beta1");
        for (resource, namespaced) in [("pods", true), ("nodes", false), ("namespaces", false)] {
            let entry = json!({"name": format!("{resource}/gpu_utilization"), "singularName": "",
                "namespaced": namespaced, "kind": "MetricValueList", "verbs": ["get"]});
            assert!(list["resources"].as_array().unwrap().contains(&entry), "{list}");
        }
        let list: Value = serde_json::from_slice(&documents().groups_v2.body).unwrap();
        let resources = &list["items"][0]["versions"][0]["resources"];
        let scopes: Vec<_> = resources
            .as_array()
            .unwrap()
            .iter()
            .map(|resource| (resource["resource"].as_str().unwrap(), resource["scope"].as_str().unwrap()))
            .collect();
        assert_eq!(scopes, [("pods", "Namespaced"), ("nodes", "Cluster"), ("namespaces", "Cluster")]);
    }

    #[test]
    fn apis_in_the_form_that_is_asked_for() {
        let documents = documents();
        let form = |value| {
            documents.groups(&accept(value)).headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned()
        };
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        assert_eq!(form(both), AGGREGATED_V2);
        assert_eq!(form(AGGREGATED_V2BETA1), AGGREGATED_V2BETA1);
        assert_eq!(form("application/json"), JSON);
        assert_eq!(form("application/vnd.kubernetes.protobuf, */*"), JSON);
        assert_eq!(form("text/html"), JSON);
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let documents = documents();
        let first = documents.groups(&accept(AGGREGATED_V2));
        let mut headers = accept(AGGREGATED_V2);
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(documents.groups(&headers).status(), StatusCode::NOT_MODIFIED);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for tags in [format!("\"x\", W/{tag}"), "*".to_owned()] {
            headers.insert(header::IF_NONE_MATCH, tags.parse().unwrap());
            assert_eq!(documents.groups(&headers).status(), StatusCode::NOT_MODIFIED, "{tags}");
        }
        headers.insert(header::IF_NONE_MATCH, tag.parse().unwrap());
        headers.insert(header::ACCEPT, HeaderValue::from_static(AGGREGATED_V2BETA1));
        assert_eq!(documents.groups(&headers).status(), StatusCode::OK);
    }

    #[test]
    fn openapi_points_at_documents_that_exist() {
        let v3: Value = serde_json::from_slice(&documents().openapi_v3.body).unwrap();
        let url = v3["paths"]["apis/custom.metrics.k8s.io/v1beta2"]["serverRelativeURL"].as_str().unwrap();
        let path = super::super::path::Path::parse(url.split('?').next().unwrap()).unwrap();
        assert_eq!(path.route(), super::super::path::Route::OpenApiV3Document(Version::V1beta2));
    }
}

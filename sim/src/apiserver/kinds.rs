//! Owns the table of what is served: kinds, where their lists are, what they are called.

use serde_json::{Value, json};

/// A kind of object that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Pod,
    ConfigMap,
    Secret,
    Namespace,
    Node,
    Service,
    EndpointSlice,
    ResourceSlice,
    ResourceClaim,
    ApiService,
}

/// A row of discovery.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    singular: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
    verbs: &'static [&'static str],
    /// `None`: it can only be created, as the reviews.
    pub(crate) stored: Option<Kind>,
}

const READ: &[&str] = &["get", "list", "watch"];
const CREATE: &[&str] = &["create"];
const WRITE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

/// Everything this server serves itself.
pub(crate) const RESOURCES: &[Resource] = &[
    stored("", "pods", "Pod", "pod", true, &["po"], Kind::Pod),
    stored("", "configmaps", "ConfigMap", "configmap", true, &["cm"], Kind::ConfigMap),
    written(stored("", "secrets", "Secret", "secret", true, &[], Kind::Secret)),
    stored("", "namespaces", "Namespace", "namespace", false, &["ns"], Kind::Namespace),
    stored("", "nodes", "Node", "node", false, &["no"], Kind::Node),
    stored("", "services", "Service", "service", true, &["svc"], Kind::Service),
    stored(
        "discovery.k8s.io",
        "endpointslices",
        "EndpointSlice",
        "endpointslice",
        true,
        &[],
        Kind::EndpointSlice,
    ),
    stored(
        "resource.k8s.io",
        "resourceslices",
        "ResourceSlice",
        "resourceslice",
        false,
        &[],
        Kind::ResourceSlice,
    ),
    stored(
        "resource.k8s.io",
        "resourceclaims",
        "ResourceClaim",
        "resourceclaim",
        true,
        &[],
        Kind::ResourceClaim,
    ),
    written(stored(
        "apiregistration.k8s.io",
        "apiservices",
        "APIService",
        "apiservice",
        false,
        &[],
        Kind::ApiService,
    )),
    review("authentication.k8s.io", "tokenreviews", "TokenReview"),
    review("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview"),
    review("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
];

const fn stored(
    group: &'static str,
    name: &'static str,
    kind: &'static str,
    singular: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
    stored: Kind,
) -> Resource {
    Resource {
        group,
        version: "v1",
        name,
        kind,
        singular,
        namespaced,
        short,
        verbs: READ,
        stored: Some(stored),
    }
}

/// One that clients may write, too.
const fn written(mut resource: Resource) -> Resource {
    resource.verbs = WRITE;
    resource
}

const fn review(group: &'static str, name: &'static str, kind: &'static str) -> Resource {
    Resource {
        group,
        version: "v1",
        name,
        kind,
        singular: "",
        namespaced: false,
        short: &[],
        verbs: CREATE,
        stored: None,
    }
}

/// The row of a resource.
pub(crate) fn find(group: &str, version: &str, name: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.name == name)
}

// === impl Resource ===

impl Resource {
    /// Whether clients may write it; the reviews are no objects.
    pub(crate) fn is_written(&self) -> bool {
        self.stored.is_some() && self.verbs.contains(&"update")
    }

    /// `v1` or `<group>/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Its entry in an APIResourceList.
    pub(crate) fn discovery(&self) -> Value {
        let mut entry = json!({
            "name": self.name, "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": self.verbs,
        });
        if !self.short.is_empty() {
            entry["shortNames"] = json!(self.short);
        }
        entry
    }
}

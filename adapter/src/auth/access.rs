//! Owns authorization: asks the API server whether a user may (SubjectAccessReview).

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::cache::TtlCache;
use super::review::{BY_TOKEN, Lane, Reviews, UNVERIFIED, Unanswered, VERIFIED};
use super::{CACHE_ENTRIES, Standing, User};
use crate::apiserver::Status;

/// Questions whose attributes have more characters than this are not remembered.
const MAX_CACHED_CHARACTERS: usize = 10_000;
/// Most answers kept of those whom no certificate vouches for.
const UNVERIFIED_ENTRIES: usize = 1024;

/// What somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attributes {
    Resource {
        verb: String,
        group: String,
        version: String,
        namespace: String,
        resource: String,
        name: String,
        subresource: String,
    },
    Path {
        verb: String,
        path: String,
    },
}

/// The API server's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    /// With its reason, which is mostly empty.
    Denied(String),
}

/// Asks, and remembers the answers.
#[derive(Debug)]
pub struct Access {
    verified: Asked,
    by_token: Asked,
    nobody: Asked,
}

/// The questions of one lane, and their answers: who floods one neither delays the others nor
/// pushes their answers out.
#[derive(Debug)]
struct Asked {
    reviews: Reviews<SubjectAccessReview>,
    allowed: TtlCache<[u8; 32], ()>,
    denied: TtlCache<[u8; 32], String>,
}

/// How long answers are believed.
#[derive(Debug, Clone, Copy)]
pub struct AnswerTtl {
    pub allowed: Duration,
    pub denied: Duration,
}

/// Why nobody could decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undecided {
    /// Too many ask.
    Busy,
    Failed(String),
}

// === impl Attributes ===

impl Attributes {
    /// The 403, worded as Kubernetes words it.
    pub fn forbidden(&self, user: &User, reason: &str) -> Status {
        let user = &user.name;
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        match self {
            Self::Path { verb, path } => Status::forbidden(
                format!("forbidden: User {user:?} cannot {verb} path {path:?}{because}"),
                json!({}),
            ),
            Self::Resource { verb, group, namespace, resource, name, subresource, version: _ } => {
                let full = match subresource.as_str() {
                    "" => resource.clone(),
                    subresource => format!("{resource}/{subresource}"),
                };
                let place = match namespace.as_str() {
                    "" => "at the cluster scope".to_owned(),
                    namespace => format!("in the namespace {namespace:?}"),
                };
                let message = format!(
                    "{resource}.{group} {name:?} is forbidden: User {user:?} cannot {verb} resource {full:?} in API group {group:?} {place}{because}"
                );
                Status::forbidden(message, json!({"name": name, "group": group, "kind": resource}))
            }
        }
    }
}

impl Attributes {
    /// Their size, as the limit on remembering counts it.
    fn characters(&self) -> usize {
        match self {
            Self::Path { verb, path } => verb.len() + path.len(),
            Self::Resource { verb, group, version, namespace, resource, name, subresource } => {
                [verb, group, version, namespace, resource, name, subresource]
                    .iter()
                    .map(|text| text.len())
                    .sum()
            }
        }
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { verb, path } => write!(f, "{verb} path {path}"),
            Self::Resource { verb, namespace, resource, name, subresource, group: _, version: _ } => {
                write!(f, "{verb} {resource}")?;
                if !subresource.is_empty() {
                    write!(f, "/{subresource}")?;
                }
                if !name.is_empty() {
                    write!(f, " {name}")?;
                }
                if !namespace.is_empty() {
                    write!(f, " in {namespace}")?;
                }
                Ok(())
            }
        }
    }
}

// === impl Access ===

impl Access {
    pub fn new(client: &Client, ttl: AnswerTtl) -> Self {
        let asked = |lane: Lane, entries| Asked {
            reviews: Reviews::new(client.clone(), lane),
            allowed: TtlCache::new(ttl.allowed, entries),
            denied: TtlCache::new(ttl.denied, entries),
        };
        Self {
            verified: asked(VERIFIED, CACHE_ENTRIES),
            by_token: asked(BY_TOKEN, UNVERIFIED_ENTRIES),
            nobody: asked(UNVERIFIED, UNVERIFIED_ENTRIES),
        }
    }

    /// The decision and where it comes from (`cache` or `review`), or why nobody could decide.
    pub async fn review(
        &self,
        user: &User,
        standing: Standing,
        from: IpAddr,
        attributes: &Attributes,
    ) -> Result<(Decision, &'static str), Undecided> {
        let asked = match standing {
            Standing::Verified => &self.verified,
            Standing::ByToken => &self.by_token,
            Standing::Nobody => &self.nobody,
        };
        let spec = spec(user, attributes);
        let written = serde_json::to_vec(&spec).map_err(|error| Undecided::Failed(error.to_string()))?;
        let key: Option<[u8; 32]> =
            (attributes.characters() <= MAX_CACHED_CHARACTERS).then(|| Sha256::digest(&written).into());
        if let Some(key) = &key {
            let now = Instant::now();
            if asked.allowed.get(key, now).is_some() {
                return Ok((Decision::Allowed, "cache"));
            }
            if let Some(reason) = asked.denied.get(key, now) {
                return Ok((Decision::Denied(reason), "cache"));
            }
        }
        let question = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let review = asked.reviews.ask(&question, from).await.map_err(|unanswered| match unanswered {
            Unanswered::Busy => Undecided::Busy,
            Unanswered::Failed(reason) => Undecided::Failed(reason),
        })?;
        let no_status = || Undecided::Failed("the answer has no status".to_owned());
        let status = review.status.ok_or_else(no_status)?;
        let now = Instant::now();
        let decision = match (status.allowed, status.denied) {
            (true, None | Some(false)) => {
                if let Some(key) = key {
                    asked.allowed.insert(key, (), now);
                }
                Decision::Allowed
            }
            _ => {
                let reason = status.reason.unwrap_or_default();
                if let Some(key) = key {
                    asked.denied.insert(key, reason.clone(), now);
                }
                Decision::Denied(reason)
            }
        };
        Ok((decision, "review"))
    }
}

fn spec(user: &User, attributes: &Attributes) -> SubjectAccessReviewSpec {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: some(&user.uid),
        groups: Some(user.groups.clone()),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone().into_iter().collect()),
        ..SubjectAccessReviewSpec::default()
    };
    match attributes {
        Attributes::Path { verb, path } => {
            spec.non_resource_attributes = Some(NonResourceAttributes { path: some(path), verb: some(verb) });
        }
        Attributes::Resource { verb, group, version, namespace, resource, name, subresource } => {
            spec.resource_attributes = Some(ResourceAttributes {
                verb: some(verb),
                group: some(group),
                version: some(version),
                namespace: some(namespace),
                resource: some(resource),
                name: some(name),
                subresource: some(subresource),
                ..ResourceAttributes::default()
            });
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::path::Path;

    fn forbidden(path: &str, reason: &str) -> String {
        let user = User { name: "u".to_owned(), ..User::default() };
        let attributes = Path::parse(path).unwrap().attributes(&http::Method::GET);
        attributes.forbidden(&user, reason).message
    }

    #[test]
    fn the_403_is_worded_as_kubernetes_words_it() {
        assert_eq!(
            forbidden("/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/%2A/gpu_utilization", ""),
            r#"pods.custom.metrics.k8s.io "*" is forbidden: User "u" cannot get resource "pods/gpu_utilization" in API group "custom.metrics.k8s.io" in the namespace "demo""#
        );
        assert_eq!(
            forbidden("/apis/custom.metrics.k8s.io/v1beta2/nodes/n/m", "no"),
            r#"nodes.custom.metrics.k8s.io "n" is forbidden: User "u" cannot get resource "nodes/m" in API group "custom.metrics.k8s.io" at the cluster scope: no"#
        );
        assert_eq!(forbidden("/metrics", ""), r#"forbidden: User "u" cannot get path "/metrics""#);
    }

    #[test]
    fn the_review_asks_for_the_metric_as_a_subresource() {
        let path = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/demo/pods/%2A/gpu_utilization";
        let attributes = Path::parse(path).unwrap().attributes(&http::Method::GET);
        let written = serde_json::to_value(spec(&User::anonymous(), &attributes)).unwrap();
        assert_eq!(
            written,
            json!({
                "user": "system:anonymous",
                "groups": ["system:unauthenticated"],
                "resourceAttributes": {
                    "verb": "get", "group": "custom.metrics.k8s.io", "version": "v1beta1", "namespace": "demo",
                    "resource": "pods", "name": "*", "subresource": "gpu_utilization",
                },
            })
        );
    }
}

//! Owns who may do what: the users behind tokens, and the rules a cluster has from the start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The controller that asks for pod metrics.
pub const HPA_CONTROLLER: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
/// The service account that podgauge's manifests give the adapter.
pub const ADAPTER: &str = "system:serviceaccount:podgauge:podgauge-adapter";
/// Whoever presents no credentials.
pub const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const MASTERS: &str = "system:masters";

/// Bearer tokens of the built-in users.
pub const ADMIN_TOKEN: &str = "sim-admin";
/// The HPA controller's.
pub const HPA_TOKEN: &str = "sim-horizontal-pod-autoscaler";
/// The adapter's.
pub const ADAPTER_TOKEN: &str = "sim-podgauge-adapter";
/// The exporter's: its service account has no rights.
pub const EXPORTER_TOKEN: &str = "sim-podgauge-exporter";
/// A user who is authenticated and has no rights beyond that.
pub const NOBODY_TOKEN: &str = "sim-nobody";

/// A user as authentication found it; the shape of TokenReview's `status.user`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request wants, as authorization sees it; the shape of SubjectAccessReview's
/// `resourceAttributes`, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Resource(ResourceAttributes),
    Path { path: String, verb: String },
}

/// SubjectAccessReview's `resourceAttributes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceAttributes {
    pub namespace: String,
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
}

/// Grants something to somebody. `"*"` stands for all in verbs, groups and resources; an empty
/// `namespaces` or `names` means any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// What the reason of an allowed review names, such as a ClusterRole.
    pub role: String,
    pub users: Vec<String>,
    pub to_groups: Vec<String>,
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    /// `pods`, `pods/status`, `*/scale` or `*`.
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub namespaces: Vec<String>,
    /// Paths that are no resources; a trailing `*` stands for the rest.
    pub paths: Vec<String>,
}

/// Tokens with their users, and rules. Extends the built-in ones when read from a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// Token to user; `system:authenticated` is added.
    pub tokens: BTreeMap<String, User>,
    pub rules: Vec<Rule>,
}

// === impl User ===

impl User {
    /// A user without any group, not even `system:authenticated`.
    pub fn of(name: &str) -> Self {
        Self { username: name.into(), ..Self::default() }
    }

    /// Whoever presents no credentials.
    pub fn anonymous() -> Self {
        Self { username: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// An authenticated user of these groups; `system:authenticated` is added.
    pub fn of_groups(name: &str, groups: &[&str]) -> Self {
        Self {
            username: name.into(),
            groups: groups.iter().copied().map(String::from).collect(),
            ..Self::default()
        }
        .authenticated()
    }

    /// A service account with the groups and the credential id that a bound token brings.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let mut user = Self::of_groups(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        );
        user.uid = uid.into();
        user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={uid}")]);
        user
    }

    /// The HPA controller, as recorded.
    pub fn hpa_controller() -> Self {
        Self::service_account(
            "kube-system",
            "horizontal-pod-autoscaler",
            "2722cff5-6590-4db0-a19d-8bdd42ce2233",
        )
    }

    /// Whether no credentials were presented.
    pub fn is_anonymous(&self) -> bool {
        self.username == ANONYMOUS
    }

    fn authenticated(mut self) -> Self {
        if !self.groups.iter().any(|group| group == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.into());
        }
        self
    }
}

// === impl Access ===

impl Access {
    /// The built-in users and what a cluster grants from the start, plus what podgauge's
    /// manifests grant its two service accounts.
    pub fn built_in() -> Self {
        let tokens = [
            (ADMIN_TOKEN, User::of_groups("kubernetes-admin", &[MASTERS])),
            (HPA_TOKEN, User::hpa_controller()),
            (
                ADAPTER_TOKEN,
                User::service_account("podgauge", "podgauge-adapter", "5b1f4b52-8d0a-4a4e-9d7b-0c6a5f3f0a01"),
            ),
            (
                EXPORTER_TOKEN,
                User::service_account(
                    "podgauge",
                    "podgauge-exporter",
                    "5b1f4b52-8d0a-4a4e-9d7b-0c6a5f3f0a02",
                ),
            ),
            (NOBODY_TOKEN, User::of_groups("nobody", &[])),
        ];
        Self {
            tokens: tokens.into_iter().map(|(token, user)| (token.to_owned(), user)).collect(),
            rules: built_in_rules(),
        }
    }

    /// Adds tokens and rules; a token of the same text is replaced.
    pub fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens.into_iter().map(|(token, user)| (token, user.authenticated())));
        self.rules.extend(more.rules);
    }

    /// The user of a bearer token.
    pub fn user(&self, token: &str) -> Option<&User> {
        self.tokens.get(token)
    }

    /// Why `user` may do this, or `None` if no rule says so.
    pub fn allows(&self, user: &User, wanted: &Wanted) -> Option<String> {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Some(String::new());
        }
        self.rules.iter().find(|rule| rule.concerns(user) && rule.grants(wanted)).map(|rule| {
            format!(
                "RBAC: allowed by ClusterRoleBinding of ClusterRole \"{}\" to User \"{}\"",
                rule.role, user.username
            )
        })
    }
}

// === impl Rule ===

impl Rule {
    fn concerns(&self, user: &User) -> bool {
        self.users.contains(&user.username) || self.to_groups.iter().any(|group| user.groups.contains(group))
    }

    fn grants(&self, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::Path { path, verb } => {
                any(&self.verbs, verb)
                    && self.paths.iter().any(|pattern| match pattern.strip_suffix('*') {
                        Some(prefix) => path.starts_with(prefix),
                        None => pattern == path,
                    })
            }
            Wanted::Resource(wanted) => {
                any(&self.verbs, &wanted.verb)
                    && any(&self.groups, &wanted.group)
                    && self.names_resource(wanted)
                    && (self.names.is_empty() || self.names.contains(&wanted.name))
                    && (self.namespaces.is_empty() || self.namespaces.contains(&wanted.namespace))
            }
        }
    }

    fn names_resource(&self, wanted: &ResourceAttributes) -> bool {
        self.resources.iter().any(|resource| {
            resource == "*"
                || match resource.split_once('/') {
                    Some((resource, subresource)) => {
                        subresource == wanted.subresource && (resource == "*" || resource == wanted.resource)
                    }
                    None => wanted.subresource.is_empty() && *resource == wanted.resource,
                }
        })
    }
}

fn any(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern == "*" || pattern == text)
}

fn built_in_rules() -> Vec<Rule> {
    let strings = |texts: &[&str]| texts.iter().copied().map(String::from).collect::<Vec<_>>();
    let users = |role: &str, users: &[&str], verbs: &[&str], groups: &[&str], resources: &[&str]| Rule {
        role: role.into(),
        users: strings(users),
        verbs: strings(verbs),
        groups: strings(groups),
        resources: strings(resources),
        ..Rule::default()
    };
    let paths = |role: &str, groups: &[&str], paths: &[&str]| Rule {
        role: role.into(),
        to_groups: strings(groups),
        verbs: strings(&["get"]),
        paths: strings(paths),
        ..Rule::default()
    };
    let read = &["get", "list", "watch"];
    vec![
        paths(
            "system:discovery",
            &[AUTHENTICATED],
            &[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/",
            ],
        ),
        paths(
            "system:public-info-viewer",
            &[AUTHENTICATED, UNAUTHENTICATED],
            &["/healthz", "/livez", "/readyz", "/version", "/version/"],
        ),
        Rule {
            to_groups: strings(&[AUTHENTICATED]),
            ..users(
                "system:basic-user",
                &[],
                &["create"],
                &["authorization.k8s.io"],
                &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            )
        },
        users(
            "system:controller:horizontal-pod-autoscaler",
            &[HPA_CONTROLLER],
            read,
            &["custom.metrics.k8s.io", "external.metrics.k8s.io"],
            &["*"],
        ),
        users("system:controller:horizontal-pod-autoscaler", &[HPA_CONTROLLER], &["list"], &[""], &["pods"]),
        users(
            "system:controller:horizontal-pod-autoscaler",
            &[HPA_CONTROLLER],
            &["get", "update"],
            &["*"],
            &["*/scale"],
        ),
        // What deploy/manifests/rbac.yaml gives the adapter, and no more.
        users("podgauge-adapter", &[ADAPTER], &["list", "watch"], &[""], &["pods", "nodes", "namespaces"]),
        users("podgauge-adapter", &[ADAPTER], &["get"], &["custom.metrics.k8s.io"], &["*"]),
        Rule {
            namespaces: strings(&["podgauge"]),
            ..users(
                "podgauge-adapter",
                &[ADAPTER],
                &["list", "watch"],
                &["discovery.k8s.io"],
                &["endpointslices"],
            )
        },
        Rule {
            names: strings(&["podgauge-adapter-certificates"]),
            namespaces: strings(&["podgauge"]),
            ..users("podgauge-adapter", &[ADAPTER], &["list", "watch", "update"], &[""], &["secrets"])
        },
        // What is not there yet has no name that a rule could name.
        Rule {
            namespaces: strings(&["podgauge"]),
            ..users("podgauge-adapter", &[ADAPTER], &["create"], &[""], &["secrets"])
        },
        Rule {
            names: strings(&["v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"]),
            ..users(
                "podgauge-adapter",
                &[ADAPTER],
                &["list", "watch", "patch"],
                &["apiregistration.k8s.io"],
                &["apiservices"],
            )
        },
        users(
            "system:auth-delegator",
            &[ADAPTER],
            &["create"],
            &["authentication.k8s.io"],
            &["tokenreviews"],
        ),
        users(
            "system:auth-delegator",
            &[ADAPTER],
            &["create"],
            &["authorization.k8s.io"],
            &["subjectaccessreviews"],
        ),
        Rule {
            names: strings(&["extension-apiserver-authentication"]),
            namespaces: strings(&["kube-system"]),
            ..users("extension-apiserver-authentication-reader", &[ADAPTER], read, &[""], &["configmaps"])
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(verb: &str) -> Wanted {
        Wanted::Resource(ResourceAttributes {
            namespace: "demo".into(),
            verb: verb.into(),
            group: "custom.metrics.k8s.io".into(),
            version: "v1beta2".into(),
            resource: "pods".into(),
            subresource: "gpu_utilization".into(),
            name: "*".into(),
        })
    }

    #[test]
    fn rights_are_those_a_cluster_has_from_the_start() {
        let access = Access::built_in();
        let user = |token| access.user(token).unwrap();
        assert!(access.allows(user(HPA_TOKEN), &metric("get")).is_some());
        assert!(access.allows(user(HPA_TOKEN), &metric("delete")).is_none());
        assert!(access.allows(user(ADMIN_TOKEN), &metric("delete")).is_some());
        assert!(access.allows(user(ADAPTER_TOKEN), &metric("get")).is_some());
        assert!(access.allows(user(ADAPTER_TOKEN), &metric("list")).is_none());
        assert!(access.allows(user(NOBODY_TOKEN), &metric("get")).is_none());
        let discovery =
            Wanted::Path { path: "/apis/custom.metrics.k8s.io/v1beta2".into(), verb: "get".into() };
        assert!(access.allows(user(NOBODY_TOKEN), &discovery).is_some());
        assert!(access.allows(&User::anonymous(), &discovery).is_none());
        let version = Wanted::Path { path: "/version".into(), verb: "get".into() };
        assert!(access.allows(&User::anonymous(), &version).is_some());
    }

    #[test]
    fn a_rule_for_a_name_or_a_namespace_grants_no_other() {
        let access = Access::built_in();
        let adapter = access.user(ADAPTER_TOKEN).unwrap();
        let config_map = |namespace: &str, name: &str| {
            Wanted::Resource(ResourceAttributes {
                namespace: namespace.into(),
                verb: "list".into(),
                version: "v1".into(),
                resource: "configmaps".into(),
                name: name.into(),
                ..ResourceAttributes::default()
            })
        };
        assert!(
            access
                .allows(adapter, &config_map("kube-system", "extension-apiserver-authentication"))
                .is_some()
        );
        assert!(access.allows(adapter, &config_map("kube-system", "")).is_none());
        assert!(access.allows(adapter, &config_map("demo", "extension-apiserver-authentication")).is_none());
    }

    #[test]
    fn a_rule_for_a_resource_does_not_grant_its_subresources() {
        let rule = Rule { resources: vec!["pods".into()], ..Rule::default() };
        let of = |subresource: &str| ResourceAttributes {
            resource: "pods".into(),
            subresource: subresource.into(),
            ..ResourceAttributes::default()
        };
        assert!(rule.names_resource(&of("")));
        assert!(!rule.names_resource(&of("status")));
    }
}

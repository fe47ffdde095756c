//! Owns the path grammar: from the bytes of a request's path to a [`Route`], and to what
//! authorization is asked about it. Pure.

use crate::auth::access::Attributes;

pub const GROUP: &str = "custom.metrics.k8s.io";
/// Longest path that is read, bytes: two names of 253, a namespace, a metric, each percent-encoded.
const MAX_BYTES: usize = 4096;

/// A version of the API group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    V1beta1,
    V1beta2,
}

/// Newest first: the order that discovery tells.
pub const VERSIONS: [Version; 2] = [Version::V1beta2, Version::V1beta1];

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/healthz` and `/livez`.
    Alive,
    /// `/readyz`.
    Ready,
    /// `/metrics`: of the adapter itself.
    SelfMetrics,
    /// `/version`.
    ProgramVersion,
    /// `/apis`.
    Groups,
    /// `/apis/custom.metrics.k8s.io`.
    Group,
    /// `/apis/custom.metrics.k8s.io/{version}`.
    GroupVersion(Version),
    /// `/openapi/v2`.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiV3,
    /// `/openapi/v3/apis/custom.metrics.k8s.io/{version}`.
    OpenApiV3Document(Version),
    /// A metric of objects.
    Metric(MetricPath),
    /// What a metric of pods is made of.
    Explain(MetricPath),
    Unknown,
}

/// `[/namespaces/{namespace}]/{resource}/{name}/{metric}` below a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricPath {
    pub version: Version,
    pub namespace: Option<String>,
    pub resource: String,
    pub objects: Objects,
    pub metric: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objects {
    /// `*`: those that the label selector matches.
    Selected,
    Named(String),
}

/// A path, each segment decoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    segments: Vec<String>,
}

/// Why a path is refused before anything else is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the path has a % that is not followed by two hexadecimal digits")]
    Escape,
    #[error("the path is not UTF-8")]
    NotText,
    #[error("the path has a segment that is no name")]
    Segment,
}

// === impl Version ===

impl Version {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1beta1 => "v1beta1",
            Self::V1beta2 => "v1beta2",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        VERSIONS.into_iter().find(|version| version.as_str() == text)
    }
}

// === impl Path ===

impl Path {
    /// Decodes a path. Refuses what could mean something else when decoded again or resolved:
    /// `.` and `..`, empty segments, and `/`, `%` or control characters that were encoded.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        if path.len() > MAX_BYTES {
            return Err(PathError::TooLong);
        }
        let path = path.strip_prefix('/').ok_or(PathError::Segment)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Ok(Self { segments: Vec::new() });
        }
        let segments: Result<Vec<String>, PathError> = path.split('/').map(decode_segment).collect();
        Ok(Self { segments: segments? })
    }

    pub fn route(&self) -> Route {
        let segments: Vec<&str> = self.segments.iter().map(String::as_str).collect();
        match segments[..] {
            ["healthz" | "livez"] => Route::Alive,
            ["readyz"] => Route::Ready,
            ["metrics"] => Route::SelfMetrics,
            ["version"] => Route::ProgramVersion,
            ["apis"] => Route::Groups,
            ["apis", GROUP] => Route::Group,
            ["openapi", "v2"] => Route::OpenApiV2,
            ["openapi", "v3"] => Route::OpenApiV3,
            ["openapi", "v3", "apis", GROUP, version] => {
                Version::parse(version).map_or(Route::Unknown, Route::OpenApiV3Document)
            }
            ["apis", GROUP, version, ref rest @ ..] => {
                Version::parse(version).map_or(Route::Unknown, |version| group_route(version, rest))
            }
            _ => Route::Unknown,
        }
    }

    /// What is to be authorized: a metric's path speaks of a resource, as Kubernetes reads it,
    /// anything else is a path. `GET` and `HEAD` are the same right.
    pub fn attributes(&self, method: &http::Method) -> Attributes {
        let reads = matches!(*method, http::Method::GET | http::Method::HEAD);
        match &self.segments[..] {
            [_, group, version, rest @ ..]
                if matches!(self.route(), Route::Metric(_) | Route::Explain(_)) =>
            {
                let (namespace, parts) = match rest {
                    [namespaces, namespace, parts @ ..] if namespaces == "namespaces" => {
                        // `/namespaces/{name}` itself, and its own subresources.
                        let of_namespace = match parts.first().map(String::as_str) {
                            None => true,
                            Some("status" | "finalize") => parts.len() == 1,
                            Some(_) => false,
                        };
                        (namespace.clone(), if of_namespace { rest } else { parts })
                    }
                    _ => (String::new(), rest),
                };
                let part = |at: usize| parts.get(at).cloned().unwrap_or_default();
                let name = part(1);
                let verb = match *method {
                    _ if reads && name.is_empty() => "list",
                    _ if reads => "get",
                    http::Method::POST => "create",
                    http::Method::PUT => "update",
                    http::Method::PATCH => "patch",
                    http::Method::DELETE if name.is_empty() => "deletecollection",
                    http::Method::DELETE => "delete",
                    _ => "",
                };
                Attributes::Resource {
                    verb: verb.to_owned(),
                    group: group.clone(),
                    version: version.clone(),
                    namespace,
                    resource: part(0),
                    name,
                    subresource: part(2),
                }
            }
            segments => {
                let verb = if reads { "get".to_owned() } else { method.as_str().to_ascii_lowercase() };
                Attributes::Path { verb, path: format!("/{}", segments.join("/")) }
            }
        }
    }
}

fn group_route(version: Version, rest: &[&str]) -> Route {
    // To Kubernetes what follows the metric is nothing: it is the right to the metric.
    if let [rest @ .., "explain"] = rest
        && let ["namespaces", _, "pods", _, _] = rest
        && let Route::Metric(path) = group_route(version, rest)
    {
        return Route::Explain(path);
    }
    let (namespace, resource, name, metric) = match *rest {
        [] => return Route::GroupVersion(version),
        // A metric of the Namespace object itself.
        ["namespaces", namespace, "metrics", metric] => (None, "namespaces", namespace, metric),
        ["namespaces", namespace, resource, name, metric] => (Some(namespace), resource, name, metric),
        // Kubernetes reads `/namespaces/demo/x` as a resource in a namespace; no metric is there.
        [resource, name, metric] if resource != "namespaces" => (None, resource, name, metric),
        _ => return Route::Unknown,
    };
    Route::Metric(MetricPath {
        version,
        namespace: namespace.map(str::to_owned),
        resource: resource.to_owned(),
        objects: if name == "*" { Objects::Selected } else { Objects::Named(name.to_owned()) },
        metric: metric.to_owned(),
    })
}

fn decode_segment(segment: &str) -> Result<String, PathError> {
    let decoded = String::from_utf8(percent_decode(segment.as_bytes()).ok_or(PathError::Escape)?)
        .map_err(|_| PathError::NotText)?;
    let illegal = |c: char| c == '/' || c == '%' || c == '\\' || c.is_control();
    if decoded.is_empty() || decoded == "." || decoded == ".." || decoded.contains(illegal) {
        return Err(PathError::Segment);
    }
    Ok(decoded)
}

/// Replaces `%XX` once; `None` where `%` is not followed by two hexadecimal digits.
pub(crate) fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(*byte).to_digit(16));
            let (high, low) = (digit()?, digit()?);
            decoded.push(u8::try_from(high * 16 + low).expect("because two hexadecimal digits fit a byte"));
        } else {
            decoded.push(*byte);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/apis/custom.metrics.k8s.io/v1beta2";

    fn route(path: &str) -> Route {
        Path::parse(path).unwrap().route()
    }

    fn metric(path: &str) -> MetricPath {
        match route(&format!("{BASE}{path}")) {
            Route::Metric(metric) => metric,
            other => panic!("{path} leads to {other:?}"),
        }
    }

    #[test]
    fn every_form_of_a_metric() {
        let path = metric("/namespaces/demo/pods/%2A/gpu_utilization");
        assert_eq!((path.namespace.as_deref(), path.resource.as_str()), (Some("demo"), "pods"));
        assert_eq!((path.objects, path.metric.as_str()), (Objects::Selected, "gpu_utilization"));
        let path = metric("/namespaces/demo/pods/p/vllm%3Ax%7Cy");
        assert_eq!((path.objects, path.metric.as_str()), (Objects::Named("p".to_owned()), "vllm:x|y"));
        let path = metric("/nodes/n1/gpu_utilization");
        assert_eq!((path.namespace, path.resource.as_str()), (None, "nodes"));
        let path = metric("/namespaces/demo/metrics/gpu_utilization");
        assert_eq!((path.resource.as_str(), path.objects), ("namespaces", Objects::Named("demo".to_owned())));
        let path = metric("/namespaces/%2A/metrics/gpu_utilization");
        assert_eq!((path.resource.as_str(), path.objects), ("namespaces", Objects::Selected));
        let explain = route(&format!("{BASE}/namespaces/demo/pods/%2A/m/explain"));
        assert_eq!(explain, Route::Explain(metric("/namespaces/demo/pods/%2A/m")));
        let path = metric("/namespaces/demo/deployments.apps/worker/m");
        assert_eq!(path.resource, "deployments.apps");
    }

    #[test]
    fn documents_and_dead_ends() {
        assert_eq!(route("/apis"), Route::Groups);
        assert_eq!(route("/apis/custom.metrics.k8s.io/"), Route::Group);
        assert_eq!(route(BASE), Route::GroupVersion(Version::V1beta2));
        assert_eq!(
            route("/openapi/v3/apis/custom.metrics.k8s.io/v1beta1"),
            Route::OpenApiV3Document(Version::V1beta1)
        );
        for path in [
            "/",
            "/apis/apps/v1",
            "/apis/custom.metrics.k8s.io/v1",
            &format!("{BASE}/blah"),
            &format!("{BASE}/nodes/foo"),
            &format!("{BASE}/namespaces/ns/foo"),
            &format!("{BASE}/namespaces/ns/pods/bar"),
            &format!("{BASE}/namespaces/ns/pods/bar/m/x"),
            &format!("{BASE}/namespaces/ns/services/bar/m/explain"),
            &format!("{BASE}/nodes/n/m/explain"),
            &format!("{BASE}/namespaces/ns/metrics/m/explain/x"),
            "/long/prefix/apis",
        ] {
            assert_eq!(route(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        for (path, error) in [
            ("/apis/../metrics", PathError::Segment),
            ("/apis/%2e%2e/metrics", PathError::Segment),
            ("/apis//metrics", PathError::Segment),
            ("/a%2Fb", PathError::Segment),
            ("/a%252A", PathError::Segment),
            ("/a%00", PathError::Segment),
            ("/a%2", PathError::Escape),
            ("/a%zz", PathError::Escape),
            ("/a%ff", PathError::NotText),
            ("*", PathError::Segment),
        ] {
            assert_eq!(Path::parse(path), Err(error), "{path}");
        }
        assert_eq!(Path::parse(&format!("/{}", "a".repeat(MAX_BYTES))), Err(PathError::TooLong));
    }

    #[test]
    fn attributes_as_kubernetes_reads_paths() {
        let attributes = |path: &str| Path::parse(path).unwrap().attributes(&http::Method::GET).to_string();
        for (path, expected) in [
            ("/apis", "get path /apis"),
            (BASE, "get path /apis/custom.metrics.k8s.io/v1beta2"),
            ("/metrics", "get path /metrics"),
            (&format!("{BASE}/namespaces/demo/pods/%2A/m"), "get pods/m * in demo"),
            (&format!("{BASE}/namespaces/demo/pods/%2A/m/explain"), "get pods/m * in demo"),
            (&format!("{BASE}/nodes/%2A/m"), "get nodes/m *"),
            (&format!("{BASE}/namespaces/%2A/metrics/m"), "get metrics m in *"),
            (&format!("{BASE}/nodes/n1/m"), "get nodes/m n1"),
            (&format!("{BASE}/namespaces/demo/metrics/m"), "get metrics m in demo"),
            (
                &format!("{BASE}/namespaces/demo/pods"),
                "get path /apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods",
            ),
            (
                &format!("{BASE}/namespaces/demo/x"),
                "get path /apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/x",
            ),
        ] {
            assert_eq!(attributes(path), expected, "{path}");
        }
        let head = Path::parse("/apis").unwrap().attributes(&http::Method::HEAD);
        assert_eq!(head.to_string(), "get path /apis");
        let post = Path::parse(&format!("{BASE}/nodes")).unwrap().attributes(&http::Method::POST);
        assert_eq!(post.to_string(), "post path /apis/custom.metrics.k8s.io/v1beta2/nodes");
    }

    proptest::proptest! {
        #[test]
        fn any_name_comes_back_from_its_encoding(name in "[a-z0-9|: *._é-]{1,20}") {
            proptest::prop_assume!(name != "." && name != "..");
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let path = Path::parse(&format!("/{encoded}")).unwrap();
            proptest::prop_assert_eq!(&path.segments[0], &name);
        }

        #[test]
        fn never_panics(path in "[/%a-f0-9.*]{0,40}") {
            if let Ok(path) = Path::parse(&path) {
                let _ = (path.route(), path.attributes(&http::Method::GET));
            }
        }
    }
}

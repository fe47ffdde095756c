//! Owns the reading of a request's path: which verb on which resource it is, as the API server
//! and an aggregated one both see it.

use super::access::{ResourceAttributes, Wanted};

/// A request line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// The path, each `%xx` decoded once.
    pub path: String,
    /// The query's pairs, decoded, in order.
    pub query: Vec<(String, String)>,
    pub wanted: Wanted,
}

/// A path or query that is not what a client may send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid percent-encoding of UTF-8")]
pub struct BadEncoding(String);

// === impl RequestInfo ===

impl RequestInfo {
    /// # Errors
    /// If the path or the query does not decode to UTF-8.
    pub fn read(method: &http::Method, uri: &http::Uri) -> Result<Self, BadEncoding> {
        let path = decode(uri.path(), false)?;
        let query = uri.query().map_or(Ok(Vec::new()), |query| {
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    Ok((decode(key, true)?, decode(value, true)?))
                })
                .collect::<Result<Vec<_>, BadEncoding>>()
        })?;
        // Go splits what it has decoded: an encoded slash separates. Python's client sends such.
        let segments: Vec<String> =
            path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
        let wanted = wanted(method, &path, &segments, &query);
        Ok(Self { path, query, wanted })
    }

    /// A query parameter's first value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a boolean query parameter is set.
    pub fn is_set(&self, name: &str) -> bool {
        matches!(self.parameter(name), Some("true" | "1"))
    }
}

fn wanted(method: &http::Method, path: &str, segments: &[String], query: &[(String, String)]) -> Wanted {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => {
            let verb = match *method {
                http::Method::GET => "get".to_owned(),
                _ => method.as_str().to_ascii_lowercase(),
            };
            return Wanted::Path { path: path.to_owned(), verb };
        }
    };
    let (namespace, parts) = match rest {
        ["namespaces", namespace, "status" | "finalize", ..] => (*namespace, rest),
        ["namespaces", namespace, parts @ ..] if !parts.is_empty() => (*namespace, parts),
        ["namespaces", namespace] => (*namespace, rest),
        _ => ("", rest),
    };
    let part = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
    let parameter = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let mut name = part(1);
    let mut verb = match *method {
        http::Method::GET | http::Method::HEAD => "get",
        http::Method::POST => "create",
        http::Method::PUT => "update",
        http::Method::PATCH => "patch",
        http::Method::DELETE => "delete",
        _ => "",
    };
    if name.is_empty() {
        match verb {
            "get" => {
                let watch = matches!(parameter("watch"), Some("true" | "1"));
                verb = if watch { "watch" } else { "list" };
                // A list of one named object is authorized as that object.
                if let Some(only) =
                    parameter("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="))
                {
                    name = only.trim_start_matches('=').to_owned();
                }
            }
            "delete" => verb = "deletecollection",
            _ => {}
        }
    }
    Wanted::Resource(ResourceAttributes {
        namespace: namespace.to_owned(),
        verb: verb.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        resource: part(0),
        subresource: part(2),
        name,
    })
}

fn decode(text: &str, plus_is_space: bool) -> Result<String, BadEncoding> {
    let bad = || BadEncoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
                let value = digit(rest.next())? * 16 + digit(rest.next())?;
                u8::try_from(value).map_err(|_| bad())?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str) -> RequestInfo {
        RequestInfo::read(&http::Method::GET, &uri.parse().unwrap()).unwrap()
    }

    fn resource(uri: &str) -> [String; 6] {
        match read(uri).wanted {
            Wanted::Resource(w) => [w.verb, w.group, w.namespace, w.resource, w.name, w.subresource],
            Wanted::Path { path, .. } => panic!("{path} is no resource"),
        }
    }

    #[test]
    fn metric_paths_have_the_attributes_an_api_server_gives_them() {
        let custom = "/apis/custom.metrics.k8s.io/v1beta2";
        let group = "custom.metrics.k8s.io";
        assert_eq!(
            resource(&format!(
                "{custom}/namespaces/demo/pods/%2A/gpu_utilization?labelSelector=app%3Dworker"
            )),
            ["get", group, "demo", "pods", "*", "gpu_utilization"]
        );
        assert_eq!(resource(&format!("{custom}/nodes/n1/x")), ["get", group, "", "nodes", "n1", "x"]);
        assert_eq!(resource(&format!("{custom}/nodes%2F%2A/x")), ["get", group, "", "nodes", "*", "x"]);
        assert_eq!(
            resource(&format!("{custom}/namespaces/demo/metrics/x")),
            ["get", group, "demo", "metrics", "x", ""]
        );
        assert_eq!(
            resource("/apis/external.metrics.k8s.io/v1beta1/namespaces/demo/x"),
            ["list", "external.metrics.k8s.io", "demo", "x", "", ""]
        );
    }

    #[test]
    fn core_paths() {
        assert_eq!(resource("/api/v1/pods?watch=true"), ["watch", "", "", "pods", "", ""]);
        assert_eq!(resource("/api/v1/namespaces"), ["list", "", "", "namespaces", "", ""]);
        assert_eq!(resource("/api/v1/namespaces/demo"), ["get", "", "demo", "namespaces", "demo", ""]);
        assert_eq!(
            resource("/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dx"),
            ["list", "", "kube-system", "configmaps", "x", ""]
        );
        assert_eq!(
            read("/apis/custom.metrics.k8s.io/v1beta2").wanted,
            Wanted::Path { path: "/apis/custom.metrics.k8s.io/v1beta2".into(), verb: "get".into() }
        );
    }

    #[test]
    fn a_query_is_decoded_and_a_broken_one_refused() {
        let info = read("/api/v1/pods?labelSelector=app+in+%28w2%2Cw3%29%2C%21x&watch=1");
        assert_eq!(info.parameter("labelSelector"), Some("app in (w2,w3),!x"));
        assert!(info.is_set("watch"));
        let broken = "/api/v1/pods?labelSelector=%zz".parse().unwrap();
        RequestInfo::read(&http::Method::GET, &broken).unwrap_err();
    }
}

//! Reads the user that a verified front proxy names in headers.

use http::{HeaderMap, HeaderName};

use super::User;
use crate::apiserver::path::percent_decode;

/// Most groups, and most extra values, that are read of one request.
const MAX_VALUES: usize = 1024;

/// Which headers name whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderNames {
    pub username: Vec<HeaderName>,
    pub uid: Vec<HeaderName>,
    pub group: Vec<HeaderName>,
    /// Lower case, as header names are compared.
    pub extra_prefixes: Vec<String>,
}

impl Default for HeaderNames {
    fn default() -> Self {
        Self {
            username: vec![HeaderName::from_static("x-remote-user")],
            uid: Vec::new(),
            group: vec![HeaderName::from_static("x-remote-group")],
            extra_prefixes: vec!["x-remote-extra-".to_owned()],
        }
    }
}

/// The user, or `None` if no user header has a value. Only for requests over a verified
/// front-proxy certificate.
pub fn user(headers: &HeaderMap, names: &HeaderNames) -> Option<User> {
    let first = |names: &[HeaderName]| {
        let values = names.iter().flat_map(|name| headers.get_all(name));
        values.filter_map(|value| value.to_str().ok()).find(|value| !value.is_empty()).map(str::to_owned)
    };
    let name = first(&names.username)?;
    let groups = names.group.iter().flat_map(|name| headers.get_all(name));
    let groups = groups.filter_map(|value| value.to_str().ok()).filter(|group| !group.is_empty());
    let mut user = User {
        name,
        uid: first(&names.uid).unwrap_or_default(),
        groups: groups.take(MAX_VALUES).map(str::to_owned).collect(),
        ..User::default()
    };
    for (header, value) in headers.iter().take(MAX_VALUES) {
        let mut prefixes = names.extra_prefixes.iter();
        let Some(key) = prefixes.find_map(|prefix| header.as_str().strip_prefix(prefix)) else {
            continue;
        };
        if let Ok(value) = value.to_str() {
            user.extra.entry(extra_key(key)).or_default().push(value.to_owned());
        }
    }
    Some(user)
}

/// The key of an extra value: percent-decoded where it can be, in lower case.
fn extra_key(encoded: &str) -> String {
    percent_decode(encoded.as_bytes())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_else(|| encoded.to_owned())
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn reads_what_kube_apiserver_sends() {
        let headers = headers(&[
            ("X-Remote-User", "system:serviceaccount:kube-system:horizontal-pod-autoscaler"),
            ("X-Remote-Uid", "2722cff5"),
            ("X-Remote-Group", "system:serviceaccounts"),
            ("X-Remote-Group", "system:authenticated"),
            ("X-Remote-Extra-Authentication.kubernetes.io%2fcredential-Id", "JTI=20250520"),
        ]);
        let mut names = HeaderNames::default();
        let read = user(&headers, &names).unwrap();
        assert_eq!(read.name, "system:serviceaccount:kube-system:horizontal-pod-autoscaler");
        assert_eq!(read.groups, ["system:serviceaccounts", "system:authenticated"]);
        assert_eq!(read.extra["authentication.kubernetes.io/credential-id"], ["JTI=20250520"]);
        // No header for the UID is configured, so its value is anybody's.
        assert_eq!(read.uid, "");
        names.uid = vec![HeaderName::from_static("x-remote-uid")];
        assert_eq!(user(&headers, &names).unwrap().uid, "2722cff5");
    }

    #[test]
    fn the_first_user_that_is_not_empty_counts() {
        let mut names = HeaderNames::default();
        assert_eq!(user(&headers(&[("X-Remote-User", "")]), &names), None);
        names.username.push(HeaderName::from_static("x-other"));
        let read = user(&headers(&[("X-Remote-User", ""), ("X-Other", "u")]), &names).unwrap();
        assert_eq!((read.name.as_str(), read.groups.len()), ("u", 0));
    }
}

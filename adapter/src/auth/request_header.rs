//! Reads the user that a verified front proxy names in headers.

use http::{HeaderMap, HeaderName, HeaderValue};

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

/// A user that is refused, because only a part of him could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("more than {MAX_VALUES} groups or extra values of a user")]
    TooMany,
    #[error("a header that names the user is not UTF-8")]
    NotText,
}

/// The user, or `None` if no user header has a value. Only for requests over a verified
/// front-proxy certificate. Values are UTF-8: names need not be ASCII.
///
/// # Errors
/// A user that cannot be read whole is refused: with some groups fewer it would be another.
pub fn user(headers: &HeaderMap, names: &HeaderNames) -> Result<Option<User>, Unreadable> {
    let all = |names: &[HeaderName]| -> Result<Vec<String>, Unreadable> {
        let values = names.iter().flat_map(|name| headers.get_all(name));
        values.filter(|value| !value.is_empty()).take(MAX_VALUES + 1).map(text).collect()
    };
    let first = |names: &[HeaderName]| all(names).map(|values| values.into_iter().next());
    let Some(name) = first(&names.username)? else { return Ok(None) };
    let groups = all(&names.group)?;
    let uid = first(&names.uid)?.unwrap_or_default();
    let mut user = User { name, uid, groups, ..User::default() };
    let mut extras = 0;
    for (header, value) in headers {
        let mut prefixes = names.extra_prefixes.iter();
        let Some(key) = prefixes.find_map(|prefix| header.as_str().strip_prefix(prefix)) else {
            continue;
        };
        extras += 1;
        user.extra.entry(extra_key(key)).or_default().push(text(value)?);
    }
    if user.groups.len() > MAX_VALUES || extras > MAX_VALUES {
        return Err(Unreadable::TooMany);
    }
    Ok(Some(user))
}

fn text(value: &HeaderValue) -> Result<String, Unreadable> {
    String::from_utf8(value.as_bytes().to_vec()).map_err(|_| Unreadable::NotText)
}

/// The key of an extra value: its header's name, which is in lower case, percent-decoded where that
/// can be. What was encoded keeps its case.
fn extra_key(encoded: &str) -> String {
    percent_decode(encoded.as_bytes())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_else(|| encoded.to_owned())
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
        let read = user(&headers, &names).unwrap().unwrap();
        assert_eq!(read.name, "system:serviceaccount:kube-system:horizontal-pod-autoscaler");
        assert_eq!(read.groups, ["system:serviceaccounts", "system:authenticated"]);
        assert_eq!(read.extra["authentication.kubernetes.io/credential-id"], ["JTI=20250520"]);
        // No header for the UID is configured, so its value is anybody's.
        assert_eq!(read.uid, "");
        names.uid = vec![HeaderName::from_static("x-remote-uid")];
        assert_eq!(user(&headers, &names).unwrap().unwrap().uid, "2722cff5");
    }

    #[test]
    fn the_first_user_that_is_not_empty_counts() {
        let mut names = HeaderNames::default();
        assert_eq!(user(&headers(&[("X-Remote-User", "")]), &names), Ok(None));
        names.username.push(HeaderName::from_static("x-other"));
        let read = user(&headers(&[("X-Remote-User", ""), ("X-Other", "u")]), &names).unwrap().unwrap();
        assert_eq!((read.name.as_str(), read.groups.len()), ("u", 0));
    }

    #[test]
    fn names_need_not_be_ascii() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_bytes("Jürgen".as_bytes()).unwrap());
        headers.insert("x-remote-group", HeaderValue::from_bytes("開発".as_bytes()).unwrap());
        headers.append("x-remote-group", HeaderValue::from_static(""));
        let read = user(&headers, &HeaderNames::default()).unwrap().unwrap();
        assert_eq!((read.name.as_str(), read.groups.as_slice()), ("Jürgen", ["開発".to_owned()].as_slice()));
        headers.append("x-remote-group", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(user(&headers, &HeaderNames::default()), Err(Unreadable::NotText));
    }

    #[test]
    fn keys_of_extras_are_in_lower_case_where_they_were_not_encoded() {
        let headers = headers(&[
            ("X-Remote-Extra-Scopes", "a"),
            ("X-Remote-Extra-scopes", "b"),
            ("X-Remote-Extra-%41cme.com%2FTeam", "c"),
            ("X-Remote-Extra-100%", "d"),
        ]);
        let extra = user_with(headers).extra;
        assert_eq!(extra["scopes"], ["a", "b"]);
        assert_eq!(
            (extra["Acme.com/team"].as_slice(), extra["100%"].as_slice()),
            (["c".to_owned()].as_slice(), ["d".to_owned()].as_slice())
        );
    }

    fn user_with(mut headers: HeaderMap) -> User {
        headers.insert("x-remote-user", "u".parse().unwrap());
        user(&headers, &HeaderNames::default()).unwrap().unwrap()
    }

    #[test]
    fn a_user_with_too_many_groups_is_refused_not_cut() {
        let mut headers = headers(&[("X-Remote-User", "u")]);
        for group in 0..=MAX_VALUES {
            assert!(user(&headers, &HeaderNames::default()).is_ok());
            headers.append("x-remote-group", group.to_string().parse().unwrap());
        }
        assert_eq!(user(&headers, &HeaderNames::default()), Err(Unreadable::TooMany));
    }
}

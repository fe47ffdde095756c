//! Owns percent-encoding as Go's standard library does it: what an adapter sees is Go's.

use std::fmt::Write as _;

/// A decoded path, encoded as Go's `URL.EscapedPath` does: `*` becomes `%2A`, `:` stays.
pub fn path_escape(path: &str) -> String {
    escape(path, |byte| is_unreserved(byte) || b"$&+,/:;=@".contains(&byte))
}

/// A query key or value, encoded as Go's `url.QueryEscape` does: a space is `+`.
pub fn query_escape(text: &str) -> String {
    escape(text, |byte| is_unreserved(byte) || byte == b' ').replace(' ', "+")
}

/// An extra key as it stands in a header's name: what a name cannot hold is encoded, in lower
/// case because header names lose theirs.
pub(crate) fn header_key_escape(key: &str) -> String {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    escape(key, legal).to_ascii_lowercase()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

fn escape(text: &str, stays: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if stays(byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_was_recorded() {
        assert_eq!(path_escape("/namespaces/demo/pods/*/vllm:x|y"), "/namespaces/demo/pods/%2A/vllm:x%7Cy");
        assert_eq!(query_escape("app in (w2,w3),tier,!x"), "app+in+%28w2%2Cw3%29%2Ctier%2C%21x");
        assert_eq!(query_escape("app=worker"), "app%3Dworker");
        assert_eq!(
            header_key_escape("authentication.kubernetes.io/credential-id"),
            "authentication.kubernetes.io%2fcredential-id"
        );
    }
}

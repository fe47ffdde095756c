//! Reads the web configuration file: the YAML that Prometheus' exporters share. Keys and their
//! meanings are those of exporter-toolkit; errors name file and line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use podgauge_common::duration::parse_go_duration;
use podgauge_common::http::tls::Pem;
use serde::{Deserialize, Deserializer};

use super::WebError;

/// Highest cost of a password's hash: 2^18 rounds take a core about 20 s.
const HIGHEST_COST: u32 = 18;
/// Most users of one file.
const MOST_USERS: usize = 1000;
/// Headers that may be set, with the values that they may have; none: any.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebConfig {
    pub(super) tls_server_config: Option<TlsServer>,
    pub(super) http_server_config: HttpServer,
    /// By name, bcrypt hashes.
    pub(super) basic_auth_users: BTreeMap<String, String>,
    pub(super) rate_limit: RateLimit,
}

/// How TLS is spoken.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsServer {
    cert_file: PathBuf,
    key_file: PathBuf,
    client_ca_file: PathBuf,
    cert: Text,
    key: Text,
    client_ca: Text,
    pub(super) client_auth_type: ClientAuth,
    pub(super) client_allowed_sans: Vec<String>,
    pub(super) min_version: Option<Version>,
    pub(super) max_version: Option<Version>,
    pub(super) cipher_suites: Vec<String>,
    pub(super) curve_preferences: Vec<String>,
    /// Has no effect, as in Go: with these suites the order does not matter.
    #[serde(rename = "prefer_server_cipher_suites")]
    _prefer_server_cipher_suites: Option<bool>,
}

/// PEM text. It is not shown: it may be a private key.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
struct Text(String);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(PEM)" })
    }
}

/// How often requests are answered: one an interval, and a burst after a pause. A burst is one at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RateLimit {
    /// 0: without limit.
    #[serde(deserialize_with = "go_duration")]
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// A duration in Go's form, or a number of nanoseconds.
fn go_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration like 1s")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            parse_go_duration(text).map_err(E::custom)
        }

        fn visit_u64<E: serde::de::Error>(self, nanoseconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_nanos(nanoseconds))
        }
    }
    deserializer.deserialize_any(Visitor)
}

/// What is asked of clients, under Go's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum ClientAuth {
    #[default]
    #[serde(alias = "")]
    NoClientCert,
    RequestClientCert,
    /// Newer releases' and older releases' spelling.
    #[serde(alias = "RequireClientCert")]
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) enum Version {
    #[serde(rename = "TLS10")]
    Tls10,
    #[serde(rename = "TLS11")]
    Tls11,
    #[serde(rename = "TLS12")]
    Tls12,
    #[serde(rename = "TLS13")]
    Tls13,
}

/// How HTTP is spoken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpServer {
    pub(super) http2: bool,
    headers: BTreeMap<String, String>,
}

impl Default for HttpServer {
    fn default() -> Self {
        Self { http2: true, headers: BTreeMap::new() }
    }
}

// === impl WebConfig ===

impl WebConfig {
    /// Understands the text of the file at `path`; relative paths in it are relative to its folder.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, WebError> {
        let wrong = |reason: String| WebError::File { path: path.to_owned(), reason };
        let blank = |line: &str| matches!(line.trim().chars().next(), None | Some('#'));
        if text.lines().all(blank) {
            return Ok(Self::default());
        }
        let mut config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let message = error.without_snippet().to_string();
            let message = message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            WebError::Line {
                path: path.to_owned(),
                line: error.location().map_or(1, |location| location.line()),
                message: message.trim().to_owned(),
            }
        })?;
        config.tls_server_config = config.tls_server_config.filter(TlsServer::is_enabled);
        config.check().map_err(wrong)?;
        if let Some(tls) = &mut config.tls_server_config {
            let folder = path.parent().unwrap_or(Path::new("."));
            for file in [&mut tls.cert_file, &mut tls.key_file, &mut tls.client_ca_file] {
                if !file.as_os_str().is_empty() {
                    *file = folder.join(&file);
                }
            }
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.basic_auth_users.len() > MOST_USERS {
            return Err(format!("basic_auth_users: more than {MOST_USERS}"));
        }
        for (user, hash) in &self.basic_auth_users {
            let parts = bcrypt::HashParts::from_str(hash).map_err(|_| {
                format!("basic_auth_users: {user:?} has no bcrypt hash; make one with htpasswd -nB")
            })?;
            if parts.get_cost() > HIGHEST_COST {
                return Err(format!(
                    "basic_auth_users: the hash of {user:?} has cost {}, the highest is {HIGHEST_COST}",
                    parts.get_cost()
                ));
            }
        }
        if let Some(tls) = &self.tls_server_config {
            tls.check()?;
        }
        self.http_server_config.header_map().map(drop)
    }
}

// === impl TlsServer ===

impl TlsServer {
    /// The certificate chain to serve with.
    pub(super) fn certificate(&self) -> Option<Pem> {
        pem(&self.cert_file, "tls_server_config.cert", &self.cert)
    }

    /// Its key.
    pub(super) fn private_key(&self) -> Option<Pem> {
        pem(&self.key_file, "tls_server_config.key", &self.key)
    }

    /// The authorities of clients' certificates.
    pub(super) fn client_authorities(&self) -> Option<Pem> {
        pem(&self.client_ca_file, "tls_server_config.client_ca", &self.client_ca)
    }

    /// Whether clients' certificates are verified.
    pub(super) fn verifies_clients(&self) -> bool {
        use ClientAuth::{RequireAndVerifyClientCert, VerifyClientCertIfGiven};
        matches!(self.client_auth_type, VerifyClientCertIfGiven | RequireAndVerifyClientCert)
    }

    /// The files that it is made from.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let all = [self.certificate(), self.private_key(), self.client_authorities()];
        all.into_iter().flatten().filter_map(|pem| match pem {
            Pem::File(path) => Some(path),
            Pem::Inline { .. } => None,
        })
    }

    /// Whether any key asks for TLS. As in exporter-toolkit, versions and suites alone do not.
    fn is_enabled(&self) -> bool {
        let asks = [self.certificate(), self.private_key(), self.client_authorities()];
        asks.iter().any(Option::is_some) || self.client_auth_type != ClientAuth::NoClientCert
    }

    fn check(&self) -> Result<(), String> {
        let missing = match (self.certificate(), self.private_key()) {
            (Some(_), Some(_)) => None,
            (None, Some(_)) => Some("cert_file (or cert) is missing"),
            (Some(_), None) => Some("key_file (or key) is missing"),
            (None, None) => Some("cert_file and key_file (or cert and key) are missing"),
        };
        if let Some(missing) = missing {
            return Err(format!("tls_server_config: {missing}"));
        }
        if self.client_authorities().is_some() && self.client_auth_type == ClientAuth::NoClientCert {
            return Err(
                "tls_server_config: client_ca_file without client_auth_type: no client would be asked \
                        for a certificate"
                    .to_owned(),
            );
        }
        if !self.client_allowed_sans.is_empty() && self.client_auth_type == ClientAuth::NoClientCert {
            return Err("tls_server_config: client_allowed_sans without client_auth_type".to_owned());
        }
        if let Some(version @ (Version::Tls10 | Version::Tls11)) = self.max_version {
            let version = if version == Version::Tls10 { "TLS10" } else { "TLS11" };
            return Err(format!("tls_server_config: max_version {version}: the oldest available is TLS12"));
        }
        if let (Some(min), Some(max)) = (self.min_version, self.max_version)
            && min > max
        {
            return Err("tls_server_config: min_version is above max_version".to_owned());
        }
        Ok(())
    }
}

/// The file if one is named, else the text of the setting. As in exporter-toolkit, a file goes first.
fn pem(file: &Path, setting: &'static str, text: &Text) -> Option<Pem> {
    if !file.as_os_str().is_empty() {
        return Some(Pem::File(file.to_owned()));
    }
    (!text.0.is_empty()).then(|| Pem::Inline { setting, text: text.0.clone() })
}

// === impl HttpServer ===

impl HttpServer {
    /// The headers that every answer gets.
    pub(super) fn header_map(&self) -> Result<HeaderMap, String> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            let known = HEADERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            let Some((_, allowed)) = known else {
                let names: Vec<&str> = HEADERS.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "http_server_config: header {name:?} cannot be set, only {}",
                    names.join(", ")
                ));
            };
            if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
                return Err(format!(
                    "http_server_config: {name} cannot be {value:?}, only {}",
                    allowed.join(" or ")
                ));
            }
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("http_server_config: {value:?} is no header value"))?;
            let name = HeaderName::from_str(name).map_err(|error| format!("http_server_config: {error}"))?;
            map.insert(name, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &str = "tls_server_config:\n  cert_file: a.crt\n  key_file: /k/a.key\n";

    fn wrong(text: &str) -> String {
        WebConfig::parse(Path::new("/etc/web.yml"), text).unwrap_err().to_string()
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = WebConfig::parse(Path::new("/etc/web.yml"), TLS).unwrap();
        let tls = config.tls_server_config.unwrap();
        assert_eq!(tls.files().collect::<Vec<_>>(), [Path::new("/etc/a.crt"), Path::new("/k/a.key")]);
        assert!(WebConfig::parse(Path::new("x"), "# nothing\n\n").unwrap().tls_server_config.is_none());
    }

    #[test]
    fn a_rate_limit_is_written_as_in_go() {
        let limit = |text: &str| WebConfig::parse(Path::new("x"), text).unwrap().rate_limit;
        let second = RateLimit { interval: Duration::from_secs(1), burst: 20 };
        assert_eq!(limit("rate_limit: {interval: 1s, burst: 20}"), second);
        assert_eq!(limit("rate_limit: {interval: \"1s\", burst: 20}"), second);
        assert_eq!(limit("rate_limit: {interval: 1000000000, burst: 20}"), second);
        assert_eq!(limit("rate_limit: {interval: 0, burst: 0}"), RateLimit::default());
        assert_eq!(limit("basic_auth_users: {}"), RateLimit::default());
    }

    #[test]
    fn texts_take_the_place_of_files_and_are_not_shown() {
        let text = "tls_server_config: {cert: CERT, key: SECRET, client_ca: CA, client_auth_type: RequestClientCert}";
        let config = WebConfig::parse(Path::new("x"), text).unwrap();
        let tls = config.tls_server_config.as_ref().unwrap();
        assert_eq!(tls.files().count(), 0);
        assert_eq!(tls.private_key().unwrap().to_string(), "tls_server_config.key");
        assert!(!format!("{config:?} {:?}", tls.private_key()).contains("SECRET"));
        let both = "tls_server_config: {cert: CERT, cert_file: /a, key: SECRET}";
        let both = WebConfig::parse(Path::new("x"), both).unwrap().tls_server_config.unwrap();
        assert_eq!(both.certificate(), Some(Pem::File("/a".into())));
        let none = "tls_server_config: {cert_file: \"\", min_version: TLS12}";
        assert!(WebConfig::parse(Path::new("x"), none).unwrap().tls_server_config.is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let unknown = wrong(&format!("{TLS}  cert_fle: b\n"));
        assert!(unknown.starts_with("/etc/web.yml, line 4: ") && unknown.contains("cert_fle"), "{unknown}");
        for (text, words) in [
            ("basic_auth_users: {ann: secret}", "\"ann\" has no bcrypt hash"),
            ("http_server_config: {headers: {X-Mine: a}}", "\"X-Mine\" cannot be set"),
            ("http_server_config: {headers: {X-Frame-Options: maybe}}", "only deny or sameorigin"),
            ("tls_server_config: {cert_file: a}", "key_file (or key) is missing"),
            ("tls_server_config: {client_auth_type: RequestClientCert}", "are missing"),
            ("rate_limit: {interval: soon}", "line 1"),
            ("rate_limit: {burst: -1}", "line 1"),
            (&format!("{TLS}  client_ca_file: ca.crt\n"), "without client_auth_type"),
            (&format!("{TLS}  client_auth_type: Whatever\n"), "line 4"),
            (&format!("{TLS}  max_version: TLS11\n"), "max_version TLS11: the oldest available is TLS12"),
        ] {
            let error = wrong(text);
            assert!(error.starts_with("/etc/web.yml") && error.contains(words), "{error}");
        }
    }
}

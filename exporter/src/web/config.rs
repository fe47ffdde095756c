//! Owns the web configuration file: the YAML that Prometheus' exporters share. Keys and their
//! meanings are those of its exporter-toolkit; what is wrong is said with file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::WebError;

/// Passwords whose verification would take longer than some seconds are refused: 2^cost rounds.
const HIGHEST_COST: u32 = 15;
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
}

/// How TLS is spoken.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsServer {
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) client_auth_type: ClientAuth,
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) client_allowed_sans: Vec<String>,
    pub(super) min_version: Option<Version>,
    pub(super) max_version: Option<Version>,
    pub(super) cipher_suites: Vec<String>,
    pub(super) curve_preferences: Vec<String>,
    /// Has no effect, as in Go: with these suites the order does not matter.
    #[serde(rename = "prefer_server_cipher_suites")]
    _prefer_server_cipher_suites: Option<bool>,
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
        config.check().map_err(wrong)?;
        if let Some(tls) = &mut config.tls_server_config {
            let folder = path.parent().unwrap_or(Path::new("."));
            for file in [&mut tls.cert_file, &mut tls.key_file].into_iter().chain(&mut tls.client_ca_file) {
                *file = folder.join(&file);
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
    fn check(&self) -> Result<(), String> {
        let given = |path: &Path| !path.as_os_str().is_empty();
        match (given(&self.cert_file), given(&self.key_file)) {
            (true, true) => {}
            (false, true) => return Err("tls_server_config: cert_file is missing".to_owned()),
            (true, false) => return Err("tls_server_config: key_file is missing".to_owned()),
            (false, false) => return Err("tls_server_config: cert_file and key_file are missing".to_owned()),
        }
        use ClientAuth::{NoClientCert, RequireAndVerifyClientCert, VerifyClientCertIfGiven};
        let verifies = matches!(self.client_auth_type, VerifyClientCertIfGiven | RequireAndVerifyClientCert);
        if self.client_ca_file.is_some() && self.client_auth_type == NoClientCert {
            return Err("tls_server_config: client_ca_file without client_auth_type: nobody would be asked \
                        for a certificate"
                .to_owned());
        }
        if verifies && self.client_ca_file.is_none() {
            return Err(format!(
                "tls_server_config: client_auth_type {:?} needs client_ca_file",
                self.client_auth_type
            ));
        }
        if !self.client_allowed_sans.is_empty() && self.client_auth_type == NoClientCert {
            return Err("tls_server_config: client_allowed_sans without client_auth_type".to_owned());
        }
        if let Some(version @ (Version::Tls10 | Version::Tls11)) = self.max_version {
            return Err(format!("tls_server_config: max_version {version:?}: the oldest spoken is TLS12"));
        }
        if let (Some(min), Some(max)) = (self.min_version, self.max_version)
            && min > max
        {
            return Err("tls_server_config: min_version is above max_version".to_owned());
        }
        Ok(())
    }
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
        assert_eq!((tls.cert_file, tls.key_file), ("/etc/a.crt".into(), "/k/a.key".into()));
        assert!(WebConfig::parse(Path::new("x"), "# nothing\n\n").unwrap().tls_server_config.is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let unknown = wrong(&format!("{TLS}  cert_fle: b\n"));
        assert!(unknown.starts_with("/etc/web.yml, line 4: ") && unknown.contains("cert_fle"), "{unknown}");
        for (text, words) in [
            ("basic_auth_users: {ann: secret}", "\"ann\" has no bcrypt hash"),
            ("http_server_config: {headers: {X-Mine: a}}", "\"X-Mine\" cannot be set"),
            ("http_server_config: {headers: {X-Frame-Options: maybe}}", "only deny or sameorigin"),
            ("tls_server_config: {cert_file: a}", "key_file is missing"),
            (&format!("{TLS}  client_ca_file: ca.crt\n"), "without client_auth_type"),
            (&format!("{TLS}  client_auth_type: RequireAndVerifyClientCert\n"), "needs client_ca_file"),
            (&format!("{TLS}  client_auth_type: Whatever\n"), "line 4"),
            (&format!("{TLS}  max_version: TLS11\n"), "TLS12"),
        ] {
            let error = wrong(text);
            assert!(error.starts_with("/etc/web.yml") && error.contains(words), "{error}");
        }
    }
}

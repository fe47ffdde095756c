//! Owns how exporters are reached: the CAs that TLS believes, and the certificate, password or token
//! that the adapter shows. All of it comes from files, and follows what they hold.
//!
//! No secret leaves this module but in a header marked as sensitive and in a TLS handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use podgauge_common::contents::Contents;
use podgauge_common::http::tls::{FileError, pair_error, read_certificates, read_pair};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tracing::{info, warn};

use crate::args::exporters::ExporterAccess;

/// Time between two looks at the files. Projected volumes change by a symlink, which no watch of a
/// file sees.
const REREAD: Duration = Duration::from_secs(10);
/// Longest password or token, bytes. A projected token of many audiences has a few thousand.
const MAX_SECRET_BYTES: usize = 16 << 10;

/// Why exporters cannot be reached as the flags say. Never holds what a file holds.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Files(#[from] FileError),
    #[error("{}: {reason}", path.display())]
    Secret { path: PathBuf, reason: String },
}

/// How exporters are reached now.
pub struct Access {
    flags: ExporterAccess,
    /// `None`: no exporter is reached over TLS.
    tls: ArcSwapOption<ClientConfig>,
    authorization: ArcSwapOption<HeaderValue>,
}

impl Access {
    /// Plain HTTP, no credentials.
    pub fn plain() -> Self {
        Self {
            flags: ExporterAccess::default(),
            tls: ArcSwapOption::empty(),
            authorization: ArcSwapOption::empty(),
        }
    }

    /// Reads the files. The error names the one that cannot be used.
    pub fn load(flags: ExporterAccess) -> Result<Self, AccessError> {
        let tls = tls_config(&flags)?.map(Arc::new).into();
        let authorization = authorization(&flags)?.map(Arc::new).into();
        Ok(Self { flags, tls, authorization })
    }

    /// What TLS to the next exporter is made with.
    pub fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.tls.load_full()
    }

    /// The name that an exporter's certificate must be for.
    pub fn server_name(&self, host: &str) -> Option<ServerName<'static>> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.flags.exporter_server_name.clone().or_else(|| ServerName::try_from(host.to_owned()).ok())
    }

    /// The password or token, if it may be sent.
    pub fn authorization(&self, over_tls: bool) -> Option<HeaderValue> {
        let allowed = over_tls || self.flags.exporter_credentials_without_tls;
        self.authorization.load().as_deref().filter(|_| allowed).cloned()
    }

    /// Takes over what the files hold whenever that changes. What cannot be used is said once, and
    /// the last good one stays. Never returns.
    pub async fn follow(self: Arc<Self>) {
        let flags = &self.flags;
        let tls = [
            &flags.exporter_ca_file,
            &flags.exporter_client_tls_cert_file,
            &flags.exporter_client_tls_key_file,
        ];
        let secrets = [&flags.exporter_password_file, &flags.exporter_token_file];
        // They were read a moment ago, and maybe changed since.
        let (mut tls, mut secrets) = (Followed::new(&tls), Followed::new(&secrets));
        let mut first = true;
        loop {
            if first || tls.changed() {
                tls.took(tls_config(flags), &self.tls, first);
            }
            if first || secrets.changed() {
                secrets.took(authorization(flags), &self.authorization, first);
            }
            first = false;
            tokio::time::sleep(REREAD).await;
        }
    }

    /// What a failed handshake or exchange means, in terms of the flags; `None` if it is not about
    /// certificates.
    pub fn explain(&self, error: &(dyn std::error::Error + 'static), name: &str) -> Option<String> {
        let error = rustls_error(error)?;
        let ca = self.flags.exporter_ca_file.as_deref().unwrap_or(Path::new("--exporter-ca-file"));
        Some(match error {
            rustls::Error::InvalidCertificate(wrong) => match wrong {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    format!("its certificate is of no CA in {}", ca.display())
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!("its certificate is not for {name}: --exporter-server-name says another name")
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid yet".to_owned()
                }
                other => format!("its certificate cannot be verified: {other}"),
            },
            rustls::Error::AlertReceived(alert) => match alert {
                // Before TLS 1.3 a missing certificate is a failed handshake.
                AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure
                    if self.flags.exporter_client_tls_cert_file.is_none() =>
                {
                    "it wants a client certificate: give --exporter-client-tls-cert-file".to_owned()
                }
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::AccessDenied => {
                    let own =
                        self.flags.exporter_client_tls_cert_file.as_deref().unwrap_or(Path::new("none"));
                    format!("it refuses our client certificate ({}): alert {alert:?}", own.display())
                }
                other => format!("it ended TLS with alert {other:?}"),
            },
            rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
            other => format!("TLS failed: {other}"),
        })
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("flags", &self.flags).finish_non_exhaustive()
    }
}

/// Files that something is made of.
struct Followed {
    files: String,
    contents: Contents,
    complaint: Option<String>,
}

impl Followed {
    fn new(paths: &[&Option<PathBuf>]) -> Self {
        let contents = Contents::of(paths.iter().filter_map(|path| (*path).clone()));
        let names: Vec<_> = contents.paths().iter().map(|path| path.display().to_string()).collect();
        Self { files: names.join(", "), contents, complaint: None }
    }

    fn changed(&mut self) -> bool {
        self.contents.changed()
    }

    fn took<T>(&mut self, made: Result<Option<T>, AccessError>, place: &ArcSwapOption<T>, first: bool) {
        match made {
            Ok(made) => {
                place.store(made.map(Arc::new));
                if !first {
                    info!("exporters are scraped with what {} hold now", self.files);
                }
                self.complaint = None;
            }
            Err(error) => {
                let complaint = error.to_string();
                if self.complaint.as_ref() != Some(&complaint) {
                    warn!("exporters are scraped with what was good before: {complaint}");
                }
                self.complaint = Some(complaint);
            }
        }
    }
}

fn tls_config(flags: &ExporterAccess) -> Result<Option<ClientConfig>, AccessError> {
    let Some(ca) = &flags.exporter_ca_file else { return Ok(None) };
    let wrong = |reason: String| FileError::File { path: ca.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(ca)? {
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match (&flags.exporter_client_tls_cert_file, &flags.exporter_client_tls_key_file) {
        (Some(certificate), Some(key)) => {
            let (chain, private) = read_pair(certificate, key)?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| pair_error(certificate, key, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    // Each connection judges the certificate that the exporter has at that moment.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(config))
}

fn authorization(flags: &ExporterAccess) -> Result<Option<HeaderValue>, AccessError> {
    let (path, value) =
        match (&flags.exporter_username, &flags.exporter_password_file, &flags.exporter_token_file) {
            (Some(user), Some(path), _) => {
                let password = secret(path)?;
                (path, format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            (_, _, Some(path)) => (path, format!("Bearer {}", secret(path)?)),
            _ => return Ok(None),
        };
    let mut value = HeaderValue::try_from(value).map_err(|_| AccessError::Secret {
        path: path.clone(),
        reason: "it holds characters that a header cannot hold".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// What a file holds, less the end of its line.
fn secret(path: &Path) -> Result<String, AccessError> {
    let wrong = |reason: String| AccessError::Secret { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
    let text = text.trim_end_matches(['\n', '\r']);
    match text.len() {
        0 => Err(wrong("it is empty".to_owned())),
        length if length > MAX_SECRET_BYTES => {
            Err(wrong(format!("it has more than {MAX_SECRET_BYTES} bytes")))
        }
        _ => Ok(text.to_owned()),
    }
}

/// The TLS error that is the cause of another.
fn rustls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error wraps is not its source, but its source's source's place.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| rustls_error(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(path: PathBuf) -> ExporterAccess {
        ExporterAccess { exporter_token_file: Some(path), ..ExporterAccess::default() }
    }

    #[test]
    fn a_secret_is_sent_where_tls_protects_it_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "s3cr3t\n").unwrap();
        let access = Access::load(token(path.clone())).unwrap();
        assert_eq!(access.authorization(true).unwrap(), "Bearer s3cr3t");
        assert!(access.authorization(true).unwrap().is_sensitive());
        assert_eq!(access.authorization(false), None);
        assert!(!format!("{access:?}").contains("s3cr3t"));
        let spoken = ExporterAccess { exporter_credentials_without_tls: true, ..token(path.clone()) };
        assert_eq!(Access::load(spoken).unwrap().authorization(false).unwrap(), "Bearer s3cr3t");
        let login = ExporterAccess {
            exporter_username: Some("ann".to_owned()),
            exporter_password_file: Some(path),
            ..ExporterAccess::default()
        };
        assert_eq!(Access::load(login).unwrap().authorization(true).unwrap(), "Basic YW5uOnMzY3IzdA==");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (held, words) in [
            ("", "it is empty"),
            ("\n", "it is empty"),
            ("s3cr3t\u{1}", "characters that a header cannot hold"),
            ("s3cr3t".repeat(5000).as_str(), "more than 16384 bytes"),
        ] {
            std::fs::write(&path, held).unwrap();
            let error = Access::load(token(path.clone())).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("token"), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
        let error = Access::load(token(folder.path().join("none"))).unwrap_err().to_string();
        assert!(error.contains("none: No such file"), "{error}");
    }

    #[test]
    fn the_name_to_verify_is_the_urls_unless_another_is_given() {
        let access = Access::plain();
        assert_eq!(access.server_name("[fd00::1]"), Some(ServerName::try_from("fd00::1").unwrap()));
        assert_eq!(
            access.server_name("exporter.gpu.svc"),
            Some(ServerName::try_from("exporter.gpu.svc").unwrap())
        );
        let name = ServerName::try_from("podgauge-exporter").unwrap();
        let flags = ExporterAccess { exporter_server_name: Some(name.clone()), ..ExporterAccess::default() };
        assert_eq!(Access::load(flags).unwrap().server_name("10.0.0.1"), Some(name));
    }
}

//! Owns the serving certificate: from files, re-read when they change, or from a CA made at start.
//!
//! The handshake takes any client certificate whose key the client proves to have, and trusts none:
//! who it speaks for is judged per request against the trust of that moment ([`crate::auth`]).
//! So a changed CA takes effect at once on open connections too, and a client with a certificate of
//! somebody else's CA can still come with a token, as with Go's API servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use podgauge_common::contents::Contents;
use podgauge_common::http::serve::Tls;
use podgauge_common::http::tls::{FileError, PossessionVerifier, pair_error, read_pair};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{info, warn};

/// Time between two looks at certificate files. Projected volumes change by a symlink, which no
/// watch of a file sees.
const REREAD: Duration = Duration::from_secs(10);
/// Years that a CA made at start is good for: longer than the program runs, because nothing
/// renews it yet.
const OWN_CA_YEARS: i16 = 10;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Files(#[from] FileError),
    #[error("cannot make a certificate for {name}: {reason}")]
    Own { name: String, reason: String },
}

/// Certificate and key files.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A CA made at start and what it serves.
#[derive(Debug)]
pub struct OwnCa {
    pub config: ServerConfig,
    /// For an APIService's `caBundle`.
    pub ca_pem: String,
}

// === impl Files ===

impl Files {
    /// Reads both. The error names the file.
    pub fn load(&self) -> Result<ServerConfig, TlsError> {
        let (chain, key) = read_pair(&self.certificate, &self.key)?;
        config(chain, key).map_err(|error| pair_error(&self.certificate, &self.key, &error).into())
    }

    /// Serves with what the files hold whenever that changes. A pair that cannot be used is said
    /// once, and the last good one stays. Never returns.
    pub async fn follow(self, serving: Tls) {
        let mut contents = Contents::of([self.certificate.clone(), self.key.clone()]);
        loop {
            contents.change(REREAD).await;
            match self.load() {
                Ok(config) => {
                    serving.store(Arc::new(config));
                    info!("{} changed: serving with it from now on", self.certificate.display());
                }
                Err(error) => warn!("keeping the last good certificate: {error}"),
            }
        }
    }
}

/// A CA and a certificate of it for `<service>.<namespace>.svc` and this host.
pub fn own_ca(service: &str, namespace: &str) -> Result<OwnCa, TlsError> {
    let name = format!("{service}.{namespace}.svc");
    let wrong =
        |reason: &dyn std::fmt::Display| TlsError::Own { name: name.clone(), reason: reason.to_string() };
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |year: i16| {
        let (month, day) = (today.month().unsigned_abs(), today.day().unsigned_abs());
        // 29 February is in few years.
        rcgen::date_time_ymd(year.into(), month, day.min(28))
    };
    // A year back: nobody's clock is so wrong.
    let (from, until) = (date(today.year() - 1), date(today.year() + OWN_CA_YEARS));

    let ca_key = KeyPair::generate().map_err(|error| wrong(&error))?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, format!("{name} CA"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (ca.not_before, ca.not_after) = (from, until);
    let ca_certificate = ca.self_signed(&ca_key).map_err(|error| wrong(&error))?;
    let issuer = Issuer::from_params(&ca, &ca_key);

    let key = KeyPair::generate().map_err(|error| wrong(&error))?;
    let names = [&name, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut leaf = CertificateParams::new(names).map_err(|error| wrong(&error))?;
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.distinguished_name.push(DnType::CommonName, name.clone());
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.use_authority_key_identifier_extension = true;
    (leaf.not_before, leaf.not_after) = (from, until);
    let certificate = leaf.signed_by(&key, &issuer).map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| wrong(&error))?;
    let config = config(vec![certificate.der().clone()], key).map_err(|error| wrong(&error))?;
    Ok(OwnCa { config, ca_pem: ca_certificate.pem() })
}

/// Writes the CA's certificate so that a reader never sees half of it.
pub fn write_ca(path: &Path, pem: &str) -> Result<(), TlsError> {
    let wrong = |error: std::io::Error| {
        TlsError::Files(FileError::File {
            path: path.to_owned(),
            reason: format!("cannot be written: {error}"),
        })
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, pem).map_err(wrong)?;
    std::fs::rename(&partial, path).map_err(wrong)
}

/// Makes a configuration exchangeable while serving.
pub fn serving(config: ServerConfig) -> Tls {
    Arc::new(ArcSwap::from_pointee(config))
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = Arc::new(PossessionVerifier::new(false));
    let mut config =
        ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

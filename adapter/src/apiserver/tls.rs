//! Owns how TLS is served: protocols, certificate files re-read when they change. The adapter's own
//! certificate is made in [`crate::certificates`].
//!
//! The handshake takes any client certificate whose key the client proves to have, and trusts none:
//! who it speaks for is judged per request against the trust of that moment ([`crate::auth`]).
//! So a changed CA takes effect at once on open connections too, and a client with a certificate of
//! somebody else's CA can still come with a token, as with Go's API servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use podgauge_common::contents::Contents;
use podgauge_common::http::serve::Tls;
use podgauge_common::http::tls::{FileError, PossessionVerifier, pair_error, read_pair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, ServerConfig, SupportedProtocolVersion};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::self_metrics::SelfMetrics;

/// Time between two looks at certificate files. Projected volumes change by a symlink, which no
/// watch of a file sees.
pub(crate) const REREAD: Duration = Duration::from_secs(10);

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
    pub protocols: Protocols,
}

/// What the files hold, to serve with.
#[derive(Debug)]
pub struct Loaded {
    pub config: ServerConfig,
    /// When the first certificate expires, if it can be told.
    pub expires: Option<Timestamp>,
}

/// Which TLS and which HTTP are spoken.
#[derive(Debug, Clone)]
pub struct Protocols {
    /// TLS 1.3 only.
    pub tls13_only: bool,
    /// The suites of TLS 1.2; `None`: all that are safe. Those of TLS 1.3 are always all.
    pub tls12_suites: Option<Vec<CipherSuite>>,
    pub http2: bool,
}

// === impl Protocols ===

impl Protocols {
    /// A configuration that serves with this certificate.
    ///
    /// # Errors
    /// If the key is not the certificate's.
    pub fn config(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ServerConfig, rustls::Error> {
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(suites) = &self.tls12_suites {
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || suites.contains(&suite.suite()));
        }
        let has_tls12 = provider.cipher_suites.iter().any(|suite| suite.tls13().is_none());
        let versions: &[&SupportedProtocolVersion] =
            if self.tls13_only || !has_tls12 { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::new(PossessionVerifier::new(false)))
            .with_single_cert(chain, key)?;
        let http1 = b"http/1.1".to_vec();
        config.alpn_protocols = if self.http2 { vec![b"h2".to_vec(), http1] } else { vec![http1] };
        Ok(config)
    }
}

// === impl Files ===

impl Files {
    /// Reads both. The error names the file.
    pub fn load(&self) -> Result<Loaded, TlsError> {
        let (chain, key) = read_pair(&self.certificate, &self.key)?;
        let expires = chain.first().and_then(expiry);
        let config = self
            .protocols
            .config(chain, key)
            .map_err(|error| pair_error(&self.certificate, &self.key, &error))?;
        Ok(Loaded { config, expires })
    }

    /// Serves with what the files hold whenever that changes. A pair that cannot be used is said
    /// once, and the last good one stays. Never returns.
    pub async fn follow(self, serving: Tls, self_metrics: SelfMetrics) {
        let mut contents = Contents::of([self.certificate.clone(), self.key.clone()]);
        loop {
            contents.change(REREAD).await;
            match self.load() {
                Ok(Loaded { config, expires }) => {
                    serving.store(Arc::new(config));
                    if let Some(at) = expires {
                        self_metrics.certificate_expires("serving", at);
                    }
                    info!("{} changed: serving with it from now on", self.certificate.display());
                }
                Err(error) => warn!("keeping the last good certificate: {error}"),
            }
        }
    }
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

/// When a certificate expires.
fn expiry(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

//! Certificates that look after themselves: an authority of our own in a Secret that the replicas
//! share, a serving certificate of it that is renewed in time, and the `caBundle` of the
//! APIServices kept at what they are verified against.
//!
//! ```text
//! Secret ◄─► keeper ─► serving certificate
//!               │ bundle          ▲ live
//!               ▼                 │
//!            publish ─ apply ─► APIServices ─ watch ─► publish
//! ```
//! Nothing here writes a key anywhere but into that Secret.

mod issue;
mod keeper;
mod material;
mod publish;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use podgauge_common::cluster::outages::Watches;
use podgauge_common::contents::Contents;
use podgauge_common::http::serve::Tls;
use podgauge_common::http::tls::{FileError, read_certificates};
use podgauge_common::readiness::Readiness;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::apiserver::tls::{self, Files, Protocols, REREAD, TlsError};
use crate::args::ServiceName;
use crate::self_metrics::SelfMetrics;
use keeper::Keeper;
use material::Material;
pub use material::{Lifetimes, Names};

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Files; with a bundle's file its content is the `caBundle`.
    Files { certificate: PathBuf, key: PathBuf, ca_bundle: Option<PathBuf> },
    /// Our own authority, in this Secret.
    Secret(ServiceName),
    /// An authority made at this start, its certificate written to this file: for an adapter
    /// outside a cluster.
    Written(PathBuf),
}

/// What is served with, and for which Service.
#[derive(Debug, Clone)]
pub struct Settings {
    pub source: Source,
    pub service: ServiceName,
    pub lifetimes: Lifetimes,
    pub protocols: Protocols,
}

/// The configuration to serve with, exchanged whenever there is a better one. Never waits for the
/// API server: until the Secret is read a certificate of this moment is served, which nobody can
/// verify, and the adapter is not ready. `namespace_ends`: whether its namespace is being deleted.
///
/// # Errors
/// Files that cannot be read or written, or the random number generator's.
pub fn start(
    settings: Settings,
    client: Client,
    watches: &Watches,
    namespace_ends: watch::Receiver<bool>,
    readiness: &Readiness,
    self_metrics: SelfMetrics,
) -> Result<Tls, TlsError> {
    let Settings { source, service, lifetimes, protocols } = settings;
    match source {
        Source::Files { certificate, key, ca_bundle } => {
            let files = Files { certificate, key, protocols };
            let loaded = files.load()?;
            let tls = tls::serving(loaded.config);
            if let Some(at) = loaded.expires {
                self_metrics.certificate_expires("serving", at);
            }
            if let Some(path) = ca_bundle {
                let (sender, bundle) = watch::channel(Some(read_bundle(&path)?));
                tokio::spawn(follow_bundle(path, sender));
                publish::start(&client, watches, &service, namespace_ends, &bundle, &self_metrics);
            }
            tokio::spawn(files.follow(Arc::clone(&tls), self_metrics));
            Ok(tls)
        }
        Source::Written(path) => {
            let material = made(&service, Lifetimes::WITHOUT_SECRET)?;
            tls::write_ca(&path, &material.bundle())?;
            info!("CA of this start's certificate written to {}", path.display());
            self_metrics.certificate_expires("serving", material.leaf_expires());
            self_metrics.certificate_expires("ca", material.authority_expires());
            Ok(tls::serving(material.config(&protocols).map_err(|reason| own(&service, &reason))?))
        }
        Source::Secret(secret) => {
            let provisional = made(&service, lifetimes)?;
            let tls = tls::serving(provisional.config(&protocols).map_err(|reason| own(&service, &reason))?);
            let (sender, bundle) = watch::channel(None);
            let live = publish::start(&client, watches, &service, namespace_ends, &bundle, &self_metrics);
            let keeper = Keeper {
                client,
                watched: watches.add(format!("Secret {secret}")),
                secret,
                names: Names::of(&service),
                lifetimes,
                protocols,
                serving: Arc::clone(&tls),
                bundle: sender,
                live,
                condition: readiness.condition("certificates", "the Secret is not read yet"),
                self_metrics,
            };
            tokio::spawn(keeper.keep());
            Ok(tls)
        }
    }
}

fn made(service: &ServiceName, lifetimes: Lifetimes) -> Result<Material, TlsError> {
    Material::create(&Names::of(service), lifetimes, Timestamp::now()).map_err(|reason| own(service, &reason))
}

fn own(service: &ServiceName, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Own { name: service.to_string(), reason: reason.to_string() }
}

fn read_bundle(path: &Path) -> Result<String, FileError> {
    read_certificates(path)?;
    std::fs::read_to_string(path)
        .map_err(|error| FileError::File { path: path.to_owned(), reason: error.to_string() })
}

/// Publishes what the file holds whenever that changes. Never returns.
async fn follow_bundle(path: PathBuf, bundle: watch::Sender<Option<String>>) {
    let mut contents = Contents::of([path.clone()]);
    loop {
        contents.change(REREAD).await;
        match read_bundle(&path) {
            Ok(read) => {
                bundle.send_replace(Some(read));
            }
            Err(error) => warn!("keeping the last good caBundle: {error}"),
        }
    }
}

//! Owns what is trusted: the two CAs and the header names of the live ConfigMap
//! `kube-system/extension-apiserver-authentication`, or of flags. As long as that is unknown,
//! nothing is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{Config, Event};
use podgauge_common::cluster::outages::{Watched, Watches};
use podgauge_common::cluster::watch::follow;
use podgauge_common::contents::Contents;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use tracing::{info, warn};

use super::request_header::HeaderNames;
use crate::apiserver::tls::REREAD;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

/// Read by every request, replaced when the ConfigMap changes.
pub type Trust = Arc<ArcSwap<TrustBundle>>;

/// What is trusted at one moment.
#[derive(Debug, Default)]
pub struct TrustBundle {
    /// Tells bundles apart, so that what was verified against one is not believed of another.
    pub generation: u64,
    pub front_proxy: Option<FrontProxy>,
    /// Signs clients' own certificates.
    pub client_ca: Option<Authority>,
}

/// The one that may speak for others.
#[derive(Debug)]
pub struct FrontProxy {
    pub authority: Authority,
    /// Common names; empty: any.
    pub allowed_names: Vec<String>,
    pub headers: HeaderNames,
}

/// Certificates that sign client certificates.
#[derive(Clone)]
pub struct Authority(pub Arc<dyn ClientCertVerifier>);

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("{key}: {reason}")]
    Certificates { key: &'static str, reason: String },
    #[error("{key}: not a JSON array of strings")]
    Array { key: &'static str },
    #[error("{key}: {name:?} is not a header name")]
    Header { key: &'static str, name: String },
}

/// Where trust comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// In place of the ConfigMap's `client-ca-file`.
    pub client_ca_file: Option<PathBuf>,
    /// In place of everything of the front proxy that the ConfigMap says.
    pub front_proxy: Option<FrontProxyFlags>,
    /// The ConfigMap is read.
    pub lookup: bool,
}

/// The front proxy, as flags describe it.
#[derive(Debug, Clone)]
pub struct FrontProxyFlags {
    pub ca_file: PathBuf,
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_prefixes: Vec<String>,
}

/// A file that cannot be used at start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {}: {reason}", path.display())]
pub struct FileError {
    flag: &'static str,
    path: PathBuf,
    reason: String,
}

// === impl Sources ===

impl Sources {
    /// The data a ConfigMap would have that said the same as the flags and, for what they do not
    /// say, as this one.
    fn over(&self, mut data: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, FileError> {
        let read = |flag, path: &Path| {
            let wrong =
                |error: std::io::Error| FileError { flag, path: path.to_owned(), reason: error.to_string() };
            std::fs::read_to_string(path).map_err(wrong)
        };
        if let Some(path) = &self.client_ca_file {
            data.insert("client-ca-file".to_owned(), read("--client-ca-file", path)?);
        }
        if let Some(flags) = &self.front_proxy {
            data.retain(|key, _| !key.starts_with("requestheader-"));
            let list = |names: &[String]| serde_json::json!(names).to_string();
            let ca = read("--requestheader-client-ca-file", &flags.ca_file)?;
            for (key, value) in [
                ("client-ca-file", ca),
                ("allowed-names", list(&flags.allowed_names)),
                ("username-headers", list(&flags.username_headers)),
                ("uid-headers", list(&flags.uid_headers)),
                ("group-headers", list(&flags.group_headers)),
                ("extra-headers-prefix", list(&flags.extra_prefixes)),
            ] {
                data.insert(format!("requestheader-{key}"), value);
            }
        }
        Ok(data)
    }

    /// Whether everything that flags name can be used, so that a mistake shows at start.
    pub fn check(&self) -> Result<(), FileError> {
        let (_, errors) = TrustBundle::read(&self.over(BTreeMap::new())?, 0);
        let Some(error) = errors.first() else { return Ok(()) };
        let (flag, path) = match (error.key(), &self.client_ca_file, &self.front_proxy) {
            ("client-ca-file", Some(path), _) => ("--client-ca-file", path.clone()),
            (_, _, Some(flags)) => ("--requestheader-client-ca-file", flags.ca_file.clone()),
            _ => return Ok(()),
        };
        Err(FileError { flag, path, reason: error.to_string() })
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let proxy = self.front_proxy.as_ref().map(|flags| flags.ca_file.clone());
        self.client_ca_file.clone().into_iter().chain(proxy)
    }
}

/// Follows the ConfigMap and the files for the life of the program.
pub async fn follow_trust(client: Client, watches: Watches, sources: Sources, trust: Trust) {
    let mut contents = Contents::of(sources.files());
    let (sender, mut map) = watch::channel(None);
    // Without a look-up it is held here, and says nothing.
    let sender = Arc::new(sender);
    let flags = !contents.paths().is_empty();
    if sources.lookup {
        let watched = watches.add(format!("ConfigMap {NAMESPACE}/{NAME}"));
        tokio::spawn(follow_config_map(client, watched, Arc::clone(&sender)));
    }
    let mut generation = 0;
    let mut seen = None;
    loop {
        let looked_up = map.borrow_and_update().clone();
        let known = looked_up.is_some() || flags;
        match sources.over(looked_up.unwrap_or_default()) {
            Ok(data) if known && seen.as_ref() != Some(&data) => {
                generation += 1;
                trust.store(Arc::new(believe(&data, generation)));
                seen = Some(data);
            }
            Ok(_) => {}
            Err(error) => warn!("keeping the CAs that were read last: {error}"),
        }
        let files = async {
            if flags {
                contents.change(REREAD).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = map.changed() => if changed.is_err() { return },
            () = files => {}
        }
    }
}

fn believe(data: &BTreeMap<String, String>, generation: u64) -> TrustBundle {
    let (bundle, errors) = TrustBundle::read(data, generation);
    for error in errors {
        warn!("{NAMESPACE}/{NAME} and flags: {error}; what it is for is refused");
    }
    let says = |known: bool| if known { "trusted" } else { "unknown, refused" };
    info!(
        "front proxy {}, client certificates {}",
        says(bundle.front_proxy.is_some()),
        says(bundle.client_ca.is_some()),
    );
    bundle
}

/// Tells the ConfigMap's data, empty if it is not there.
async fn follow_config_map(
    client: Client,
    watched: Watched,
    map: Arc<watch::Sender<Option<BTreeMap<String, String>>>>,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let config = Config::default().fields(&format!("metadata.name={NAME}"));
    let mut listed = false;
    follow(api, config, watched, |event| {
        let data = match event {
            Ok(Event::Apply(map) | Event::InitApply(map)) => {
                // A stand-in that ignores the field selector must not be believed for another map.
                if map.metadata.name.as_deref() != Some(NAME) {
                    return;
                }
                listed = true;
                map.data.unwrap_or_default()
            }
            Ok(Event::Init) => {
                listed = false;
                return;
            }
            Ok(Event::InitDone) if listed => return,
            Ok(Event::InitDone | Event::Delete(_)) => BTreeMap::new(),
            Err(_) => return,
        };
        map.send_replace(Some(data));
    })
    .await;
}

// === impl TrustError ===

impl TrustError {
    fn key(&self) -> &'static str {
        match self {
            Self::Certificates { key, .. } | Self::Array { key } | Self::Header { key, .. } => key,
        }
    }
}

impl TrustBundle {
    /// Reads the ConfigMap's data. A part that cannot be read is not trusted.
    pub fn read(data: &BTreeMap<String, String>, generation: u64) -> (Self, Vec<TrustError>) {
        let client_ca = authority(data, "client-ca-file");
        let front_proxy = FrontProxy::read(data);
        let errors = [client_ca.as_ref().err(), front_proxy.as_ref().err()];
        let errors = errors.into_iter().flatten().cloned().collect();
        let (client_ca, front_proxy) = (client_ca.unwrap_or_default(), front_proxy.unwrap_or_default());
        (Self { generation, front_proxy, client_ca }, errors)
    }
}

impl FrontProxy {
    fn read(data: &BTreeMap<String, String>) -> Result<Option<Self>, TrustError> {
        let Some(authority) = authority(data, "requestheader-client-ca-file")? else { return Ok(None) };
        let allowed_names = array(data, "requestheader-allowed-names")?;
        // A list that is empty or missing names nothing: without user headers nobody is believed.
        let prefixes = array(data, "requestheader-extra-headers-prefix")?;
        let headers = HeaderNames {
            username: header_names(data, "requestheader-username-headers")?,
            uid: header_names(data, "requestheader-uid-headers")?,
            group: header_names(data, "requestheader-group-headers")?,
            extra_prefixes: prefixes.iter().map(|prefix| prefix.to_ascii_lowercase()).collect(),
        };
        if headers.username.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { authority, allowed_names, headers }))
    }
}

fn authority(data: &BTreeMap<String, String>, key: &'static str) -> Result<Option<Authority>, TrustError> {
    let Some(pem) = data.get(key).filter(|pem| !pem.trim().is_empty()) else { return Ok(None) };
    let wrong = |reason: String| TrustError::Certificates { key, reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate in PEM form".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    Ok(Some(Authority(verifier)))
}

/// A JSON array of strings; empty if the key is missing.
fn array(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, TrustError> {
    match data.get(key).map(|text| text.trim()).filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_str(text).map_err(|_| TrustError::Array { key }),
    }
}

fn header_names(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<HeaderName>, TrustError> {
    let name =
        |name: String| HeaderName::from_bytes(name.as_bytes()).map_err(|_| TrustError::Header { key, name });
    array(data, key)?.into_iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_user_headers_the_front_proxy_is_not_believed() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = parameters.self_signed(&key).unwrap().pem();
        let believed = |names: Option<&str>| {
            let mut data = BTreeMap::from([("requestheader-client-ca-file".to_owned(), ca.clone())]);
            data.extend(names.map(|names| ("requestheader-username-headers".to_owned(), names.to_owned())));
            let (bundle, errors) = TrustBundle::read(&data, 1);
            assert!(errors.is_empty());
            bundle.front_proxy.is_some()
        };
        assert!(believed(Some("[\"X-Remote-User\"]")));
        assert!(!believed(Some("[]")) && !believed(None));
    }
}

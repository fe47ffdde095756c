//! Owns what is trusted: the two CAs and the header names of the live ConfigMap
//! `kube-system/extension-apiserver-authentication`. As long as that is unknown, nothing is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderName;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;
use kube::runtime::watcher::{Config, Event};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tracing::{info, warn};

use super::request_header::HeaderNames;
use crate::cluster::watch::follow;

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

/// Follows the ConfigMap for the life of the program.
pub async fn follow_config_map(client: Client, trust: Trust) {
    let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let config = Config::default().fields(&format!("metadata.name={NAME}"));
    let mut generation = 0;
    let mut seen = None;
    let mut listed = false;
    follow(api, config, &format!("ConfigMap {NAMESPACE}/{NAME}"), |event| {
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
        if seen.as_ref() == Some(&data) {
            return;
        }
        generation += 1;
        let (bundle, errors) = TrustBundle::read(&data, generation);
        for error in errors {
            warn!("ConfigMap {NAMESPACE}/{NAME}: {error}; what it is for is refused");
        }
        let says = |known: bool| if known { "trusted" } else { "unknown, refused" };
        info!(
            "ConfigMap {NAMESPACE}/{NAME}: front proxy {}, client certificates {}",
            says(bundle.front_proxy.is_some()),
            says(bundle.client_ca.is_some()),
        );
        seen = Some(data);
        trust.store(Arc::new(bundle));
    })
    .await;
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

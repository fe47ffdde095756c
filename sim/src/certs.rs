//! Owns the simulation's certificates: authorities and what they sign.
//!
//! A cluster has three authorities that matter to an aggregated API server: the cluster's (the
//! API server's own certificate), the client one (kubeconfigs with certificates) and the
//! front-proxy one (the aggregation layer). Tests make further ones to be refused with.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Common name of the aggregation layer's client certificate, as kubeadm makes it.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// Why a certificate could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot make the certificate of {subject}: {source}")]
    Make { subject: String, source: rcgen::Error },
    #[error("cannot use the certificate of {subject}: {message}")]
    Use { subject: String, message: String },
}

/// A certificate authority with its key.
#[derive(Clone)]
pub struct Authority {
    name: String,
    pem: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

/// A certificate with its key, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub certificate_pem: String,
    pub key_pem: String,
    subject: String,
}

/// The authorities of one simulated cluster, and the front proxy's certificate.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// Signs the API server's serving certificate. Kubeconfigs carry it.
    pub cluster: Authority,
    /// Signs users' client certificates (`client-ca-file`).
    pub client: Authority,
    /// Signs the aggregation layer's certificate (`requestheader-client-ca-file`).
    pub front_proxy: Authority,
    /// CN=front-proxy-client, signed by `front_proxy`.
    pub front_proxy_client: Leaf,
    /// The API server's, for 127.0.0.1, localhost and kubernetes.default.svc.
    pub serving: Leaf,
}

// === impl Certificates ===

impl Certificates {
    /// Makes everything anew.
    ///
    /// # Errors
    /// Only the random number generator's.
    pub fn new() -> Result<Self, CertificateError> {
        let cluster = Authority::new("kubernetes")?;
        let client = Authority::new("kubernetes-client")?;
        let front_proxy = Authority::new("front-proxy-ca")?;
        Ok(Self {
            front_proxy_client: front_proxy.client(FRONT_PROXY_CLIENT, None)?,
            serving: cluster.server(
                "kube-apiserver",
                &["127.0.0.1", "::1", "localhost", "kubernetes.default", "kubernetes.default.svc"],
            )?,
            cluster,
            client,
            front_proxy,
        })
    }
}

// === impl Authority ===

impl Authority {
    /// A self-signed authority with this common name.
    ///
    /// # Errors
    /// Only the random number generator's.
    pub fn new(name: &str) -> Result<Self, CertificateError> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name = distinguished_name(name, None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            let pem = params.self_signed(&key)?.pem();
            Ok((pem, Issuer::new(params, key)))
        };
        let (pem, issuer) =
            make().map_err(|source| CertificateError::Make { subject: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), pem, issuer: Arc::new(issuer) })
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A client certificate: the common name is the user, the organization is the group.
    ///
    /// # Errors
    /// Only the random number generator's.
    pub fn client(&self, common_name: &str, organization: Option<&str>) -> Result<Leaf, CertificateError> {
        self.leaf(common_name, organization, &[], ExtendedKeyUsagePurpose::ClientAuth, None)
    }

    /// A serving certificate for these DNS names and IP addresses.
    ///
    /// # Errors
    /// A name that is neither, or the random number generator's.
    pub fn server(&self, common_name: &str, names: &[&str]) -> Result<Leaf, CertificateError> {
        self.leaf(common_name, None, names, ExtendedKeyUsagePurpose::ServerAuth, None)
    }

    /// As [`server`](Self::server), but expired since the beginning of that year.
    ///
    /// # Errors
    /// As there.
    pub fn expired_server(
        &self,
        common_name: &str,
        names: &[&str],
        year: i32,
    ) -> Result<Leaf, CertificateError> {
        self.leaf(common_name, None, names, ExtendedKeyUsagePurpose::ServerAuth, Some(year))
    }

    fn leaf(
        &self,
        common_name: &str,
        organization: Option<&str>,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        expired: Option<i32>,
    ) -> Result<Leaf, CertificateError> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params =
                CertificateParams::new(names.iter().copied().map(String::from).collect::<Vec<_>>())?;
            params.distinguished_name = distinguished_name(common_name, organization);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            if let Some(year) = expired {
                params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
                params.not_after = rcgen::date_time_ymd(year, 1, 1);
            }
            params.use_authority_key_identifier_extension = true;
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (certificate_pem, key_pem) =
            make().map_err(|source| CertificateError::Make { subject: common_name.to_owned(), source })?;
        Ok(Leaf { certificate_pem, key_pem, subject: common_name.to_owned() })
    }
}

impl std::fmt::Debug for Authority {
    // The key stays out of it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("name", &self.name).finish_non_exhaustive()
    }
}

// === impl Leaf ===

impl Leaf {
    /// The chain and key as rustls wants them.
    ///
    /// # Errors
    /// If the PEM texts were replaced by something else.
    pub fn for_rustls(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertificateError> {
        let unusable = |message: String| CertificateError::Use { subject: self.subject.clone(), message };
        let chain = CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        Ok((chain, key))
    }

    /// Writes the certificate and the key to two files; the key is readable by its owner alone.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, certificate: &Path, key: &Path) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        std::fs::write(certificate, &self.certificate_pem)?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(key)?;
        io::Write::write_all(&mut file, self.key_pem.as_bytes())
    }
}

/// A rustls root store of the certificates in a PEM bundle.
///
/// # Errors
/// If a block of the bundle is not a certificate.
pub fn roots(bundle_pem: &str) -> Result<rustls::RootCertStore, CertificateError> {
    let unusable = |message: String| CertificateError::Use { subject: "the bundle".to_owned(), message };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    Ok(roots)
}

fn distinguished_name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use rustls::server::WebPkiClientVerifier;

    use super::*;

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    #[test]
    fn a_front_proxy_certificate_chains_to_its_own_authority_alone() {
        let made = Certificates::new().unwrap();
        let (chain, _) = made.front_proxy_client.for_rustls().unwrap();
        let verify = |authority: &Authority| {
            WebPkiClientVerifier::builder_with_provider(roots(authority.pem()).unwrap().into(), provider())
                .build()
                .unwrap()
                .verify_client_cert(&chain[0], &[], rustls::pki_types::UnixTime::now())
        };
        verify(&made.front_proxy).unwrap();
        verify(&made.client).unwrap_err();
    }

    #[test]
    fn a_serving_certificate_is_no_client_certificate() {
        let made = Certificates::new().unwrap();
        let serving = made.front_proxy.server(FRONT_PROXY_CLIENT, &["localhost"]).unwrap();
        let (chain, _) = serving.for_rustls().unwrap();
        WebPkiClientVerifier::builder_with_provider(
            roots(made.front_proxy.pem()).unwrap().into(),
            provider(),
        )
        .build()
        .unwrap()
        .verify_client_cert(&chain[0], &[], rustls::pki_types::UnixTime::now())
        .unwrap_err();
    }
}

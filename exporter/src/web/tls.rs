//! Makes a rustls configuration of the web configuration's keys.

use std::sync::Arc;

use podgauge_common::http::suites::{TLS12_SUITES, TLS13_SUITES, UNAVAILABLE_SUITES};
use podgauge_common::http::tls::{PossessionVerifier, pair_error, read_certificates, read_pair};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CipherSuite, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion, version,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::WebError;
use super::config::{ClientAuth, TlsServer, Version};

/// A configuration for new connections, and what of it cannot be had.
pub(super) struct Speaks {
    pub(super) config: ServerConfig,
    pub(super) warnings: Vec<String>,
}

/// Reads the certificates that the configuration names, and makes a configuration for new connections.
pub(super) fn server_config(tls: &TlsServer, http2: bool) -> Result<Speaks, WebError> {
    let mut warnings = Vec::new();
    let provider = Arc::new(provider(tls, &mut warnings)?);
    let versions: Vec<&SupportedProtocolVersion> =
        [(Version::Tls12, &version::TLS12), (Version::Tls13, &version::TLS13)]
            .into_iter()
            .filter(|(version, _)| tls.min_version.is_none_or(|min| *version >= min))
            .filter(|(version, _)| tls.max_version.is_none_or(|max| *version <= max))
            .map(|(_, version)| version)
            .collect();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| WebError::Tls(format!("no TLS version goes with these cipher_suites: {error}")))?;
    let missing = || WebError::Tls("cert_file and key_file (or cert and key) are missing".to_owned());
    let certificate = tls.certificate().ok_or_else(missing)?;
    let key = tls.private_key().ok_or_else(missing)?;
    let (chain, private) = read_pair(&certificate, &key)?;
    let builder = match client_verifier(tls, &provider, &mut warnings)? {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config =
        builder.with_single_cert(chain, private).map_err(|error| pair_error(&certificate, &key, &error))?;
    config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Speaks { config, warnings })
}

fn provider(tls: &TlsServer, warnings: &mut Vec<String>) -> Result<CryptoProvider, WebError> {
    let mut provider = ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        let chosen = chosen_suites(&tls.cipher_suites, warnings)?;
        // As in Go, the list is about TLS 1.2 alone.
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || chosen.contains(&suite.suite()));
    }
    if !tls.curve_preferences.is_empty() {
        let groups = chosen_curves(&tls.curve_preferences, warnings)?;
        if !groups.is_empty() {
            provider.kx_groups = groups;
        }
    }
    Ok(provider)
}

/// The suites of TLS 1.2 that are named and available.
fn chosen_suites(names: &[String], warnings: &mut Vec<String>) -> Result<Vec<CipherSuite>, WebError> {
    let available = TLS12_SUITES.iter().chain(&TLS13_SUITES);
    let mut missing = Vec::new();
    let mut chosen = Vec::new();
    for name in names {
        if let Some((_, suite)) = available.clone().find(|(known, _)| known == name) {
            chosen.push(*suite);
        } else if UNAVAILABLE_SUITES.contains(&name.as_str()) {
            missing.push(name.as_str());
        } else {
            let known: Vec<&str> = available.map(|(name, _)| *name).collect();
            return Err(WebError::Tls(format!(
                "cipher_suites: {name:?} is not a cipher suite; available are {}",
                known.join(", ")
            )));
        }
    }
    if !missing.is_empty() {
        warnings.push(format!("tls_server_config: cipher_suites: {} not available here", all(&missing)));
    }
    Ok(chosen)
}

/// The groups of the curves that are named and available.
fn chosen_curves(
    names: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<&'static dyn SupportedKxGroup>, WebError> {
    let mut missing = Vec::new();
    let mut chosen = Vec::new();
    for name in names {
        chosen.push(match name.as_str() {
            "X25519" => ring::kx_group::X25519,
            "CurveP256" => ring::kx_group::SECP256R1,
            "CurveP384" => ring::kx_group::SECP384R1,
            "CurveP521" => {
                missing.push("CurveP521");
                continue;
            }
            other => {
                return Err(WebError::Tls(format!(
                    "curve_preferences: {other:?} is not a curve; available are X25519, CurveP256, CurveP384"
                )));
            }
        });
    }
    if !missing.is_empty() {
        let used = if chosen.is_empty() { "; X25519, CurveP256 and CurveP384 are used" } else { "" };
        warnings.push(format!(
            "tls_server_config: curve_preferences: {} not available here{used}",
            all(&missing)
        ));
    }
    Ok(chosen)
}

/// Names, and the verb for their number.
fn all(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

fn client_verifier(
    tls: &TlsServer,
    provider: &Arc<CryptoProvider>,
    warnings: &mut Vec<String>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, WebError> {
    let mut verified = |required: bool| -> Result<Arc<dyn ClientCertVerifier>, WebError> {
        let Some(authorities) = tls.client_authorities() else {
            warnings.push(format!(
                "tls_server_config: client_auth_type {:?} without client_ca_file: every client certificate is refused",
                tls.client_auth_type
            ));
            let verifier = Arc::new(PossessionVerifier::new(required));
            return Ok(Arc::new(AllowedNames { verifier, names: Vec::new() }));
        };
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&authorities)? {
            roots.add(certificate).map_err(|error| authorities.wrong(error.to_string()))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        Ok(builder.build().map_err(|error| authorities.wrong(error.to_string()))?)
    };
    let verifier: Arc<dyn ClientCertVerifier> = match tls.client_auth_type {
        ClientAuth::NoClientCert => return Ok(None),
        ClientAuth::RequestClientCert => Arc::new(PossessionVerifier::new(false)),
        ClientAuth::RequireAnyClientCert => Arc::new(PossessionVerifier::new(true)),
        ClientAuth::VerifyClientCertIfGiven => verified(false)?,
        ClientAuth::RequireAndVerifyClientCert => verified(true)?,
    };
    if tls.client_allowed_sans.is_empty() {
        return Ok(Some(verifier));
    }
    Ok(Some(Arc::new(AllowedNames { verifier, names: tls.client_allowed_sans.clone() })))
}

/// Another verifier, and one of these subject alternative names besides. Without names no certificate
/// is accepted.
#[derive(Debug)]
struct AllowedNames {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl AllowedNames {
    fn allows(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
        names.value.general_names.iter().any(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
                self.names.iter().any(|allowed| allowed == name)
            }
            GeneralName::IPAddress(bytes) => {
                address(bytes).is_some_and(|address| self.names.contains(&address))
            }
            _ => false,
        })
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

impl ClientCertVerifier for AllowedNames {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        if self.allows(end_entity) {
            return Ok(verified);
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

//! Owns how TLS is spoken: the web configuration's keys as a rustls configuration.

use std::sync::Arc;

use podgauge_common::http::tls::{PossessionVerifier, pair_error, read_certificates, read_pair};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion, version,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::WebError;
use super::config::{ClientAuth, TlsServer, Version};

/// Reads the files that the configuration names and puts it into force for new connections.
pub(super) fn server_config(tls: &TlsServer, http2: bool) -> Result<ServerConfig, WebError> {
    let provider = Arc::new(provider(tls)?);
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
    let (chain, key) = read_pair(&tls.cert_file, &tls.key_file)?;
    let builder = match client_verifier(tls, &provider)? {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| pair_error(&tls.cert_file, &tls.key_file, &error))?;
    config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(config)
}

fn provider(tls: &TlsServer) -> Result<CryptoProvider, WebError> {
    let mut provider = ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        let known = provider.cipher_suites.clone();
        let mut chosen = known.clone();
        // As in Go, the list is about TLS 1.2 alone.
        chosen.retain(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)));
        for name in &tls.cipher_suites {
            let suite = known.iter().find(|suite| suite_name(suite) == *name).ok_or_else(|| {
                let names: Vec<String> = known.iter().map(suite_name).collect();
                WebError::Tls(format!("cipher_suites: {name:?} is not spoken, only {}", names.join(", ")))
            })?;
            if !chosen.contains(suite) {
                chosen.push(*suite);
            }
        }
        provider.cipher_suites = chosen;
    }
    if !tls.curve_preferences.is_empty() {
        provider.kx_groups = tls
            .curve_preferences
            .iter()
            .map(|name| -> Result<&'static dyn SupportedKxGroup, WebError> {
                match name.as_str() {
                    "X25519" => Ok(ring::kx_group::X25519),
                    "CurveP256" => Ok(ring::kx_group::SECP256R1),
                    "CurveP384" => Ok(ring::kx_group::SECP384R1),
                    other => Err(WebError::Tls(format!(
                        "curve_preferences: {other:?} is not spoken, only X25519, CurveP256, CurveP384"
                    ))),
                }
            })
            .collect::<Result<_, _>>()?;
    }
    Ok(provider)
}

/// A suite's name as Go writes it.
fn suite_name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

fn client_verifier(
    tls: &TlsServer,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, WebError> {
    let verified = |required: bool| -> Result<Arc<dyn ClientCertVerifier>, WebError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &tls.client_ca_file {
            for certificate in read_certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| WebError::Tls(format!("{}: {error}", path.display())))?;
            }
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        builder.build().map_err(|error| WebError::Tls(format!("client_ca_file: {error}")))
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

/// Another verifier, and one of these subject alternative names besides.
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

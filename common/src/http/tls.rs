//! Owns what both programs need of TLS files: certificates and keys read from PEM, with errors
//! that name the file, and the verifier that asks a client for no more than the key it presents.

use std::path::{Path, PathBuf};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

/// Why certificate or key files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{} and {}: {reason}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, reason: String },
}

/// A certificate chain, the server's own first, and its key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads a chain and its key. Whether they belong together shows when they are used; see
/// [`pair_error`].
pub fn read_pair(certificate: &Path, key: &Path) -> Result<Pair, FileError> {
    let chain = read_certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| FileError::File {
        path: key.to_owned(),
        reason: "it has no private key in PEM form".to_owned(),
    })?;
    Ok((chain, key))
}

/// Reads the certificates of a PEM file, at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let wrong = |reason: String| FileError::File { path: path.to_owned(), reason };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let certificates = certificates.map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("it has no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

/// What rustls says of a chain and key that do not go together.
pub fn pair_error(certificate: &Path, key: &Path, error: &rustls::Error) -> FileError {
    FileError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: match error {
            rustls::Error::InconsistentKeys(_) => "the key is not the certificate's".to_owned(),
            other => other.to_string(),
        },
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|error| FileError::File { path: path.to_owned(), reason: error.to_string() })
}

/// Asks for a client certificate, takes any, and verifies only that the client has its key.
#[derive(Debug)]
pub struct PossessionVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    mandatory: bool,
}

impl PossessionVerifier {
    /// `mandatory`: a client without a certificate is refused.
    pub fn new(mandatory: bool) -> Self {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        Self { algorithms, mandatory }
    }
}

impl ClientCertVerifier for PossessionVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

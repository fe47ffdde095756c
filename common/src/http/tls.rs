//! Reads certificates and keys from PEM, with errors that name the file or the setting, and verifies
//! that a client has the key of the certificate that it presents.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

/// Why certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{setting}: {reason}")]
    Inline { setting: &'static str, reason: String },
    #[error("{certificate} and {key}: {reason}")]
    Pair { certificate: Pem, key: Pem, reason: String },
}

/// PEM text, or the file that holds it. Shown as the file's path or the setting's name.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    File(PathBuf),
    Inline { setting: &'static str, text: String },
}

/// A certificate chain, the server's own first, and its key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads a chain and its key. Whether they belong together shows when they are used; see
/// [`pair_error`].
pub fn read_pair(certificate: impl Into<Pem>, key: impl Into<Pem>) -> Result<Pair, FileError> {
    let (certificate, key) = (certificate.into(), key.into());
    let chain = read_certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&key.read()?)
        .map_err(|_| key.wrong("it has no private key in PEM form".to_owned()))?;
    Ok((chain, key))
}

/// Reads the certificates of a PEM text, at least one.
pub fn read_certificates(pem: impl Into<Pem>) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let pem = pem.into();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.read()?).collect();
    let certificates = certificates.map_err(|error| pem.wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(pem.wrong("it has no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

/// What rustls says of a chain and key that do not go together.
pub fn pair_error(certificate: impl Into<Pem>, key: impl Into<Pem>, error: &rustls::Error) -> FileError {
    FileError::Pair {
        certificate: certificate.into(),
        key: key.into(),
        reason: match error {
            rustls::Error::InconsistentKeys(_) => "the key is not the certificate's".to_owned(),
            other => other.to_string(),
        },
    }
}

// === impl Pem ===

impl Pem {
    fn read(&self) -> Result<Vec<u8>, FileError> {
        match self {
            Self::File(path) => std::fs::read(path).map_err(|error| self.wrong(error.to_string())),
            Self::Inline { text, .. } => Ok(text.clone().into_bytes()),
        }
    }

    /// The error that names this text.
    pub fn wrong(&self, reason: String) -> FileError {
        match self {
            Self::File(path) => FileError::File { path: path.clone(), reason },
            Self::Inline { setting, .. } => FileError::Inline { setting, reason },
        }
    }
}

impl From<&Path> for Pem {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for Pem {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Self> for Pem {
    fn from(pem: &Self) -> Self {
        pem.clone()
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Inline { setting, .. } => f.write_str(setting),
        }
    }
}

/// Never shows the text: it may be a private key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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

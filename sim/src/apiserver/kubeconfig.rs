//! Owns the writing of kubeconfig files.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::certs::Leaf;

/// What a kubeconfig presents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    Token(String),
    Certificate(Leaf),
    /// Nothing: anonymous.
    None,
}

/// Writes or replaces a kubeconfig, readable by its owner alone.
///
/// # Errors
/// The file system's.
pub(super) fn write(
    path: &Path,
    server: SocketAddr,
    authority_pem: &str,
    credentials: &Credentials,
) -> io::Result<()> {
    let authority = STANDARD.encode(authority_pem);
    let user = match credentials {
        Credentials::Token(token) => format!("\n    token: {token}"),
        Credentials::Certificate(leaf) => format!(
            "\n    client-certificate-data: {}\n    client-key-data: {}",
            STANDARD.encode(&leaf.certificate_pem),
            STANDARD.encode(&leaf.key_pem)
        ),
        Credentials::None => " {}".to_owned(),
    };
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: podgauge-sim
clusters:
- name: podgauge-sim
  cluster:
    server: https://{server}
    certificate-authority-data: {authority}
contexts:
- name: podgauge-sim
  context:
    cluster: podgauge-sim
    user: podgauge-sim
users:
- name: podgauge-sim
  user:{user}
"
    );
    // Put in place at once: a program that starts may be reading the one before. A temporary file is
    // readable by its owner alone.
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

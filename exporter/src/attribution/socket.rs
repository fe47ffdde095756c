//! Says why a unix socket cannot be connected to, and what to check.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use tokio::net::UnixStream;

/// Why there is no connection to a socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketFault {
    #[error(
        "there is no such file; is --pod-resources-kubelet-socket right, and is the host's folder of it mounted into \
         the container?"
    )]
    Missing,
    #[error(
        "it is {0}, not a socket; --pod-resources-kubelet-socket names the socket itself, usually kubelet.sock"
    )]
    NotASocket(&'static str),
    #[error(
        "permission denied; the socket and its folder belong to root: run as root, and see SELinux or AppArmor"
    )]
    Denied,
    #[error("nothing listens on it; is the kubelet running? One that was restarted makes a new socket file")]
    Refused,
    #[error("cannot connect: {0}")]
    Other(std::io::Error),
}

/// Looks at a socket that could not be connected to. `None` if nothing is wrong with it now.
pub(super) async fn examine(socket: &Path) -> Option<SocketFault> {
    let kind = match std::fs::metadata(socket) {
        Ok(metadata) => metadata.file_type(),
        Err(error) => return Some(SocketFault::of(error)),
    };
    if !kind.is_socket() {
        return Some(SocketFault::NotASocket(if kind.is_dir() { "a folder" } else { "a file" }));
    }
    UnixStream::connect(socket).await.err().map(SocketFault::of)
}

// === impl SocketFault ===

impl SocketFault {
    fn of(error: std::io::Error) -> Self {
        match error.kind() {
            // The second: a part of the path is a file.
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::ConnectionRefused => Self::Refused,
            _ => Self::Other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fault(socket: &Path) -> String {
        examine(socket).await.map(|fault| fault.to_string()).unwrap_or_default()
    }

    #[tokio::test]
    async fn each_fault_has_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(fault(&path("none.sock")).await.contains("no such file"));
        assert!(fault(folder.path()).await.contains("a folder, not a socket"));
        std::fs::write(path("file"), "").unwrap();
        assert!(fault(&path("file")).await.contains("a file, not a socket"));
        assert!(fault(&path("file/kubelet.sock")).await.contains("no such file"));
        let listener = std::os::unix::net::UnixListener::bind(path("kubelet.sock")).unwrap();
        assert_eq!(fault(&path("kubelet.sock")).await, "");
        drop(listener);
        assert!(fault(&path("kubelet.sock")).await.contains("nothing listens"));
        assert!(
            SocketFault::of(ErrorKind::PermissionDenied.into()).to_string().contains("permission denied")
        );
    }
}

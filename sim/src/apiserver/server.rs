//! Owns the stand-in API server's connections: TLS, optional client certificates, HTTP/1.1 and h2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::access::User;
use super::{State, routes};
use crate::certs::{CertificateError, Certificates, roots};
use crate::serving::Stopped;

/// A handshake that takes longer is given up.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The user of its client certificate.
    pub(crate) certificate: Option<User>,
}

/// The serving certificate; client certificates of the cluster's client authority are taken.
pub(crate) fn tls(certificates: &Certificates) -> Result<TlsAcceptor, CertificateError> {
    let unusable = |message: String| CertificateError::Use { subject: "kube-apiserver".to_owned(), message };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(
        roots(certificates.client.pem())?.into(),
        Arc::clone(&provider),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|error| unusable(error.to_string()))?;
    let (chain, key) = certificates.serving.for_rustls()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unusable(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accepts until told to stop; then every connection dies.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>, mut stopped: Stopped) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    connections.spawn(connection(stream, address, tls.clone(), Arc::clone(&state)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the stand-in API server's port");
                    // Out of file descriptors, say: the next try is not at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = &mut stopped => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, address: SocketAddr, tls: TlsAcceptor, state: Arc<State>) {
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "TLS handshake took too long");
            return;
        }
    };
    let certificate =
        stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(certificate_user);
    let peer = Peer { address, certificate };
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        let peer = peer.clone();
        async move { Ok::<_, std::convert::Infallible>(routes::handle(&state, &peer, request).await) }
    });
    if let Err(error) =
        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
    {
        tracing::debug!(%address, %error, "a connection ended");
    }
}

/// The common name is the user, the organizations are the groups.
fn certificate_user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|group| group.as_str().ok()).collect();
    Some(User::of_groups(name, &groups))
}

//! Connections that a well-behaved client would not make: TLS by hand, HTTP/2 frame by frame.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use podgauge_sim::aggregator::Protocol;
use podgauge_sim::certs::{Leaf, roots};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::cluster::SERVICE;

/// A client that sends bodies and verifies against one authority (PEM).
pub fn client(ca: &str, protocol: Protocol) -> Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls(ca, None)).https_only();
    let connector = match protocol {
        Protocol::Http1 => connector.enable_http1().build(),
        Protocol::Http2 => connector.enable_http2().build(),
        Protocol::Negotiated => connector.enable_http1().enable_http2().build(),
    };
    Client::builder(TokioExecutor::new()).build(connector)
}

/// A TLS client configuration without ALPN.
pub fn tls(ca: &str, certificate: Option<&Leaf>) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(ca).unwrap());
    match certificate {
        Some(leaf) => {
            let (chain, key) = leaf.for_rustls().unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    }
}

/// A TLS connection to an adapter, under its Service's name.
///
/// # Errors
/// The handshake's.
pub async fn connect(
    address: SocketAddr,
    mut config: rustls::ClientConfig,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(SERVICE).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// HTTP/2's opening: preface and an empty SETTINGS frame.
pub const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// An HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A HEADERS frame that ends its stream: `GET` of a path, nothing indexed beyond HPACK's own table.
pub fn get_frame(stream: u32, path: &str) -> Vec<u8> {
    // :method GET, :scheme https.
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(0x04, path), (0x01, "adapter")] {
        // A literal with one of the table's names, not added to it. Shorter than 127 bytes.
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    frame(0x01, 0x05, stream, &block)
}

/// A RST_STREAM frame: CANCEL.
pub fn reset_frame(stream: u32) -> Vec<u8> {
    frame(0x03, 0, stream, &8u32.to_be_bytes())
}

/// A TLS client configuration that verifies nothing: for what nobody can verify.
pub fn tls_unverified() -> rustls::ClientConfig {
    let mut config = tls("", None);
    config.dangerous().set_certificate_verifier(Arc::new(Unverified));
    config
}

/// A request in clear over an open connection, and everything that comes back until its end.
pub async fn exchange(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut answer = Vec::new();
    // A connection that is closed early is an answer, too.
    let _ = stream.write_all(request).await;
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[derive(Debug)]
struct Unverified;

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

//! Connections that a well-behaved client would not make: TLS by hand, HTTP/2 frame by frame.

use std::net::{Ipv4Addr, SocketAddr};
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
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
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
    config: rustls::ClientConfig,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_from(Ipv4Addr::LOCALHOST, address, config, alpn).await
}

/// As [`connect`], from this address of the machine.
///
/// # Errors
/// The handshake's.
pub async fn connect_from(
    from: Ipv4Addr,
    address: SocketAddr,
    mut config: rustls::ClientConfig,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = crate::flood::open(from, address).await?;
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
    get_frame_with(stream, path, &[])
}

/// As [`get_frame`], with more headers. Names and values are shorter than 127 bytes.
pub fn get_frame_with(stream: u32, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    // :method GET, :scheme https.
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(0x04, path), (0x01, "adapter")] {
        // A literal with one of the table's names, not added to it.
        block.push(name);
        block.extend(text(value));
    }
    for (name, value) in headers {
        block.push(0);
        block.extend([text(name), text(value)].concat());
    }
    frame(0x01, 0x05, stream, &block)
}

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Kinds of frames.
pub const DATA: u8 = 0x00;
pub const HEADERS: u8 = 0x01;
pub const RST_STREAM: u8 = 0x03;
pub const PING: u8 = 0x06;
pub const WINDOW_UPDATE: u8 = 0x08;

/// Reads the next frame. Pings are answered on the way.
///
/// # Errors
/// The connection's end.
pub async fn read_frame(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<Frame> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await?;
        let [kind, flags] = [head[3], head[4]];
        if (kind, flags & 1) == (PING, 0) {
            stream.write_all(&frame(PING, 1, 0, &payload)).await?;
            stream.flush().await?;
            continue;
        }
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        return Ok(Frame { kind, flags, stream: id, payload });
    }
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

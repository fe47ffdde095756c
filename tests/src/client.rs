//! A plain HTTP client, one connection a request.

use std::net::Ipv4Addr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// GETs `http://<address><path>`.
pub async fn get(address: &str, path: &str, headers: &HeaderMap) -> std::io::Result<Response<Bytes>> {
    exchange(TcpStream::connect(address).await?, address, path, headers).await
}

/// As [`get`], from this address of the machine.
pub async fn get_from(
    from: Ipv4Addr,
    address: &str,
    path: &str,
    headers: &HeaderMap,
) -> std::io::Result<Response<Bytes>> {
    let target = address.parse().map_err(std::io::Error::other)?;
    exchange(crate::flood::open(from, target).await?, address, path, headers).await
}

/// As [`get`], over TLS. The error is the handshake's or HTTP's.
pub async fn get_tls(
    address: &str,
    config: rustls::ClientConfig,
    path: &str,
    headers: &HeaderMap,
) -> std::io::Result<Response<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await?;
    exchange(stream, address, path, headers).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: &str,
    path: &str,
    headers: &HeaderMap,
) -> std::io::Result<Response<Bytes>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let mut request = Request::get(path).header("host", address).body(Empty::<Bytes>::new()).unwrap();
    request.headers_mut().extend(headers.clone());
    let (parts, body) = sender.send_request(request).await.map_err(std::io::Error::other)?.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

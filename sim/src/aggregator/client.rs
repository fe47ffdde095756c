//! Owns the connection to the adapter: TLS against a given bundle, a fixed server name, a client
//! certificate.

use std::error::Error;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::ServerName;

use crate::certs::{CertificateError, Leaf, roots};

/// The largest answer read, compressed or not.
const ANSWER_LIMIT: usize = 64 << 20;

/// Which protocol is offered in ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// `h2, http/1.1`, as kube-apiserver does.
    #[default]
    Negotiated,
    Http1,
    Http2,
}

/// An answer, its body complete and not compressed.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdapterError {
    #[error("no answer from https://{address}: {cause}")]
    Unreachable { address: SocketAddr, cause: String },
    #[error("https://{address}{path} did not answer within {}s", limit.as_secs_f64())]
    TimedOut { address: SocketAddr, path: String, limit: Duration },
    #[error("the answer of https://{address}{path} broke off or is unreadable: {cause}")]
    BadBody { address: SocketAddr, path: String, cause: String },
    #[error("{0:?} cannot be sent in a header")]
    Header(String),
}

/// Sends requests to one address. Connections are kept and shared.
#[derive(Clone)]
pub struct AdapterClient {
    address: SocketAddr,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

// === impl AdapterClient ===

impl AdapterClient {
    /// Verifies the server's certificate against `ca_bundle` (PEM) for `server_name`, and shows
    /// `certificate` if the server asks for one.
    ///
    /// # Errors
    /// If a certificate cannot be used, or the name is no name.
    pub fn new(
        address: SocketAddr,
        server_name: &str,
        ca_bundle: &str,
        certificate: Option<&Leaf>,
        protocol: Protocol,
    ) -> Result<Self, CertificateError> {
        let unusable = |message: String| CertificateError::Use { subject: server_name.to_owned(), message };
        let name =
            ServerName::try_from(server_name.to_owned()).map_err(|error| unusable(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.to_string()))?
            .with_root_certificates(roots(ca_bundle)?);
        let tls = match certificate {
            Some(leaf) => {
                let (chain, key) = leaf.for_rustls()?;
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(error.to_string()))?
            }
            None => builder.with_no_client_auth(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(name));
        let connector = match protocol {
            Protocol::Negotiated => connector.enable_http1().enable_http2().build(),
            Protocol::Http1 => connector.enable_http1().build(),
            Protocol::Http2 => connector.enable_http2().build(),
        };
        // Go writes header names in title case; an adapter must not care, and this shows it.
        let client = Client::builder(TokioExecutor::new()).http1_title_case_headers(true).build(connector);
        Ok(Self { address, client })
    }

    /// Sends a request without a body.
    ///
    /// # Errors
    /// No connection, no verified certificate, no complete answer in time.
    pub async fn send(
        &self,
        method: Method,
        target: &str,
        headers: HeaderMap,
        limit: Duration,
    ) -> Result<Answer, AdapterError> {
        let address = self.address;
        let path = || target.split('?').next().unwrap_or(target).to_owned();
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() = method;
        *request.uri_mut() =
            format!("https://{address}{target}").parse().map_err(|error: http::uri::InvalidUri| {
                AdapterError::Unreachable { address, cause: error.to_string() }
            })?;
        *request.headers_mut() = headers;
        let exchange = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|error| AdapterError::Unreachable { address, cause: innermost(&error) })?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| AdapterError::BadBody { address, path: path(), cause: error.to_string() })?
                .to_bytes();
            let body = if parts.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip") {
                unzip(&body).map_err(|error| AdapterError::BadBody {
                    address,
                    path: path(),
                    cause: error.to_string(),
                })?
            } else {
                body
            };
            Ok(Answer { status: parts.status, version: parts.version, headers: parts.headers, body })
        };
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(AdapterError::TimedOut { address, path: path(), limit }))
    }
}

impl std::fmt::Debug for AdapterClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterClient").field("address", &self.address).finish_non_exhaustive()
    }
}

// === impl Answer ===

impl Answer {
    /// The Content-Type, if it is text.
    pub fn content_type(&self) -> Option<&str> {
        self.headers.get(CONTENT_TYPE)?.to_str().ok()
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is none.
    pub fn json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// The text of the last error of a chain: the ones before say only that something failed.
fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn unzip(body: &[u8]) -> std::io::Result<Bytes> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(body).take(ANSWER_LIMIT as u64).read_to_end(&mut plain)?;
    Ok(plain.into())
}

//! The aggregation layer's connection to the adapter, kept: HTTP/2 over TLS with the front-proxy
//! certificate, each small write sent at once, as kube-apiserver's client does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use podgauge_sim::certs::{Leaf, roots};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

/// No answer takes so long.
const LIMIT: Duration = Duration::from_secs(20);
/// How much of an answer may be under way, as much as Go's client allows.
const WINDOW: u32 = 4 << 20;

/// One connection, and the thread's own runtime that drives it while it is used.
#[derive(Debug)]
pub(crate) struct FrontProxy {
    sender: SendRequest<Empty<Bytes>>,
    authority: String,
    /// One thread does all of a request's work here: no wait for another is measured.
    runtime: Runtime,
}

/// Who the aggregation layer says is asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl FrontProxy {
    /// Verifies the certificate against these authorities for this name, and shows `leaf`.
    pub(crate) fn connect(
        address: SocketAddr,
        name: &'static str,
        ca_bundle: &str,
        leaf: &Leaf,
    ) -> anyhow::Result<Self> {
        let (chain, key) = leaf.for_rustls()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca_bundle)?)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream =
                TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(name)?, stream).await?;
            let (_, session) = stream.get_ref();
            ensure!(session.alpn_protocol() == Some(b"h2"), "the adapter does not speak HTTP/2");
            let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            anyhow::Ok(sender)
        })?;
        Ok(Self { sender, authority: address.to_string(), runtime })
    }

    /// Waits, and answers the pings of the connection meanwhile: an idle one without is closed.
    pub(crate) fn rest(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// GETs a path, on behalf of a user.
    pub(crate) fn get(&self, target: &str, user: User) -> anyhow::Result<Answer> {
        let request = Request::get(format!("https://{}{target}", self.authority))
            .header("x-remote-user", user.name)
            .header("x-remote-group", user.group)
            .header("x-forwarded-host", &self.authority)
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-for", "127.0.0.1")
            .header("accept", "application/vnd.kubernetes.protobuf, */*")
            .header("accept-encoding", "gzip")
            .body(Empty::new())?;
        let mut sender = self.sender.clone();
        let exchange = async {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            anyhow::Ok(Answer { status: parts.status, body: body.collect().await?.to_bytes() })
        };
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, exchange).await })
            .with_context(|| format!("no answer to {target} within {LIMIT:?}"))?
            .with_context(|| target.to_owned())
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

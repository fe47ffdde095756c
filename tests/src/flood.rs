//! Clients that take connections and give nothing: from many loopback addresses, as an attacker would.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::cluster::SERVICE;
use crate::raw;
use crate::wait::until;

/// Time until a connection that was closed is made again.
const PAUSE: Duration = Duration::from_secs(3);
/// Requests of a connection whose answers are not read.
const UNREAD: u32 = 20;

/// Connections that are made again whenever they are closed. They end with this.
#[derive(Debug)]
pub struct Flood {
    tasks: JoinSet<()>,
    opened: Arc<AtomicUsize>,
}

/// The behaviour of a flood's connections once they are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing at all.
    HalfOpen,
    /// They send the beginning of a request, or of a TLS handshake.
    HalfHead,
    /// They send HTTP/2 requests of a path and read no answer.
    Unread(&'static str),
    /// They have one request of a path answered, and answer pings from then on.
    Idle(&'static str),
}

impl Flood {
    /// Opens connections from 127.0.0.2 on, the same number from each address, of these kinds in turn.
    pub fn start(target: SocketAddr, tls: bool, addresses: u8, connections: usize, kinds: &[Kind]) -> Self {
        let opened = Arc::new(AtomicUsize::new(0));
        let mut config = raw::tls_unverified();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tls.then(|| TlsConnector::from(Arc::new(config)));
        let mut tasks = JoinSet::new();
        for n in 0..connections {
            let host = 2 + u8::try_from(n % usize::from(addresses)).unwrap();
            let from = Ipv4Addr::new(127, 0, 0, host);
            let kind = kinds[n / usize::from(addresses) % kinds.len()];
            let (opened, connector) = (Arc::clone(&opened), connector.clone());
            tasks.spawn(async move {
                loop {
                    if let Ok(stream) = open(from, target).await {
                        opened.fetch_add(1, Ordering::Relaxed);
                        // However it ends, the next one is opened.
                        let _ = hold(stream, connector.as_ref(), kind).await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { tasks, opened }
    }

    /// How many connections were opened so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Waits until every connection was opened once.
    pub async fn open(&self) {
        until("the flood to be there", || async {
            let opened = self.opened();
            if opened >= self.tasks.len() { Ok(()) } else { Err(opened) }
        })
        .await;
    }
}

/// A connection from an address of this machine.
pub async fn open(from: Ipv4Addr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(target).await
}

async fn hold(mut stream: TcpStream, tls: Option<&TlsConnector>, kind: Kind) -> std::io::Result<()> {
    match (tls, kind) {
        (Some(connector), Kind::Unread(_) | Kind::Idle(_)) => {
            let name = ServerName::try_from(SERVICE).unwrap();
            speak(connector.connect(name, stream).await?, kind).await
        }
        (Some(_), Kind::HalfHead) => {
            // A ClientHello of 512 bytes that never comes.
            stream.write_all(b"\x16\x03\x01\x02\x00").await?;
            speak(stream, Kind::HalfOpen).await
        }
        _ => speak(stream, kind).await,
    }
}

/// Comes back when the connection is closed.
async fn speak(mut stream: impl AsyncRead + AsyncWrite + Unpin, kind: Kind) -> std::io::Result<()> {
    match kind {
        Kind::HalfOpen => {}
        Kind::HalfHead => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-").await?,
        Kind::Idle(path) => {
            stream.write_all(&[raw::OPENING, &raw::get_frame(1, path)].concat()).await?;
            stream.flush().await?;
            // Pings are answered on the way.
            loop {
                raw::read_frame(&mut stream).await?;
            }
        }
        Kind::Unread(path) => {
            let mut requests = raw::OPENING.to_vec();
            (0..UNREAD).for_each(|n| requests.extend(raw::get_frame(2 * n + 1, path)));
            stream.write_all(&requests).await?;
            stream.flush().await?;
            // Nothing is read, so the end is seen by writing.
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                stream.write_all(&raw::frame(raw::PING, 0, 0, &[0; 8])).await?;
                stream.flush().await?;
            }
        }
    }
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

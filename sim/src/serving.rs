//! Owns the life of a server's task, which ends its connections when it is to stop, and the port that
//! it keeps meanwhile.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server's task. Dropped, it stops soon; [`Self::stop`] also waits for that.
#[derive(Debug)]
pub(crate) struct Serving {
    told: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Ports that [`free_address`] gives.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;
/// More than one process takes.
const PORTS_OF_A_PROCESS: u32 = 16;

/// A port that nobody else gets while nobody listens on it. Connections are refused then.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    _held: TcpSocket,
}

impl Port {
    /// Takes a port; 0: a free one.
    ///
    /// # Errors
    /// If it is taken, or the operating system's.
    pub fn reserve(address: SocketAddr) -> io::Result<Self> {
        if address.port() != 0 {
            // Another of our servers would share it without a word.
            drop(std::net::TcpListener::bind(address)?);
        }
        let held = shared(address)?;
        Ok(Self { address: held.local_addr()?, _held: held })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on it, until the listener is dropped.
    ///
    /// # Errors
    /// The operating system's.
    pub fn listen(&self) -> io::Result<TcpListener> {
        shared(self.address)?.listen(BACKLOG)
    }
}

/// A socket bound to an address that others of this user may be bound to, too.
fn shared(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A free port of 127.0.0.1 for a program that cannot take any port: bound, looked at, let go. It is
/// below those that the system gives to connections and to programs that take any, so nobody gets
/// it by chance before the program does.
///
/// # Errors
/// If none is free.
pub fn free_address() -> io::Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes side by side begin apart.
    let first = std::process::id().wrapping_mul(PORTS_OF_A_PROCESS);
    let mut refused = io::ErrorKind::AddrNotAvailable.into();
    for _ in 0..PORTS {
        let port = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(PORTS);
        let port = FIRST_PORT + u16::try_from(port).unwrap_or_default();
        match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|bound| bound.local_addr()) {
            Ok(address) => return Ok(address),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Resolves when the server shall stop.
pub(crate) type Stopped = oneshot::Receiver<()>;

impl Serving {
    pub(crate) fn spawn<F>(serve: impl FnOnce(Stopped) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (told, stopped) = oneshot::channel();
        Self { told, task: tokio::spawn(serve(stopped)) }
    }

    /// Returns once the listener is closed and every connection is dead.
    pub(crate) async fn stop(self) {
        drop(self.told);
        // A task that panicked is over too; the panic was printed where it happened.
        drop(self.task.await);
    }
}

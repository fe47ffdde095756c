//! Opens listeners on addresses written the way Go writes them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;
/// Bytes of answers that the kernel keeps for a client that does not take them. They count for the
/// container's memory.
const KERNEL_UNSENT: u32 = 128 * 1024;

/// Listens on an address: `:9400`, `0.0.0.0:9400` and `[::]:9400` are every address of both families,
/// and of a name's addresses it is one, IPv4 first.
///
/// # Errors
/// The text names the address and what to do.
pub async fn listen(address: &str) -> Result<TcpListener, String> {
    let candidates = resolve(address).await?;
    let mut failure = None;
    for candidate in candidates {
        match bind(candidate) {
            Ok(listener) => return Ok(listener),
            // Another family or address is no help: the port that was asked for is in use.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(format!(
                    "cannot listen on {address}: the port is in use by another program; end it or choose another port"
                ));
            }
            Err(error) => failure = Some(format!("{candidate}: {error}")),
        }
    }
    let failure = failure.unwrap_or_else(|| "the name has no address".to_owned());
    Err(format!("cannot listen on {address}: {failure}"))
}

/// The addresses to try, in order.
async fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let wrong = |reason: String| {
        format!(
            "{address:?} is not a listen address: {reason}; write it like :9400, 127.0.0.1:9400, localhost:9400 or [::1]:9400"
        )
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("it has no port".to_owned()))?;
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err(wrong("an IPv6 address is written in brackets".to_owned()));
    }
    let port: u16 = port.parse().map_err(|_| wrong(format!("{port:?} is not a port")))?;
    if host.is_empty() {
        return Ok(every(port));
    }
    if host.starts_with('[') {
        let address: SocketAddr =
            address.parse().map_err(|_| wrong(format!("{host} is not an IPv6 address")))?;
        return Ok(if address.ip() == Ipv6Addr::UNSPECIFIED { every(port) } else { vec![address] });
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(if ip.is_unspecified() { every(port) } else { vec![(ip, port).into()] });
    }
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| {
        format!("cannot listen on {address}: the name {host:?} cannot be resolved: {error}")
    })?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// Every address of both families, and of IPv4 alone on a host without IPv6.
fn every(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // Whatever net.ipv6.bindv6only says.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit it.
    socket.set_tcp_notsent_lowat(KERNEL_UNSENT)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wrong(address: &str) -> String {
        listen(address).await.unwrap_err()
    }

    #[tokio::test]
    async fn addresses_as_go_writes_them() {
        for (address, ips) in [
            (":0", &["::", "0.0.0.0"][..]),
            ("0.0.0.0:0", &["::", "0.0.0.0"]),
            ("[::]:0", &["::", "0.0.0.0"]),
            ("127.0.0.1:0", &["127.0.0.1"]),
            ("localhost:0", &["127.0.0.1", "::1"]),
        ] {
            let listener = listen(address).await.unwrap();
            let ip = listener.local_addr().unwrap().ip().to_string();
            assert!(ips.contains(&ip.as_str()), "{address}: {ip}");
            if ip == "::" {
                assert!(!socket2::SockRef::from(&listener).only_v6().unwrap(), "{address}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_an_address_is_named() {
        for (address, words) in [
            ("::1:9400", "brackets"),
            ("9400", "no port"),
            (":http", "\"http\" is not a port"),
            ("[::1:9400", "brackets"),
            ("[localhost]:9400", "[localhost] is not an IPv6 address"),
            ("no-such-host.invalid:9400", "cannot be resolved"),
        ] {
            let error = wrong(address).await;
            assert!(error.contains(words) && error.contains(address), "{error}");
        }
    }
}

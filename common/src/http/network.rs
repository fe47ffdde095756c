//! Groups addresses by who controls them, so that limits per address cannot be avoided.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that limits count for: an IPv4 address itself, the /64 network of an IPv6 address
/// (one host can use every address of its network), and IPv4 for an IPv4 peer of an IPv6 socket.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

/// The address under which one more is counted, of at most `most` that are distinguished: further
/// ones count as one. Entries that need not stay make room first.
pub fn counted_as<V>(
    known: &mut HashMap<IpAddr, V>,
    most: usize,
    from: IpAddr,
    stays: impl Fn(&V) -> bool,
) -> IpAddr {
    if known.len() < most || known.contains_key(&from) {
        return from;
    }
    known.retain(|_, entry| stays(entry));
    if known.len() < most { from } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_address() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("10.0.0.1"), "10.0.0.1");
        assert_eq!(of("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}

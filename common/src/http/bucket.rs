//! Token buckets: limit how often something happens over time, for everybody and for each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use super::network::{counted_as, network};

/// Addresses that are counted apart at once; further ones share one count.
const ADDRESSES: usize = 4096;

/// How often something may happen: a second over time, and at once after a pause.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// For all addresses together.
    pub all: (f64, f64),
    /// For each address.
    pub each: (f64, f64),
}

/// The rest of a [`Rate`].
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    all: Bucket,
    each: HashMap<IpAddr, Bucket>,
}

/// Tokens that arrive over time and are taken one by one.
#[derive(Debug, Clone)]
struct Bucket {
    per_second: f64,
    most: f64,
    left: f64,
    since: Instant,
}

// === impl Buckets ===

impl Buckets {
    /// Nothing is taken yet.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, all: Bucket::new(rate.all, now), each: HashMap::new() }
    }

    /// Whether it may happen once more because of this address.
    ///
    /// The first time after a pause it always may: addresses that ask all the time cannot use up what
    /// is left for one that asks now and then. An address that has used up its own part takes nothing
    /// of what is for all.
    pub fn take(&mut self, from: IpAddr, now: Instant) -> bool {
        let from = counted_as(&mut self.each, ADDRESSES, network(from), |bucket| !bucket.is_full(now));
        let each = self.each.entry(from).or_insert_with(|| Bucket::new(self.rate.each, now));
        let rested = each.is_full(now);
        each.take(now) && (self.all.take(now) || rested)
    }
}

// === impl Bucket ===

impl Bucket {
    fn new((per_second, most): (f64, f64), now: Instant) -> Self {
        Self { per_second, most, left: most, since: now }
    }

    fn is_full(&self, now: Instant) -> bool {
        self.left(now) >= self.most
    }

    fn take(&mut self, now: Instant) -> bool {
        let left = self.left(now);
        let taken = left >= 1.0;
        (self.left, self.since) = (if taken { left - 1.0 } else { left }, now);
        taken
    }

    fn left(&self, now: Instant) -> f64 {
        let more = now.saturating_duration_since(self.since).as_secs_f64() * self.per_second;
        (self.left + more).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate { all: (10.0, 12.0), each: (2.0, 3.0) };

    fn taken(buckets: &mut Buckets, from: &str, at: Instant) -> usize {
        (0..10).filter(|_| buckets.take(from.parse().unwrap(), at)).count()
    }

    #[test]
    fn a_flood_is_let_through_in_drops() {
        let start = Instant::now();
        let mut buckets = Buckets::new(RATE, start);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start), 3);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start + Duration::from_secs(1)), 2);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start + Duration::from_secs(100)), 3);
        let nothing = Rate { all: (1.0, 0.0), each: (1.0, 0.0) };
        assert_eq!(taken(&mut Buckets::new(nothing, start), "10.0.0.1", start), 0);
    }

    #[test]
    fn one_address_leaves_room_for_the_others() {
        let start = Instant::now();
        let mut buckets = Buckets::new(RATE, start);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start), 3);
        assert_eq!(taken(&mut buckets, "10.0.0.2", start), 3);
        // The addresses of one network are one.
        assert_eq!(taken(&mut buckets, "2001:db8::1", start), 3);
        assert_eq!(taken(&mut buckets, "2001:db8::2", start), 0);
        assert_eq!(taken(&mut buckets, "10.0.0.3", start), 3);
        assert_eq!(taken(&mut buckets, "10.0.0.4", start), 1, "together they have 12, and each its first");
    }

    #[test]
    fn addresses_without_end_are_counted_within_bounds() {
        let start = Instant::now();
        let mut buckets = Buckets::new(Rate { all: (1e9, 1e9), each: (1.0, 1.0) }, start);
        for address in 0..2 * ADDRESSES {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(address).unwrap());
            buckets.take(address.into(), start);
        }
        assert!(buckets.each.len() <= ADDRESSES + 1);
    }
}

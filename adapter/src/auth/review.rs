//! Sends reviews to the API server, within limits of number and time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::cluster::client::one_line;

/// Longest wait for the API server's word. The aggregation layer's own checks wait 5 s.
const CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);

/// How many questions are asked for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    /// Most questions of one kind under way at once.
    parallel: usize,
    /// Most questions a second over time, and at once after a pause; `None`: any number.
    rate: Option<Rate>,
}

/// How often questions may be asked.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// For everybody together.
    all: (f64, f64),
    /// For those of one address, so that one of them leaves room for the others.
    each: (f64, f64),
}

/// For those whom a certificate vouches for, or a token that was good just now.
pub(super) const VERIFIED: Lane = Lane { parallel: 64, rate: None };
/// For users whom a token vouches for.
pub(super) const BY_TOKEN: Lane =
    Lane { parallel: 16, rate: Some(Rate { all: (40.0, 200.0), each: (20.0, 100.0) }) };
/// For everybody else: whoever can reach the port. However many they are, they take nothing of what
/// the HPA needs.
pub(super) const UNVERIFIED: Lane =
    Lane { parallel: 8, rate: Some(Rate { all: (20.0, 100.0), each: (5.0, 40.0) }) };
/// Most addresses whose questions are counted apart; further ones share one count.
const ADDRESSES: usize = 4096;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Too many ask.
    Busy,
    /// In one line.
    Failed(String),
}

/// Tokens that come with time and go with questions.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    most: f64,
    left: f64,
    since: Instant,
}

/// Sends questions of one kind to the API server, within limits.
#[derive(Debug)]
pub(super) struct Reviews<K> {
    api: Api<K>,
    parallel: Semaphore,
    rate: Option<(Rate, Mutex<Buckets>)>,
    /// The newest question had no answer.
    failing: AtomicBool,
}

/// What is left for everybody, and for each address.
#[derive(Debug)]
struct Buckets {
    all: Bucket,
    each: HashMap<IpAddr, Bucket>,
}

impl<K> Reviews<K>
where
    K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    pub(super) fn new(client: Client, lane: Lane) -> Self
    where
        K: k8s_openapi::Resource,
    {
        Self {
            api: Api::all(client),
            parallel: Semaphore::new(lane.parallel),
            rate: lane.rate.map(|rate| (rate, Mutex::new(Buckets::new(rate, Instant::now())))),
            failing: AtomicBool::new(false),
        }
    }

    /// The answered review, or why there is none. `from` is who caused the question.
    pub(super) async fn ask(&self, question: &K, from: IpAddr) -> Result<K, Unanswered> {
        if let Some((rate, buckets)) = &self.rate
            && !buckets.lock().take(*rate, from, Instant::now())
        {
            return Err(Unanswered::Busy);
        }
        let asked = async {
            let _permit = self.parallel.acquire().await.map_err(|error| error.to_string())?;
            self.api.create(&PostParams::default(), question).await.map_err(|error| one_line(&error))
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(format!("no answer of the API server within {CALL_TIMEOUT:?}")));
        let failed_before = self.failing.swap(answer.is_err(), Ordering::Relaxed);
        match &answer {
            Err(reason) if !failed_before => {
                warn!("{} fails, so requests that need one are refused: {reason}", K::kind(&()));
            }
            Ok(_) if failed_before => info!("{} works again", K::kind(&())),
            _ => {}
        }
        answer.map_err(Unanswered::Failed)
    }
}

// === impl Buckets ===

impl Buckets {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { all: Bucket::new(rate.all, now), each: HashMap::new() }
    }

    fn take(&mut self, rate: Rate, from: IpAddr, now: Instant) -> bool {
        let mut from = network(from);
        if self.each.len() >= ADDRESSES && !self.each.contains_key(&from) {
            self.each.retain(|_, bucket| !bucket.is_full(now));
            if self.each.len() >= ADDRESSES {
                from = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            }
        }
        // An address that has used up its part takes nothing of everybody's.
        self.each.entry(from).or_insert_with(|| Bucket::new(rate.each, now)).take(now) && self.all.take(now)
    }
}

/// Who has one address of an IPv6 network has all of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

// === impl Bucket ===

impl Bucket {
    fn new((per_second, most): (f64, f64), now: Instant) -> Self {
        Self { per_second, most, left: most, since: now }
    }

    fn left(&self, now: Instant) -> f64 {
        let more = now.saturating_duration_since(self.since).as_secs_f64() * self.per_second;
        (self.left + more).min(self.most)
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate { all: (10.0, 12.0), each: (2.0, 3.0) };

    fn taken(buckets: &mut Buckets, from: &str, at: Instant) -> usize {
        (0..10).filter(|_| buckets.take(RATE, from.parse().unwrap(), at)).count()
    }

    #[test]
    fn a_flood_is_let_through_in_drops() {
        let start = Instant::now();
        let mut buckets = Buckets::new(RATE, start);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start), 3);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start + Duration::from_secs(1)), 2);
        assert_eq!(taken(&mut buckets, "10.0.0.1", start + Duration::from_secs(100)), 3);
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
        assert_eq!(taken(&mut buckets, "10.0.0.4", start), 0, "together they have 12");
    }

    #[test]
    fn addresses_without_end_are_counted_within_bounds() {
        let start = Instant::now();
        let rate = Rate { all: (1e9, 1e9), each: (1.0, 1.0) };
        let mut buckets = Buckets::new(rate, start);
        for address in 0..2 * ADDRESSES {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(address).unwrap());
            buckets.take(rate, address.into(), start);
        }
        assert!(buckets.each.len() <= ADDRESSES + 1);
    }
}

//! Owns how long a connection may do nothing, and how many of them one peer may have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a connection is doing. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    in_flight: usize,
    /// It has had a request.
    used: bool,
    /// When it was opened, or last had a request in flight.
    idle_since: Instant,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct InFlight(Activity);

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { in_flight: 0, used: false, idle_since: now })))
    }

    pub(super) fn begin(&self) -> InFlight {
        let mut state = self.0.lock();
        state.in_flight += 1;
        state.used = true;
        InFlight(self.clone())
    }

    /// How much longer it may do nothing: `first` until its first request, `between` after each.
    /// `None` once that is over.
    pub(super) fn left(&self, now: Instant, first: Duration, between: Duration) -> Option<Duration> {
        let state = self.0.lock();
        let limit = if state.used { between } else { first };
        if state.in_flight > 0 {
            return Some(limit);
        }
        let left = limit.saturating_sub(now.saturating_duration_since(state.idle_since));
        (!left.is_zero()).then_some(left)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.in_flight -= 1;
        state.idle_since = Instant::now();
    }
}

/// The connections of each peer.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
}

/// One connection's place among its peer's.
#[derive(Debug)]
pub(super) struct Place {
    peers: Peers,
    peer: IpAddr,
}

impl Peers {
    pub(super) fn new(most: usize) -> Self {
        Self { open: Arc::default(), most }
    }

    /// A place for one more; `None` if the peer has as many as it may.
    pub(super) fn enter(&self, peer: IpAddr) -> Option<Place> {
        let mut open = self.open.lock();
        let count = open.entry(peer).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { peers: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock();
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_may_do_nothing_for_so_long() {
        let (first, between) = (Duration::from_secs(3), Duration::from_secs(9));
        let start = Instant::now();
        let activity = Activity::new(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(activity.left(after(1), first, between), Some(Duration::from_secs(2)));
        assert_eq!(activity.left(after(3), first, between), None);
        let request = activity.begin();
        assert_eq!(activity.left(after(100), first, between), Some(between));
        drop(request);
        assert!(activity.left(after(8), first, between).is_some());
        assert_eq!(activity.left(after(60), first, between), None);
    }

    #[test]
    fn a_peer_has_so_many_places() {
        let peers = Peers::new(2);
        let [one, other] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let (first, _second) = (peers.enter(one).unwrap(), peers.enter(one).unwrap());
        assert!(peers.enter(one).is_none() && peers.enter(other).is_some());
        drop(first);
        assert!(peers.enter(one).is_some());
        assert_eq!(peers.open.lock().len(), 1, "nothing is kept of a peer that is gone");
    }
}

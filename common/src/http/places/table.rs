//! Decides which connection gets a place and which one loses it. The time is passed in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Capacity;

/// An address with more connections than this makes room for others first. A kubelet's probes, an
/// API server or a scraper have fewer at once.
const FEW: usize = 8;
/// Connections of a known address that are kept because it is known.
const KEPT_OF_ADDRESS: usize = 16;
/// Addresses that are known at once.
const KNOWN: usize = 1024;
/// After this long without pressure the next one is logged again.
const QUIET: Duration = Duration::from_secs(60);

/// A place that a connection got.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) id: u64,
    /// Ends when the place is taken away.
    pub(super) open: watch::Receiver<()>,
    /// Another connection lost its place.
    pub(super) displaced: bool,
    /// The line to be logged.
    pub(super) pressure: Option<String>,
}

/// Every open connection.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) capacity: Capacity,
    pub(super) connections: HashMap<u64, Connection>,
    next: u64,
    /// Connections by whether they are kept, and of each address.
    open: HashMap<(bool, IpAddr), usize>,
    /// When addresses that are known were served last.
    known: HashMap<IpAddr, Instant>,
    /// When there was a connection too many last.
    pressed: Option<Instant>,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) network: IpAddr,
    standing: Standing,
    /// When it was opened, or had its last request answered.
    proven: Instant,
    /// Requests under way, answers that are not written yet included.
    pub(super) requests: usize,
    /// Answers that are not written yet.
    pub(super) answers: usize,
    /// … and their bytes.
    pub(super) unsent: usize,
    /// While there are such answers: when the first of them came, or one was written last.
    pub(super) moved: Instant,
    /// Dropped with the place.
    _open: watch::Sender<()>,
}

/// Why a connection is kept, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unproven,
    /// Its address was served before.
    Known,
    /// Its client's certificate was verified.
    Verified,
}

impl Connection {
    pub(super) fn is_kept(&self) -> bool {
        self.standing != Standing::Unproven
    }

    pub(super) fn is_verified(&self) -> bool {
        self.standing == Standing::Verified
    }
}

// === impl Table ===

impl Table {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            connections: HashMap::new(),
            next: 0,
            open: HashMap::new(),
            known: HashMap::new(),
            pressed: None,
        }
    }

    pub(super) fn enter(&mut self, network: IpAddr, now: Instant) -> Entered {
        let standing = if self.may_be_kept(network) { Standing::Known } else { Standing::Unproven };
        let kept = standing == Standing::Known;
        let own = !kept && self.count(kept, network) >= self.capacity.of_address;
        let victim = if own {
            self.oldest(|_, connection| !connection.is_kept() && connection.network == network)
        } else {
            self.crowded(kept).and_then(|kept| self.victim(kept, None))
        };
        let pressure = victim.and_then(|_| self.pressure(own.then_some(network), now));
        if let Some(id) = victim {
            self.leave(id);
        }
        let (sender, open) = watch::channel(());
        let connection = Connection {
            network,
            standing,
            proven: now,
            requests: 0,
            answers: 0,
            unsent: 0,
            moved: now,
            _open: sender,
        };
        let id = self.next;
        self.next += 1;
        self.connections.insert(id, connection);
        *self.open.entry((kept, network)).or_default() += 1;
        Entered { id, open, displaced: victim.is_some(), pressure }
    }

    pub(super) fn leave(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.uncount(connection.is_kept(), connection.network);
        }
    }

    pub(super) fn is_kept(&self, id: u64) -> bool {
        self.connections.get(&id).is_some_and(Connection::is_kept)
    }

    /// Whether another connection lost its place for it.
    pub(super) fn verified(&mut self, id: u64, now: Instant) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let (before, network) = (connection.is_kept(), connection.network);
        connection.standing = Standing::Verified;
        self.remember(network, now);
        if before {
            return false;
        }
        self.uncount(false, network);
        *self.open.entry((true, network)).or_default() += 1;
        let full = self.total(true) > self.most();
        let victim = full.then(|| self.victim(true, Some(id))).flatten();
        if let Some(id) = victim {
            self.leave(id);
        }
        victim.is_some()
    }

    pub(super) fn answered(&mut self, id: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.proven = now;
        let (verified, network) = (connection.is_verified(), connection.network);
        if verified || self.capacity.keep_answered {
            self.remember(network, now);
        }
    }

    /// Most connections that are kept, and most that are not.
    fn most(&self) -> usize {
        self.capacity.connections.saturating_sub(self.capacity.reserved)
    }

    fn may_be_kept(&self, network: IpAddr) -> bool {
        let known = || self.connections.values().filter(|c| c.standing == Standing::Known).count();
        self.known.contains_key(&network)
            && self.count(true, network) < KEPT_OF_ADDRESS
            && known() < self.capacity.reserved
    }

    /// Among which connections room has to be made for one more that is kept or not; `None`: there is
    /// room.
    fn crowded(&self, kept: bool) -> Option<bool> {
        if self.total(kept) >= self.most() {
            return Some(kept);
        }
        let full = self.connections.len() >= self.capacity.connections;
        // Of two kinds one has more than its part. Those that are kept go only if the others have less.
        full.then(|| !kept && self.total(false) < self.capacity.reserved)
    }

    /// The connection that makes room.
    fn victim(&self, kept: bool, except: Option<u64>) -> Option<u64> {
        let many = self.open.iter().filter(|((of, _), open)| *of == kept && **open > FEW);
        let most = many.max_by_key(|(_, open)| **open).map(|((_, network), _)| *network);
        self.oldest(|id, connection| {
            connection.is_kept() == kept
                && Some(id) != except
                && most.is_none_or(|network| connection.network == network)
        })
    }

    /// Of some connections the one that is longest without an answered request.
    fn oldest(&self, of: impl Fn(u64, &Connection) -> bool) -> Option<u64> {
        let candidates = self.connections.iter().filter(|(id, connection)| of(**id, connection));
        candidates.min_by_key(|(_, connection)| connection.proven).map(|(id, _)| *id)
    }

    fn remember(&mut self, network: IpAddr, now: Instant) {
        if self.known.len() >= KNOWN && !self.known.contains_key(&network) {
            let oldest = self.known.iter().min_by_key(|(_, served)| **served).map(|(network, _)| *network);
            oldest.and_then(|network| self.known.remove(&network));
        }
        self.known.insert(network, now);
    }

    fn total(&self, kept: bool) -> usize {
        self.open.iter().filter(|((of, _), _)| *of == kept).map(|(_, open)| open).sum()
    }

    fn count(&self, kept: bool, network: IpAddr) -> usize {
        self.open.get(&(kept, network)).copied().unwrap_or_default()
    }

    fn uncount(&mut self, kept: bool, network: IpAddr) {
        if let Some(open) = self.open.get_mut(&(kept, network)) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&(kept, network));
            }
        }
    }

    /// The line to log, the first time after a quiet while. `own`: the address that has too many.
    fn pressure(&mut self, own: Option<IpAddr>, now: Instant) -> Option<String> {
        let before = self.pressed.replace(now);
        if before.is_some_and(|before| now.saturating_duration_since(before) < QUIET) {
            return None;
        }
        if let Some(network) = own {
            let most = self.capacity.of_address;
            return Some(format!(
                "{network} has {most} connections, the most of one address: its oldest are closed"
            ));
        }
        let open = self.connections.len();
        let most = self.open.iter().max_by_key(|(_, open)| **open);
        let by =
            most.map_or_else(String::new, |((_, network), open)| format!(", {open} of them by {network}"));
        Some(format!("{open} connections are open{by}: those longest without an answered request are closed"))
    }
}

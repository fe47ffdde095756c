//! Keeps a place for every open connection, and decides which one is closed when there is none left.
//!
//! A half-open connection costs its client nothing. If places were kept in the order of arrival, a few
//! addresses could keep everybody else out. So a newcomer always gets a place, and the connection that
//! is closed for it is the one that is longest without an answered request, of an address that has
//! many. Connections that are *kept*, by a verified certificate or an address that was served before,
//! never make room for others, and have [`Capacity::reserved`] places of their own.
//!
//! The same table holds what a client does not read: requests under way and bytes of answers that are
//! not written yet. When these run out, it is the connection that reads nothing that is closed.

mod table;
#[cfg(test)]
mod tests;
mod unread;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::limited::{Limit, Limited};
use super::network::network;
use table::Table;
use unread::Refused;

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    /// Connections at once.
    pub(super) connections: usize,
    /// … of them for those that are kept, and as many for those that are not.
    pub(super) reserved: usize,
    /// Connections of one address that are not kept.
    pub(super) of_address: usize,
    /// Requests under way at once, of clients with a verified certificate, and again of all others.
    pub(super) requests: usize,
    /// Bytes of answers that are not written yet.
    pub(super) unsent: usize,
    /// An address that had a request answered is known: its next connections are kept. Otherwise
    /// only addresses of verified certificates are known.
    pub(super) keep_answered: bool,
}

/// The places of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Places {
    table: Arc<Mutex<Table>>,
    limited: Arc<Limited>,
}

/// A connection's place. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    holder: Holder,
    open: watch::Receiver<()>,
}

/// Reaches a connection's place, whether it still has it or not. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    places: Places,
    id: u64,
}

/// A request under way. It ends when this is dropped, which is when its answer is written.
#[derive(Debug)]
pub(super) struct Underway {
    holder: Holder,
    /// Bytes of its answer; `None`: it has no answer yet.
    unsent: Option<usize>,
}

// === impl Places ===

impl Places {
    pub(super) fn new(capacity: Capacity, limited: Arc<Limited>) -> Self {
        Self { table: Arc::new(Mutex::new(Table::new(capacity))), limited }
    }

    /// A place for a new connection. If there is none, another connection loses its own.
    pub(super) fn enter(&self, address: IpAddr, now: Instant) -> Place {
        let entered = self.table.lock().enter(network(address), now);
        if entered.displaced {
            self.limited.count(Limit::Connections);
        }
        if let Some(pressure) = entered.pressure {
            tracing::warn!("{pressure}; who can reach this port can be restricted by a NetworkPolicy");
        }
        Place { holder: Holder { places: self.clone(), id: entered.id }, open: entered.open }
    }
}

// === impl Place ===

impl Place {
    pub(super) fn holder(&self) -> Holder {
        self.holder.clone()
    }

    /// Ends when the connection has lost its place.
    pub(super) fn open(&self) -> watch::Receiver<()> {
        self.open.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.holder.places.table.lock().leave(self.holder.id);
    }
}

// === impl Holder ===

impl Holder {
    /// Whether the connection is kept when places run out.
    pub(super) fn is_kept(&self) -> bool {
        self.places.table.lock().is_kept(self.id)
    }

    /// The client's certificate was verified.
    pub(super) fn verified(&self, now: Instant) {
        if self.places.table.lock().verified(self.id, now) {
            self.places.limited.count(Limit::Connections);
        }
    }

    /// A request was answered with something else than a refusal.
    pub(super) fn answered(&self, now: Instant) {
        self.places.table.lock().answered(self.id, now);
    }

    /// Begins a request. `None`: too many are under way.
    pub(super) fn begin(&self, now: Instant) -> Option<Underway> {
        let begun = self.places.table.lock().begin(self.id, now);
        self.judged(begun, Limit::Requests).then(|| Underway { holder: self.clone(), unsent: None })
    }

    fn judged(&self, result: Result<usize, Refused>, refusal: Limit) -> bool {
        match result {
            Ok(closed) => {
                (0..closed).for_each(|_| self.places.limited.count(Limit::Unread));
                true
            }
            Err(Refused) => {
                self.places.limited.count(refusal);
                false
            }
        }
    }
}

// === impl Underway ===

impl Underway {
    /// Its answer has this many bytes. `false`: there is no room for them.
    pub(super) fn hold(&mut self, bytes: usize, now: Instant) -> bool {
        let held = self.holder.places.table.lock().hold(self.holder.id, bytes, now);
        let held = self.holder.judged(held, Limit::UnsentBytes);
        if held {
            self.unsent = Some(bytes);
        }
        held
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.holder.places.table.lock().end(self.holder.id, self.unsent, Instant::now());
    }
}

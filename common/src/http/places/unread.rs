//! Counts requests under way and answers that clients do not read, and decides which connection is
//! closed when there are too many. The time is passed in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::table::{Connection, Table};

/// Requests under way that every address may have, whatever others have.
const ALWAYS: usize = 8;
/// Time that a client with a verified certificate may read nothing before it makes room for others.
const GRACE: Duration = Duration::from_secs(1);

/// There is no room, and no connection that could make some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl Connection {
    /// Whether it has answers that are not read, and is closed if others need the room.
    fn gives_way(&self, now: Instant) -> bool {
        self.answers > 0 && (!self.is_verified() || now.saturating_duration_since(self.moved) >= GRACE)
    }
}

// === impl Table ===

impl Table {
    /// Begins a request. `Ok`: how many connections were closed to make room.
    pub(super) fn begin(&mut self, id: u64, now: Instant) -> Result<usize, Refused> {
        let Some(connection) = self.connections.get(&id) else { return Err(Refused) };
        let (verified, network) = (connection.is_verified(), connection.network);
        let mut closed = 0;
        while self.sum(|c| c.is_verified() == verified, |c| c.requests) >= self.capacity.requests {
            let own = self.sum(|c| c.network == network, |c| c.requests);
            if own < ALWAYS {
                break;
            }
            let unread = |c: &Connection| c.is_verified() == verified && c.gives_way(now);
            self.close_unread(unread, |c| c.requests, own)?;
            closed += 1;
        }
        self.connections.get_mut(&id).ok_or(Refused)?.requests += 1;
        Ok(closed)
    }

    /// Counts the bytes of an answer. `Ok`: how many connections were closed to make room.
    pub(super) fn hold(&mut self, id: u64, bytes: usize, now: Instant) -> Result<usize, Refused> {
        let Some(connection) = self.connections.get(&id) else { return Err(Refused) };
        let (kept, network) = (connection.is_kept(), connection.network);
        let mut closed = 0;
        while self.sum(|_| true, |c| c.unsent) + bytes > self.capacity.unsent {
            if bytes > self.capacity.unsent {
                return Err(Refused);
            }
            let lesser = |c: &Connection| !c.is_kept() && c.gives_way(now);
            let own = self.sum(|c| c.network == network, |c| c.unsent);
            let made = if kept { self.close_unread(lesser, |c| c.unsent, 0) } else { Err(Refused) };
            made.or_else(|_| {
                let unread = |c: &Connection| c.gives_way(now);
                self.close_unread(unread, |c| c.unsent, own)
            })?;
            closed += 1;
        }
        let connection = self.connections.get_mut(&id).ok_or(Refused)?;
        if connection.answers == 0 {
            connection.moved = now;
        }
        connection.answers += 1;
        connection.unsent += bytes;
        Ok(closed)
    }

    /// Ends a request. `unsent`: the bytes of its answer, if it had one.
    pub(super) fn end(&mut self, id: u64, unsent: Option<usize>, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.requests -= 1;
        if let Some(bytes) = unsent {
            connection.answers -= 1;
            connection.unsent -= bytes;
            connection.moved = now;
        }
    }

    fn sum(&self, of: impl Fn(&Connection) -> bool, what: impl Fn(&Connection) -> usize) -> usize {
        self.connections.values().filter(|connection| of(connection)).map(what).sum()
    }

    /// Closes one of these connections: of the address that has the most, the one that has read
    /// nothing for longest. The address must have more than `own`, which no address reaches by making
    /// room for itself.
    fn close_unread(
        &mut self,
        of: impl Fn(&Connection) -> bool,
        what: impl Fn(&Connection) -> usize,
        own: usize,
    ) -> Result<(), Refused> {
        let mut networks: HashMap<IpAddr, usize> = HashMap::new();
        for connection in self.connections.values().filter(|connection| of(connection)) {
            *networks.entry(connection.network).or_default() += what(connection);
        }
        let most = networks.into_iter().filter(|(_, sum)| *sum > own).max_by_key(|(_, sum)| *sum);
        let (network, _) = most.ok_or(Refused)?;
        let candidates =
            self.connections.iter().filter(|(_, c)| c.network == network && of(c) && what(c) > 0);
        let id = candidates.min_by_key(|(_, c)| c.moved).map(|(id, _)| *id).ok_or(Refused)?;
        self.leave(id);
        Ok(())
    }
}

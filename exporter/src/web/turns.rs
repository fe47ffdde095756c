//! Shares the judging of passwords among addresses: one judgement at a time, addresses in turn, and
//! addresses that guess pause in between.
//!
//! bcrypt costs a core tens of milliseconds or more. A client that sends wrong passwords may neither keep a
//! core busy nor keep a right password of another address waiting.

mod queue;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podgauge_common::http::network::network;
use tokio::sync::Notify;

use queue::{Queue, Ticket};

/// Interval at which a request that waits looks whether the pause of its address is over.
const LOOK: Duration = Duration::from_millis(250);

/// The order of judgements. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

/// A request's turn, or its place in the queue until then. Given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    ticket: Ticket,
}

impl Turns {
    /// Waits for a turn. `None`: the address has too many requests waiting.
    pub(super) async fn wait(&self, from: IpAddr) -> Option<Turn> {
        let ticket = self.0.queue.lock().enter(network(from), Instant::now())?;
        let turn = Turn { turns: self.clone(), ticket };
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.0.is_next(ticket) {
                return Some(turn);
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

impl Shared {
    fn is_next(&self, ticket: Ticket) -> bool {
        let mut queue = self.queue.lock();
        let before = queue.current();
        let next = queue.next(Instant::now());
        if next != before && next != Some(ticket) {
            self.changed.notify_waiters();
        }
        next == Some(ticket)
    }
}

impl Turn {
    /// Judges in this turn: whether the password is right.
    pub(super) fn judge(self, judge: impl FnOnce() -> bool) -> bool {
        let began = Instant::now();
        let right = judge();
        let now = Instant::now();
        self.turns.0.queue.lock().judged(self.ticket, right, now - began, now);
        right
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.0.queue.lock().leave(self.ticket);
        self.turns.0.changed.notify_waiters();
    }
}

//! The processes of one device: their pods, and the pods that had one a while ago. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Owner, Unavailable};

/// A pod without an allocation owns a device for so long after its last process on it.
const OWNER_AFTER: Duration = Duration::from_secs(60);
/// Most holders of one device that are remembered.
const MAX_HOLDERS: usize = 1024;

/// The owner of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Whose {
    /// A pod. The container is empty if nothing names it.
    Pod { owner: Arc<Owner>, uid: Arc<str> },
    /// A process of the host, in no pod.
    Outside,
    /// The MPS server, which the driver credits with the use of its clients.
    MpsServer,
    /// It ended before anybody could look it up.
    Gone,
    /// It runs, and its pod cannot be read from `/proc`.
    Unreadable,
}

/// Someone with processes on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) whose: Whose,
    /// Now, or within the last 60 s.
    pub(crate) live: bool,
}

/// What is known of a device's processes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes {
    /// Why nothing is.
    pub(crate) unavailable: Option<Unavailable>,
    pub(crate) holders: Vec<Holder>,
    /// Bytes of device memory; `None` if it is not known of every process, or whose it is.
    pub(crate) memory: Option<Vec<(Whose, u64)>>,
    /// NVML does not say what each process uses.
    pub(crate) no_utilization: bool,
}

/// Who has or had processes on one device.
#[derive(Debug, Default)]
pub(crate) struct HolderBook {
    seen: Vec<(Whose, Instant)>,
}

// === impl Processes ===

impl Processes {
    /// Pods with a process now, and their UIDs; those that had their first process last come last.
    pub(crate) fn live(&self) -> impl DoubleEndedIterator<Item = (&Arc<Owner>, &str)> {
        self.holders.iter().filter(|holder| holder.live).filter_map(|holder| match &holder.whose {
            Whose::Pod { owner, uid } => Some((owner, &**uid)),
            _ => None,
        })
    }
}

/// Whether a process's container is known now that was not before.
fn is_told_better(known: &Whose, now: &Whose) -> bool {
    match (known, now) {
        (Whose::Pod { owner, uid }, Whose::Pod { uid: same, .. }) => {
            owner.container.is_empty() && uid == same
        }
        _ => false,
    }
}

// === impl HolderBook ===

impl HolderBook {
    /// A process of theirs runs, or ran until now.
    pub(crate) fn seen(&mut self, whose: &Whose, now: Instant) {
        if !matches!(whose, Whose::Pod { .. } | Whose::Outside) {
            return;
        }
        match self.seen.iter().position(|(known, _)| known == whose || is_told_better(known, whose)) {
            Some(at) => self.seen[at] = (whose.clone(), now),
            None if self.seen.len() < MAX_HOLDERS => self.seen.push((whose.clone(), now)),
            None => {}
        }
    }

    /// The holders at `now`, the moment of the last list.
    pub(crate) fn holders(&mut self, now: Instant) -> Vec<Holder> {
        self.seen.retain(|(_, at)| now.saturating_duration_since(*at) < OWNER_AFTER);
        let holder = |(whose, at): &(Whose, Instant)| Holder { whose: whose.clone(), live: *at == now };
        self.seen.iter().map(holder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_a_process_stays_for_a_minute() {
        let start = Instant::now();
        let mut book = HolderBook::default();
        book.seen(&Whose::Outside, start);
        book.seen(&Whose::Unreadable, start);
        book.seen(&Whose::MpsServer, start);
        let later = start + Duration::from_secs(59);
        assert_eq!(book.holders(start), [Holder { whose: Whose::Outside, live: true }]);
        assert_eq!(book.holders(later), [Holder { whose: Whose::Outside, live: false }]);
        assert_eq!(book.holders(start + OWNER_AFTER), []);
    }
}

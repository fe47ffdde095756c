//! Owns the XID events: which were delivered, and the event sets they wait in.

use std::collections::{BTreeMap, VecDeque};

use crate::status::{Answer, Failure};

/// NVML's event type of an XID.
pub(crate) const XID_EVENT: u64 = 0x8;
/// Events that wait for somebody to register for them, at most, per GPU; the oldest go first.
const MAX_WAITING: usize = 4096;
/// Event sets at most; a caller that leaks them gets an error instead of the machine's memory.
const MAX_SETS: usize = 4096;

/// Every event set, and what each GPU has delivered.
#[derive(Debug)]
pub(crate) struct Events {
    sets: BTreeMap<usize, EventSet>,
    made: usize,
    gpus: BTreeMap<String, Xids>,
}

#[derive(Debug, Default)]
struct EventSet {
    /// By UUID: the mask of event types.
    registered: BTreeMap<String, u64>,
    /// UUID and XID, oldest first.
    queue: VecDeque<(String, u64)>,
}

/// XIDs of one GPU.
#[derive(Debug, Default)]
struct Xids {
    /// As the scenario last named them.
    named: Vec<u64>,
    /// Happened while nobody was registered.
    waiting: VecDeque<u64>,
}

impl Events {
    pub(crate) const fn new() -> Self {
        Self { sets: BTreeMap::new(), made: 0, gpus: BTreeMap::new() }
    }

    /// Takes up the XIDs that a scenario names: each that it did not name before happens now.
    pub(crate) fn name(&mut self, uuid: &str, xids: &[u64]) {
        let gpu = self.gpus.entry(uuid.to_owned()).or_default();
        let mut before = gpu.named.clone();
        let new: Vec<u64> = xids
            .iter()
            .copied()
            .filter(|xid| match before.iter().position(|named| named == xid) {
                Some(at) => {
                    before.swap_remove(at);
                    false
                }
                None => true,
            })
            .collect();
        gpu.named = xids.to_vec();
        for xid in new {
            let mut told = false;
            for set in self.sets.values_mut().filter(|set| set.wants_xids_of(uuid)) {
                set.push(uuid, xid);
                told = true;
            }
            if !told {
                gpu.waiting.push_back(xid);
                if gpu.waiting.len() > MAX_WAITING {
                    gpu.waiting.pop_front();
                }
            }
        }
    }

    /// Makes a set; its id is never 0.
    pub(crate) fn create(&mut self) -> Result<usize, Failure> {
        if self.sets.len() >= MAX_SETS {
            return Err(Failure::INSUFFICIENT_RESOURCES);
        }
        self.made += 1;
        self.sets.insert(self.made, EventSet::default());
        Ok(self.made)
    }

    /// Adds a GPU's events to a set. XIDs that nobody has been told yet go to the first that
    /// registers.
    pub(crate) fn register(&mut self, set: usize, uuid: &str, types: u64) -> Answer {
        let set = self.sets.get_mut(&set).ok_or(Failure::INVALID_ARGUMENT)?;
        *set.registered.entry(uuid.to_owned()).or_default() |= types;
        if set.wants_xids_of(uuid) {
            for xid in self.gpus.get_mut(uuid).into_iter().flat_map(|gpu| gpu.waiting.drain(..)) {
                set.push(uuid, xid);
            }
        }
        Ok(())
    }

    /// Takes the oldest event out of a set: UUID and XID.
    pub(crate) fn take(&mut self, set: usize) -> Result<Option<(String, u64)>, Failure> {
        Ok(self.sets.get_mut(&set).ok_or(Failure::INVALID_ARGUMENT)?.queue.pop_front())
    }

    /// UUIDs of the GPUs registered with a set.
    pub(crate) fn registered(&self, set: usize) -> impl Iterator<Item = &str> {
        self.sets.get(&set).into_iter().flat_map(|set| set.registered.keys()).map(String::as_str)
    }

    /// Frees a set.
    pub(crate) fn free(&mut self, set: usize) -> Answer {
        self.sets.remove(&set).map(|_| ()).ok_or(Failure::INVALID_ARGUMENT)
    }

    /// Frees every set, as shutting NVML down does.
    pub(crate) fn free_all(&mut self) {
        self.sets.clear();
    }
}

impl EventSet {
    fn wants_xids_of(&self, uuid: &str) -> bool {
        self.registered.get(uuid).is_some_and(|types| types & XID_EVENT != 0)
    }

    fn push(&mut self, uuid: &str, xid: u64) {
        self.queue.push_back((uuid.to_owned(), xid));
        if self.queue.len() > MAX_WAITING {
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_xid_is_delivered_once_and_again_when_named_once_more() {
        let mut events = Events::new();
        events.name("a", &[79]);
        let set = events.create().unwrap();
        events.register(set, "a", XID_EVENT).unwrap();
        let take = |events: &mut Events| events.take(set).unwrap().map(|(_, xid)| xid);
        assert_eq!(take(&mut events), Some(79));
        events.name("a", &[79]);
        assert_eq!(take(&mut events), None);
        events.name("a", &[31, 79, 79]);
        assert_eq!((take(&mut events), take(&mut events), take(&mut events)), (Some(31), Some(79), None));
        events.free_all();
        let again = events.create().unwrap();
        events.register(again, "a", XID_EVENT).unwrap();
        assert_eq!(events.take(again), Ok(None));
        assert_eq!(events.take(set), Err(Failure::INVALID_ARGUMENT));
    }

    #[test]
    fn a_set_hears_only_what_it_registered_for() {
        let mut events = Events::new();
        let (set, other) = (events.create().unwrap(), events.create().unwrap());
        events.register(set, "a", XID_EVENT).unwrap();
        events.register(other, "b", 0x10).unwrap();
        events.name("a", &[43]);
        events.name("b", &[43]);
        assert_eq!(events.take(set), Ok(Some(("a".into(), 43))));
        assert_eq!(events.take(other), Ok(None));
    }
}

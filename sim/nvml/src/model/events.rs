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
    /// By UUID of the GPU, and the ids of the instance.
    gpus: BTreeMap<(String, InstanceIds), Xids>,
}

#[derive(Debug, Default)]
struct EventSet {
    /// By UUID: the mask of event types.
    registered: BTreeMap<String, u64>,
    /// Oldest first.
    queue: VecDeque<Event>,
}

/// Ids of the GPU instance and the compute instance; `None` for the whole GPU.
type InstanceIds = Option<(u32, u32)>;

/// An XID that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Of the GPU.
    pub(crate) uuid: String,
    pub(crate) instance: InstanceIds,
    pub(crate) xid: u64,
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
    pub(crate) fn name(&mut self, uuid: &str, instance: InstanceIds, xids: &[u64]) {
        let gpu = self.gpus.entry((uuid.to_owned(), instance)).or_default();
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
                set.push(Event { uuid: uuid.to_owned(), instance, xid });
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
            for ((_, instance), xids) in self.gpus.iter_mut().filter(|((of, _), _)| of == uuid) {
                for xid in xids.waiting.drain(..) {
                    set.push(Event { uuid: uuid.to_owned(), instance: *instance, xid });
                }
            }
        }
        Ok(())
    }

    /// Takes the oldest event out of a set.
    pub(crate) fn take(&mut self, set: usize) -> Result<Option<Event>, Failure> {
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

    fn push(&mut self, event: Event) {
        self.queue.push_back(event);
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
        events.name("a", None, &[79]);
        let set = events.create().unwrap();
        events.register(set, "a", XID_EVENT).unwrap();
        let take = |events: &mut Events| events.take(set).unwrap().map(|event| event.xid);
        assert_eq!(take(&mut events), Some(79));
        events.name("a", None, &[79]);
        assert_eq!(take(&mut events), None);
        events.name("a", None, &[31, 79, 79]);
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
        events.name("a", Some((7, 0)), &[43]);
        events.name("b", None, &[43]);
        let event = Event { uuid: "a".into(), instance: Some((7, 0)), xid: 43 };
        assert_eq!(events.take(set), Ok(Some(event)));
        assert_eq!(events.take(other), Ok(None));
    }
}

//! Owns the cluster's objects, their revisions and the log that watches read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::kinds::Kind;

/// Changes kept for watches; a watch from an older revision is answered with 410.
const LOG_LENGTH: usize = 10_000;

/// Every object of the cluster.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    revision: u64,
    objects: BTreeMap<Key, Stored>,
    /// The objects of a kind that a source put there.
    by_source: BTreeMap<(Kind, String), BTreeSet<Key>>,
    log: VecDeque<Change>,
    /// Changes up to this revision are no longer in the log.
    forgotten: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    namespace: String,
    name: String,
}

#[derive(Debug)]
struct Stored {
    /// Who put it there: a scenario, or the server itself.
    source: String,
    object: Arc<Value>,
}

/// One change of one object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    kind: Kind,
    pub(crate) before: Option<Arc<Value>>,
    pub(crate) after: Option<Arc<Value>>,
}

/// Why a client's write was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    NotFound,
    AlreadyExists,
    /// With its message.
    Conflict(String),
    /// The object would not be valid, and why.
    Invalid(String),
}

/// The changes since that revision are no longer known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub(crate) oldest: u64,
}

// === impl Store ===

impl Store {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            revision: 1,
            objects: BTreeMap::new(),
            by_source: BTreeMap::new(),
            log: VecDeque::new(),
            forgotten: 1,
        };
        Self { inner: Mutex::new(inner), revision: watch::Sender::new(1) }
    }

    /// Makes `objects` the only ones of their kind from `source`. Unchanged ones keep their
    /// revision; `metadata.resourceVersion` is this store's to write.
    pub(crate) fn replace(&self, kind: Kind, source: &str, objects: Vec<Value>) {
        let mut inner = self.inner.lock();
        let before = inner.revision;
        let mut gone = inner.by_source.get(&(kind, source.to_owned())).cloned().unwrap_or_default();
        for object in objects {
            let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            let key = Key { kind, namespace: text("namespace"), name: text("name") };
            gone.remove(&key);
            inner.put(key, source, object);
        }
        for key in gone {
            inner.remove(&key);
        }
        let revision = inner.revision;
        drop(inner);
        if revision != before {
            self.revision.send_replace(revision);
        }
    }

    /// The objects of a kind, in all namespaces or one, and the revision they are of.
    pub(crate) fn list(&self, kind: Kind, namespace: &str) -> (Vec<Arc<Value>>, u64) {
        let inner = self.inner.lock();
        let objects = inner
            .objects
            .iter()
            .filter(|(key, _)| key.kind == kind && (namespace.is_empty() || key.namespace == namespace))
            .map(|(_, stored)| Arc::clone(&stored.object))
            .collect();
        (objects, inner.revision)
    }

    /// One object.
    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = Key { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.inner.lock().objects.get(&key).map(|stored| Arc::clone(&stored.object))
    }

    /// Lets a client change one object: `edit` is given it (`None`: not there) and gives what it
    /// shall be (`None`: gone). Nobody else writes meanwhile.
    pub(crate) fn change(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        edit: impl FnOnce(Option<&Value>) -> Result<Option<Value>, Refused>,
    ) -> Result<Option<Arc<Value>>, Refused> {
        let key = Key { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let mut inner = self.inner.lock();
        let before = inner.revision;
        let stored = inner.objects.get(&key);
        let source = stored.map_or_else(|| "clients".to_owned(), |stored| stored.source.clone());
        match edit(stored.map(|stored| stored.object.as_ref()))? {
            Some(object) => inner.put(key.clone(), &source, object),
            None => inner.remove(&key),
        }
        let object = inner.objects.get(&key).map(|stored| Arc::clone(&stored.object));
        let revision = inner.revision;
        drop(inner);
        if revision != before {
            self.revision.send_replace(revision);
        }
        Ok(object)
    }

    /// What changed in a kind after a revision, and the revision that is current now.
    pub(crate) fn since(&self, kind: Kind, revision: u64) -> Result<(Vec<Change>, u64), TooOld> {
        let inner = self.inner.lock();
        if revision < inner.forgotten {
            return Err(TooOld { oldest: inner.forgotten });
        }
        let changes = inner
            .log
            .iter()
            .filter(|change| change.kind == kind && change.revision > revision)
            .cloned()
            .collect();
        Ok((changes, inner.revision))
    }

    /// Told of every new revision.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Forgets all changes: every watch ends with 410 and must list again.
    pub(crate) fn forget(&self) {
        let mut inner = self.inner.lock();
        inner.revision += 1;
        inner.forgotten = inner.revision;
        inner.log.clear();
        let revision = inner.revision;
        drop(inner);
        self.revision.send_replace(revision);
    }
}

// === impl Inner ===

impl Inner {
    fn put(&mut self, key: Key, source: &str, mut object: Value) {
        let before = self.objects.get(&key).map(|stored| Arc::clone(&stored.object));
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if **before == object {
                return;
            }
        }
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(object);
        self.log(Change {
            revision: self.revision,
            kind: key.kind,
            before,
            after: Some(Arc::clone(&object)),
        });
        let stored = Stored { source: source.to_owned(), object };
        if let Some(replaced) = self.objects.insert(key.clone(), stored) {
            self.leave(&key, replaced.source);
        }
        self.by_source.entry((key.kind, source.to_owned())).or_default().insert(key);
    }

    /// The object is not of that source any more.
    fn leave(&mut self, key: &Key, source: String) {
        let place = (key.kind, source);
        if let Some(keys) = self.by_source.get_mut(&place) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_source.remove(&place);
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(stored) = self.objects.remove(key) else { return };
        self.leave(key, stored.source);
        self.revision += 1;
        self.log(Change {
            revision: self.revision,
            kind: key.kind,
            before: Some(stored.object),
            after: None,
        });
    }

    fn log(&mut self, change: Change) {
        if self.log.len() == LOG_LENGTH
            && let Some(oldest) = self.log.pop_front()
        {
            self.forgotten = oldest.revision;
        }
        self.log.push_back(change);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, phase: &str) -> Value {
        json!({"metadata": {"namespace": "demo", "name": name}, "status": {"phase": phase}})
    }

    #[test]
    fn unchanged_objects_keep_their_revision_and_missing_ones_are_removed() {
        let store = Store::new();
        store.replace(Kind::Pod, "one", vec![pod("a", "Running"), pod("b", "Running")]);
        store.replace(Kind::Pod, "two", vec![pod("c", "Running")]);
        let (_, revision) = store.list(Kind::Pod, "");
        store.replace(Kind::Pod, "one", vec![pod("a", "Running")]);
        let (changes, _) = store.since(Kind::Pod, revision).unwrap();
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].before.as_ref().unwrap()["metadata"]["name"], "b");
        assert!(changes[0].after.is_none());
        assert_eq!(store.list(Kind::Pod, "demo").0.len(), 2);
    }

    #[test]
    fn a_forgotten_revision_is_too_old() {
        let store = Store::new();
        store.replace(Kind::Pod, "one", vec![pod("a", "Running")]);
        let (_, revision) = store.list(Kind::Pod, "");
        store.forget();
        assert!(store.since(Kind::Pod, revision).is_err());
        let (_, now) = store.list(Kind::Pod, "");
        assert!(store.since(Kind::Pod, now).unwrap().0.is_empty());
    }
}

//! Keeps which requests for resources came, from whom, and whether they were allowed.

use parking_lot::Mutex;

use super::ApiServerHandle;
use super::access::ResourceAttributes;

/// Requests that are kept: the first ones.
const KEPT: usize = 10_000;

/// A request for a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The user's name.
    pub user: String,
    pub wanted: ResourceAttributes,
    /// The field selector; empty: none.
    pub fields: String,
    pub allowed: bool,
}

/// The requests so far, oldest first.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Vec<Asked>>);

impl Record {
    pub(super) fn add(&self, asked: Asked) {
        let mut kept = self.0.lock();
        if kept.len() < KEPT {
            kept.push(asked);
        }
    }
}

impl ApiServerHandle {
    /// The requests for resources so far, oldest first, at most the first 10,000.
    pub fn requests(&self) -> Vec<Asked> {
        self.state.record.0.lock().clone()
    }

    /// The field selectors of the lists and watches of a resource that were allowed so far, oldest
    /// first.
    pub fn selectors_of(&self, resource: &str) -> Vec<String> {
        let of = |asked: &Asked| {
            let listed = ["list", "watch"].contains(&asked.wanted.verb.as_str());
            asked.allowed && listed && asked.wanted.resource == resource
        };
        self.requests().into_iter().filter(of).map(|asked| asked.fields).collect()
    }
}

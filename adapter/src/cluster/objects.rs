//! Owns indexes of objects of which name and labels are enough: nodes and namespaces. Written by
//! the task that folds their watch, read by requests.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;

use super::selector::Selector;

type Label = (Arc<str>, Arc<str>);

/// Every object of a kind. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ObjectIndex {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Labels sorted by key.
    objects: BTreeMap<Arc<str>, Box<[Label]>>,
    /// Those seen since a list began; `None` while none is under way.
    listing: Option<HashSet<Arc<str>>>,
    /// Nodes have mostly the same labels: each text is kept once.
    texts: HashSet<Arc<str>>,
    synced: bool,
    /// Why they cannot be listed.
    failure: Option<String>,
}

impl ObjectIndex {
    /// A whole list begins. Objects not seen again before [`end`](Self::end) are gone.
    pub fn begin(&self) {
        self.inner.write().listing = Some(HashSet::new());
    }

    /// The list is complete.
    pub fn end(&self) {
        let mut inner = self.inner.write();
        if let Some(seen) = inner.listing.take() {
            inner.objects.retain(|name, _| seen.contains(name));
        }
        inner.synced = true;
        inner.failure = None;
        // Two owners at least, if anybody needs it: this set and a label.
        inner.texts.retain(|text| Arc::strong_count(text) > 1);
    }

    /// An object is there, or changed.
    pub fn apply(&self, object: &ObjectMeta) {
        let Some(name) = &object.name else { return };
        let mut inner = self.inner.write();
        let mut labels: Box<[Label]> =
            object.labels.iter().flatten().map(|(key, value)| (inner.text(key), inner.text(value))).collect();
        labels.sort_unstable();
        let name = inner
            .objects
            .get_key_value(name.as_str())
            .map_or_else(|| name.as_str().into(), |(known, _)| Arc::clone(known));
        if let Some(seen) = &mut inner.listing {
            seen.insert(Arc::clone(&name));
        }
        inner.objects.insert(name, labels);
    }

    /// An object is gone.
    pub fn delete(&self, object: &ObjectMeta) {
        if let Some(name) = &object.name {
            self.inner.write().objects.remove(name.as_str());
        }
    }

    /// They cannot be listed or watched.
    pub fn failed(&self, reason: String) {
        self.inner.write().failure = Some(reason);
    }

    /// Why answers about them cannot be given yet; `None` once a whole list has been read.
    pub fn missing(&self) -> Option<String> {
        let inner = self.inner.read();
        (!inner.synced).then(|| match &inner.failure {
            Some(reason) => format!("they cannot be listed: {reason}"),
            None => "they are not listed yet".to_owned(),
        })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.inner.read().objects.contains_key(name)
    }

    /// The names of those that the selector matches, in order.
    pub fn select(&self, selector: &Selector) -> Vec<Arc<str>> {
        let inner = self.inner.read();
        let matches = |labels: &[Label]| {
            selector.matches(|key| {
                let at = labels.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
                Some(&*labels[at].1)
            })
        };
        inner.objects.iter().filter(|(_, labels)| matches(labels)).map(|(name, _)| Arc::clone(name)).collect()
    }
}

impl Inner {
    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.collect()), ..ObjectMeta::default() }
    }

    fn names(index: &ObjectIndex, selector: &str) -> Vec<String> {
        let found = index.select(&Selector::parse(selector).unwrap());
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn objects_are_selected_by_label_and_leave_with_the_list_that_lacks_them() {
        let index = ObjectIndex::default();
        assert!(index.missing().is_some());
        index.failed("403".to_owned());
        assert_eq!(index.missing().as_deref(), Some("they cannot be listed: 403"));
        index.begin();
        index.apply(&object("b", &[("pool", "gpu"), ("zone", "1")]));
        index.apply(&object("a", &[("pool", "cpu")]));
        index.end();
        assert_eq!(index.missing(), None);
        assert_eq!(names(&index, ""), ["a", "b"]);
        assert_eq!(names(&index, "pool=gpu"), ["b"]);
        index.apply(&object("a", &[("pool", "gpu")]));
        assert_eq!(names(&index, "pool=gpu,!zone"), ["a"]);
        index.begin();
        index.apply(&object("a", &[]));
        assert!(index.contains("b"), "until the list is complete");
        index.end();
        assert_eq!(names(&index, ""), ["a"]);
        assert!(index.inner.read().texts.is_empty(), "nothing is kept of labels that nobody has");
        index.delete(&object("a", &[]));
        assert!(!index.contains("a"));
    }
}

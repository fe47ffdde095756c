//! Owns the index of the cluster's pods: written by the one task that folds watch events, read by
//! every request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use super::pods::{Label, LabelSet, PodRecord, label};
use super::selector::{Condition, Requirement, Selector};
use super::slim::SlimPod;

/// Every pod of the cluster. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PodIndex {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    namespaces: HashMap<Box<str>, Namespace>,
    nodes: HashMap<Arc<str>, usize>,
    generation: u32,
    synced: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    pods: BTreeMap<Arc<str>, Arc<PodRecord>>,
    /// A selector is held against each once.
    templates: BTreeMap<TemplateId, Template>,
    by_labels: HashMap<LabelSet, TemplateId>,
    /// Those that have a label, so that a selector is held against few of them.
    by_label: HashMap<Label, BTreeSet<TemplateId>>,
    /// Of the template that came last.
    last: TemplateId,
}

/// The pods whose labels are all the same: those of one pod template.
#[derive(Debug)]
struct Template {
    labels: LabelSet,
    /// Sorted by name.
    pods: Vec<Named>,
}

/// Counts the templates of a namespace.
type TemplateId = u64;

/// A pod with its name.
type Named = (Arc<str>, Arc<PodRecord>);

// === impl PodIndex ===

impl PodIndex {
    /// A whole list begins. Pods not seen again before [`end`](Self::end) are gone.
    pub fn begin(&self) {
        let mut inner = self.inner.write();
        inner.generation = inner.generation.wrapping_add(1);
    }

    /// The list is complete.
    pub fn end(&self) {
        let mut inner = self.inner.write();
        let generation = inner.generation;
        let gone: Vec<(Box<str>, Arc<str>)> = inner
            .namespaces
            .iter()
            .flat_map(|(namespace, pods)| pods.pods.iter().map(move |(name, pod)| (namespace, name, pod)))
            .filter(|(_, _, pod)| pod.generation != generation)
            .map(|(namespace, name, _)| (namespace.clone(), Arc::clone(name)))
            .collect();
        for (namespace, name) in gone {
            inner.remove(&namespace, &name);
        }
        inner.synced = true;
    }

    /// A pod is there, or changed.
    pub fn apply(&self, pod: &SlimPod) {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else { return };
        let record = PodRecord::from(pod);
        self.inner.write().apply(namespace, name, record);
    }

    /// A pod is gone.
    pub fn delete(&self, pod: &SlimPod) {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else { return };
        self.inner.write().remove(namespace, name);
    }

    /// Whether a whole list has been read since start.
    pub fn synced(&self) -> bool {
        self.inner.read().synced
    }

    /// Number of pods.
    pub fn len(&self) -> usize {
        self.inner.read().namespaces.values().map(|namespace| namespace.pods.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<PodRecord>> {
        self.inner.read().namespaces.get(namespace)?.pods.get(name).map(Arc::clone)
    }

    /// The pods of the namespace that the selector matches, by name. They are handed out so that
    /// what is made of them holds no watch event up.
    pub fn select(&self, namespace: &str, selector: &Selector) -> Vec<Named> {
        let inner = self.inner.read();
        let Some(namespace) = inner.namespaces.get(namespace) else { return Vec::new() };
        if selector.is_empty() {
            let named = |(name, pod): (&Arc<str>, &Arc<PodRecord>)| (Arc::clone(name), Arc::clone(pod));
            return namespace.pods.iter().map(named).collect();
        }
        let templates = namespace.matching(selector);
        let mut found = Vec::with_capacity(templates.iter().map(|template| template.pods.len()).sum());
        templates.iter().for_each(|template| found.extend_from_slice(&template.pods));
        if templates.len() > 1 {
            found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        }
        found
    }
}

// === impl Inner ===

impl Inner {
    fn apply(&mut self, namespace: &str, name: &str, mut record: PodRecord) {
        record.generation = self.generation;
        if let Some(node) = &mut record.node {
            match self.nodes.get_key_value(&**node).map(|(known, _)| Arc::clone(known)) {
                Some(known) => *node = known,
                None => {
                    self.nodes.insert(Arc::clone(node), 0);
                }
            }
            if let Some(pods) = self.nodes.get_mut(&**node) {
                *pods += 1;
            }
        }
        if !self.namespaces.contains_key(namespace) {
            self.namespaces.insert(namespace.into(), Namespace::default());
        }
        let pods = self.namespaces.get_mut(namespace).expect("because it was inserted if it was missing");
        if let Some(before) = pods.insert(name, record) {
            self.leave_node(&before);
        }
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let Some(pods) = self.namespaces.get_mut(namespace) else { return };
        let Some(record) = pods.remove(name) else { return };
        if pods.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
        self.leave_node(&record);
    }

    /// A record of a pod is kept no more.
    fn leave_node(&mut self, record: &PodRecord) {
        if let Some(node) = &record.node
            && let Some(count) = self.nodes.get_mut(&**node)
        {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&**node);
            }
        }
    }
}

// === impl Namespace ===

impl Namespace {
    /// The templates whose labels the selector matches.
    fn matching(&self, selector: &Selector) -> Vec<&Template> {
        static NONE: BTreeSet<TemplateId> = BTreeSet::new();
        let labelled = |(at, requirement): (usize, &Requirement)| match &requirement.condition {
            Condition::Equals(value) => {
                let label: Label = (requirement.key.as_str().into(), value.as_str().into());
                Some((at, self.by_label.get(&label).unwrap_or(&NONE)))
            }
            _ => None,
        };
        let fewest = selector.requirements().iter().enumerate().filter_map(labelled);
        match fewest.min_by_key(|(_, templates)| templates.len()) {
            Some((met, ids)) => ids
                .iter()
                .filter_map(|id| self.templates.get(id))
                .filter(|template| selector.matches_beside(Some(met), |key| label(&template.labels, key)))
                .collect(),
            None => self
                .templates
                .values()
                .filter(|template| selector.matches(|key| label(&template.labels, key)))
                .collect(),
        }
    }

    /// Adds a pod, and gives the one of that name before it. Labels mostly stay, so that it keeps its place.
    fn insert(&mut self, name: &str, mut record: PodRecord) -> Option<Arc<PodRecord>> {
        let stays = self.pods.get(name).is_some_and(|known| known.labels == record.labels);
        let before = if stays { None } else { self.remove(name) };
        let id = self.template(&record.labels);
        let template = self.templates.get_mut(&id)?;
        record.labels = Arc::clone(&template.labels);
        let record = Arc::new(record);
        match template.pods.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(at) => {
                template.pods[at].1 = Arc::clone(&record);
                self.pods.get_mut(name).map(|known| std::mem::replace(known, record))
            }
            Err(at) => {
                if template.pods.is_empty() {
                    template.pods.reserve_exact(1);
                }
                let name: Arc<str> = name.into();
                template.pods.insert(at, (Arc::clone(&name), Arc::clone(&record)));
                self.pods.insert(name, record);
                before
            }
        }
    }

    fn remove(&mut self, name: &str) -> Option<Arc<PodRecord>> {
        let record = self.pods.remove(name)?;
        if let Some(id) = self.by_labels.get(&record.labels).copied()
            && let Some(template) = self.templates.get_mut(&id)
        {
            if let Ok(at) = template.pods.binary_search_by(|(known, _)| (**known).cmp(name)) {
                template.pods.remove(at);
            }
            if template.pods.len() < template.pods.capacity() / 4 {
                template.pods.shrink_to(2 * template.pods.len());
            }
            if template.pods.is_empty() {
                self.forget(id);
            }
        }
        Some(record)
    }

    /// The template with these labels, which is a new one if there is none.
    fn template(&mut self, labels: &LabelSet) -> TemplateId {
        if let Some(id) = self.by_labels.get(labels) {
            return *id;
        }
        self.last += 1;
        let id = self.last;
        // Equal texts are kept once.
        let known =
            |label: &Label| self.by_label.get_key_value(label).map_or(label, |(known, _)| known).clone();
        let labels: LabelSet = labels.iter().map(known).collect();
        for label in &*labels {
            self.by_label.entry(label.clone()).or_default().insert(id);
        }
        self.by_labels.insert(Arc::clone(&labels), id);
        self.templates.insert(id, Template { labels, pods: Vec::new() });
        id
    }

    fn forget(&mut self, id: TemplateId) {
        let Some(template) = self.templates.remove(&id) else { return };
        self.by_labels.remove(&template.labels);
        for label in &*template.labels {
            if let Some(ids) = self.by_label.get_mut(label) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_label.remove(label);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, labels: &serde_json::Value) -> SlimPod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "demo", "name": name, "uid": format!("uid-{name}"), "labels": labels},
            "spec": {"nodeName": "gpu-1", "containers": []},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    fn names(index: &PodIndex, selector: &str) -> Vec<String> {
        let pods = index.select("demo", &Selector::parse(selector).unwrap());
        pods.into_iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn selects_by_name_order_through_equalities_or_a_walk() {
        let index = PodIndex::default();
        for (name, labels) in [
            ("c", json!({"app": "web", "tier": "1"})),
            ("a", json!({"app": "web", "tier": "2"})),
            ("b", json!({"app": "db"})),
        ] {
            index.apply(&pod(name, &labels));
        }
        assert_eq!(names(&index, "app=web"), ["a", "c"]);
        assert_eq!(names(&index, "app=web,tier=1"), ["c"]);
        assert_eq!(names(&index, "app=web,tier!=1"), ["a"]);
        assert_eq!(names(&index, "app in (web,db)"), ["a", "b", "c"]);
        assert_eq!(names(&index, "app=none"), [""; 0]);
        assert_eq!(names(&index, ""), ["a", "b", "c"]);
    }

    #[test]
    fn a_change_of_labels_and_a_delete_leave_nothing_behind() {
        let index = PodIndex::default();
        index.apply(&pod("a", &json!({"app": "web"})));
        index.apply(&pod("a", &json!({"app": "db"})));
        assert_eq!(names(&index, "app=web"), [""; 0]);
        assert_eq!(names(&index, "app=db"), ["a"]);
        index.delete(&pod("a", &json!({})));
        let inner = index.inner.read();
        assert!(inner.namespaces.is_empty() && inner.nodes.is_empty());
    }

    #[test]
    fn a_pod_that_changes_is_there_once_as_it_is_now() {
        let index = PodIndex::default();
        for name in ["a", "b"] {
            index.apply(&pod(name, &json!({"app": "web"})));
        }
        let mut moved = pod("a", &json!({"app": "web"}));
        moved.spec.node_name = Some("gpu-2".to_owned());
        index.apply(&moved);
        assert_eq!((index.len(), names(&index, "app=web")), (2, vec!["a".to_owned(), "b".to_owned()]));
        let of_selector = index.select("demo", &Selector::parse("app=web").unwrap());
        assert_eq!(of_selector[0].1.node.as_deref(), Some("gpu-2"));
        assert_eq!(index.pod("demo", "a").unwrap().node.as_deref(), Some("gpu-2"));
        assert_eq!(index.inner.read().nodes["gpu-1"], 1);
        index.delete(&moved);
        assert!(!index.inner.read().nodes.contains_key("gpu-2"));
    }

    #[test]
    fn labels_that_nobody_has_any_more_are_forgotten() {
        let index = PodIndex::default();
        index.apply(&pod("a", &json!({"app": "web", "hash": "1"})));
        index.apply(&pod("b", &json!({"app": "web", "hash": "1"})));
        index.apply(&pod("c", &json!({"app": "web", "hash": "2"})));
        index.delete(&pod("a", &json!({})));
        index.delete(&pod("c", &json!({})));
        assert_eq!(names(&index, "app=web"), ["b"]);
        let inner = index.inner.read();
        let demo = &inner.namespaces["demo"];
        assert_eq!((demo.templates.len(), demo.by_labels.len(), demo.by_label.len()), (1, 1, 2));
        assert!(demo.by_label.values().all(|ids| ids.len() == 1));
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_hold() {
        let index = PodIndex::default();
        assert!(!index.synced());
        index.begin();
        index.apply(&pod("a", &json!({})));
        index.apply(&pod("b", &json!({})));
        index.end();
        assert!(index.synced());
        index.begin();
        index.apply(&pod("b", &json!({})));
        assert_eq!(index.len(), 2);
        index.end();
        assert_eq!(names(&index, ""), ["b"]);
    }
}

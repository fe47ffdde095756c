//! Answers requests for metrics of pods, nodes and namespaces: selects, evaluates, and has the
//! MetricValueList written.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use podgauge_common::cluster::outages::Watched;
use podgauge_common::http::Response;
use podgauge_common::quantity::Quantity;
use smallvec::SmallVec;

use super::list::{self, Described, Item};
use super::path::{MetricPath, Objects};
use super::query::Query;
use super::status::Status;
use crate::cluster::watch::ClusterWatches;
use crate::cluster::{ObjectIndex, PodIndex, PodRecord, Selector};
use crate::evaluate::{
    NodeExporter, NodeQuestion, Now, Omission, Question, Rules, Value, node_value, omission, pod_value,
};
use crate::metric::{Metric, Metrics};
use crate::self_metrics::SelfMetrics;
use crate::source::set::{ExporterSet, Published};
use crate::source::store::ExporterState;

/// Most characters of a selector that a 404 repeats.
const MAX_SELECTOR_CHARS: usize = 200;

/// What answers are made of.
#[derive(Debug)]
pub struct CustomMetrics {
    pub pods: PodIndex,
    pub nodes: ObjectIndex,
    pub namespaces: ObjectIndex,
    pub watches: ClusterWatches,
    pub exporters: Arc<ExporterSet>,
    pub metrics: Arc<Metrics>,
    pub rules: Rules,
    pub self_metrics: SelfMetrics,
}

/// The kinds that have metrics here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind<'a> {
    /// Of this namespace.
    Pod(&'a str),
    Node,
    Namespace,
}

/// The values that were found, and why others were not.
#[derive(Debug, Default)]
struct Found {
    values: Vec<Item>,
    omissions: Vec<Omission>,
    /// Why there is nothing to evaluate.
    nothing: String,
    /// The last timestamp that was written: most values are of the same second.
    stamp: Option<(Timestamp, Arc<str>)>,
}

impl CustomMetrics {
    /// Answers a request for a metric of objects.
    pub(super) fn answer(&self, path: &MetricPath, query: &Query) -> Result<Response, Status> {
        query.check_fields(&path.objects)?;
        let what = describe(path, query);
        let missing = |why: &str| Status::no_metric(&path.metric, &what, why);
        let kind = kind(path).map_err(missing)?;
        let metric = self.metric(&path.metric).map_err(|why| missing(&why))?;
        let now = Now::read();
        let found = match kind {
            Kind::Pod(namespace) => self.pods(namespace, path, query, metric, &now),
            Kind::Node => self.nodes(path, query, metric, &now),
            Kind::Namespace => self.namespaces(path, query, metric, &now),
        };
        found.omissions.iter().for_each(|omission| self.self_metrics.omitted(omission));
        if found.values.is_empty() {
            let noun = if matches!(kind, Kind::Node) { "node" } else { "pod" };
            let why = match (&found.omissions[..], &path.objects, kind) {
                ([], _, _) => found.nothing,
                ([omission], Objects::Named(_), Kind::Pod(_) | Kind::Node) => omission.to_string(),
                (omissions, _, _) => omission::summary(noun, omissions),
            };
            return Err(missing(&(why + &self.unseen(kind))));
        }
        let described = Described {
            kind: match kind {
                Kind::Pod(_) => "Pod",
                Kind::Node => "Node",
                Kind::Namespace => "Namespace",
            },
            namespace: path.namespace.as_deref(),
            metric: &metric.name,
            selector: &query.metric_label_selector.to_json(),
            window: metric.window(self.rules.window),
        };
        Ok(list::write(path.version, &described, &found.values, query.pretty))
    }

    /// The metric of that name, or which there are.
    pub(super) fn metric(&self, name: &str) -> Result<&Metric, String> {
        self.metrics.get(name).ok_or_else(|| {
            let served: Vec<&str> = self.metrics.served().iter().map(|metric| &*metric.name).collect();
            format!("this adapter serves {}", served.join(", "))
        })
    }

    fn pods(&self, namespace: &str, path: &MetricPath, query: &Query, metric: &Metric, now: &Now) -> Found {
        let exporters = self.exporters.current();
        let mut found = Found { nothing: self.no_pod(namespace, &path.objects), ..Found::default() };
        for (name, pod) in self.select_pods(namespace, &path.objects, &query.label_selector) {
            let question = Question { namespace, pod: &name, metric, devices: &query.metric_label_selector };
            let value = self.pod(&question, &pod, &exporters, now);
            found.add(Arc::clone(&name), value, now);
        }
        found
    }

    fn nodes(&self, path: &MetricPath, query: &Query, metric: &Metric, now: &Now) -> Found {
        let exporters = self.exporters.current();
        let names = match &path.objects {
            Objects::Selected => self.nodes.select(&query.label_selector),
            Objects::Named(name) if self.nodes.contains(name) => vec![Arc::from(name.as_str())],
            Objects::Named(_) => Vec::new(),
        };
        let nothing = match (self.nodes.missing(), &path.objects) {
            (Some(reason), _) => format!("the nodes of the cluster are not known: {reason}"),
            (None, Objects::Named(name)) => none(&format!("node {name}"), &self.watches.nodes),
            (None, Objects::Selected) => "no node matches".to_owned(),
        };
        let mut found = Found { nothing, ..Found::default() };
        for name in names {
            let question = NodeQuestion { node: &name, metric, devices: &query.metric_label_selector };
            let value = self.node(&question, &exporters, now);
            found.add(Arc::clone(&name), value, now);
        }
        found
    }

    fn namespaces(&self, path: &MetricPath, query: &Query, metric: &Metric, now: &Now) -> Found {
        let exporters = self.exporters.current();
        let names = match &path.objects {
            Objects::Selected => self.namespaces.select(&query.label_selector),
            Objects::Named(name) => vec![Arc::from(name.as_str())],
        };
        let nothing = match (self.namespaces.missing(), &path.objects) {
            (None, Objects::Named(name)) if !self.namespaces.contains(name) => {
                none(&format!("namespace {name}"), &self.watches.namespaces)
            }
            (_, Objects::Named(name)) => self.no_pod(name, &Objects::Selected),
            (Some(reason), Objects::Selected) => {
                format!("the namespaces of the cluster are not known: {reason}")
            }
            (None, Objects::Selected) => "no namespace with pods matches".to_owned(),
        };
        let mut found = Found { nothing, ..Found::default() };
        for name in names {
            let mut values = Vec::new();
            for (pod_name, pod) in self.pods.select(&name, &Selector::default()) {
                let devices = &query.metric_label_selector;
                let question = Question { namespace: &name, pod: &pod_name, metric, devices };
                match self.pod(&question, &pod, &exporters, now) {
                    Ok(value) => values.push(value),
                    Err(omission) => found.omissions.push(omission),
                }
            }
            if let Some(at) = values.iter().map(|value| value.at).max() {
                let mean = values.iter().map(|value| value.value).sum::<f64>() / values.len() as f64;
                let covered = values.iter().map(|value| value.covered).fold(f64::MAX, f64::min);
                found.add(Arc::clone(&name), Ok(Value { value: mean, at, covered }), now);
            }
        }
        found
    }

    /// The pods that a path and a selector mean.
    pub(super) fn select_pods(
        &self,
        namespace: &str,
        objects: &Objects,
        selector: &Selector,
    ) -> Vec<(Arc<str>, Arc<PodRecord>)> {
        match objects {
            Objects::Selected => self.pods.select(namespace, selector),
            Objects::Named(name) => {
                let pod = self.pods.pod(namespace, name);
                pod.map(|pod| (Arc::from(name.as_str()), pod)).into_iter().collect()
            }
        }
    }

    /// Why there is no pod.
    pub(super) fn no_pod(&self, namespace: &str, objects: &Objects) -> String {
        match (objects, self.watches.pods.failure()) {
            (_, Some(reason)) if !self.pods.synced() => {
                format!("the pods of the cluster are not known: they cannot be listed: {reason}")
            }
            (_, None) if !self.pods.synced() => "the pods of the cluster are not known yet".to_owned(),
            (Objects::Named(name), None) => format!("there is no pod {name} in namespace {namespace}"),
            (Objects::Named(name), Some(_)) => format!("no pod {name} is known in namespace {namespace}"),
            (Objects::Selected, None) => format!("no pod in namespace {namespace} matches"),
            (Objects::Selected, Some(_)) => format!("no known pod in namespace {namespace} matches"),
        }
    }

    /// The end of a text on why objects have no value: what is not seen while a watch fails.
    pub(super) fn unseen(&self, kind: Kind<'_>) -> String {
        let (known, watched) = match kind {
            Kind::Node => (self.nodes.missing().is_none(), &self.watches.nodes),
            Kind::Namespace if self.watches.namespaces.failure().is_some() => {
                (self.namespaces.missing().is_none(), &self.watches.namespaces)
            }
            Kind::Pod(_) | Kind::Namespace => (self.pods.synced(), &self.watches.pods),
        };
        if known { self.watches.unseen(watched) } else { String::new() }
    }

    fn pod(
        &self,
        question: &Question<'_>,
        pod: &PodRecord,
        exporters: &Published,
        now: &Now,
    ) -> Result<Value, Omission> {
        self.with_states(pod, exporters, now, |states| pod_value(question, pod, states, &self.rules, now))
    }

    /// Reads what the exporters of a pod's node told: all of it from one moment, since no scrape is
    /// taken in meanwhile.
    pub(super) fn with_states<T>(
        &self,
        pod: &PodRecord,
        exporters: &Published,
        now: &Now,
        read: impl FnOnce(&[&ExporterState]) -> T,
    ) -> T {
        let node = pod.node.as_deref().unwrap_or_default();
        let states: SmallVec<[_; 2]> = exporters
            .of_node(node, now.instant, self.rules.staleness)
            .map(|exporter| exporter.state.read())
            .collect();
        let states: SmallVec<[_; 2]> = states.iter().map(|state| &**state).collect();
        read(&states)
    }

    fn node(&self, question: &NodeQuestion<'_>, exporters: &Published, now: &Now) -> Result<Value, Omission> {
        let states: Vec<_> = exporters
            .of_node(question.node, now.instant, self.rules.staleness)
            .map(|exporter| (exporter.state.read(), exporter.target.node.is_none()))
            .collect();
        let states: Vec<NodeExporter<'_>> = states
            .iter()
            .map(|(state, of_any_node)| NodeExporter { state, of_any_node: *of_any_node })
            .collect();
        node_value(question, &states, &self.rules, now)
    }
}

impl Found {
    fn add(&mut self, name: Arc<str>, value: Result<Value, Omission>, now: &Now) {
        let found = value.and_then(|value| Ok((written(value)?, value.covered)));
        match found {
            Ok(((value, at), covered)) => {
                let timestamp = self.stamp(now, at);
                self.values.push(Item { name, value, timestamp, covered });
            }
            Err(omission) => self.omissions.push(omission),
        }
    }

    /// When a value was received, as answers write it: RFC 3339, whole seconds.
    fn stamp(&mut self, now: &Now, at: Instant) -> Arc<str> {
        let second = whole_second(now.wall_time(at));
        match &self.stamp {
            Some((known, text)) if *known == second => Arc::clone(text),
            _ => {
                let text: Arc<str> = second.to_string().into();
                self.stamp = Some((second, Arc::clone(&text)));
                text
            }
        }
    }
}

/// That an object is not there, or while its watch fails that it is not known.
fn none(object: &str, watched: &Watched) -> String {
    match watched.failure() {
        None => format!("there is no {object}"),
        Some(_) => format!("no {object} is known"),
    }
}

/// A value as it is written, and when it was received.
pub(super) fn written(value: Value) -> Result<(Quantity, Instant), Omission> {
    Ok((Quantity::from_f64(value.value).ok_or(Omission::OutOfRange)?, value.at))
}

/// The second that a time is in.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Of which kind a path's objects are, or why they have no metrics.
fn kind(path: &MetricPath) -> Result<Kind<'_>, &'static str> {
    match (path.resource.as_str(), &path.namespace) {
        ("pods", Some(namespace)) => Ok(Kind::Pod(namespace)),
        ("pods", None) => Err("pods are in namespaces: ask for …/namespaces/NAMESPACE/pods/…"),
        ("nodes", None) => Ok(Kind::Node),
        ("nodes", Some(_)) => Err("nodes are in no namespace: ask for …/nodes/…"),
        ("namespaces", None) => Ok(Kind::Namespace),
        _ => Err("only pods, nodes and namespaces have metrics here"),
    }
}

/// Resource, object and selector, as the text of a 404 names them.
pub(super) fn describe(path: &MetricPath, query: &Query) -> String {
    let mut what = path.resource.clone();
    if let Objects::Named(name) = &path.objects {
        what.push(' ');
        what.push_str(name);
    }
    if !query.metric_label_selector.is_empty() {
        what.push_str(" with selector ");
        // The reason that follows is what people need to see.
        what.extend(query.metric_labels.chars().take(MAX_SELECTOR_CHARS));
    }
    what
}

#[cfg(test)]
mod tests {
    use super::super::path::{Path, Route};
    use super::*;

    #[test]
    fn a_value_is_of_the_second_in_which_it_was_received() {
        let now = Now::read();
        let mut found = Found::default();
        for ago in [1500, 1501, 700, 4000, 1500] {
            let at = now.instant - std::time::Duration::from_millis(ago);
            let wall = now.wall_time(at);
            assert_eq!(*found.stamp(&now, at), wall.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
    }

    #[test]
    fn a_404_names_the_selector_but_does_not_drown_in_it() {
        let path = Path::parse("/apis/custom.metrics.k8s.io/v1beta2/namespaces/n/pods/p/m");
        let Route::Metric(path) = path.unwrap().route() else { panic!() };
        let what = |query: &str| describe(&path, &Query::parse(Some(query)).unwrap());
        assert_eq!(what(""), "pods p");
        assert_eq!(what("metricLabelSelector=gpu%3D0,device"), "pods p with selector gpu=0,device");
        let long = format!("metricLabelSelector={}", vec!["abcdefghi"; 500].join(","));
        assert!(what(&long).len() < 250);
    }
}

//! Keeps the indexes of pods, nodes and namespaces current by watches, and says which of the
//! cluster's watches do not work.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{Config, Event};
use kube::{Client, Resource};
use podgauge_common::cluster::outages::{Watched, Watches};
use podgauge_common::cluster::watch::follow;
use serde::de::DeserializeOwned;
use tracing::debug;

use super::objects::ObjectIndex;
use super::pod_index::PodIndex;
use super::slim::SlimPod;

/// The watches that answers depend on.
#[derive(Debug)]
pub struct ClusterWatches {
    pub pods: Watched,
    pub nodes: Watched,
    pub namespaces: Watched,
    /// The EndpointSlices of each Service of exporters.
    pub exporters: Vec<Watched>,
}

impl ClusterWatches {
    /// Watches by these names; `exporters` are the Services'.
    pub fn new(watches: &Watches, exporters: impl IntoIterator<Item = String>) -> Self {
        let slices = |service| watches.add(format!("EndpointSlices of Service {service}"));
        Self {
            pods: watches.add("pods"),
            nodes: watches.add("nodes"),
            namespaces: watches.add("namespaces"),
            exporters: exporters.into_iter().map(slices).collect(),
        }
    }

    /// The end of a text about objects that `watched` knows, or about what exporters say of them:
    /// what is not seen while a watch fails. Empty while all of them work.
    pub fn unseen(&self, watched: &Watched) -> String {
        self.failure(watched).map_or_else(String::new, |failure| format!("; {failure}"))
    }

    /// Which of them fails, and what follows from it.
    pub fn failure(&self, watched: &Watched) -> Option<String> {
        let mut watches = std::iter::once(watched).chain(&self.exporters);
        let (what, reason) = watches.find_map(|watched| Some((watched.what(), watched.failure()?)))?;
        Some(format!("the watch of {what} fails, so what was added or deleted since is not seen: {reason}"))
    }
}

/// Keeps the index current. Calls `told` after each whole list and each error.
pub async fn pods(
    client: Client,
    watched: Watched,
    index: PodIndex,
    mut told: impl FnMut(Result<(), String>),
) {
    // In pages of 500: an API server that may answer from its cache sends all pods at once, and what
    // they take while they are read is never given back.
    let config = Config::default();
    follow::<SlimPod>(Api::all(client), config, watched, |event| match event {
        Ok(Event::Init) => index.begin(),
        Ok(Event::Apply(pod) | Event::InitApply(pod)) => index.apply(&pod),
        Ok(Event::Delete(pod)) => index.delete(&pod),
        Ok(Event::InitDone) => {
            index.end();
            debug!("pods listed: {}", index.len());
            told(Ok(()));
        }
        Err(reason) => told(Err(reason)),
    })
    .await;
}

/// Keeps an index of a kind's names and labels current, and shows each object to `noticed`. Only
/// metadata is asked for: a node's status is large and changes all the time.
pub async fn objects<K>(
    client: Client,
    watched: Watched,
    index: ObjectIndex,
    mut noticed: impl FnMut(&ObjectMeta),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = Config::default().any_semantic();
    follow(Api::<PartialObjectMeta<K>>::all(client), config, watched, |event| match event {
        Ok(Event::Init) => index.begin(),
        Ok(Event::Apply(object) | Event::InitApply(object)) => {
            noticed(&object.metadata);
            index.apply(&object.metadata);
        }
        Ok(Event::Delete(object)) => index.delete(&object.metadata),
        Ok(Event::InitDone) => index.end(),
        Err(reason) => index.failed(reason),
    })
    .await;
}

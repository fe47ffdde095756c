//! Follows watches for the life of the program, and says once when one fails or works again.

use std::fmt::Debug;
use std::pin::pin;

use futures::StreamExt as _;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tracing::{debug, info, warn};

use super::client::one_line;
use super::objects::ObjectIndex;
use super::pods::PodIndex;
use super::slim::SlimPod;

/// Keeps the index current. Calls `told` after each whole list and each error.
pub async fn pods(client: Client, index: PodIndex, mut told: impl FnMut(Result<(), String>)) {
    // In pages of 500: an API server that may answer from its cache sends all pods at once, and what
    // they take while they are read is never given back.
    let config = watcher::Config::default();
    follow::<SlimPod>(Api::all(client), config, "pods", |event| match event {
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

/// Keeps an index of a kind's names and labels current. Only metadata is asked for: a node's status
/// is large and changes all the time.
pub async fn objects<K>(client: Client, index: ObjectIndex, what: &str)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().any_semantic();
    follow(Api::<PartialObjectMeta<K>>::all(client), config, what, |event| match event {
        Ok(Event::Init) => index.begin(),
        Ok(Event::Apply(object) | Event::InitApply(object)) => index.apply(&object.metadata),
        Ok(Event::Delete(object)) => index.delete(&object.metadata),
        Ok(Event::InitDone) => index.end(),
        Err(reason) => index.failed(reason),
    })
    .await;
}

/// Passes every event, and the text of every error, on to `on`. Starts over after errors, more
/// and more slowly. Never returns.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &str,
    mut on: impl FnMut(Result<Event<K>, String>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut failing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // Init only says that a list is about to be asked for.
                if failing && !matches!(event, Event::Init) {
                    failing = false;
                    info!("watch of {what} works again");
                }
                on(Ok(event));
            }
            Err(error) => {
                let reason = one_line(&error);
                // A watch that the API server ends because it is too old is a matter of course.
                let expired = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                if !failing && !expired {
                    failing = true;
                    warn!("watch of {what} fails, trying on: {reason}");
                }
                on(Err(reason));
            }
        }
    }
}

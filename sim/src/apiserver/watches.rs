//! Owns lists and watches: how the store's objects and changes reach a client.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::kinds::{Kind, Resource};
use super::request_info::RequestInfo;
use super::selector::Selector;
use super::status::{self, Body};
use super::store::{Change, Store};

/// How long a watch lasts if the client says nothing: the API server takes 30 to 60 minutes.
const DEFAULT_WATCH: Duration = Duration::from_secs(1800);

/// A list of everything selected; with `limit` a page of it, as a real API server cuts lists that
/// are not asked for with `resourceVersion=0`.
pub(crate) fn list(
    store: &Store,
    resource: &Resource,
    kind: Kind,
    namespace: &str,
    selector: &Selector,
    info: &RequestInfo,
) -> Response<Body> {
    let (objects, revision) = store.list(kind, namespace);
    let limit = info.parameter("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let limit: usize = limit.filter(|_| info.parameter("resourceVersion") != Some("0")).unwrap_or(usize::MAX);
    // Changes after the first page are told by the watch: every page is of the first one's revision.
    let (revision, after) = match info.parameter("continue").and_then(|token| token.split_once(' ')) {
        Some((revision, after)) => (revision.to_owned(), Some(after)),
        None => (revision.to_string(), None),
    };
    let name = |object: &Value| {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("name"))
    };
    let after = after.and_then(|after| after.split_once('/')).map(|(n, m)| (n.to_owned(), m.to_owned()));
    let mut selected = objects
        .iter()
        .map(Arc::as_ref)
        .filter(|object| selector.selects(object))
        .filter(|object| after.as_ref().is_none_or(|after| name(object) > *after));
    let items: Vec<&Value> = selected.by_ref().take(limit).collect();
    let mut metadata = json!({"resourceVersion": revision});
    let left = selected.count();
    if let Some(last) = items.last().filter(|_| left > 0) {
        let (namespace, name) = name(last);
        metadata["continue"] = format!("{revision} {namespace}/{name}").into();
        metadata["remainingItemCount"] = left.into();
    }
    status::json(
        StatusCode::OK,
        &json!({
            "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
            "metadata": metadata, "items": items,
        }),
    )
}

/// One watch, from its request to its end.
struct Watch {
    store: Arc<Store>,
    kind: Kind,
    resource: &'static Resource,
    namespace: String,
    selector: Selector,
    bookmarks: bool,
    /// Lines of before the next wait.
    pending: Vec<Bytes>,
    seen: u64,
    ends: Instant,
    revision: watch::Receiver<u64>,
    /// A change of it ends every watch.
    generation: watch::Receiver<u64>,
    over: bool,
}

/// A stream of changes, until the client's `timeoutSeconds` or a change of `generation`.
///
/// # Errors
/// A `resourceVersion` that is not a number.
pub(crate) fn watch(
    store: Arc<Store>,
    resource: &'static Resource,
    kind: Kind,
    namespace: &str,
    selector: Selector,
    info: &RequestInfo,
    generation: watch::Receiver<u64>,
) -> Result<Response<Body>, String> {
    let timeout = info
        .parameter("timeoutSeconds")
        .and_then(|text| text.parse().ok())
        .map_or(DEFAULT_WATCH, Duration::from_secs);
    let from = match info.parameter("resourceVersion") {
        None | Some("" | "0") => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| format!("invalid resource version {text:?}"))?),
    };
    let revision = store.subscribe();
    let mut watch = Watch {
        store,
        kind,
        resource,
        namespace: namespace.to_owned(),
        selector,
        bookmarks: info.is_set("allowWatchBookmarks"),
        pending: Vec::new(),
        seen: from.unwrap_or(0),
        ends: Instant::now() + timeout,
        revision,
        generation,
        over: false,
    };
    // Without a revision, and where initial events are asked for, what is there comes first.
    let initial_asked = info.is_set("sendInitialEvents");
    if from.is_none() || initial_asked {
        watch.start_with_what_is_there(initial_asked);
    }
    let lines = stream::unfold(watch, |mut watch| async move {
        watch.next().await.map(|line| (Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

// === impl Watch ===

impl Watch {
    fn start_with_what_is_there(&mut self, mark_the_end: bool) {
        let (objects, revision) = self.store.list(self.kind, &self.namespace);
        self.pending = objects
            .iter()
            .filter(|object| self.selector.selects(object))
            .map(|object| line("ADDED", object))
            .collect();
        self.seen = revision;
        if mark_the_end {
            self.pending.push(self.bookmark(true));
        }
        self.pending.reverse();
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            self.revision.borrow_and_update();
            match self.store.since(self.kind, self.seen) {
                Ok((changes, revision)) => {
                    self.pending = changes.iter().rev().filter_map(|change| self.event(change)).collect();
                    self.seen = revision;
                    if !self.pending.is_empty() {
                        continue;
                    }
                }
                Err(too_old) => {
                    let message = format!("too old resource version: {} ({})", self.seen, too_old.oldest);
                    self.over = true;
                    return Some(line("ERROR", &status::failure_object(StatusCode::GONE, &message)));
                }
            }
            tokio::select! {
                changed = self.revision.changed() => self.over = changed.is_err(),
                _ = self.generation.changed() => return None,
                () = tokio::time::sleep_until(self.ends) => {
                    self.over = true;
                    if self.bookmarks {
                        return Some(self.bookmark(false));
                    }
                }
            }
        }
    }

    /// What a change is to this watch's selection.
    fn event(&self, change: &Change) -> Option<Bytes> {
        let selected = |object: &Option<Arc<Value>>| {
            object.as_ref().is_some_and(|object| {
                (self.namespace.is_empty() || object["metadata"]["namespace"] == self.namespace.as_str())
                    && self.selector.selects(object)
            })
        };
        match (selected(&change.before), selected(&change.after)) {
            (false, true) => change.after.as_ref().map(|object| line("ADDED", object)),
            (true, true) => change.after.as_ref().map(|object| line("MODIFIED", object)),
            (true, false) => change.before.as_ref().map(|object| {
                // The last state, with the revision of its end.
                let mut object = Value::clone(object);
                object["metadata"]["resourceVersion"] = change.revision.to_string().into();
                line("DELETED", &object)
            }),
            (false, false) => None,
        }
    }

    fn bookmark(&self, initial_events_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": self.seen.to_string()});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata});
        // A typed client decodes a bookmark as the kind it watches, whose spec may be required.
        if self.kind == Kind::Pod {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        line("BOOKMARK", &object)
    }
}

fn line(event: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": event, "object": object}).to_string();
    text.push('\n');
    text.into()
}

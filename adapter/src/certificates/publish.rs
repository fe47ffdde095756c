//! Keeps the `caBundle` of the APIServices at what the serving certificate is verified against, by
//! server-side apply: the field is ours, everything else stays its owner's. A bundle that somebody
//! empties or changes is applied again. An APIService is left alone that is not there, that points
//! to another Service, or that the API server would refuse to change.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{Config, Event};
use podgauge_common::cluster::outages::{Watched, Watches};
use podgauge_common::cluster::pace::{Pace, spread};
use podgauge_common::cluster::watch::follow;
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::apiserver::path::{GROUP, VERSIONS};
use crate::args::ServiceName;
use crate::cluster::client::one_line;
use crate::self_metrics::SelfMetrics;

/// In whose name fields are set.
pub(super) const FIELD_MANAGER: &str = "podgauge-adapter";
/// A bundle that somebody changed to another one is left for so long: another replica may know of
/// a newer Secret.
const SETTLE: Duration = Duration::from_secs(1);
/// Most applies to one APIService within this time: somebody else may change it as tirelessly.
const APPLIES: usize = 12;
const APPLIES_WITHIN: Duration = Duration::from_secs(60);
/// Longest time until an apply that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

/// The APIServices that point here, by name, each with its bundle (PEM; empty: none).
#[derive(Debug, Clone, Default)]
pub(super) struct Live(BTreeMap<String, String>);

impl Live {
    /// Whether there are any and all have this bundle.
    pub(super) fn all_are(&self, bundle: &str) -> bool {
        !self.0.is_empty() && self.0.values().all(|live| live == bundle)
    }
}

/// One APIService.
struct Publisher {
    api: Api<APIService>,
    watched: Watched,
    name: String,
    service: ServiceName,
    live: watch::Sender<Live>,
    self_metrics: SelfMetrics,
    /// Times of the newest applies that changed it.
    applied: VecDeque<Instant>,
    /// When it was applied last, and the resourceVersion that gave.
    newest: Option<(Instant, u64)>,
    /// Since when it has another bundle than ours.
    differs: Option<Instant>,
    /// Not before this, after a failure.
    not_before: Option<Instant>,
    pace: Pace,
    /// The pair that the API server called invalid: the object and the bundle. The same again is refused
    /// again.
    invalid: Option<(Option<APIServiceSpec>, String)>,
    /// What was logged last, so that it is logged once.
    trouble: Option<String>,
}

/// Starts keeping every APIService of the group; gives what they have.
pub(super) fn start(
    client: &Client,
    watches: &Watches,
    service: &ServiceName,
    namespace_ends: watch::Receiver<bool>,
    bundle: &watch::Receiver<Option<String>>,
    self_metrics: &SelfMetrics,
) -> watch::Receiver<Live> {
    let (live, receiver) = watch::channel(Live::default());
    for version in VERSIONS {
        let name = format!("{}.{GROUP}", version.as_str());
        let publisher = Publisher {
            api: Api::all(client.clone()),
            watched: watches.add(format!("APIService {name}")),
            name,
            service: service.clone(),
            live: live.clone(),
            self_metrics: self_metrics.clone(),
            applied: VecDeque::new(),
            newest: None,
            differs: None,
            not_before: None,
            pace: Pace::new(),
            invalid: None,
            trouble: None,
        };
        tokio::spawn(publisher.keep(bundle.clone()));
    }
    tokio::spawn(warn_of_the_end(service.clone(), namespace_ends, receiver.clone()));
    receiver
}

/// Warns once if the adapter's namespace is deleted and its APIServices are not: without an adapter
/// the API server cannot list what a namespace holds, and deletes none.
async fn warn_of_the_end(
    service: ServiceName,
    mut namespace_ends: watch::Receiver<bool>,
    live: watch::Receiver<Live>,
) {
    if namespace_ends.wait_for(|ends| *ends).await.is_err() {
        return;
    }
    // A deletion of everything deletes them next.
    tokio::time::sleep(SETTLE).await;
    let left: Vec<String> = live.borrow().0.keys().cloned().collect();
    if !left.is_empty() {
        warn!(
            "namespace {} is being deleted and its APIServices are not: without this adapter they block the deletion of every namespace; run: kubectl delete apiservice {}",
            service.namespace,
            left.join(" ")
        );
    }
}

impl Publisher {
    /// Keeps the bundle for the life of the program.
    async fn keep(mut self, mut bundle: watch::Receiver<Option<String>>) {
        let (sender, mut seen) = watch::channel(None);
        let (api, watched) = (self.api.clone(), self.watched.clone());
        tokio::spawn(watch_api_service(api, watched, self.name.clone(), sender.clone()));
        loop {
            let object = seen.borrow_and_update().clone();
            let wanted = bundle.borrow_and_update().clone();
            let wait = match (object, wanted) {
                (Some(object), Some(wanted)) => match self.due(&object, &wanted, Instant::now()) {
                    Due::Now => {
                        if let Some(applied) = self.apply(&object, &wanted).await {
                            sender.send_if_modified(|seen| {
                                // The watch may know more by now.
                                let same = seen.as_ref().is_some_and(|seen: &APIService| {
                                    seen.metadata.resource_version == object.metadata.resource_version
                                });
                                if same {
                                    *seen = Some(applied);
                                }
                                same
                            });
                        }
                        Duration::ZERO
                    }
                    Due::In(wait) => wait,
                    Due::Never => DAY,
                },
                (object, _) => {
                    self.tell(object.as_ref());
                    DAY
                }
            };
            if !wait.is_zero() {
                tokio::select! {
                    changed = seen.changed() => if changed.is_err() { return },
                    changed = bundle.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// When its bundle is to be set.
    fn due(&mut self, object: &APIService, wanted: &str, now: Instant) -> Due {
        if !self.tell(Some(object)) {
            self.trouble(format!(
                "it points to another Service ({}), so its caBundle is left alone; to have {} answer, apply podgauge's APIServices",
                service_of(object),
                self.service
            ));
            return Due::Never;
        }
        if skips_verification(object) {
            self.trouble(format!(
                "it has insecureSkipTLSVerify: true, so the API server does not verify this adapter and refuses a caBundle; \
                 run: kubectl patch apiservice {} --type=json -p='[{{\"op\":\"remove\",\"path\":\"/spec/insecureSkipTLSVerify\"}}]'",
                self.name
            ));
            return Due::Never;
        }
        if self.invalid.as_ref().is_some_and(|(spec, bundle)| *spec == object.spec && bundle == wanted) {
            return Due::Never;
        }
        let live = bundle_of(object);
        if live == wanted {
            self.differs = None;
            self.not_before = None;
            if self.trouble.take().is_some() {
                info!("APIService {}: its caBundle is right again", self.name);
            }
            return Due::Never;
        }
        // The watch may still tell of what was before the last apply.
        if let Some((at, newest)) = self.newest
            && version(object).is_some_and(|version| version < newest)
            && now < at + SETTLE
        {
            return Due::In(at + SETTLE - now);
        }
        let differs = *self.differs.get_or_insert(now);
        let settled = if live.is_empty() { differs } else { differs + SETTLE };
        while self.applied.front().is_some_and(|at| now.saturating_duration_since(*at) >= APPLIES_WITHIN) {
            self.applied.pop_front();
        }
        let paced = match self.applied.front() {
            Some(first) if self.applied.len() >= APPLIES => {
                let at = *first + APPLIES_WITHIN;
                self.trouble(format!(
                    "something else changes its caBundle as often as it is set{}; it is set {APPLIES} times a minute at most",
                    last_manager(object)
                ));
                at
            }
            _ => now,
        };
        let at = settled.max(paced).max(self.not_before.unwrap_or(now));
        let wait = at.saturating_duration_since(now);
        if wait.is_zero() { Due::Now } else { Due::In(wait) }
    }

    async fn apply(&mut self, object: &APIService, wanted: &str) -> Option<APIService> {
        use base64::Engine as _;
        let configuration = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            // With its UID: one that was deleted meanwhile is not made anew.
            "metadata": {"name": self.name, "uid": object.metadata.uid},
            "spec": {"caBundle": base64::engine::general_purpose::STANDARD.encode(wanted)},
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match self.api.patch(&self.name, &parameters, &Patch::Apply(&configuration)).await {
            Ok(applied) => {
                self.self_metrics.ca_bundle_applied(&self.name, "success");
                self.applied.push_back(Instant::now());
                self.pace.reset();
                self.newest = version(&applied).map(|version| (Instant::now(), version));
                info!("APIService {}: caBundle set", self.name);
                Some(applied)
            }
            Err(error) => {
                self.self_metrics.ca_bundle_applied(&self.name, "failure");
                let now = Instant::now();
                self.not_before = Some(now + spread(self.pace.after_failure(RETRY, now)));
                let retried = if matches!(&error, kube::Error::Api(status) if status.code == 422) {
                    self.invalid = Some((object.spec.clone(), wanted.to_owned()));
                    "tried again when it changes"
                } else {
                    "tried again"
                };
                self.trouble(format!(
                    "its caBundle cannot be set, so the API server cannot verify this adapter; {retried}: {}",
                    one_line(&error)
                ));
                None
            }
        }
    }

    /// Tells what it has, if it points here; gives whether it does.
    fn tell(&self, object: Option<&APIService>) -> bool {
        let ours = object.filter(|object| {
            let service = object.spec.as_ref().and_then(|spec| spec.service.as_ref());
            service.is_some_and(|service| {
                service.name.as_deref() == Some(&self.service.name)
                    && service.namespace.as_deref() == Some(&self.service.namespace)
            })
        });
        let bundle = ours.map(bundle_of);
        self.live.send_if_modified(|live| {
            let before = live.0.get(&self.name).cloned();
            let changed = before != bundle;
            match &bundle {
                Some(bundle) => live.0.insert(self.name.clone(), bundle.clone()),
                None => live.0.remove(&self.name),
            };
            changed
        });
        ours.is_some()
    }

    /// Says it once.
    fn trouble(&mut self, reason: String) {
        if self.trouble.as_ref() != Some(&reason) {
            warn!("APIService {}: {reason}", self.name);
            self.trouble = Some(reason);
        }
    }
}

/// When a bundle is to be set.
enum Due {
    Now,
    In(Duration),
    Never,
}

/// Of one object later versions are larger.
fn version(object: &APIService) -> Option<u64> {
    object.metadata.resource_version.as_deref()?.parse().ok()
}

/// PEM; empty if there is none.
fn bundle_of(object: &APIService) -> String {
    let bundle = object.spec.as_ref().and_then(|spec| spec.ca_bundle.as_ref());
    bundle.map(|bundle| String::from_utf8_lossy(&bundle.0).into_owned()).unwrap_or_default()
}

/// The API server takes any certificate: it refuses a bundle beside that.
fn skips_verification(object: &APIService) -> bool {
    object.spec.as_ref().and_then(|spec| spec.insecure_skip_tls_verify).unwrap_or_default()
}

/// The Service that it points to.
fn service_of(object: &APIService) -> String {
    let service = object.spec.as_ref().and_then(|spec| spec.service.as_ref());
    service.map_or_else(
        || "none, the API server answers itself".to_owned(),
        |service| {
            let part = |name: &Option<String>| name.clone().unwrap_or_default();
            format!("{}/{}", part(&service.namespace), part(&service.name))
        },
    )
}

/// Who else set a caBundle, as a part of a sentence.
fn last_manager(object: &APIService) -> String {
    let entries = object.metadata.managed_fields.as_deref().unwrap_or_default();
    let manager =
        entries.iter().filter_map(|entry| entry.manager.as_deref()).find(|name| *name != FIELD_MANAGER);
    manager.map(|manager| format!(" (field manager {manager:?})")).unwrap_or_default()
}

/// Tells what the APIService is, for the life of the program.
async fn watch_api_service(
    api: Api<APIService>,
    watched: Watched,
    name: String,
    seen: watch::Sender<Option<APIService>>,
) {
    let config = Config::default().fields(&format!("metadata.name={name}"));
    let mut listed = false;
    follow(api, config, watched, |event| match event {
        Ok(Event::Init) => listed = false,
        Ok(Event::Apply(object) | Event::InitApply(object)) => {
            if object.metadata.name.as_deref() == Some(&name) {
                listed = true;
                seen.send_replace(Some(object));
            }
        }
        Ok(Event::InitDone) if listed => {}
        Ok(Event::InitDone | Event::Delete(_)) => {
            seen.send_replace(None);
        }
        // What was known last may still be right.
        Err(_) => {}
    })
    .await;
}

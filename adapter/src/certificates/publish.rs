//! Keeps the `caBundle` of the APIServices at what the serving certificate is verified against, by
//! server-side apply: the field is ours, everything else stays its owner's. Whoever empties or
//! changes it is answered by another apply. An APIService that is not there, or that points to
//! another Service, is left alone.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{Config, Event};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::apiserver::path::{GROUP, VERSIONS};
use crate::args::ServiceName;
use crate::cluster::client::one_line;
use crate::cluster::watch::follow;
use crate::self_metrics::SelfMetrics;

/// In whose name fields are set.
pub(super) const FIELD_MANAGER: &str = "podgauge-adapter";
/// A bundle that somebody changed to another one is left for so long: another replica may know of
/// a newer Secret.
const SETTLE: Duration = Duration::from_secs(1);
/// Most applies to one APIService within [`PACE`]: somebody else may change it as tirelessly.
const APPLIES: usize = 12;
const PACE: Duration = Duration::from_secs(60);
/// Time until an apply that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
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
    name: String,
    service: ServiceName,
    live: watch::Sender<Live>,
    self_metrics: SelfMetrics,
    /// Times of the newest applies.
    applied: VecDeque<Instant>,
    /// When it was applied last, and the resourceVersion that gave.
    newest: Option<(Instant, u64)>,
    /// Since when it has another bundle than ours.
    differs: Option<Instant>,
    /// Not before this, after a failure.
    not_before: Option<Instant>,
    /// What was logged last, so that it is logged once.
    trouble: Option<String>,
}

/// Starts keeping every APIService of the group; gives what they have.
pub(super) fn start(
    client: &Client,
    service: &ServiceName,
    bundle: &watch::Receiver<Option<String>>,
    self_metrics: &SelfMetrics,
) -> watch::Receiver<Live> {
    let (live, receiver) = watch::channel(Live::default());
    for version in VERSIONS {
        let publisher = Publisher {
            api: Api::all(client.clone()),
            name: format!("{}.{GROUP}", version.as_str()),
            service: service.clone(),
            live: live.clone(),
            self_metrics: self_metrics.clone(),
            applied: VecDeque::new(),
            newest: None,
            differs: None,
            not_before: None,
            trouble: None,
        };
        tokio::spawn(publisher.keep(bundle.clone()));
    }
    receiver
}

impl Publisher {
    /// Keeps the bundle for the life of the program.
    async fn keep(mut self, mut bundle: watch::Receiver<Option<String>>) {
        let (sender, mut seen) = watch::channel(None);
        tokio::spawn(watch_api_service(self.api.clone(), self.name.clone(), sender.clone()));
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
            self.trouble("it points to another Service, so its caBundle is left alone".to_owned());
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
        while self.applied.front().is_some_and(|at| now.saturating_duration_since(*at) >= PACE) {
            self.applied.pop_front();
        }
        let paced = match self.applied.front() {
            Some(first) if self.applied.len() >= APPLIES => {
                let at = *first + PACE;
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
        self.applied.push_back(Instant::now());
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match self.api.patch(&self.name, &parameters, &Patch::Apply(&configuration)).await {
            Ok(applied) => {
                self.self_metrics.ca_bundle_applied(&self.name, "success");
                self.newest = version(&applied).map(|version| (Instant::now(), version));
                info!("APIService {}: caBundle set", self.name);
                Some(applied)
            }
            Err(error) => {
                self.self_metrics.ca_bundle_applied(&self.name, "failure");
                self.not_before = Some(Instant::now() + RETRY);
                self.trouble(format!(
                    "its caBundle cannot be set, so it is not available: {}",
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

/// Who else set a caBundle, as a part of a sentence.
fn last_manager(object: &APIService) -> String {
    let entries = object.metadata.managed_fields.as_deref().unwrap_or_default();
    let manager =
        entries.iter().filter_map(|entry| entry.manager.as_deref()).find(|name| *name != FIELD_MANAGER);
    manager.map(|manager| format!(" (field manager {manager:?})")).unwrap_or_default()
}

/// Tells what the APIService is, for the life of the program.
async fn watch_api_service(api: Api<APIService>, name: String, seen: watch::Sender<Option<APIService>>) {
    let config = Config::default().fields(&format!("metadata.name={name}"));
    let mut listed = false;
    follow(api, config, &format!("APIService {name}"), |event| match event {
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

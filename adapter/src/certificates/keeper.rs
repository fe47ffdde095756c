//! Keeps the Secret and serves with what it holds. Replicas that want to write it at the same time
//! settle by its resourceVersion: one writes, the others read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::watcher::{Config, Event};
use podgauge_common::cluster::outages::Watched;
use podgauge_common::cluster::pace::{Pace, spread};
use podgauge_common::cluster::watch::follow;
use podgauge_common::http::serve::Tls;
use podgauge_common::readiness::Condition;
use tokio::sync::watch;
use tracing::{info, warn};

use super::material::{Change, Lifetimes, Material, Names, Published, Unusable};
use super::publish::{FIELD_MANAGER, Live};
use crate::apiserver::tls::Protocols;
use crate::args::ServiceName;
use crate::cluster::client::one_line;
use crate::self_metrics::SelfMetrics;

/// Time between two looks if nothing happens: clocks can be put forward.
const LOOK: Duration = Duration::from_secs(600);
/// Longest time until a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// A Secret that somebody else empties as often as it is written is written this often.
const REFILL: Duration = Duration::from_secs(1);
/// A certificate for other names that follows ours within this is another Service's adapter's.
const RIVAL: Duration = Duration::from_secs(60);

/// Keeps one Secret; see [`Keeper::keep`].
pub(super) struct Keeper {
    pub(super) client: Client,
    /// The Secret's watch.
    pub(super) watched: Watched,
    pub(super) secret: ServiceName,
    pub(super) names: Names,
    pub(super) lifetimes: Lifetimes,
    pub(super) protocols: Protocols,
    pub(super) serving: Tls,
    /// What the APIServices' `caBundle` shall be.
    pub(super) bundle: watch::Sender<Option<String>>,
    /// What it is.
    pub(super) live: watch::Receiver<Live>,
    pub(super) condition: Condition,
    pub(super) self_metrics: SelfMetrics,
}

/// What the watch knows of the Secret.
#[derive(Debug, Clone)]
enum Seen {
    Nothing,
    Failing(String),
    Absent,
    Present(Box<Secret>),
}

/// What is served now, and what was said.
#[derive(Default)]
struct Held {
    material: Option<Material>,
    data: BTreeMap<String, ByteString>,
    /// Since when the bundle stands in every APIService.
    published: Option<Instant>,
    /// What was logged last, so that it is logged once.
    trouble: Option<String>,
    /// When we wrote it.
    written: Option<Instant>,
    /// Of writes that fail.
    pace: Pace,
}

impl Seen {
    /// Tells states of the Secret apart.
    fn version(&self) -> Option<&str> {
        match self {
            Self::Present(secret) => secret.metadata.resource_version.as_deref(),
            Self::Nothing | Self::Failing(_) | Self::Absent => None,
        }
    }
}

impl Held {
    /// Time until a write that failed is tried again.
    fn pause(&mut self) -> Duration {
        spread(self.pace.after_failure(RETRY, Instant::now()))
    }
}

impl Keeper {
    /// Keeps the Secret for the life of the program.
    pub(super) async fn keep(self) {
        let (sender, mut seen) = watch::channel(Seen::Nothing);
        let (client, watched) = (self.client.clone(), self.watched.clone());
        tokio::spawn(watch_secret(client, watched, self.secret.clone(), sender.clone()));
        let mut live = self.live.clone();
        let mut held = Held::default();
        loop {
            live.borrow_and_update();
            let now = seen.borrow_and_update().clone();
            let (wait, written) = self.tend(&mut held, &now).await;
            if let Some(written) = written {
                sender.send_if_modified(|seen| {
                    // The watch may know more by now.
                    let same = seen.version() == now.version();
                    if same {
                        *seen = Seen::Present(Box::new(written));
                    }
                    same
                });
                continue;
            }
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                Ok(()) = live.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does what is to be done now; gives the time until the next look, or what was written.
    async fn tend(&self, held: &mut Held, seen: &Seen) -> (Duration, Option<Secret>) {
        match seen {
            Seen::Nothing => (LOOK, None),
            Seen::Failing(reason) => {
                if held.material.is_none() {
                    self.condition.unmet(format!("Secret {} cannot be read: {reason}", self.secret));
                }
                (LOOK, None)
            }
            Seen::Absent => self.fill(held, None).await,
            Seen::Present(secret) => match Material::read(secret.data.as_ref().unwrap_or(&BTreeMap::new())) {
                Ok(material) => {
                    self.serve_with(held, material);
                    self.renew(held, secret).await
                }
                Err(Unusable::Empty) => self.fill(held, Some(secret)).await,
                Err(error @ Unusable::Foreign) => {
                    self.trouble(held, format!("{error}; delete it, or give it to --tls-cert-file, or another name to --cert-secret"));
                    (LOOK, None)
                }
                Err(error @ Unusable::Broken { .. }) => {
                    self.trouble(held, format!("{error}; it is written again"));
                    self.fill(held, Some(secret)).await
                }
            },
        }
    }

    /// Writes what is served, or everything anew, into a Secret that is missing or holds nothing.
    async fn fill(&self, held: &mut Held, old: Option<&Secret>) -> (Duration, Option<Secret>) {
        if held.written.is_some_and(|at| at.elapsed() < REFILL) {
            return (REFILL, None);
        }
        let material = match &held.material {
            Some(material) => Ok(material.clone()),
            None => Material::create(&self.names, self.lifetimes, Timestamp::now()),
        };
        let material = match material {
            Ok(material) => material,
            Err(error) => return (self.failed(held, &error.to_string()), None),
        };
        let written = match old {
            Some(old) => self.update(old, &material).await,
            None => self.create(&material).await,
        };
        self.written(held, written, material, "written again")
    }

    /// Renews what is due.
    async fn renew(&self, held: &mut Held, secret: &Secret) -> (Duration, Option<Secret>) {
        let Some(material) = held.material.clone() else { return (LOOK, None) };
        let (published, seen_in) = self.published(held, &material);
        let now = Timestamp::now();
        if held.written.is_some_and(|at| at.elapsed() < RIVAL) && !material.serves(&self.names, now) {
            self.trouble(
                held,
                "an adapter for another Service writes it, too: give each its own --cert-secret".to_owned(),
            );
            return (RIVAL, None);
        }
        match material.advance(&self.names, self.lifetimes, published, now) {
            Err(error) => (self.failed(held, &error.to_string()), None),
            Ok(Some((renewed, changes))) => {
                let written = self.update(secret, &renewed).await;
                self.written(held, written, renewed, &said(&changes))
            }
            Ok(None) => {
                let due = Duration::try_from(material.due().duration_since(now)).unwrap_or_default();
                let seen_in = seen_in.filter(|_| material.waits_for_publication()).unwrap_or(LOOK);
                // Certificates end on whole seconds.
                ((due + Duration::from_millis(10)).min(seen_in).min(LOOK), None)
            }
        }
    }

    /// Whether the bundle counts as seen, and if it stands but not long enough, the time left.
    fn published(&self, held: &mut Held, material: &Material) -> (Published, Option<Duration>) {
        let bundle = material.bundle();
        if !self.live.borrow().all_are(&bundle) {
            held.published = None;
            return (Published::No, None);
        }
        let since = *held.published.get_or_insert_with(Instant::now);
        let left = self.lifetimes.seen_after().saturating_sub(since.elapsed());
        if left.is_zero() { (Published::Yes, None) } else { (Published::No, Some(left)) }
    }

    fn serve_with(&self, held: &mut Held, material: Material) {
        let data = material.data();
        if held.data == data {
            return;
        }
        let config = match material.config(&self.protocols) {
            Ok(config) => config,
            Err(reason) => {
                self.trouble(held, reason);
                return;
            }
        };
        self.serving.store(std::sync::Arc::new(config));
        self.bundle.send_replace(Some(material.bundle()));
        self.self_metrics.certificate_expires("serving", material.leaf_expires());
        self.self_metrics.certificate_expires("ca", material.authority_expires());
        info!(
            "serving with the certificate in Secret {}, good until {}",
            self.secret,
            material.leaf_expires()
        );
        self.condition.met();
        (held.material, held.data) = (Some(material), data);
        (held.published, held.trouble) = (None, None);
    }

    fn written(
        &self,
        held: &mut Held,
        written: Result<Secret, kube::Error>,
        material: Material,
        what: &str,
    ) -> (Duration, Option<Secret>) {
        match written {
            Ok(secret) => {
                info!("Secret {}: {what}", self.secret);
                held.written = Some(Instant::now());
                held.pace.reset();
                self.serve_with(held, material);
                (Duration::ZERO, Some(secret))
            }
            // Another replica was faster: the watch is about to show its object.
            Err(kube::Error::Api(status)) if status.code == 409 => (held.pause(), None),
            Err(error) => (self.failed(held, &one_line(&error)), None),
        }
    }

    fn failed(&self, held: &mut Held, reason: &str) -> Duration {
        self.trouble(held, format!("cannot be written, tried again: {reason}"));
        held.pause()
    }

    /// Says it once.
    fn trouble(&self, held: &mut Held, reason: String) {
        if held.trouble.as_ref() == Some(&reason) {
            return;
        }
        warn!("Secret {}: {reason}", self.secret);
        if held.material.is_none() {
            self.condition.unmet(format!("Secret {}: {reason}", self.secret));
        }
        held.trouble = Some(reason);
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.secret.namespace)
    }

    async fn create(&self, material: &Material) -> Result<Secret, kube::Error> {
        let labels =
            [("app.kubernetes.io/managed-by", FIELD_MANAGER), ("app.kubernetes.io/part-of", "podgauge")];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.name.clone()),
                namespace: Some(self.secret.namespace.clone()),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some(material.data()),
            ..Secret::default()
        };
        self.api().create(&parameters(), &secret).await
    }

    /// Fails with 409 if the Secret is another one by now.
    async fn update(&self, old: &Secret, material: &Material) -> Result<Secret, kube::Error> {
        let mut secret = old.clone();
        secret.data = Some(material.data());
        // Who owns which field is the API server's to say.
        secret.metadata.managed_fields = None;
        self.api().replace(&self.secret.name, &parameters(), &secret).await
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn said(changes: &[Change]) -> String {
    let said = |change: &Change| match change {
        Change::AuthorityAdded => "a new CA joins the old one, which signs on",
        Change::AuthorityTaken => "the new CA signs from now on",
        Change::AuthorityDropped => "an expired CA is gone",
        Change::Leaf => "certificate renewed",
        Change::All => "everything had expired and is made again",
    };
    changes.iter().map(said).collect::<Vec<_>>().join(", ")
}

/// Tells what the Secret is, for the life of the program.
async fn watch_secret(client: Client, watched: Watched, name: ServiceName, seen: watch::Sender<Seen>) {
    let api: Api<Secret> = Api::namespaced(client, &name.namespace);
    let config = Config::default().fields(&format!("metadata.name={}", name.name));
    let mut listed = false;
    follow(api, config, watched, |event| match event {
        Ok(Event::Init) => listed = false,
        Ok(Event::Apply(secret) | Event::InitApply(secret)) => {
            if secret.metadata.name.as_deref() == Some(&name.name) {
                listed = true;
                seen.send_replace(Seen::Present(Box::new(secret)));
            }
        }
        Ok(Event::InitDone) if listed => {}
        Ok(Event::InitDone | Event::Delete(_)) => {
            seen.send_replace(Seen::Absent);
        }
        Err(reason) => {
            seen.send_if_modified(|seen| {
                let unknown = matches!(seen, Seen::Nothing | Seen::Failing(_));
                if unknown {
                    *seen = Seen::Failing(reason);
                }
                unknown
            });
        }
    })
    .await;
}

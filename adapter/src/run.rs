//! Wires the parts together, starts them, and says when the adapter is ready.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use parking_lot::Mutex;
use podgauge_common::cluster::outages::{Watched, Watches};
use podgauge_common::http::limited::Limited;
use podgauge_common::http::listen::listen;
use podgauge_common::http::serve::{Limits, Tls, serve};
use podgauge_common::readiness::{Condition, Readiness};
use podgauge_common::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::apiserver::ApiServer;
use crate::apiserver::custom::CustomMetrics;
use crate::apiserver::discovery::Documents;
use crate::apiserver::tls::TlsError;
use crate::args::Args;
use crate::auth::Auth;
use crate::auth::trust::{self, Trust, follow_trust};
use crate::certificates;
use crate::cluster::client::{ClientError, connect};
use crate::cluster::endpoints::{self, ServiceTargets};
use crate::cluster::watch::ClusterWatches;
use crate::cluster::{ObjectIndex, PodIndex, watch as cluster_watch};
use crate::evaluate::Rules;
use crate::metric::Metrics;
use crate::open_files;
use crate::self_metrics::SelfMetrics;
use crate::source::Target;
use crate::source::access::{Access, AccessError};
use crate::source::budget::Budget;
use crate::source::scrape::Scraper;
use crate::source::set::ExporterSet;

/// After this the adapter is ready whatever it still lacks: while it is not available, no namespace
/// of the cluster can be deleted.
const READY_AT_THE_LATEST: Duration = Duration::from_secs(15);
/// Open files for everything but kept connections: 512 of clients, 320 of scrapes under way, and the rest.
const OTHER_FILES: usize = 1024;
/// Answers that an exporter must have given, because a value needs two.
const ANSWERS: u64 = 2;

/// Why the adapter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Trust(#[from] trust::FileError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{0}")]
    Listen(String),
    #[error("cannot start the background thread: {0}")]
    Thread(String),
}

/// The adapter, listening, all parts at work.
#[derive(Debug)]
pub struct Adapter {
    listener: TcpListener,
    tls: Tls,
    limits: Limits,
    limited: Arc<Limited>,
    server: Arc<ApiServer>,
    shutdown: Shutdown,
}

impl Adapter {
    /// Starts every part. Does not wait for the API server or for exporters: readiness says what
    /// is still missing.
    ///
    /// # Errors
    /// What an operator has to put right, in one line.
    pub async fn start(args: Args, shutdown: Shutdown) -> Result<Self, StartError> {
        let client = connect(args.kubeconfig.as_deref()).await?;
        let of = async |path: &Option<PathBuf>| match path {
            Some(path) => connect(Some(path)).await,
            None => Ok(client.clone()),
        };
        let serving = &args.serving;
        let (tokens, access) =
            (of(&serving.authentication_kubeconfig).await?, of(&serving.authorization_kubeconfig).await?);
        let lister = of(&serving.lister_kubeconfig).await?;
        let sources = serving.trust_sources();
        sources.check()?;
        let readiness = Readiness::default();
        let self_metrics = SelfMetrics::default();
        let watches = Watches::default();
        let settings = serving.settings();
        let namespace = settings.service.namespace.clone();
        let (ends, ended) = watch::channel(false);
        let tls = certificates::start(settings, client, &watches, ended, &readiness, self_metrics.clone())?;
        let reach = Arc::new(Access::load(args.exporter_access.clone())?);
        let address = match args.bind_address {
            Some(ip) => SocketAddr::new(ip, args.secure_port).to_string(),
            None => format!(":{}", args.secure_port),
        };
        let listener = listen(&address).await.map_err(StartError::Listen)?;
        if let Ok(address) = listener.local_addr() {
            info!("serving on https://{address}");
        }

        let metrics = Arc::new(Metrics::new(&args.metric));
        let pods = PodIndex::default();
        tokio::spawn(Arc::clone(&reach).follow());
        let keep = open_files::raise_limit().saturating_sub(OTHER_FILES);
        let scraper =
            Scraper::new(Arc::clone(&metrics), self_metrics.clone(), args.scrape_interval, args.window, keep);
        let scraper = Arc::new(scraper.reaching(reach));
        let background = background().map_err(|error| StartError::Thread(error.to_string()))?;
        let budget = Budget::new(args.max_series);
        let exporters = Arc::new(ExporterSet::on(background.clone(), Arc::clone(&scraper), budget));
        self_metrics.watch(pods.clone(), Arc::clone(&exporters));

        let trust = Trust::default();
        tokio::spawn(follow_trust(tokens.clone(), watches.clone(), sources, Arc::clone(&trust)));
        let watches = ClusterWatches::new(&watches, args.exporter_service.iter().map(ToString::to_string));
        let startup = Startup {
            pods: pods.clone(),
            pods_missing: Arc::default(),
            exporters: Arc::clone(&exporters),
            pods_told: Arc::default(),
            scraper,
            services: watch_services(&lister, &watches, &args, &exporters),
            conditions: [
                readiness.condition("pods", "not listed yet"),
                readiness.condition("exporters", "not asked yet"),
            ],
            readiness: readiness.clone(),
        };
        startup.watch_pods(lister.clone(), watches.pods.clone(), &background);
        let (nodes, namespaces) = (ObjectIndex::default(), ObjectIndex::default());
        let watched = watches.nodes.clone();
        tokio::spawn(cluster_watch::objects::<Node>(lister.clone(), watched, nodes.clone(), |_| {}));
        let watched = watches.namespaces.clone();
        let ours = move |object: &ObjectMeta| {
            if object.name.as_ref() == Some(&namespace) && object.deletion_timestamp.is_some() {
                ends.send_replace(true);
            }
        };
        tokio::spawn(cluster_watch::objects::<Namespace>(lister, watched, namespaces.clone(), ours));
        tokio::spawn(startup.finish());

        let server = Arc::new(ApiServer {
            auth: Auth::new(&tokens, &access, trust, serving.auth_rules(), self_metrics.clone()),
            documents: Documents::new(&metrics),
            custom: CustomMetrics {
                pods,
                nodes,
                namespaces,
                watches,
                exporters,
                metrics,
                rules: Rules { window: args.window, staleness: args.staleness },
                self_metrics: self_metrics.clone(),
            },
            readiness,
            self_metrics,
        });
        let limits = Limits {
            // A user's groups come as a header each.
            headers: 512,
            http2: !args.serving.disable_http2,
            shutdown_delay: args.serving.shutdown_delay_duration,
            ..Limits::default()
        };
        let limited: Arc<Limited> = Arc::default();
        server.self_metrics.watch_server(&limited);
        tokio::spawn(say_that_it_ends(server.readiness.clone(), shutdown.clone(), limits.shutdown_delay));
        Ok(Self { listener, tls, limits, limited, server, shutdown })
    }

    /// Serves until a signal and for the shutdown delay, then lets open requests finish.
    pub async fn serve(self) {
        let Self { listener, tls, limits, limited, server, shutdown } = self;
        serve(listener, Some(tls), limits, limited, server, shutdown).await;
        info!("ended");
    }
}

/// From the signal on the adapter is not ready, so that no new connections are sent to it.
async fn say_that_it_ends(readiness: Readiness, mut shutdown: Shutdown, delay: Duration) {
    shutdown.wait().await;
    readiness.condition("shutdown", "the adapter is ending");
    if !delay.is_zero() {
        info!("not ready; accepting connections for {delay:?} more (--shutdown-delay-duration)");
    }
}

/// Starts the thread on which exporters are scraped and pods are read: no page and no list, however
/// long, takes the place of a request, and what lives long lies together. With a heap for each of
/// several threads, what one frees is of no use to the others, a tenth of all memory. It ends with the
/// program.
fn background() -> std::io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let forever = move || runtime.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("background".to_owned()).spawn(forever)?;
    Ok(handle)
}

/// Watches the Services named on the command line, and scrapes what they and `--exporter-url` name.
/// Gives whether all of them are known and their exporters are in the set.
fn watch_services(
    client: &Client,
    watches: &ClusterWatches,
    args: &Args,
    exporters: &Arc<ExporterSet>,
) -> watch::Receiver<bool> {
    let fixed: Vec<Target> = args
        .exporter_url
        .iter()
        .map(|exporter| Target { node: exporter.node.as_deref().map(Into::into), url: exporter.url.clone() })
        .collect();
    let none: ServiceTargets = vec![None; args.exporter_service.len()];
    let (all_known, known) = watch::channel(none.is_empty());
    let (sender, mut services) = watch::channel(none);
    let sender = Arc::new(sender);
    for (at, (service, watched)) in args.exporter_service.iter().zip(&watches.exporters).enumerate() {
        let scheme = args.exporter_access.exporter_scheme;
        tokio::spawn(endpoints::watch_service(
            client.clone(),
            watched.clone(),
            service.clone(),
            scheme,
            at,
            Arc::clone(&sender),
        ));
    }
    exporters.set(&fixed);
    let exporters = Arc::clone(exporters);
    tokio::spawn(async move {
        while services.changed().await.is_ok() {
            let found = services.borrow_and_update().clone();
            let mut targets = fixed.clone();
            targets.extend(found.iter().flatten().flatten().cloned());
            exporters.set(&targets);
            all_known.send_replace(found.iter().all(Option::is_some));
        }
    });
    known
}

/// What must be known before answers are good.
struct Startup {
    pods: PodIndex,
    /// Why they are not listed.
    pods_missing: Arc<Mutex<String>>,
    pods_told: Arc<Notify>,
    exporters: Arc<ExporterSet>,
    scraper: Arc<Scraper>,
    /// Whether the Services' exporters are known.
    services: watch::Receiver<bool>,
    /// Pods and exporters.
    conditions: [Condition; 2],
    readiness: Readiness,
}

impl Startup {
    fn watch_pods(&self, client: Client, watched: Watched, background: &Handle) {
        let (missing, told) = (Arc::clone(&self.pods_missing), Arc::clone(&self.pods_told));
        background.spawn(cluster_watch::pods(client, watched, self.pods.clone(), move |result| {
            if let Err(reason) = result {
                *missing.lock() = format!("cannot be listed: {reason}");
            }
            told.notify_waiters();
        }));
    }

    /// Meets the conditions as they come true, all of them after [`READY_AT_THE_LATEST`], and says
    /// when the adapter is ready.
    async fn finish(mut self) {
        let deadline = tokio::time::sleep(READY_AT_THE_LATEST);
        tokio::pin!(deadline);
        loop {
            // Asked for before looking, so that nothing told meanwhile is missed.
            let (scraper, told) = (Arc::clone(&self.scraper), Arc::clone(&self.pods_told));
            let (progress, told) = (scraper.progress.notified(), told.notified());
            tokio::pin!(progress, told);
            progress.as_mut().enable();
            told.as_mut().enable();

            let missing = [self.pods_missing(), self.exporters_missing()];
            for (condition, missing) in self.conditions.iter().zip(&missing) {
                match missing {
                    None => condition.met(),
                    Some(reason) => condition.unmet(reason.clone()),
                }
            }
            if missing.iter().all(Option::is_none) {
                break;
            }
            tokio::select! {
                () = &mut deadline => {
                    self.conditions.iter().for_each(Condition::met);
                    let missing: Vec<String> = missing.into_iter().flatten().collect();
                    let missing = missing.join("; ");
                    match self.readiness.check() {
                        Ok(()) => {
                            warn!("ready after {READY_AT_THE_LATEST:?} although: {missing}");
                            return;
                        }
                        Err(reason) => warn!(
                            "not ready: {}; after {READY_AT_THE_LATEST:?} it no longer waits for: {missing}",
                            reason.replace('\n', "; ")
                        ),
                    }
                    break;
                }
                () = progress => {}
                () = told => {}
                Ok(()) = self.services.changed() => {}
            }
        }
        // The certificate may take longer.
        self.readiness.ready().await;
        let exporters = self.exporters.current().all().count();
        info!("ready: {} pods, {exporters} exporters", self.pods.len());
    }

    fn pods_missing(&self) -> Option<String> {
        let reason = self.pods_missing.lock();
        let reason = if reason.is_empty() { "not listed yet" } else { reason.as_str() };
        (!self.pods.synced()).then(|| reason.to_owned())
    }

    fn exporters_missing(&mut self) -> Option<String> {
        if !*self.services.borrow_and_update() {
            return Some("the EndpointSlices of their Service are not listed yet".to_owned());
        }
        let exporters = self.exporters.current();
        let waiting = exporters.all().filter(|exporter| {
            let state = exporter.state.read();
            state.answers < ANSWERS && state.scrapes == state.answers
        });
        match waiting.count() {
            0 => None,
            count => Some(format!("{count} have not answered twice yet")),
        }
    }
}

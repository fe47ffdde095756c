//! Wires the parts: NVML thread and kubelet poller in, pages out, HTTP between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use arc_swap::ArcSwap;
use kube::Client;
use podgauge_common::cluster::outages::Watches;
use podgauge_common::cluster::{self, ClientError};
use podgauge_common::http::limited::Limited;
use podgauge_common::http::listen::listen;
use podgauge_common::http::serve;
use podgauge_common::readiness::{Condition, Readiness};
use podgauge_common::shutdown;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use crate::args::Args;
use crate::attribution::Knowledge;
use crate::attribution::claims::Claims;
use crate::attribution::kubelet::{Poller, PollerOptions};
use crate::attribution::pod_labels::{AllowList, PodLabels};
use crate::attribution::pod_names::PodNames;
use crate::attribution::process_table::ProcessTable;
use crate::attribution::resource_claims::ResourceClaims;
use crate::attribution::slices::{self, Slices};
use crate::attribution::unmatched::UnmatchedIds;
use crate::counters::{self, Counters, listed};
use crate::gpu::{
    self, DeviceReading, Message, Plan, ProcessWatch, Readings, Report, TraceSettings, account,
};
use crate::integrals::Windows;
use crate::page::Page;
use crate::render::{LabelNames, Labelling, PodLabelling, Renderer};
use crate::routes::{Health, Routes};
use crate::self_metrics::SelfMetrics;
use crate::site::Site;
use crate::snapshot::{Node, STALE};
use crate::source::{CountersText, Source};
use crate::web::Web;

/// Messages that may wait for the renderer: it needs a millisecond, they come once a second.
const QUEUE: usize = 16;
/// A page is rendered this long after the last one even if NVML says nothing, so that its values
/// go when they are stale.
const RENDER_AT_LEAST: Duration = Duration::from_millis(1500);

/// Runs until a signal. An error is a configuration that cannot work, or a driver that only a new
/// container can reach.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let source = counters_source(&args).await?;
    let text = source.read().await?;
    let counters = counters::parse(&text.text, &text.name)?.named(args.metric_names, source.is_default());
    let (web, web_files) = Web::open(args.web_config_file.as_deref())?;
    if let Some(path) = &args.nvml_library {
        gpu::check_library(path)?;
    }
    let client = api_client(&args).await?;
    let watches = Watches::default();
    let listener = listen(&args.address).await.map_err(|message| anyhow!(message))?;
    let mut shutdown = shutdown::on_signals()?;
    let hang_ups = on_hang_up()?;

    for warning in args.warnings() {
        tracing::warn!("{warning}");
    }
    report_counters(&counters, &text);
    let readiness = Readiness::default();
    let metrics = SelfMetrics::new();
    let limited: Arc<Limited> = Arc::default();
    metrics.watch_server(&limited);
    let (messages, inbox) = mpsc::channel(QUEUE);
    let plan = Arc::new(ArcSwap::from_pointee(plan_of(&counters, 0, &args)));
    let nvml = readiness.condition("nvml", "not loaded yet");
    let unknown_pid = Arc::new(Notify::new());
    let claims = start_claims(&args, client.as_ref(), &watches);
    let knowledge = start_kubelet(&args, claims, &readiness, &metrics, &unknown_pid);
    let processes = args.kubernetes.then(|| {
        let names = PodNames::new(args.path_pod_logs.clone(), args.path_container_logs.clone());
        let table = ProcessTable::new(args.path_procfs.clone(), names);
        let trace = TraceSettings { source: args.process_source, device_files: args.path_devices.clone() };
        ProcessWatch::new(knowledge.clone(), table, unknown_pid, trace)
    });
    gpu::start(args.nvml_library.clone(), args.devices.clone(), Arc::clone(&plan), processes, messages)?;
    let (sets, new_sets) = mpsc::channel(1);
    let counters_name = text.name.clone();
    tokio::spawn(source.follow(text, args.metric_names, hang_ups.clone(), sets));
    tokio::spawn(web.clone().follow(web_files, hang_ups));

    let labelling = Labelling {
        names: if args.use_old_namespace { LabelNames::OLD } else { LabelNames::CURRENT },
        hostname: args.hostname_labels(),
        replace_blanks: args.replace_blanks_in_model_name,
        pods: pod_labelling(&args, client, &watches),
        recent_window: format!("{}s", args.recent_window.as_secs()),
        exporter_metrics: args.enable_exporter_metrics,
    };
    let page = Arc::new(ArcSwap::from_pointee(Page::default()));
    let pages = Pages {
        node: Node::new(Windows { utilization: args.window(), recent: args.recent_window }),
        renderer: Renderer::new(counters, labelling, args.event_windows()),
        plan,
        // The parts of a plan besides the counters.
        args: args.clone(),
        generation: 0,
        next: BTreeMap::new(),
        // Ids of GPUs that --devices leaves out match nothing, as they should.
        unmatched: args
            .devices
            .serves_everything()
            .then(|| UnmatchedIds::new(args.nvidia_resource_names.clone())),
        metrics: metrics.clone(),
        print_self_metrics: args.enable_exporter_metrics,
        page: Arc::clone(&page),
        nvml: nvml.clone(),
        silent: Silent::default(),
        stale: false,
        report: None,
    };

    // The address that was got: port 0 asks for any free one.
    let address = listener.local_addr()?;
    tracing::info!(
        "podgauge-exporter {}: serving on {address}, {}, counters {counters_name}",
        env!("CARGO_PKG_VERSION"),
        web.scheme()
    );
    let health = Health { stuck_limit: args.stuck_limit, gpus: args.health_require_gpus.then_some(nvml) };
    let limits = serve::Limits {
        head: args.web_read_timeout,
        write: args.web_write_timeout,
        // Scrapers mostly have no certificate.
        keep_answered: true,
        ..serve::Limits::default()
    };
    let tls = web.tls();
    let site = Arc::new(Site { routes: Routes { page, readiness, health }, web });
    let http = serve::serve(listener, tls, limits, limited, site, shutdown.clone());
    let rendering = pages.run(inbox, knowledge, new_sets);
    tokio::pin!(http);
    tokio::select! {
        () = &mut http => Ok(()),
        given_up = rendering => Err(anyhow!(given_up)),
        () = shutdown.wait() => {
            http.await;
            Ok(())
        }
    }
}

async fn counters_source(args: &Args) -> anyhow::Result<Source> {
    Ok(match args.config_map().map_err(|message| anyhow!(message))? {
        Some(name) => Source::config_map(name, args.kubeconfig.clone()).await?,
        None => Source::File(args.collectors.clone()),
    })
}

fn plan_of(counters: &Counters, generation: u64, args: &Args) -> Plan {
    Plan::new(generation, counters.metrics(), counters.texts(), args.interval(), args.event_windows())
}

/// Counts the SIGHUPs.
fn on_hang_up() -> std::io::Result<watch::Receiver<u64>> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            tracing::info!("SIGHUP: reading counters and web configuration again");
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// A client of the API server, if a flag asks for what it alone knows. Claims do without it: the
/// samples of what they hold have no pod labels then.
async fn api_client(args: &Args) -> anyhow::Result<Option<Client>> {
    let labels = args.kubernetes && args.kubernetes_enable_pod_labels;
    let claims = args.kubernetes && args.kubernetes_enable_dra;
    if !labels && !claims {
        return Ok(None);
    }
    if args.node().is_none() {
        let what = "give --node-name or set NODE_NAME (spec.nodeName of this pod)";
        if labels {
            return Err(anyhow!("--kubernetes-enable-pod-labels watches the pods of one node: {what}"));
        }
        tracing::warn!(
            "--kubernetes-enable-dra watches the ResourceSlices of one node: {what}; until then devices that pods hold by claims have no pod labels"
        );
        return Ok(None);
    }
    match cluster::connect(args.kubeconfig.as_deref()).await {
        Ok(client) => Ok(Some(client)),
        Err(error) if labels => Err(anyhow!("--kubernetes-enable-pod-labels needs the API server: {error}")),
        Err(error @ ClientError::InCluster { .. }) => {
            tracing::warn!(
                "--kubernetes-enable-dra needs the API server: {error}, or mount the service account's token; until then devices that pods hold by claims have no pod labels"
            );
            Ok(None)
        }
        Err(error) => Err(anyhow!("--kubernetes-enable-dra needs the API server: {error}")),
    }
}

/// What the flags say of pods, and the watch of their labels started if it is needed.
fn pod_labelling(args: &Args, client: Option<Client>, watches: &Watches) -> PodLabelling {
    let mut pods = PodLabelling {
        virtual_gpus: args.kubernetes_virtual_gpus,
        uid: args.kubernetes_enable_pod_uid,
        labels: None,
    };
    if args.kubernetes_enable_pod_labels
        && let (Some(client), Some(node)) = (client, args.node())
    {
        let allowed = AllowList::new(&args.kubernetes_pod_label_allowlist_regex);
        let labels = PodLabels::default();
        tokio::spawn(labels.clone().watch(client, watches.clone(), node.to_owned(), allowed));
        pods.labels = Some(labels);
    }
    pods
}

/// What tells the devices of claims, if they are asked for, and the watch that it needs.
fn start_claims(args: &Args, client: Option<&Client>, watches: &Watches) -> Option<Claims> {
    if !args.kubernetes || !args.kubernetes_enable_dra {
        return None;
    }
    let (Some(client), Some(node)) = (client, args.node()) else {
        return Some(Claims::new(watch::channel(Slices::Unknown).1, ResourceClaims::new(None)));
    };
    let (sender, receiver) = watch::channel(Slices::Waiting);
    tokio::spawn(slices::follow(client.clone(), watches.clone(), node.to_owned(), sender));
    Some(Claims::new(receiver, ResourceClaims::new(Some(client.clone()))))
}

fn start_kubelet(
    args: &Args,
    claims: Option<Claims>,
    readiness: &Readiness,
    metrics: &SelfMetrics,
    unknown_pid: &Arc<Notify>,
) -> watch::Receiver<Knowledge> {
    if !args.kubernetes {
        return watch::channel(Knowledge::NotAsked).1;
    }
    let (sender, receiver) = watch::channel(Knowledge::Waiting);
    let options = PollerOptions {
        socket: args.pod_resources_kubelet_socket.clone(),
        resources: args.nvidia_resource_names.clone(),
        reservation_namespaces: args.reservation_namespaces.clone(),
        claims,
        procfs: args.path_procfs.clone(),
        pod_logs: args.path_pod_logs.clone(),
        unknown_pid: Arc::clone(unknown_pid),
    };
    let poller = Poller::new(options, metrics.clone());
    tokio::spawn(poller.run(sender, readiness.condition("kubelet", "no answer yet")));
    receiver
}

/// Says once what of a counters file is not served, each kind in one line.
fn report_counters(counters: &Counters, CountersText { name, is_latin_1, .. }: &CountersText) {
    let others = counters.served.len() + counters.labels.len();
    if *is_latin_1 {
        tracing::warn!("counters {name}: not UTF-8; read as Latin-1");
    }
    if counters.is_empty() {
        tracing::warn!("counters {name}: no field in it; only podgauge's own families are served");
    }
    let mut left_out = Vec::new();
    if !counters.unserved.is_empty() {
        left_out.push(format!("this version does not serve {}", listed(&counters.unserved)));
    }
    if !counters.unknown.is_empty() {
        left_out.push(format!("these names are unknown, check the spelling: {}", listed(&counters.unknown)));
    }
    if !left_out.is_empty() {
        tracing::warn!("counters {name}: {}; the other {others} fields are served", left_out.join("; "));
    }
    if !counters.repeated.is_empty() {
        tracing::warn!(
            "counters {name}: more than one line for the field of {}; the first counts",
            listed(&counters.repeated)
        );
    }
}

/// Renders a page at every tick of the NVML thread, and whenever the owners change.
struct Pages {
    node: Node,
    renderer: Renderer,
    unmatched: Option<UnmatchedIds>,
    metrics: SelfMetrics,
    print_self_metrics: bool,
    plan: Arc<ArcSwap<Plan>>,
    args: Args,
    /// Of the newest plan.
    generation: u64,
    /// By generation: printed from the first readings on that were taken by its plan. Until then
    /// the page stays as it is.
    next: BTreeMap<u64, Counters>,
    page: Arc<ArcSwap<Page>>,
    nvml: Condition,
    /// The GPUs that did not answer at the last tick.
    silent: Silent,
    stale: bool,
    /// What the NVML thread said last, so that it is logged once.
    report: Option<Report>,
}

// === impl Pages ===

impl Pages {
    /// Returns why the program must give up.
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut knowledge: watch::Receiver<Knowledge>,
        mut new_sets: mpsc::Receiver<(CountersText, Counters)>,
    ) -> String {
        // Without Kubernetes nobody sends knowledge.
        let mut knowledge_open = true;
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(Message::Readings(readings)) => {
                        self.silent = Silent::of(&readings);
                        self.node.learn(readings, &knowledge.borrow_and_update(), Instant::now());
                        self.turn_over();
                    }
                    Some(Message::Report(Report::GiveUp(reason) | Report::Refused(reason))) => return reason,
                    Some(Message::Report(report)) => self.reported(report),
                    None => return "the NVML thread ended".to_owned(),
                },
                changed = knowledge.changed(), if knowledge_open => knowledge_open = changed.is_ok(),
                Some((text, counters)) = new_sets.recv() => self.replan(&text, counters),
                () = tokio::time::sleep(RENDER_AT_LEAST) => {}
            }
            self.publish(&knowledge.borrow());
        }
    }

    /// Reads by another set from the next tick on.
    fn replan(&mut self, text: &CountersText, counters: Counters) {
        report_counters(&counters, text);
        tracing::info!("counters {}: read again, {} fields are served", text.name, counters.served.len());
        self.generation += 1;
        self.plan.store(Arc::new(plan_of(&counters, self.generation, &self.args)));
        self.next.insert(self.generation, counters);
    }

    fn turn_over(&mut self) {
        let Some(generation) = self.node.generation() else { return };
        if let Some(counters) = self.next.remove(&generation) {
            self.renderer.set_counters(counters);
            self.next = self.next.split_off(&generation);
        }
    }

    fn publish(&mut self, knowledge: &Knowledge) {
        let started = Instant::now();
        self.watch_age(started);
        let snapshot = self.node.snapshot(knowledge, started);
        let rendered = self.renderer.render(&snapshot);
        self.metrics.rendered(&rendered, started.elapsed());
        self.metrics.covered(&snapshot);
        self.follow_ids(knowledge, started);
        self.metrics.aged(self.node.age(started));
        let mut text = rendered.text;
        if self.print_self_metrics {
            text.push_str(&self.metrics.text());
        }
        self.page.store(Arc::new(Page::new(text)));
    }

    fn follow_ids(&mut self, knowledge: &Knowledge, now: Instant) {
        if let (Some(unmatched), Knowledge::Known(list), Some(known)) =
            (&mut self.unmatched, knowledge, self.node.identities())
        {
            self.metrics.unmatched(unmatched.follow(list, &known, now));
        }
    }

    fn reported(&mut self, report: Report) {
        if self.report.as_ref() == Some(&report) {
            return;
        }
        match &report {
            Report::Serving { gpus, of } if gpus == of => tracing::info!("NVML answers for {gpus} GPUs"),
            Report::Serving { gpus, of } => tracing::info!("NVML answers for {gpus} of {of} GPUs"),
            Report::Failing(reason) => {
                tracing::error!("no GPU values: {reason}; trying again");
                self.node.forget_values();
                self.nvml.unmet(reason.clone());
            }
            Report::GiveUp(_) | Report::Refused(_) => {}
        }
        self.report = Some(report);
    }

    /// A driver call can block for long; its thread cannot be ended, only noticed.
    fn watch_age(&mut self, now: Instant) {
        match self.node.age(now) {
            Some(age) if age >= STALE => {
                let age = age.as_secs();
                let reason = match account::unreturned().filter(|call| call.time >= STALE / 2) {
                    Some(call) => format!("no reading for {age} s: {} does not return", call.call),
                    None => {
                        format!("no reading for {age} s: NVML calls take long, or this process has no CPU")
                    }
                };
                if !std::mem::replace(&mut self.stale, true) {
                    tracing::error!("{reason}; GPU values are left out until there is one");
                }
                self.nvml.unmet(reason);
            }
            Some(_) => {
                if std::mem::replace(&mut self.stale, false) {
                    tracing::info!("NVML calls return again");
                }
                match &self.silent {
                    Silent { all: true, gpus } => self.nvml.unmet(format!("no GPU answers: {gpus}")),
                    Silent { all: false, gpus } => self.nvml.met_with(gpus.clone()),
                }
            }
            None => {}
        }
    }
}

/// GPUs that do not answer.
#[derive(Debug, Default)]
struct Silent {
    /// Whether no GPU answers.
    all: bool,
    /// Which, and why; empty if there is none.
    gpus: String,
}

impl Silent {
    fn of(readings: &Readings) -> Self {
        let lost = |device: &DeviceReading| {
            let identity = &device.identity;
            let uuid = if identity.uuid.is_empty() { "UUID not known" } else { &identity.uuid };
            Some(format!("GPU {} ({uuid}): {}", identity.index, device.lost.as_ref()?))
        };
        let mut gpus: Vec<String> = readings.devices.iter().filter_map(lost).collect();
        let all = !gpus.is_empty() && gpus.len() == readings.devices.len();
        // MIG instances have their GPU's.
        gpus.dedup();
        Self { all, gpus: gpus.join("; ") }
    }
}

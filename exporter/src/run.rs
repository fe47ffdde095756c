//! Wires the parts: NVML thread and kubelet poller in, pages out, HTTP between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use arc_swap::ArcSwap;
use podgauge_common::http::serve;
use podgauge_common::readiness::{Condition, Readiness};
use podgauge_common::shutdown;
use tokio::sync::{Notify, mpsc, watch};

use crate::args::Args;
use crate::attribution::Knowledge;
use crate::attribution::kubelet::Poller;
use crate::attribution::pod_labels::{self, AllowList, PodLabels, WatchError};
use crate::attribution::pod_names::PodNames;
use crate::attribution::process_table::ProcessTable;
use crate::counters::{self, Counters};
use crate::gpu::{self, CallTimes, Message, Plan, ProcessWatch, Report};
use crate::page::Page;
use crate::render::{LabelNames, PodLabelling, Renderer};
use crate::routes::Routes;
use crate::self_metrics::SelfMetrics;
use crate::snapshot::{Node, STALE};

/// Messages that may wait for the renderer: it needs a millisecond, they come once a second.
const QUEUE: usize = 16;
/// A page is rendered this long after the last one even if NVML says nothing, so that its values
/// go when they are stale.
const RENDER_AT_LEAST: Duration = Duration::from_millis(1500);

/// Runs until a signal. An error is a configuration that cannot work, or a driver that only a new
/// container can reach.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let (counters, source) = counters::load(args.collectors.as_deref())?;
    if let Some(path) = &args.nvml_library {
        gpu::check_library(path)?;
    }
    let listener = serve::listen(&args.address).map_err(|message| anyhow!(message))?;
    let mut shutdown = shutdown::on_signals()?;

    report_unserved(&counters, &source);
    let readiness = Readiness::default();
    let metrics = SelfMetrics::new();
    let times = Arc::new(CallTimes::default());
    let (messages, inbox) = mpsc::channel(QUEUE);
    let plan = Plan::new(counters.metrics(), counters.texts(), args.interval(), args.event_windows());
    let nvml = readiness.condition("nvml", "not loaded yet");
    let unknown_pid = Arc::new(Notify::new());
    let knowledge = start_kubelet(&args, &readiness, &metrics, &unknown_pid);
    let processes = args.kubernetes.then(|| {
        let names = PodNames::new(args.path_pod_logs.clone(), args.path_container_logs.clone());
        let table = ProcessTable::new(args.path_procfs.clone(), names);
        ProcessWatch::new(knowledge.clone(), table, unknown_pid)
    });
    gpu::start(args.nvml_library.clone(), plan, processes, messages, Arc::clone(&times))?;
    let labels = if args.use_old_namespace { LabelNames::OLD } else { LabelNames::CURRENT };
    let pods = pod_labelling(&args).await?;
    let page = Arc::new(ArcSwap::from_pointee(Page::default()));
    let pages = Pages {
        node: Node::new(args.window()),
        renderer: Renderer::new(counters, args.hostname_labels(), labels, args.event_windows(), pods),
        metrics: metrics.clone(),
        print_self_metrics: args.enable_exporter_metrics,
        times,
        page: Arc::clone(&page),
        nvml,
        stale: false,
        report: None,
    };

    // The address that was got: port 0 asks for any free one.
    let address = listener.local_addr()?;
    tracing::info!(
        "podgauge-exporter {}: serving on {address}, counters from {source}",
        env!("CARGO_PKG_VERSION")
    );
    let routes = Routes { page, readiness };
    let handler = move |request, _peer| {
        let answer = routes.answer(&request);
        async move { answer }
    };
    let http = serve::serve(listener, None, serve::Limits::default(), handler, shutdown.clone());
    let rendering = pages.run(inbox, knowledge);
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

/// What the flags say of pods, and the watch of their labels started if it is needed.
async fn pod_labelling(args: &Args) -> Result<PodLabelling, WatchError> {
    let mut pods = PodLabelling {
        virtual_gpus: args.kubernetes_virtual_gpus,
        uid: args.kubernetes_enable_pod_uid,
        labels: None,
    };
    if args.kubernetes && args.kubernetes_enable_pod_labels {
        let node = args.node_name.clone().filter(|node| !node.is_empty()).ok_or(WatchError::NoNode)?;
        // Refused only if one is installed already, which is then used.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = pod_labels::connect(args.kubeconfig.as_deref()).await?;
        let allowed = AllowList::new(&args.kubernetes_pod_label_allowlist_regex);
        let labels = PodLabels::default();
        tokio::spawn(labels.clone().watch(client, node, allowed));
        pods.labels = Some(labels);
    }
    Ok(pods)
}

fn start_kubelet(
    args: &Args,
    readiness: &Readiness,
    metrics: &SelfMetrics,
    unknown_pid: &Arc<Notify>,
) -> watch::Receiver<Knowledge> {
    if !args.kubernetes {
        return watch::channel(Knowledge::NotAsked).1;
    }
    let (sender, receiver) = watch::channel(Knowledge::Waiting);
    let poller = Poller::new(
        args.pod_resources_kubelet_socket.clone(),
        args.nvidia_resource_names.clone(),
        args.path_pod_logs.clone(),
        Arc::clone(unknown_pid),
        metrics.clone(),
    );
    tokio::spawn(poller.run(sender, readiness.condition("kubelet", "not asked yet")));
    receiver
}

fn report_unserved(counters: &Counters, source: &str) {
    if !counters.unserved.is_empty() {
        tracing::warn!(
            "counters file {source}: this version does not serve {}; the other {} fields are served",
            counters.unserved.join(", "),
            counters.served.len() + counters.labels.len()
        );
    }
    if !counters.repeated.is_empty() {
        tracing::warn!(
            "counters file {source}: more than one line for the field of {}; the first counts",
            counters.repeated.join(", ")
        );
    }
}

/// Renders a page at every tick of the NVML thread, and whenever the owners change.
struct Pages {
    node: Node,
    renderer: Renderer,
    metrics: SelfMetrics,
    print_self_metrics: bool,
    times: Arc<CallTimes>,
    page: Arc<ArcSwap<Page>>,
    nvml: Condition,
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
    ) -> String {
        // Without Kubernetes nobody sends knowledge.
        let mut knowledge_open = true;
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(Message::Readings(readings)) => {
                        self.node.learn(readings, &knowledge.borrow_and_update(), Instant::now());
                    }
                    Some(Message::Report(Report::GiveUp(reason))) => {
                        return format!("{reason}: the driver was replaced; ending so that a new container gets the new library");
                    }
                    Some(Message::Report(report)) => self.reported(report),
                    None => return "the NVML thread ended".to_owned(),
                },
                changed = knowledge.changed(), if knowledge_open => knowledge_open = changed.is_ok(),
                () = tokio::time::sleep(RENDER_AT_LEAST) => {}
            }
            self.publish(&knowledge.borrow());
        }
    }

    fn publish(&mut self, knowledge: &Knowledge) {
        let started = Instant::now();
        self.watch_age(started);
        let snapshot = self.node.snapshot(knowledge, started);
        let mut text = self.renderer.render(&snapshot);
        self.metrics.rendered(text.len(), started.elapsed(), &self.times);
        if self.print_self_metrics {
            text.push_str(&self.metrics.text());
        }
        self.page.store(Arc::new(Page::new(text)));
    }

    fn reported(&mut self, report: Report) {
        if self.report.as_ref() == Some(&report) {
            return;
        }
        match &report {
            Report::Serving { gpus } => tracing::info!("NVML answers for {gpus} GPUs"),
            Report::Failing(reason) => {
                tracing::error!("no GPU values: {reason}; trying again");
                self.node.forget_values();
                self.nvml.unmet(reason.clone());
            }
            Report::GiveUp(_) => {}
        }
        self.report = Some(report);
    }

    /// A driver call can block for long; its thread cannot be ended, only noticed.
    fn watch_age(&mut self, now: Instant) {
        match self.node.age(now) {
            Some(age) if age >= STALE => {
                let reason = format!("no reading for {} s: an NVML call does not return", age.as_secs());
                if !std::mem::replace(&mut self.stale, true) {
                    tracing::error!("{reason}; GPU values are left out until it does");
                }
                self.nvml.unmet(reason);
            }
            Some(_) => {
                if std::mem::replace(&mut self.stale, false) {
                    tracing::info!("NVML calls return again");
                }
                self.nvml.met();
            }
            None => {}
        }
    }
}

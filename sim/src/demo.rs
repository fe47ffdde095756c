//! Owns the demo: a simulated node, the two real programs on it, and a table of what comes out.

mod children;
mod reading;
mod table;
mod truth;
mod verdict;

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podgauge_sim_nvml::scenario::{Scenario, ScenarioError};
use podgauge_sim_nvml::trees;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use self::children::{Child, ChildError};
use self::reading::Reading;
use self::truth::Played;
use crate::aggregator::{Aggregation, Aggregator, ApiService};
use crate::apiserver::{
    ADAPTER_TOKEN, ADMIN_TOKEN, ApiServer, ApiServerError, ApiServerHandle, ApiServerOptions, Credentials,
    Exporter,
};
use crate::certs::{Authority, CertificateError};
use crate::free_address;
use crate::kubelet::{Kubelet, KubeletError, KubeletHandle, KubeletOptions};

/// The built-in node.
pub const SCENARIO: &str = include_str!("../scenarios/demo.yaml");
/// The adapter's `--window`, in seconds.
const WINDOW_S: u32 = 20;
/// How long after the window is full an answer may still be of before: two scrapes and a render.
const SETTLING: Duration = Duration::from_secs(3);
/// `--once` prints its verdict at the latest after so long.
const ONCE_LIMIT: Duration = Duration::from_secs(55);
/// A program that is not ready after so long has failed.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at a program that is not ready yet.
const READY_LOOK: Duration = Duration::from_millis(100);
const REDRAW: Duration = Duration::from_secs(1);

/// How the demo runs.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// One table after the window has filled, judged.
    pub once: bool,
    /// Instead of the built-in scenario. It is copied.
    pub scenario: Option<PathBuf>,
    /// Leave the folder with the kubeconfig, the logs and the scenario when the demo ends.
    pub keep: bool,
}

/// Why the demo could not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{path} is not there: build it first, with `cargo build` (or `cargo build --release`)")]
    NotBuilt { path: PathBuf },
    #[error("cannot prepare {what}: {source}")]
    Prepare { what: String, source: io::Error },
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    #[error(transparent)]
    ApiServer(#[from] ApiServerError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Child(#[from] ChildError),
}

/// Where everything of one demo is.
#[derive(Debug)]
struct Places {
    dir: PathBuf,
    scenario: PathBuf,
    kubeconfig: PathBuf,
    authority: PathBuf,
}

/// A demo that is up.
struct Demo {
    places: Places,
    played: Arc<Mutex<Played>>,
    exporter: Child,
    adapter: Child,
    exporter_address: SocketAddr,
    server: ApiServerHandle,
    aggregator: Arc<Aggregator>,
    _kubelet: KubeletHandle,
}

/// Runs until Ctrl-C, or with `once` until the verdict: whether the demo did what it should.
///
/// # Errors
/// If a part of it cannot be started or dies. The text names its log.
pub async fn run(options: DemoOptions) -> Result<bool, DemoError> {
    let prepared = |what: &str| {
        let what = what.to_owned();
        move |source| DemoError::Prepare { what, source }
    };
    let folder = tempfile::Builder::new()
        .prefix("podgauge-demo-")
        .tempdir()
        .map_err(prepared("a temporary folder"))?;
    // Both before anything starts: an early Ctrl-C must also end the children.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(prepared("Ctrl-C"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(prepared("SIGTERM"))?;
    let started = Instant::now();
    print(table::BANNER);
    let mut demo = None;
    let outcome = tokio::select! {
        outcome = run_in(folder.path(), &options, started, &mut demo) => outcome,
        _ = interrupt.recv() => Ok(!options.once),
        _ = terminate.recv() => Ok(!options.once),
    };
    if let Some(demo) = demo {
        demo.stop().await;
    }
    if options.keep || !matches!(outcome, Ok(true)) {
        let path = folder.keep();
        eprintln!("left for you to look at: {}", path.display());
    }
    outcome
}

async fn run_in(
    dir: &Path,
    options: &DemoOptions,
    started: Instant,
    slot: &mut Option<Demo>,
) -> Result<bool, DemoError> {
    let demo = slot.insert(Demo::start(dir, options.scenario.as_deref()).await?);
    if options.once { demo.judge(started).await } else { demo.show().await }
}

// === impl Demo ===

impl Demo {
    async fn start(dir: &Path, scenario: Option<&Path>) -> Result<Self, DemoError> {
        let programs = Programs::find()?;
        let places = Places {
            dir: dir.to_owned(),
            scenario: dir.join("scenario.yaml"),
            kubeconfig: dir.join("kubeconfig"),
            authority: dir.join("ca.crt"),
        };
        let text = match scenario {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| DemoError::Prepare { what: path.display().to_string(), source })?,
            None => SCENARIO.to_owned(),
        };
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text)
                .map_err(|source| DemoError::Prepare { what: path.display().to_string(), source })
        };
        write(&places.scenario, &text)?;
        let scenario = crate::scenario_file::follow(&places.scenario)?;
        let node = Arc::clone(&scenario.borrow());
        let trees = trees::write(dir, &node)
            .map_err(|source| DemoError::Prepare { what: "the node's file trees".to_owned(), source })?;
        let played = Arc::new(Mutex::new(Played::new(Arc::clone(&node))));
        tokio::spawn(follow(dir.to_owned(), scenario, Arc::clone(&played)));

        let kubelet = Kubelet::start(
            dir.join("pod-resources/kubelet.sock"),
            places.scenario.clone(),
            KubeletOptions::default(),
        )
        .await?;
        let port = || {
            let unprepared = |source| DemoError::Prepare { what: "a free port".to_owned(), source };
            free_address().map_err(unprepared)
        };
        let (exporter_address, adapter_address) = (port()?, port()?);
        let server = ApiServer::start(ApiServerOptions {
            scenarios: vec![places.scenario.clone()],
            exporters: vec![Exporter {
                node: Some(node.node.clone()),
                address: exporter_address,
                ready: true,
            }],
            ..ApiServerOptions::default()
        })
        .await?;
        let adapter_kubeconfig = dir.join("adapter.kubeconfig");
        for (path, token) in [(&places.kubeconfig, ADMIN_TOKEN), (&adapter_kubeconfig, ADAPTER_TOKEN)] {
            server
                .write_kubeconfig(path, &Credentials::Token(token.to_owned()))
                .map_err(|source| DemoError::Prepare { what: path.display().to_string(), source })?;
        }
        write(&places.authority, server.certificates().cluster.pem())?;

        let authority = Authority::new("podgauge-adapter-ca")?;
        let (certificate, key) = (dir.join("adapter.crt"), dir.join("adapter.key"));
        authority
            .server("podgauge-adapter", &["podgauge-adapter.podgauge.svc"])?
            .write(&certificate, &key)
            .map_err(|source| DemoError::Prepare { what: certificate.display().to_string(), source })?;

        let mut exporter =
            children::exporter(&programs, &places, &trees, kubelet.socket(), exporter_address, &node.node)?;
        exporter
            .wait_until_ready(READY_LIMIT, READY_LOOK, || children::exporter_is_ready(exporter_address))
            .await?;
        let mut adapter = children::adapter(
            &programs,
            &places,
            &adapter_kubeconfig,
            adapter_address,
            WINDOW_S,
            (&certificate, &key),
        )?;
        let client = children::adapter_client(adapter_address, authority.pem())?;
        adapter.wait_until_ready(READY_LIMIT, READY_LOOK, || children::adapter_is_ready(&client)).await?;

        let aggregator = server.aggregate(Aggregation {
            api_services: ApiService::custom_metrics(),
            ..Aggregation::of_adapter(adapter_address, authority.pem().to_owned())
        })?;
        Ok(Self {
            places,
            played,
            exporter,
            adapter,
            exporter_address,
            server,
            aggregator,
            _kubelet: kubelet,
        })
    }

    async fn stop(mut self) {
        // The adapter first: it must not complain about an exporter that is gone.
        self.adapter.stop().await;
        self.exporter.stop().await;
    }

    /// The table, again each second, until a program dies.
    async fn show(&mut self) -> Result<bool, DemoError> {
        let terminal = io::stdout().is_terminal();
        let mut ticks = tokio::time::interval(REDRAW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                died = self.exporter.died() => return Err(died.into()),
                died = self.adapter.died() => return Err(died.into()),
            }
            let reading = self.read().await;
            let mut text = table::render(&reading, WINDOW_S);
            if terminal || first {
                text.push('\n');
                text.push_str(&self.hints());
            }
            text.push('\n');
            print(&if terminal { format!("\x1b[H\x1b[2J{}{text}", table::BANNER) } else { text });
            first = false;
        }
    }

    /// One table once the window has filled, and whether it is right.
    async fn judge(&mut self, started: Instant) -> Result<bool, DemoError> {
        let full = Instant::now() + Duration::from_secs(WINDOW_S.into()) + SETTLING;
        let last = started + ONCE_LIMIT;
        eprintln!("the programs are up; the adapter's window of {WINDOW_S}s fills");
        let mut at = full.min(last);
        let (reading, misses) = loop {
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                died = self.exporter.died() => return Err(died.into()),
                died = self.adapter.died() => return Err(died.into()),
            }
            let reading = self.read().await;
            let judged = verdict::judge(&reading);
            // A wrong number is wrong at once; one that is not there yet may still come.
            if !judged.may_mend || Instant::now() >= last {
                break (reading, judged.misses);
            }
            at = (Instant::now() + REDRAW).min(last);
        };
        print(&table::render(&reading, WINDOW_S));
        for miss in &misses {
            println!("WRONG: {miss}");
        }
        if misses.is_empty() {
            println!(
                "ok: every answer is within {} points of the truth, every omission is an expected one",
                verdict::TOLERANCE
            );
        } else {
            println!("logs: {}, {}", self.exporter.log().display(), self.adapter.log().display());
        }
        Ok(misses.is_empty())
    }

    async fn read(&self) -> Reading {
        let played = self.played.lock().clone();
        reading::read(&played, &self.aggregator, jiff::Timestamp::now(), f64::from(WINDOW_S)).await
    }

    fn hints(&self) -> String {
        let Places { dir, scenario, kubeconfig, authority } = &self.places;
        let metric = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/*/gpu_utilization";
        format!(
            "To try, in another terminal:
  curl -s http://{exporter}/metrics | grep -E 'GPU_UTIL|podgauge_'
  curl -s --cacert {authority} -H 'Authorization: Bearer {ADMIN_TOKEN}' '{server}{metric}'
  kubectl --kubeconfig {kubeconfig} get --raw '{metric}?labelSelector=app%3Dchat'
  kubectl --kubeconfig {kubeconfig} get pods,apiservices -n demo
  $EDITOR {scenario}    # change a load, add a pod: the table follows
Logs: {dir}/exporter.log, {dir}/adapter.log. Ctrl-C ends everything.
",
            exporter = self.exporter_address,
            server = self.server.url(),
            authority = authority.display(),
            kubeconfig = kubeconfig.display(),
            scenario = scenario.display(),
            dir = dir.display(),
        )
    }
}

/// The files that were built beside this program.
#[derive(Debug)]
struct Programs {
    exporter: PathBuf,
    adapter: PathBuf,
    library: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, DemoError> {
        let own = std::env::current_exe()
            .map_err(|source| DemoError::Prepare { what: "the folder of this program".to_owned(), source })?;
        let folder = own.parent().unwrap_or(Path::new("."));
        let find = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { Ok(path) } else { Err(DemoError::NotBuilt { path }) }
        };
        Ok(Self {
            exporter: find("podgauge-exporter")?,
            adapter: find("podgauge-adapter")?,
            library: find("libpodgauge_sim_nvml.so")?,
        })
    }
}

/// Notes each change of the scenario, and writes the trees again.
async fn follow(dir: PathBuf, mut scenario: watch::Receiver<Arc<Scenario>>, played: Arc<Mutex<Played>>) {
    while scenario.changed().await.is_ok() {
        let scenario = Arc::clone(&scenario.borrow_and_update());
        let now = reading::epoch_s(jiff::Timestamp::now());
        played.lock().change(now, Arc::clone(&scenario), WINDOW_S.into());
        if let Err(error) = trees::write(&dir, &scenario) {
            tracing::warn!(folder = %dir.display(), %error, "cannot write the node's file trees");
        }
    }
}

/// To stdout; a reader that went away is no reason to fail.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

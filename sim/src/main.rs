//! The command line of the simulated node: each part alone, and the demo made of them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use podgauge_common::duration::parse_go_duration;
use podgauge_common::logging;
use podgauge_sim::aggregator::{Aggregation, Aggregator, ApiService, Protocol};
use podgauge_sim::apiserver::{
    ADAPTER_TOKEN, ADMIN_TOKEN, Access, ApiServer, ApiServerOptions, Credentials, EXPORTER_TOKEN, Exporter,
    Failing, HPA_TOKEN, NOBODY_TOKEN, ServiceName,
};
use podgauge_sim::demo::{self, DemoOptions};
use podgauge_sim::kubelet::{Kubelet, KubeletOptions};
use podgauge_sim_nvml::scenario::Scenario;
use tokio::signal::unix::{SignalKind, signal};

/// A GPU node without a GPU: its kubelet, its API server, its files, and a demo made of them.
///
/// Everything listens on loopback or a unix socket and follows a scenario file (YAML); the GPUs
/// themselves are libpodgauge_sim_nvml.so, which reads the same file.
#[derive(Debug, Parser)]
#[command(name = "podgauge-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the kubelet's pod-resources v1 API on a unix socket until Ctrl-C
    Kubelet(KubeletArgs),
    /// Serve a stand-in API server over TLS until Ctrl-C
    Apiserver(Box<ApiserverArgs>),
    /// Write the /proc, /var/log/pods and /var/log/containers that go with a scenario
    Trees(TreesArgs),
    /// Copy the simulated NVML library without some of its calls, as an older driver's
    Library(LibraryArgs),
    /// Run the exporter and the adapter on a simulated node and show what comes out
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct KubeletArgs {
    /// The node, as YAML; read again when it changes
    #[arg(long, value_name = "FILE", env = "PODGAUGE_SIM_SCENARIO")]
    scenario: PathBuf,
    /// Where to serve; its folder is made
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// For so long after the start List is empty
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_go_duration)]
    empty_for: Duration,
    /// Calls per second, all together
    #[arg(long, value_name = "N", default_value_t = podgauge_sim::kubelet::CALLS_PER_SECOND)]
    calls_per_second: f64,
    /// Calls at once
    #[arg(long, value_name = "N", default_value_t = podgauge_sim::kubelet::CALL_BURST)]
    burst: f64,
    /// Every call waits so long
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_go_duration)]
    hang: Duration,
    /// Fill List up with pods without devices to so many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pad_to: usize,
}

#[derive(Debug, Args)]
struct ApiserverArgs {
    /// A node, as YAML; read again when it changes, and the changes go to the watches. Repeatable
    #[arg(long, value_name = "FILE")]
    scenario: Vec<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Write a kubeconfig of the admin here. The other users' stand beside it, as
    /// <FILE>.adapter, <FILE>.exporter, <FILE>.hpa and <FILE>.nobody
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// An exporter behind --exporter-service. Repeatable
    #[arg(long, value_name = "NODE=IP:PORT")]
    exporter: Vec<Exporter>,
    /// The exporters' Service
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "podgauge/podgauge-exporter")]
    exporter_service: ServiceName,
    /// Tokens and rules on top of the built-in ones, as YAML
    #[arg(long, value_name = "FILE")]
    access: Option<PathBuf>,
    /// Proxy custom.metrics.k8s.io to the adapter here, as kube-apiserver's aggregation layer does
    #[arg(long, value_name = "IP:PORT")]
    adapter: Option<SocketAddr>,
    /// The caBundle at first: what the adapter's certificate is verified against (PEM). Without it the
    /// APIServices have none until the adapter sets it
    #[arg(long, value_name = "FILE", requires = "adapter")]
    adapter_ca_file: Option<PathBuf>,
    /// The adapter's Service: its certificate must be for <NAME>.<NAMESPACE>.svc
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "podgauge/podgauge-adapter")]
    adapter_service: ServiceName,
    /// Speak only this to the adapter: 1 or 2. Unless given as it chooses
    #[arg(long, value_name = "VERSION", value_parser = ["1", "2"])]
    adapter_http: Option<String>,
    /// Proxy external.metrics.k8s.io too
    #[arg(long)]
    external_metrics: bool,
    /// Every request waits so long
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_go_duration)]
    delay: Duration,
    /// Answer every TokenReview with 500
    #[arg(long)]
    fail_token_reviews: bool,
    /// Answer every SubjectAccessReview with 500
    #[arg(long)]
    fail_access_reviews: bool,
}

#[derive(Debug, Args)]
struct TreesArgs {
    /// The node, as YAML
    #[arg(long, value_name = "FILE", env = "PODGAUGE_SIM_SCENARIO")]
    scenario: PathBuf,
    /// Folder to write them in
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

#[derive(Debug, Args)]
struct LibraryArgs {
    /// The library to copy. Default: libpodgauge_sim_nvml.so beside this program
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Where to write the copy
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// A call that the copy lacks. Repeatable
    #[arg(long, value_name = "SYMBOL", num_args = 1..)]
    without: Vec<String>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// One table after the adapter's window has filled; exit 0 only if it is right
    #[arg(long)]
    once: bool,
    /// Another scenario than the built-in one; it is copied
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Leave the folder with the logs and kubeconfigs when it ends
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // A second provider cannot have been installed: this is the first thing that happens.
    drop(rustls::crypto::ring::default_provider().install_default());
    // The demo's terminal is for its table.
    if !matches!(cli.command, Command::Demo(_)) || std::env::var_os("RUST_LOG").is_some() {
        logging::init(logging::Format::Text, false);
    }
    let outcome = match cli.command {
        Command::Kubelet(args) => kubelet(args).await,
        Command::Apiserver(args) => apiserver(*args).await,
        Command::Trees(args) => trees(&args),
        Command::Library(args) => library(args),
        Command::Demo(args) => {
            let options = DemoOptions { once: args.once, scenario: args.scenario, keep: args.keep };
            match demo::run(options).await {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::FAILURE,
                Err(error) => Err(error.into()),
            }
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podgauge-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn kubelet(args: KubeletArgs) -> anyhow::Result<()> {
    let options = KubeletOptions {
        empty_for: args.empty_for,
        calls_per_second: args.calls_per_second,
        burst: args.burst,
        hang: args.hang,
        pad_to_bytes: args.pad_to,
        absent: false,
    };
    let handle = Kubelet::start(args.socket, args.scenario.clone(), options).await?;
    println!("pod-resources v1 on {}, pods of {}", handle.socket().display(), args.scenario.display());
    until_told_to_stop().await?;
    let calls = handle.calls();
    println!(
        "{} List, {} GetAllocatableResources, {} rejected",
        calls.list, calls.allocatable, calls.rejected
    );
    Ok(())
}

async fn apiserver(args: ApiserverArgs) -> anyhow::Result<()> {
    let access = match &args.access {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_saphyr::from_str::<Access>(&text).with_context(|| path.display().to_string())?
        }
        None => Access::default(),
    };
    let server = ApiServer::start(ApiServerOptions {
        listen: args.listen,
        scenarios: args.scenario.clone(),
        exporter_service: args.exporter_service.clone(),
        exporters: args.exporter.clone(),
        access,
        certificates: None,
    })
    .await?;
    server.set_failing(Failing {
        token_reviews: args.fail_token_reviews,
        access_reviews: args.fail_access_reviews,
    });
    server.set_delay(args.delay);
    let mut text = format!("API server on {}\n", server.url());
    for scenario in &args.scenario {
        writeln!(text, "  pods of {}", scenario.display())?;
    }
    for exporter in &args.exporter {
        let node = exporter.node.as_deref().unwrap_or("no node");
        writeln!(text, "  exporter {} of {node} behind {}", exporter.address, args.exporter_service)?;
    }
    if let Some(path) = &args.kubeconfig {
        for (suffix, token) in [
            ("", ADMIN_TOKEN),
            (".adapter", ADAPTER_TOKEN),
            (".exporter", EXPORTER_TOKEN),
            (".hpa", HPA_TOKEN),
            (".nobody", NOBODY_TOKEN),
        ] {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            let path = PathBuf::from(name);
            server
                .write_kubeconfig(&path, &Credentials::Token(token.to_owned()))
                .with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(text, "  kubeconfig {} (token {token})", path.display())?;
        }
    }
    let aggregator = match args.adapter {
        Some(address) => {
            let ca_bundle = match &args.adapter_ca_file {
                Some(ca_file) => std::fs::read_to_string(ca_file)
                    .with_context(|| format!("cannot read {}", ca_file.display()))?,
                None => String::new(),
            };
            let mut api_services = ApiService::custom_metrics();
            if args.external_metrics {
                api_services.push(ApiService::external_metrics());
            }
            let protocol = match args.adapter_http.as_deref() {
                Some("1") => Protocol::Http1,
                Some(_) => Protocol::Http2,
                None => Protocol::Negotiated,
            };
            writeln!(text, "  {} proxied to https://{address}", names(&api_services))?;
            Some(server.aggregate(Aggregation {
                service: args.adapter_service,
                protocol,
                api_services,
                ..Aggregation::of_adapter(address, ca_bundle)
            })?)
        }
        None => None,
    };
    print!("{text}");
    until_told_to_stop().await?;
    println!("{} TokenReviews, {} SubjectAccessReviews", server.token_reviews(), server.access_reviews());
    if let Some(aggregator) = aggregator {
        print!("{}", availability(&aggregator));
    }
    Ok(())
}

fn names(api_services: &[ApiService]) -> String {
    api_services.iter().map(ApiService::name).collect::<Vec<_>>().join(", ")
}

fn availability(aggregator: &Aggregator) -> String {
    aggregator
        .availability()
        .iter()
        .map(|a| format!("{} {} {} {}\n", a.api_service.name(), a.status.as_str(), a.reason, a.message))
        .collect()
}

fn trees(args: &TreesArgs) -> anyhow::Result<()> {
    let scenario = Scenario::read(&args.scenario)?;
    let trees = podgauge_sim_nvml::trees::write(&args.to, &scenario)
        .with_context(|| format!("cannot write the trees below {}", args.to.display()))?;
    println!(
        "--path.procfs {} --path.pod-logs {} --path.container-logs {}",
        trees.procfs.display(),
        trees.pod_logs.display(),
        trees.container_logs.display()
    );
    Ok(())
}

fn library(args: LibraryArgs) -> anyhow::Result<()> {
    let from = match args.from {
        Some(path) => path,
        None => {
            let own = std::env::current_exe().context("cannot tell where this program is")?;
            own.parent().unwrap_or(Path::new(".")).join("libpodgauge_sim_nvml.so")
        }
    };
    podgauge_sim_nvml::write_library_without(&from, &args.to, &args.without)?;
    println!("{} without {}", args.to.display(), args.without.join(", "));
    Ok(())
}

async fn until_told_to_stop() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

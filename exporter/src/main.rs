//! podgauge-exporter: GPU utilization per pod as Prometheus metrics, under dcgm-exporter's names.

mod args;
mod attribution;
mod counters;
mod division;
mod gpu;
mod integrals;
mod own_families;
mod page;
mod render;
mod routes;
mod run;
mod self_metrics;
mod site;
mod snapshot;
mod source;
mod web;

use std::process::ExitCode;

use podgauge_common::logging;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing else in this program chooses a TLS provider");
    }
    let args = args::Args::from_go(std::env::args_os()).unwrap_or_else(|usage| usage.exit());
    logging::init(args.log_format, args.debug);
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One thread serves, renders and polls the kubelet; NVML has threads of its own.
fn serve(args: args::Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(run::run(args));
    // A password that is still being judged, or a name being looked up, does not delay the end.
    runtime.shutdown_background();
    served
}

//! podgauge-exporter: GPU utilization per pod as Prometheus metrics, under dcgm-exporter's names.

mod args;
mod attribution;
mod counters;
mod division;
mod gpu;
mod integrals;
mod page;
mod render;
mod routes;
mod run;
mod self_metrics;
mod snapshot;

use std::process::ExitCode;

use clap::Parser;
use podgauge_common::logging;

/// One thread serves, renders and polls the kubelet; NVML has threads of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = args::Args::parse();
    logging::init(args.log_format, args.debug);
    match run::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

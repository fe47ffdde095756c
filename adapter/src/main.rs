//! The program: flags, logging, runtime, exit codes (0 ended by a signal, 1 cannot start, 2 usage).

use std::process::ExitCode;

use clap::Parser as _;
use podgauge_adapter::args::{Args, Command};
use podgauge_adapter::explain;
use podgauge_adapter::run::Adapter;
use podgauge_common::logging;
use tracing::{error, warn};

/// With glibc's allocator scraping takes a sixth more CPU, and what 100,000 pods leave free between what is
/// kept is not given back: a fifth more memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        unreachable!("nothing else in this program chooses a TLS provider");
    }
    let args = Args::parse();
    if let Some(Command::Explain(args)) = &args.command {
        return explain::run(args);
    }
    if let Err(usage) = args.check() {
        usage.exit();
    }
    logging::init(args.log_format, args.debug || args.serving.verbosity.is_some_and(|level| level >= 4));
    for warning in args.serving.warnings() {
        warn!("{warning}");
    }
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(async {
        let shutdown = podgauge_common::shutdown::on_signals()?;
        let adapter = Adapter::start(args, shutdown).await?;
        adapter.serve().await;
        anyhow::Ok(())
    });
    // Watches and name look-ups still under way are of no use any more.
    runtime.shutdown_background();
    served
}

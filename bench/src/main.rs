//! `make bench`: measures the shipped release programs against their budgets, without a GPU.
//!
//! The programs run as processes and are asked over loopback; what they need around them (driver
//! library, kubelet, API server, a fleet of exporters) is simulated. Prints one table and exits
//! with 1 if a budget is missed that docs/PERFORMANCE.md does not explain.

mod adapter;
mod change;
mod encoders;
mod explained;
mod exporter;
mod fleet;
mod front_proxy;
mod http1;
mod latency;
mod machine;
mod nvitop;
mod process;
mod report;
mod rows;
mod simulated;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};

use crate::adapter::Scale;
use crate::explained::Explanations;
use crate::fleet::Serving;
use crate::machine::Machine;
use crate::process::Programs;
use crate::report::Report;

/// Measures podgauge's budgets that need no GPU.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the release programs; default: where this program is.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Measure only these parts; the other rows are left out of the table.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Pods of the adapter's cluster.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Pods of the large one.
    #[arg(long, default_value_t = 100_000)]
    large_pods: usize,
    /// Exporters whose scraping is measured.
    #[arg(long, default_value_t = 5_000)]
    exporters: usize,
    /// Where misses are explained.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PERFORMANCE.md"))]
    explanations: PathBuf,
    /// Put the table into that file, in place of the last run's.
    #[arg(long)]
    write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Exporter,
    Adapter,
    Scraping,
    Large,
    Change,
    Encoders,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("podgauge-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything asked for; whether every miss is explained.
fn bench(args: &Args) -> anyhow::Result<bool> {
    let programs = Programs::find(args.programs.clone())?;
    let explanations = Explanations::read(&args.explanations)?;
    let machine = Machine::look()?;
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let mut report = Report::default();
    if wanted(Part::Encoders) {
        eprintln!("encoders: pages written and read in this process");
        encoders::measure(&programs, &mut report).context("encoders")?;
    }
    if wanted(Part::Exporter) {
        eprintln!("exporter: 8 simulated GPUs, beside nvitop-exporter");
        exporter::measure(&programs, &mut report).context("exporter")?;
    }
    if wanted(Part::Change) {
        eprintln!("change: from a changed load to a changed value");
        change::measure(&programs, &mut report).context("change")?;
    }
    if wanted(Part::Adapter) {
        eprintln!("adapter: {} pods", args.pods);
        let scale = Scale {
            pods: args.pods,
            rss: rows::ADAPTER_RSS,
            latencies: rows::ADAPTER_LATENCIES,
            serving: Serving::PartsCompressed,
            arguments: &[],
        };
        adapter::measure(&programs, &scale, &mut report).context("adapter")?;
    }
    if wanted(Part::Scraping) {
        eprintln!("scraping: {} exporters", args.exporters);
        adapter::measure_scraping(&programs, args.exporters, &mut report).context("scraping")?;
    }
    if wanted(Part::Large) {
        eprintln!("large: {} pods", args.large_pods);
        let scale = Scale {
            pods: args.large_pods,
            rss: rows::LARGE_RSS,
            latencies: rows::LARGE_LATENCIES,
            serving: Serving::Parts,
            arguments: &["--max-series", "500000"],
        };
        adapter::measure(&programs, &scale, &mut report).context("large")?;
    }
    let table = report.markdown(&machine, &explanations);
    println!("{table}");
    if args.write {
        explained::write_table(&args.explanations, &table)?;
    }
    let unexplained = report.unexplained(&explanations);
    for row in &unexplained {
        eprintln!("missed and not explained in {}: {row}", args.explanations.display());
    }
    Ok(unexplained.is_empty())
}

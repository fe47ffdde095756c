//! From a changed load to a changed value, through the shipped exporter and adapter.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::adapter::{Adapter, Cluster};
use crate::latency::Latencies;
use crate::process::{Programs, free_address};
use crate::report::Report;
use crate::rows;
use crate::simulated::{Node, one_pod_a_gpu, runtime};

/// One pod and GPU a trial: a mean that still moves after one change cannot show the next.
const TRIALS: usize = 16;
const BEFORE: u32 = 20;
const AFTER: u32 = 80;
/// How often the adapter is asked.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// A value that nobody changed moves by less, percent.
const NOISE: f64 = 0.25;
/// A change not seen by then will not be.
const LIMIT: Duration = Duration::from_secs(15);

pub(crate) fn measure(programs: &Programs, report: &mut Report) -> anyhow::Result<()> {
    let how = format!(
        "{TRIALS} changes from {BEFORE} to {AFTER} %, window 60s, asked every {} ms",
        ASK_EVERY.as_millis()
    );
    let seconds = trials(programs, &["--scrape-interval", "1s"])?;
    report.judge(rows::CHANGE_MEDIAN, seconds.quantile(0.5).as_secs_f64(), how.clone());
    report.judge(rows::CHANGE_MAX, seconds.quantile(1.0).as_secs_f64(), "the same");
    let defaults = trials(programs, &[])?;
    let median = defaults.quantile(0.5).as_secs_f64();
    report.judge(
        rows::CHANGE_DEFAULTS,
        defaults.quantile(1.0).as_secs_f64(),
        format!("{how}; median {median:.2} s"),
    );
    Ok(())
}

fn trials(programs: &Programs, arguments: &[&str]) -> anyhow::Result<Latencies> {
    let runtime = runtime()?;
    let load = |changed: usize| {
        one_pod_a_gpu("bench-node", TRIALS, |gpu| {
            format!("{{constant: {}}}", if gpu < changed { AFTER } else { BEFORE })
        })
    };
    let node = Node::start(&runtime, &load(0))?;
    let exporter = node.exporter(programs, free_address()?)?;
    let cluster =
        Cluster::start(&runtime, vec![node.scenario()], &[("bench-node".to_owned(), exporter.address)])?;
    let adapter = Adapter::start(programs, &cluster, node.path(), arguments)?;
    let ask = |adapter: &Adapter, pod: usize| adapter.value(&format!("worker-{pod}")).ok();
    let start = Instant::now();
    while (0..TRIALS).any(|pod| ask(&adapter, pod).is_none()) {
        anyhow::ensure!(
            start.elapsed() < Duration::from_secs(60),
            "no values: {}",
            adapter.program.log_tail()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    // What the driver kept from before the exporter's start is of the same load: the mean is steady.
    let mut all = Latencies::default();
    for trial in 0..TRIALS {
        // Trials fall on every part of the second that sampling and scraping go by.
        std::thread::sleep(Duration::from_millis(1000 + (618 * trial as u64) % 1000));
        let steady = ask(&adapter, trial).context("a value went away")?;
        let changed = Instant::now();
        node.play(&load(trial + 1))?;
        loop {
            anyhow::ensure!(changed.elapsed() < LIMIT, "the value did not change within {LIMIT:?}");
            if ask(&adapter, trial).is_some_and(|value| (value - steady).abs() > NOISE) {
                break;
            }
            std::thread::sleep(ASK_EVERY);
        }
        all.push(changed.elapsed());
    }
    Ok(all)
}

//! The exporter on eight simulated GPUs: latency, CPU, memory, start; nvitop-exporter beside it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use podgauge_common::exposition::parse;

use crate::http1::{self, Coding, Connection};
use crate::latency::Latencies;
use crate::nvitop::Nvitop;
use crate::process::{Program, Programs, SIMULATED_LIBRARY, free_address};
use crate::report::{Report, Unit};
use crate::rows;
use crate::simulated::{Exporter, Node, one_pod_a_gpu, runtime};

const GPUS: usize = 8;
/// Requests over one connection for a latency.
const REQUESTS: usize = 20_000;
/// Scrapes for the growth, and how many before it to warm up.
const SCRAPES: usize = 100_000;
const WARM_UP: usize = 2_000;
/// Seconds with a scrape each, for the CPU.
const SECONDS: u32 = 32;
const STARTS: usize = 21;
/// Requests of a connection each, to compare with a server that keeps none.
const CONNECTIONS: usize = 200;
const NVML_SECONDS: &str = "podgauge_exporter_nvml_seconds_total";

pub(crate) fn measure(programs: &Programs, report: &mut Report) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let yaml = one_pod_a_gpu("bench-node", GPUS, |gpu| {
        format!("{{square: {{low: {}, high: {}, period_s: {}}}}}", 5 * gpu, 20 + 10 * gpu, 2 + gpu)
    });
    let node = Node::start(&runtime, &yaml)?;
    let (start, samples) = starts(&node, programs)?;

    let exporter = started(&node, programs, samples)?;
    let nvitop = Nvitop::start(programs, &node.scenario(), node.path()).and_then(|mut nvitop| {
        nvitop.program.wait(Duration::from_secs(20), Duration::from_millis(100), "its first page", || {
            http1::get(nvitop.address, "/metrics").ok().filter(|page| page.contains("GPU-"))
        })?;
        Ok(nvitop)
    });
    let paced = Paced::run(&exporter, nvitop.as_ref().ok())?;
    let quiet = exporter.program.memory()?;

    let plain = kept(exporter.address, Coding::Plain, REQUESTS)?;
    let gzip = kept(exporter.address, Coding::Gzip, REQUESTS)?;
    let single = connections(exporter.address)?;
    let page = exporter.page()?;
    let bytes = page.len() / 1024;
    report.judge(
        rows::EXPORTER_P50,
        plain.quantile_ms(0.5),
        format!("{} requests over one kept connection, {bytes} KiB a page", plain.len()),
    );
    report.judge(rows::EXPORTER_P99, plain.quantile_ms(0.99), "the same");
    report.tell("… compressed, p50", Unit::Ms, gzip.quantile_ms(0.5), "the same, gzip");
    report.tell("… compressed, p99", Unit::Ms, gzip.quantile_ms(0.99), "the same, gzip");
    report.tell(
        "… scraped once a second, compressed, p50",
        Unit::Ms,
        paced.latencies.quantile_ms(0.5),
        format!("{} scrapes: each compresses a new page and wakes an idle process", paced.latencies.len()),
    );
    paced.report(report);

    kept(exporter.address, Coding::Plain, WARM_UP)?;
    let before = exporter.program.memory()?;
    scrapes(exporter.address)?;
    let after = exporter.program.memory()?;
    let library = exporter.program.mapped(SIMULATED_LIBRARY)?;
    report.judge(
        rows::EXPORTER_RSS,
        after.resident - library,
        format!(
            "VmRSS after all scrapes, {:.2} MiB, less {library:.2} MiB of the simulated library's file: {:.1} MiB heap and stacks (RssAnon), the rest mapped files; VmRSS {:.2} MiB before the requests",
            after.resident, after.anonymous, quiet.resident
        ),
    );
    report.judge(
        rows::EXPORTER_GROWTH,
        (after.anonymous - before.anonymous).max(0.0),
        format!(
            "RssAnon {:.2} → {:.2} MiB; every 10th compressed, every 100th on a connection of its own",
            before.anonymous, after.anonymous
        ),
    );
    report.judge(
        rows::EXPORTER_START,
        start.quantile(1.0).as_secs_f64(),
        format!(
            "longest of {STARTS} starts, median {:.3} s; complete: all {samples} samples, with pods",
            start.quantile(0.5).as_secs_f64()
        ),
    );
    beside(nvitop, &paced, &single, after.resident, report)
}

/// Pages served to many starts, until each is complete, and how many samples that is.
fn starts(node: &Node, programs: &Programs) -> anyhow::Result<(Latencies, usize)> {
    let complete = {
        let exporter = started(node, programs, 1)?;
        std::thread::sleep(Duration::from_secs(4));
        count(&exporter.page()?)
    };
    let mut all = Latencies::default();
    for _ in 0..STARTS {
        let address = free_address()?;
        let start = Instant::now();
        let mut exporter = node.exporter(programs, address)?;
        wait_for_samples(&mut exporter, complete)?;
        all.push(start.elapsed());
    }
    Ok((all, complete))
}

fn started(node: &Node, programs: &Programs, samples: usize) -> anyhow::Result<Exporter> {
    let mut exporter = node.exporter(programs, free_address()?)?;
    wait_for_samples(&mut exporter, samples)?;
    Ok(exporter)
}

fn wait_for_samples(exporter: &mut Exporter, samples: usize) -> anyhow::Result<()> {
    let address = exporter.address;
    exporter.program.wait(Duration::from_secs(30), Duration::from_millis(2), "a complete page", || {
        let page = http1::get(address, "/metrics").ok()?;
        (count(&page) >= samples).then_some(())
    })
}

/// Samples of GPUs: the exporter's own grow with what happens.
fn count(page: &str) -> usize {
    page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("podgauge_exporter_")).count()
}

fn kept(address: SocketAddr, coding: Coding, requests: usize) -> anyhow::Result<Latencies> {
    let mut connection = Connection::open(address, "/metrics", coding)?;
    let mut all = Latencies::default();
    for _ in 0..requests {
        let start = Instant::now();
        connection.get()?;
        all.push(start.elapsed());
    }
    Ok(all)
}

fn connections(address: SocketAddr) -> anyhow::Result<Latencies> {
    let mut all = Latencies::default();
    for _ in 0..CONNECTIONS {
        let start = Instant::now();
        Connection::open(address, "/metrics", Coding::Plain)?.get()?;
        all.push(start.elapsed());
    }
    Ok(all)
}

fn scrapes(address: SocketAddr) -> anyhow::Result<()> {
    let mut plain = Connection::open(address, "/metrics", Coding::Plain)?;
    let mut gzip = Connection::open(address, "/metrics", Coding::Gzip)?;
    for scrape in 0..SCRAPES {
        if scrape % 100 == 0 {
            Connection::open(address, "/metrics", Coding::Plain)?.get()?;
        } else if scrape % 10 == 0 {
            gzip.get()?;
        } else {
            plain.get()?;
        }
    }
    Ok(())
}

/// What a scrape a second costs, of both programs over the same seconds.
#[derive(Debug)]
struct Paced {
    latencies: Latencies,
    /// Parts of a core.
    cpu: f64,
    in_library: f64,
    nvitop: Option<(Latencies, f64)>,
}

impl Paced {
    fn run(exporter: &Exporter, nvitop: Option<&Nvitop>) -> anyhow::Result<Self> {
        let mut connection = Connection::open(exporter.address, "/metrics", Coding::Gzip)?;
        let cpu = |program: &Program| program.cpu().map(|time| time.as_secs_f64());
        let before = (cpu(&exporter.program)?, nvml_seconds(exporter)?);
        let nvitop_before = nvitop.map(|nvitop| cpu(&nvitop.program)).transpose()?;
        let (mut latencies, mut nvitop_latencies) = (Latencies::default(), Latencies::default());
        let start = Instant::now();
        for second in 1..=SECONDS {
            let asked = Instant::now();
            connection.get()?;
            latencies.push(asked.elapsed());
            if let Some(nvitop) = nvitop {
                let asked = Instant::now();
                Connection::open(nvitop.address, "/metrics", Coding::Plain)?.get()?;
                nvitop_latencies.push(asked.elapsed());
            }
            std::thread::sleep((Duration::from_secs(1) * second).saturating_sub(start.elapsed()));
        }
        let elapsed = start.elapsed().as_secs_f64();
        let nvitop = match (nvitop, nvitop_before) {
            (Some(nvitop), Some(before)) => {
                Some((nvitop_latencies, (cpu(&nvitop.program)? - before) / elapsed))
            }
            _ => None,
        };
        Ok(Self {
            latencies,
            cpu: (cpu(&exporter.program)? - before.0) / elapsed,
            in_library: (nvml_seconds(exporter)? - before.1) / elapsed,
            nvitop,
        })
    }

    fn report(&self, report: &mut Report) {
        report.judge(
            rows::EXPORTER_CPU,
            100.0 * (self.cpu - self.in_library).max(0.0),
            format!(
                "{SECONDS} s of /proc/PID/stat, {:.2} % in all, less {:.2} % inside the simulated library ({NVML_SECONDS}); scrapes compressed, kubelet polled",
                100.0 * self.cpu,
                100.0 * self.in_library
            ),
        );
    }
}

fn nvml_seconds(exporter: &Exporter) -> anyhow::Result<f64> {
    let page = exporter.page()?;
    let sample = parse::samples(&page).filter_map(Result::ok).find(|sample| sample.name == NVML_SECONDS);
    Ok(sample.with_context(|| format!("no {NVML_SECONDS}"))?.value)
}

/// Rows of nvitop-exporter, or why there are none.
fn beside(
    nvitop: anyhow::Result<Nvitop>,
    paced: &Paced,
    ours: &Latencies,
    our_memory: f64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let rows = [
        ("beside: nvitop-exporter, GET /metrics p50", Unit::Ms),
        ("beside: nvitop-exporter, CPU with a scrape a second", Unit::PercentOfCore),
        ("beside: nvitop-exporter, resident memory", Unit::Mib),
    ];
    let nvitop = match nvitop {
        Ok(nvitop) => nvitop,
        Err(error) => {
            for (what, unit) in rows {
                report.tell_missing(what, unit, format!("{error:#}").replace('|', "/"));
            }
            return Ok(());
        }
    };
    let theirs = connections(nvitop.address)?;
    let memory = nvitop.program.memory()?.resident;
    let [latency, cpu, resident] = rows;
    let package = Nvitop::package();
    report.tell(
        latency.0,
        latency.1,
        theirs.quantile_ms(0.5),
        format!(
            "{package}, the same simulated GPUs, a connection a request as it keeps none; podgauge-exporter likewise {:.3} ms: {:.1} times less",
            ours.quantile_ms(0.5),
            theirs.quantile_ms(0.5) / ours.quantile_ms(0.5)
        ),
    );
    if let Some((_, their_cpu)) = &paced.nvitop {
        report.tell(
            cpu.0,
            cpu.1,
            100.0 * their_cpu,
            format!(
                "the same seconds, simulated library included; podgauge-exporter likewise {:.2} %: {:.1} times less",
                100.0 * paced.cpu,
                their_cpu / paced.cpu
            ),
        );
    }
    report.tell(
        resident.0,
        resident.1,
        memory,
        format!("podgauge-exporter {our_memory:.1} MiB: {:.1} times less", memory / our_memory),
    );
    Ok(())
}

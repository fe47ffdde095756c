//! The page writer and the parsers against others' in this process, in turns. The ratios count.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use podgauge_adapter::metric::Metrics;
use podgauge_adapter::source::page;
use podgauge_common::exposition::parse;
use podgauge_common::exposition::write::{LabelText, PageWriter, Value};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::latency::Latencies;
use crate::process::{Programs, free_address};
use crate::report::{Report, Unit};
use crate::simulated::{Node, one_pod_a_gpu, runtime};

const ROUNDS: usize = 2_000;

type Labels = Vec<(String, String)>;

/// A page's samples, by family.
struct Samples {
    families: Vec<SampleFamily>,
    /// Each set of labels once.
    label_sets: Vec<Labels>,
}

struct SampleFamily {
    name: String,
    help: String,
    /// Position in the label sets, and the value.
    samples: Vec<(usize, f64)>,
}

pub(crate) fn measure(programs: &Programs, report: &mut Report) -> anyhow::Result<()> {
    let text = real_page(programs)?;
    let samples = Samples::read(&text)?;
    let registry = samples.registry();
    let ours = samples.write();
    let mut theirs = String::new();
    encode_registry(&mut theirs, &registry)?;
    let count = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
    ensure!(
        count(&ours) == count(&theirs),
        "the two pages hold {} and {} samples",
        count(&ours),
        count(&theirs)
    );
    let written = count(&ours);
    let metrics = Metrics::new(&[]);

    let mut times: [Latencies; 4] = Default::default();
    for _ in 0..ROUNDS {
        let steps: [&dyn Fn() -> anyhow::Result<usize>; 4] = [
            &|| Ok(black_box(samples.write()).len()),
            &|| {
                let mut page = String::with_capacity(64 << 10);
                encode_registry(&mut page, &registry)?;
                Ok(black_box(page).len())
            },
            &|| Ok(black_box(parse::samples(&text).count())),
            &|| Ok(black_box(page::read(&text, &metrics)?).devices.len()),
        ];
        for (step, times) in steps.iter().zip(&mut times) {
            let start = Instant::now();
            black_box(step()?);
            times.push(start.elapsed());
        }
    }
    let [writer, client, parser, reader] = times.map(|times| times.quantile(0.5));
    let rate = |time: Duration| text.len() as f64 / 1e6 / time.as_secs_f64();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    report.tell(
        "page writer against prometheus-client's encoder",
        Unit::Ratio,
        client.as_secs_f64() / writer.as_secs_f64(),
        format!(
            "the same {written} samples, {ROUNDS} rounds in turns, medians {:.0} and {:.0} µs; ours escapes the label sets for each page",
            micros(writer), micros(client)
        ),
    );
    report.tell(
        "parser of pages",
        Unit::MbPerSecond,
        rate(parser),
        format!("the exporter's page, {} KiB, {:.0} µs, in this process", text.len() / 1024, micros(parser)),
    );
    report.tell(
        "… and kept as the adapter keeps it",
        Unit::MbPerSecond,
        rate(reader),
        format!(
            "{:.0} µs, {:.1} times the parser alone",
            micros(reader),
            reader.as_secs_f64() / parser.as_secs_f64()
        ),
    );
    Ok(())
}

/// A page of the shipped exporter, eight GPUs with pods.
fn real_page(programs: &Programs) -> anyhow::Result<String> {
    let runtime = runtime()?;
    let node =
        Node::start(&runtime, &one_pod_a_gpu("bench-node", 8, |gpu| format!("{{constant: {}}}", 7 * gpu)))?;
    let mut exporter = node.exporter(programs, free_address()?)?;
    let address = exporter.address;
    exporter.program.wait(Duration::from_secs(20), Duration::from_millis(100), "a page with pods", || {
        let page = crate::http1::get(address, "/metrics").ok()?;
        (0..8).all(|gpu| page.contains(&format!("worker-{gpu}"))).then_some(page)
    })
}

impl Samples {
    fn read(text: &str) -> anyhow::Result<Self> {
        let mut families: Vec<SampleFamily> = Vec::new();
        let mut label_sets: BTreeMap<Labels, usize> = BTreeMap::new();
        for sample in parse::samples(text) {
            let sample = sample?;
            // Its metrics about itself are written by prometheus-client anyway.
            if sample.name.starts_with("podgauge_exporter_") {
                continue;
            }
            let labels: Labels =
                sample.labels.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
            let next = label_sets.len();
            let set = *label_sets.entry(labels).or_insert(next);
            if families.last().is_none_or(|family| family.name != sample.name) {
                let prefix = format!("# HELP {} ", sample.name);
                let help = text.lines().find_map(|line| line.strip_prefix(&prefix));
                let help = help.with_context(|| format!("no HELP of {}", sample.name))?.to_owned();
                families.push(SampleFamily { name: sample.name.to_owned(), help, samples: Vec::new() });
            }
            if let Some(family) = families.last_mut() {
                family.samples.push((set, sample.value));
            }
        }
        let mut sets: Vec<(Labels, usize)> = label_sets.into_iter().collect();
        sets.sort_by_key(|(_, at)| *at);
        Ok(Self { families, label_sets: sets.into_iter().map(|(labels, _)| labels).collect() })
    }

    /// As the exporter writes: every label set escaped once a page.
    fn write(&self) -> String {
        let escape = |labels: &Labels| {
            labels.iter().fold(LabelText::default(), |text, (name, value)| text.with(name, value))
        };
        let sets: Vec<LabelText> = self.label_sets.iter().map(escape).collect();
        let mut page = PageWriter::with_capacity(64 << 10);
        for family in &self.families {
            page.family(&family.name, "gauge", &family.help);
            for (set, value) in &family.samples {
                page.sample(&sets[*set], Value::F64(*value));
            }
        }
        page.finish()
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        for family in &self.families {
            let gauges: Family<Labels, Gauge<f64, AtomicU64>> = Family::default();
            for (set, value) in &family.samples {
                gauges.get_or_create(&self.label_sets[*set]).set(*value);
            }
            registry.register(&family.name, &family.help, gauges);
        }
        registry
    }
}

//! The counters file: which metrics are served, with which name, type and help text.
//!
//! The grammar is dcgm-exporter's: three columns (DCGM field, Prometheus type, help), `#` begins a
//! comment line, blanks around columns do not count, help with a comma is quoted.

mod lines;

use std::path::{Path, PathBuf};

use podgauge_common::catalogue::base_units::in_4_9;
use podgauge_common::catalogue::{self, Kind, Metric, Reading, Text};

use crate::source::CountersText;

/// Where the file is if `-f` does not say.
pub(crate) const DEFAULT_PATH: &str = "/etc/dcgm-exporter/default-counters.csv";
/// What is used if there is no file there either.
const BUILT_IN: &str = include_str!("../default-counters.csv");
/// The field that dcgm-exporter 4.9 has by default besides those of before.
const NEW_IN_4_9: &str = "DCGM_FI_DEV_FB_CAPACITY_BYTES";
/// Most names in one warning, and most wrong lines in one error.
const MOST_NAMED: usize = 40;
/// Most characters of a line that are repeated in a message.
const MOST_CHARACTERS: usize = 120;

/// Under which names fields are printed, and in which units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum MetricNames {
    /// As the counters file writes them.
    #[default]
    #[value(name = "classic")]
    AsWritten,
    /// All of them as dcgm-exporter 4.9 has them, whatever the counters file writes.
    #[value(name = "4.9")]
    V4_9,
}

/// A metric that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counter {
    /// One of the names that DCGM has for the field; printed.
    pub(crate) name: String,
    pub(crate) metric: &'static Metric,
    /// Printed on the TYPE line.
    pub(crate) kind: String,
    /// Printed on the HELP line.
    pub(crate) help: String,
}

/// A field that is printed as a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelField {
    /// Printed as the label's name.
    pub(crate) name: String,
    pub(crate) metric: &'static Metric,
}

/// A counters file that was understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    /// Sorted by name, as they are printed.
    pub(crate) served: Vec<Counter>,
    /// What every sample of DCGM's families carries as labels, by name.
    pub(crate) labels: Vec<LabelField>,
    /// Names that DCGM knows and this version does not serve.
    pub(crate) unserved: Vec<String>,
    /// Names that have the form of DCGM's and are on no list of its names.
    pub(crate) unknown: Vec<String>,
    /// Fields that stand in the file more than once, under whatever name; the first line counts.
    pub(crate) repeated: Vec<String>,
}

/// Why a counters file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CountersError {
    #[error("cannot read counters file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("counters file {name}:1: {reason}")]
    Encoding { name: String, reason: String },
    #[error("wrong counters: {0}")]
    Lines(WrongLines),
}

/// Every wrong line of a file: `FILE:LINE: TEXT: WHY`, a line each.
#[derive(Debug)]
pub(crate) struct WrongLines {
    lines: Vec<String>,
}

const TYPES: [&str; 6] = ["gauge", "counter", "untyped", "histogram", "summary", "label"];

/// Reads the file that `-f` names, or the default file, or the built-in text.
pub(crate) fn read(path: Option<&Path>) -> Result<CountersText, CountersError> {
    let (path, may_be_absent) = match path {
        Some(path) => (path, false),
        None => (Path::new(DEFAULT_PATH), true),
    };
    match std::fs::read(path) {
        Ok(bytes) => text_of(path.display().to_string(), bytes),
        Err(error) if may_be_absent && error.kind() == std::io::ErrorKind::NotFound => Ok(CountersText {
            name: "built into podgauge-exporter".to_owned(),
            text: BUILT_IN.to_owned(),
            is_latin_1: false,
        }),
        Err(source) => Err(CountersError::Read { path: path.to_owned(), source }),
    }
}

/// The text of a file or ConfigMap of this name.
pub(crate) fn text_of(name: String, bytes: Vec<u8>) -> Result<CountersText, CountersError> {
    match lines::decode(bytes) {
        Ok((text, is_latin_1)) => Ok(CountersText { name, text, is_latin_1 }),
        Err(reason) => Err(CountersError::Encoding { name, reason }),
    }
}

/// Understands the text of a counters file; `name` is for errors.
pub(crate) fn parse(text: &str, name: &str) -> Result<Counters, CountersError> {
    let mut counters = Counters::default();
    let mut seen = Vec::new();
    let mut wrong = WrongLines { lines: Vec::new() };
    for record in lines::records(text) {
        let taken = record.columns.and_then(|columns| counters.take(&columns, &mut seen));
        if let Err(reason) = taken {
            wrong.lines.push(format!("{name}:{}: {}: {reason}", record.line, shortened(&record.text)));
        }
    }
    if !wrong.lines.is_empty() {
        return Err(CountersError::Lines(wrong));
    }
    counters.sort();
    Ok(counters)
}

/// Utilization is a mean that has no value at times, and events have labels of their own.
fn is_label(metric: &Metric) -> bool {
    !matches!(metric.reading, Reading::Utilization(_)) && !metric.reading.is_event()
}

/// Bounded, for messages.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Some names in a row, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    let mut text: Vec<String> = names.iter().take(MOST_NAMED).map(|name| shortened(name)).collect();
    if names.len() > MOST_NAMED {
        text.push(format!("and {} more", names.len() - MOST_NAMED));
    }
    text.join(", ")
}

// === impl WrongLines ===

impl std::fmt::Display for WrongLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines[..self.lines.len().min(MOST_NAMED)].join("\n"))?;
        match self.lines.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more wrong lines"),
        }
    }
}

// === impl Counters ===

impl Counters {
    /// What NVML is asked for: the metrics served, in their order, and after them the numbers that
    /// are printed as labels.
    pub(crate) fn metrics(&self) -> Vec<&'static Metric> {
        let labels = self.labels.iter().map(|label| label.metric);
        self.served
            .iter()
            .map(|counter| counter.metric)
            .chain(labels.filter(|metric| metric.kind != Kind::Label))
            .collect()
    }

    /// The texts that are printed as labels.
    pub(crate) fn texts(&self) -> Vec<Text> {
        self.labels.iter().filter_map(LabelField::text).collect()
    }

    /// Whether the file asks for nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.served.is_empty()
            && self.labels.is_empty()
            && self.unserved.is_empty()
            && self.unknown.is_empty()
    }

    /// Under the names and in the units of a profile. `is_default`: the fields were not chosen by anybody.
    pub(crate) fn named(self, names: MetricNames, is_default: bool) -> Self {
        match names {
            MetricNames::AsWritten => self,
            MetricNames::V4_9 => self.in_4_9(is_default),
        }
    }

    fn in_4_9(mut self, is_default: bool) -> Self {
        for counter in &mut self.served {
            let (name, metric) = in_4_9(counter.metric);
            if metric != counter.metric {
                // The file speaks of the classic unit.
                counter.kind = metric.kind.as_str().to_owned();
                counter.help = metric.help.to_owned();
            }
            (counter.name, counter.metric) = (name.to_owned(), metric);
        }
        for label in &mut self.labels {
            let (name, metric) = in_4_9(label.metric);
            (label.name, label.metric) = (name.to_owned(), metric);
        }
        if is_default && let Some(metric) = catalogue::served(NEW_IN_4_9) {
            self.served.push(Counter {
                name: metric.name.to_owned(),
                metric,
                kind: metric.kind.as_str().to_owned(),
                help: metric.help.to_owned(),
            });
        }
        self.sort();
        // A field that the file asks for under its names of both is one family now.
        self.served.dedup_by(|later, first| later.name == first.name);
        self.labels.dedup_by(|later, first| later.name == first.name);
        self
    }

    fn sort(&mut self) {
        self.served.sort_by(|one, other| one.name.cmp(&other.name));
        self.labels.sort_by(|one, other| one.name.cmp(&other.name));
    }

    /// Takes up a line; the error is what is wrong with it. `seen`: the fields so far.
    fn take(&mut self, columns: &[String], seen: &mut Vec<String>) -> Result<(), String> {
        let [name, kind, help] = columns else {
            return Err(format!(
                "{} columns, want 3: DCGM field, type, help (quote a help text that holds a comma)",
                columns.len()
            ));
        };
        let served = catalogue::served(name);
        let is_known = served.is_some() || catalogue::is_known(name);
        if !is_known && !catalogue::is_well_formed(name) {
            return Err(format!("{:?} is not the name of a DCGM field", shortened(name)));
        }
        if !TYPES.contains(&kind.as_str()) {
            return Err(format!(
                "{:?} is not a metric type; write one of {}",
                shortened(kind),
                TYPES.join(", ")
            ));
        }
        let field = served.map_or_else(|| name.clone(), |metric| metric.name.to_owned());
        if seen.contains(&field) {
            self.repeated.push(name.clone());
            return Ok(());
        }
        seen.push(field);
        let (name, kind) = (name.clone(), kind.clone());
        match served {
            // A text can be nothing but a label, whatever the file says.
            Some(metric) if kind == Kind::Label.as_str() || matches!(metric.reading, Reading::Text(_)) => {
                if is_label(metric) {
                    self.labels.push(LabelField { name, metric });
                } else {
                    self.unserved.push(name);
                }
            }
            Some(metric) => self.served.push(Counter { name, metric, kind, help: help.clone() }),
            None if is_known => self.unserved.push(name),
            None => self.unknown.push(name),
        }
        Ok(())
    }
}

// === impl LabelField ===

impl LabelField {
    /// The text it is; `None` if it is a number.
    pub(crate) fn text(&self) -> Option<Text> {
        match self.metric.reading {
            Reading::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_file_asks_for_all_25_families_and_they_are_served() {
        let counters = parse(BUILT_IN, "test").unwrap();
        assert_eq!(counters.served.len(), 25);
        assert_eq!(counters.labels.len(), 1);
        assert_eq!((counters.unserved.len(), counters.repeated.len()), (0, 0));
    }

    #[test]
    fn the_profile_of_4_9_is_never_mixed_with_the_classic_one() {
        let counters = parse(BUILT_IN, "test").unwrap().named(MetricNames::V4_9, true);
        let names: Vec<&str> = counters.served.iter().map(|counter| counter.name.as_str()).collect();
        assert_eq!(names.len(), 26);
        for name in [
            "DCGM_FI_DEV_GPU_UTIL_RATIO",
            "DCGM_FI_DEV_FB_USED_BYTES",
            "DCGM_FI_DEV_FB_CAPACITY_BYTES",
            "DCGM_FI_DEV_GPU_TEMP_CELSIUS",
            "DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND",
            "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO",
            "DCGM_FI_PROF_PCIE_TX_BYTES",
            "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
        ] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert_eq!(counters.labels[0].name, "DCGM_FI_SYSTEM_DRIVER_VERSION");
        for counter in &counters.served {
            let (name, metric) = in_4_9(counter.metric);
            assert_eq!((counter.name.as_str(), counter.metric), (name, metric));
            for unit in ["MHz", "MiB", "in %", "mJ", "MB/s"] {
                assert!(!counter.help.contains(unit), "{name}: {}", counter.help);
            }
        }
        // A file that names a field both ways has one family of it.
        let both = "DCGM_FI_DEV_GPU_UTIL, gauge, x\nDCGM_FI_DEV_GPU_UTIL_RATIO, gauge, y\n";
        let counters = parse(both, "test").unwrap();
        assert_eq!(counters.served.len(), 2);
        assert_eq!(counters.named(MetricNames::V4_9, false).served.len(), 1);
    }

    /// Every file that ships: as it is, and with every optional line in use.
    #[test]
    fn the_files_that_ship_are_served_whole() {
        for (name, text, active) in [
            ("default-counters.csv", BUILT_IN, 26),
            ("dcp-metrics-included.csv", include_str!("../dcp-metrics-included.csv"), 26),
            ("1.x-compatibility-metrics.csv", include_str!("../1.x-compatibility-metrics.csv"), 20),
        ] {
            let counters = parse(text, name).unwrap();
            assert_eq!(counters.served.len() + counters.labels.len(), active, "{name}");
            assert_eq!((&counters.unserved, &counters.repeated), (&vec![], &vec![]), "{name}");

            let uncomment = |line: &str| -> String {
                match line.strip_prefix("# ") {
                    Some(rest) if rest.to_lowercase().starts_with("dcgm_") => rest.to_owned(),
                    _ => line.to_owned(),
                }
            };
            let all: Vec<String> = text.lines().map(uncomment).collect();
            let counters = parse(&all.join("\n"), name).unwrap();
            assert!(counters.served.len() > active + 10, "{name}: {}", counters.served.len());
            let unserved = ["DCGM_EXP_GPU_HEALTH_STATUS", "DCGM_EXP_P2P_STATUS"];
            assert!(
                counters.unserved.iter().all(|name| unserved.contains(&name.as_str())),
                "{:?}",
                counters.unserved
            );
            assert_eq!(counters.repeated, Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn grammar_of_dcgm_exporter() {
        let text = "# comment\n\nDCGM_FI_DEV_DEC_UTIL , gauge, Decoder use (in %).\n\
                    DCGM_FI_DEV_GPU_TEMP, gauge, \"Temperature, of the GPU\"\n\
                    DCGM_FI_DEV_GPU_TEMP, gauge, again\ndcgm_gpu_temp, gauge, and again\n\
                    DCGM_FI_DEV_FABRIC_HEALTH_MASK, gauge, later\nDCGM_FI_DEV_BOARD_POWER_WATTS, gauge, alias\n\
                    DCGM_FI_DEV_SERIAL, label, a text\nDCGM_FI_DEV_MINOR_NUMBER, label, a number\n\
                    DCGM_FI_DEV_SM_CLOCK_HERTZ, gauge, another field\nDCGM_FI_DEV_XID_ERRORS, label, none\n\
                    DCGM_FI_DEV_NVSWITCH_VOLTAGE, gauge, of a later DCGM\n";
        let counters = parse(text, "test").unwrap();
        let served: Vec<_> = counters.served.iter().map(|c| (c.name.as_str(), c.help.as_str())).collect();
        assert_eq!(
            served,
            [
                ("DCGM_FI_DEV_BOARD_POWER_WATTS", "alias"),
                ("DCGM_FI_DEV_DEC_UTIL", "Decoder use (in %)."),
                ("DCGM_FI_DEV_GPU_TEMP", "Temperature, of the GPU"),
                ("DCGM_FI_DEV_SM_CLOCK_HERTZ", "another field")
            ]
        );
        assert_eq!(counters.unserved, ["DCGM_FI_DEV_FABRIC_HEALTH_MASK", "DCGM_FI_DEV_XID_ERRORS"]);
        assert_eq!(counters.unknown, ["DCGM_FI_DEV_NVSWITCH_VOLTAGE"]);
        assert_eq!(counters.repeated, ["DCGM_FI_DEV_GPU_TEMP", "dcgm_gpu_temp"]);
        assert_eq!(counters.texts(), [Text::Serial]);
        assert_eq!(counters.metrics().last().map(|metric| metric.name), Some("DCGM_FI_DEV_MINOR_NUMBER"));
    }

    #[test]
    fn an_error_names_every_wrong_line_with_file_text_and_cause() {
        let text = "# c\ngpu_util, gauge, x\nDCGM_FI_DEV_GPU_TEMP, gauge\n\nDCGM_FI_DEV_FB_USED, gage, x\n\
                    dcgm_no_such, gauge, x\nDCGM_FI_DEV_SM_CLOCK, gauge, fine\n";
        let error = parse(text, "/etc/x.csv").unwrap_err().to_string();
        let lines: Vec<&str> = error.strip_prefix("wrong counters: ").unwrap().lines().collect();
        for (line, start) in lines.iter().zip([
            "/etc/x.csv:2: gpu_util, gauge, x: \"gpu_util\" is not the name of a DCGM field",
            "/etc/x.csv:3: DCGM_FI_DEV_GPU_TEMP, gauge: 2 columns, want 3",
            "/etc/x.csv:5: DCGM_FI_DEV_FB_USED, gage, x: \"gage\" is not a metric type",
            "/etc/x.csv:6: dcgm_no_such, gauge, x: ",
        ]) {
            assert!(line.starts_with(start), "{line}");
        }
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn messages_are_bounded() {
        let wrong = "x\n".repeat(1000);
        let error = parse(&wrong, "f").unwrap_err().to_string();
        assert!(error.ends_with("\nand 960 more wrong lines"), "{error}");
        let long = parse(&format!("{}, gauge, x", "y".repeat(10_000)), "f").unwrap_err().to_string();
        assert!(long.len() < 1000, "{}", long.len());
        let names: Vec<String> = (0..50).map(|n| format!("N{n}")).collect();
        assert!(listed(&names).ends_with("N39, and 10 more"));
    }
}

//! Owns the counters file: which metrics are served, with which type and help text.
//!
//! The grammar is dcgm-exporter's: three columns (DCGM field, Prometheus type, help), `#` begins a
//! comment line, blanks around columns do not count, help with a comma is quoted.

use std::path::{Path, PathBuf};

use podgauge_common::catalogue::{self, Kind, Metric, Reading, Text};

use crate::source::CountersText;

/// Where the file is if `-f` does not say.
pub(crate) const DEFAULT_PATH: &str = "/etc/dcgm-exporter/default-counters.csv";
/// What is used if there is no file there either.
const BUILT_IN: &str = include_str!("../default-counters.csv");

/// A metric that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counter {
    /// Printed as it is written in the file: one of the names that DCGM has for the field.
    pub(crate) name: String,
    pub(crate) metric: &'static Metric,
    /// Printed on the TYPE line as it is written in the file.
    pub(crate) kind: String,
    /// Printed on the HELP line as it is written in the file.
    pub(crate) help: String,
}

/// A field that is printed as a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelField {
    /// As it is written in the file.
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
    /// Fields that stand in the file more than once, under whatever name; the first line counts.
    pub(crate) repeated: Vec<String>,
}

/// Why a counters file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CountersError {
    #[error("cannot read counters file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("counters file {source_name}, line {line}: {message}")]
    Line { source_name: String, line: u64, message: String },
}

const TYPES: [&str; 6] = ["gauge", "counter", "untyped", "histogram", "summary", "label"];

/// Reads the file that `-f` names, or the default file, or the built-in text.
pub(crate) fn read(path: Option<&Path>) -> Result<CountersText, CountersError> {
    let (path, may_be_absent) = match path {
        Some(path) => (path, false),
        None => (Path::new(DEFAULT_PATH), true),
    };
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(CountersText { name, text }),
        Err(error) if may_be_absent && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(CountersText { name: "built into podgauge-exporter".to_owned(), text: BUILT_IN.to_owned() })
        }
        Err(source) => Err(CountersError::Read { path: path.to_owned(), source }),
    }
}

/// Understands the text of a counters file; `source_name` is for errors.
pub(crate) fn parse(text: &str, source_name: &str) -> Result<Counters, CountersError> {
    let wrong = |line: u64, message: String| CountersError::Line {
        source_name: source_name.to_owned(),
        line,
        message,
    };
    let mut counters = Counters::default();
    let mut seen = Vec::new();
    for (line, record) in (1..).zip(text.lines()) {
        if record.trim().is_empty() || record.starts_with('#') {
            continue;
        }
        let record = columns(record).map_err(|error| wrong(line, error.to_string()))?;
        if record.len() != 3 {
            return Err(wrong(
                line,
                format!(
                    "{} columns, want 3: DCGM field, type, help (quote a help text that holds a comma)",
                    record.len()
                ),
            ));
        }
        let (name, kind, help) = (&record[0], &record[1], &record[2]);
        if catalogue::known(name).is_none() {
            return Err(wrong(line, format!("{name:?} is not a DCGM field; is it spelled right?")));
        }
        if !TYPES.contains(&kind) {
            return Err(wrong(
                line,
                format!("{kind:?} is not a metric type; write one of {}", TYPES.join(", ")),
            ));
        }
        let served = catalogue::served(name);
        let field = served.map_or_else(|| name.to_owned(), |metric| metric.name.to_owned());
        if seen.contains(&field) {
            counters.repeated.push(name.to_owned());
            continue;
        }
        seen.push(field);
        let name = name.to_owned();
        match served {
            // A text can be nothing but a label, whatever the file says.
            Some(metric) if kind == Kind::Label.as_str() || matches!(metric.reading, Reading::Text(_)) => {
                if is_label(metric) {
                    counters.labels.push(LabelField { name, metric });
                } else {
                    counters.unserved.push(name);
                }
            }
            Some(metric) => {
                counters.served.push(Counter { name, metric, kind: kind.to_owned(), help: help.to_owned() });
            }
            None => counters.unserved.push(name),
        }
    }
    counters.served.sort_by(|one, other| one.name.cmp(&other.name));
    counters.labels.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(counters)
}

/// Utilization is a mean that has no value at times, and events have labels of their own.
fn is_label(metric: &Metric) -> bool {
    !matches!(metric.reading, Reading::Utilization(_)) && !metric.reading.is_event()
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

/// The columns of one line, blanks around them cut off. The csv crate reads a quote only at the
/// very beginning of a column, and people write a blank before it.
fn columns(line: &str) -> Result<csv::StringRecord, csv::Error> {
    let mut text = String::with_capacity(line.len());
    let (mut quoted, mut at_start) = (false, true);
    for character in line.chars() {
        if at_start && (character == ' ' || character == '\t') {
            continue;
        }
        quoted ^= character == '"';
        at_start = character == ',' && !quoted;
        text.push(character);
    }
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record)?;
    Ok(record)
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
                    DCGM_FI_DEV_SM_CLOCK_HERTZ, gauge, another field\nDCGM_FI_DEV_XID_ERRORS, label, none\n";
        let counters = parse(text, "test").unwrap();
        let served: Vec<_> = counters.served.iter().map(|c| (c.name.as_str(), c.help.as_str())).collect();
        assert_eq!(
            served,
            [
                ("DCGM_FI_DEV_BOARD_POWER_WATTS", "alias"),
                ("DCGM_FI_DEV_DEC_UTIL", "Decoder use (in %)."),
                ("DCGM_FI_DEV_GPU_TEMP", "Temperature, of the GPU")
            ]
        );
        assert_eq!(
            counters.unserved,
            ["DCGM_FI_DEV_FABRIC_HEALTH_MASK", "DCGM_FI_DEV_SM_CLOCK_HERTZ", "DCGM_FI_DEV_XID_ERRORS"]
        );
        assert_eq!(counters.repeated, ["DCGM_FI_DEV_GPU_TEMP", "dcgm_gpu_temp"]);
        assert_eq!(counters.texts(), [Text::Serial]);
        assert_eq!(counters.metrics().last().map(|metric| metric.name), Some("DCGM_FI_DEV_MINOR_NUMBER"));
    }

    #[test]
    fn an_error_names_file_line_and_cause() {
        for (text, message) in [
            ("# c\nDCGM_FI_DEV_GPU_UTILL, gauge, x", "line 2: \"DCGM_FI_DEV_GPU_UTILL\" is not a DCGM field"),
            ("DCGM_FI_DEV_GPU_TEMP, gauge", "line 1: 2 columns, want 3"),
            ("\n\nDCGM_FI_DEV_GPU_TEMP, gage, x", "line 3: \"gage\" is not a metric type"),
        ] {
            let error = parse(text, "/etc/x.csv").unwrap_err().to_string();
            assert!(error.starts_with(&format!("counters file /etc/x.csv, {message}")), "{error}");
        }
    }
}

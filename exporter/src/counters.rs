//! Owns the counters file: which metrics are served, with which type and help text.
//!
//! The grammar is dcgm-exporter's: three columns (DCGM field, Prometheus type, help), `#` begins a
//! comment line, blanks around columns do not count, help with a comma is quoted.

use std::path::{Path, PathBuf};

use podgauge_common::catalogue::{self, Kind, Metric, Reading};

use crate::source::CountersText;

/// Where the file is if `-f` does not say.
pub(crate) const DEFAULT_PATH: &str = "/etc/dcgm-exporter/default-counters.csv";
/// What is used if there is no file there either.
const BUILT_IN: &str = include_str!("../default-counters.csv");

/// A metric that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counter {
    pub(crate) metric: &'static Metric,
    /// Printed on the TYPE line as it is written in the file.
    pub(crate) kind: String,
    /// Printed on the HELP line as it is written in the file.
    pub(crate) help: String,
}

/// A counters file that was understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    /// Sorted by name, as they are printed.
    pub(crate) served: Vec<Counter>,
    /// Whether samples carry the driver's version as a label.
    pub(crate) driver_version_label: bool,
    /// Names that DCGM knows and this version does not serve.
    pub(crate) unserved: Vec<String>,
    /// Names that stand in the file more than once; the first line counts.
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
        if seen.iter().any(|earlier| earlier == name) {
            counters.repeated.push(name.to_owned());
            continue;
        }
        seen.push(name.to_owned());
        match catalogue::served(name) {
            Some(metric) if metric.reading == Reading::DriverVersion => counters.driver_version_label = true,
            Some(metric) if kind != Kind::Label.as_str() => {
                counters.served.push(Counter { metric, kind: kind.to_owned(), help: help.to_owned() });
            }
            _ => counters.unserved.push(name.to_owned()),
        }
    }
    counters.served.sort_by_key(|counter| counter.metric.name);
    Ok(counters)
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
    fn the_built_in_file_asks_for_the_twenty_device_families() {
        let counters = parse(BUILT_IN, "test").unwrap();
        assert_eq!(counters.served.len(), 20);
        assert!(counters.driver_version_label);
        assert_eq!(counters.unserved.len(), 5);
        assert!(counters.unserved.iter().all(|name| name.starts_with("DCGM_FI_PROF_")));
    }

    #[test]
    fn grammar_of_dcgm_exporter() {
        let text = "# comment\n\nDCGM_FI_DEV_DEC_UTIL , gauge, Decoder use (in %).\n\
                    DCGM_FI_DEV_GPU_TEMP, gauge, \"Temperature, of the GPU\"\n\
                    DCGM_FI_DEV_GPU_TEMP, gauge, again\nDCGM_FI_DEV_FB_TOTAL, gauge, later\n";
        let counters = parse(text, "test").unwrap();
        let served: Vec<_> = counters.served.iter().map(|c| (c.metric.name, c.help.as_str())).collect();
        assert_eq!(
            served,
            [
                ("DCGM_FI_DEV_DEC_UTIL", "Decoder use (in %)."),
                ("DCGM_FI_DEV_GPU_TEMP", "Temperature, of the GPU")
            ]
        );
        assert_eq!(counters.unserved, ["DCGM_FI_DEV_FB_TOTAL"]);
        assert_eq!(counters.repeated, ["DCGM_FI_DEV_GPU_TEMP"]);
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

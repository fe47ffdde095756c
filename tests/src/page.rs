//! A scraped page, ready to be asked.

use std::collections::BTreeMap;

use podgauge_common::exposition::parse;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A page that parsed.
#[derive(Debug, Clone)]
pub struct Page {
    pub text: String,
    pub samples: Vec<Sample>,
}

impl Page {
    /// Panics if the text is not Prometheus text, or holds a series twice.
    pub fn parse(text: String) -> Self {
        let samples: Vec<Sample> = parse::samples(&text)
            .map(|sample| sample.unwrap_or_else(|error| panic!("{error}\n{text}")))
            .map(|sample| Sample {
                name: sample.name.to_owned(),
                labels: sample.labels.into_iter().map(|(k, v)| (k.to_owned(), v.into_owned())).collect(),
                value: sample.value,
            })
            .collect();
        let mut keys: Vec<_> = samples.iter().map(|sample| (&sample.name, &sample.labels)).collect();
        keys.sort();
        let series = keys.len();
        keys.dedup();
        assert_eq!(series, keys.len(), "a series stands twice in the page:\n{text}");
        Self { text, samples }
    }

    /// The samples of a family that carry all the given labels. An empty value asks for the
    /// label's absence.
    pub fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).map_or("", String::as_str) == *value)
        };
        self.samples.iter().filter(fits).collect()
    }

    /// The value of the one sample that fits; `None` if there is none. Panics if there are more.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.all(name, labels);
        assert!(found.len() <= 1, "{name} {labels:?} is not one sample: {found:#?}");
        found.first().map(|sample| sample.value)
    }

    /// As [`value`](Self::value), for waiting.
    pub fn want(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64, String> {
        self.value(name, labels).ok_or_else(|| format!("no {name} {labels:?} in\n{}", self.text))
    }

    /// The names of all families, once each.
    pub fn families(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.samples.iter().map(|sample| sample.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

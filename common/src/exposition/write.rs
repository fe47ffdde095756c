//! Writes Prometheus text 0.0.4 into one buffer: families, samples, escaped labels.
//!
//! The labels of a device do not change from tick to tick, so they are escaped once into a
//! [`LabelText`] and copied from then on.

use std::fmt::Write as _;

/// The `name="value",…` of a sample, escaped, without braces. Cheap to append to a page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelText(String);

/// A page being written.
#[derive(Debug, Default)]
pub struct PageWriter {
    text: String,
    /// HELP and TYPE of the family begun, until its first sample is written.
    pending: String,
    family: String,
    samples: usize,
    dropped: usize,
}

/// A sample's value. Integers print as integers, floats in the shortest form without an exponent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// As a float, which is exact up to 2^53.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::U64(value) => value as f64,
            Self::I64(value) => value as f64,
            Self::F64(value) => value,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        push_value(&mut text, *self);
        f.write_str(&text)
    }
}

// === impl LabelText ===

impl LabelText {
    /// Escapes and appends one label. An empty value is left out: Prometheus reads an empty label
    /// as an absent one.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.push(name, value);
        self
    }

    /// As [`with`](Self::with), in place.
    pub fn push(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        self.0.push('"');
    }

    /// These labels followed by `other`'s. The caller keeps the names distinct.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        match (self.0.is_empty(), other.0.is_empty()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            _ => Self(format!("{},{}", self.0, other.0)),
        }
    }

    /// The escaped text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl PageWriter ===

impl PageWriter {
    /// An empty page with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ..Self::default() }
    }

    /// Begins a family. HELP and TYPE are written with the first sample: a family without samples
    /// leaves no trace.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.family.clear();
        self.family.push_str(name);
        self.pending.clear();
        self.pending.push_str("# HELP ");
        self.pending.push_str(name);
        self.pending.push(' ');
        for character in help.chars() {
            match character {
                '\\' => self.pending.push_str("\\\\"),
                '\n' => self.pending.push_str("\\n"),
                other => self.pending.push(other),
            }
        }
        self.pending.push_str("\n# TYPE ");
        self.pending.push_str(name);
        self.pending.push(' ');
        self.pending.push_str(kind);
        self.pending.push('\n');
    }

    /// Writes a sample of the family begun last. A float that is not a number is no measurement:
    /// it is left out.
    pub fn sample(&mut self, labels: &LabelText, value: Value) {
        if let Value::F64(float) = value
            && !float.is_finite()
        {
            self.dropped += 1;
            return;
        }
        if !self.pending.is_empty() {
            self.text.push_str(&self.pending);
            self.pending.clear();
        }
        self.text.push_str(&self.family);
        if !labels.0.is_empty() {
            self.text.push('{');
            self.text.push_str(&labels.0);
            self.text.push('}');
        }
        self.text.push(' ');
        push_value(&mut self.text, value);
        self.text.push('\n');
        self.samples += 1;
    }

    /// Appends text that another encoder wrote. The caller keeps family names distinct.
    pub fn append(&mut self, page: &str) {
        self.text.push_str(page);
    }

    /// How many samples were left out because they were no numbers.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// How many samples were written.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The finished page.
    pub fn finish(self) -> String {
        self.text
    }
}

fn push_value(text: &mut String, value: Value) {
    match value {
        Value::U64(integer) => text.push_str(itoa::Buffer::new().format(integer)),
        Value::I64(integer) => text.push_str(itoa::Buffer::new().format(integer)),
        // Below 2^53 a float that is whole is exact, and Prometheus prints it without a point.
        Value::F64(float) if float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 => {
            text.push_str(itoa::Buffer::new().format(float as i64));
        }
        Value::F64(float) if float.abs() >= 1e-5 && float.abs() < 1e15 => {
            text.push_str(zmij::Buffer::new().format_finite(float));
        }
        // Display never uses an exponent.
        Value::F64(float) => {
            let _ = write!(text, "{float}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::MetricType;

    fn page(build: impl FnOnce(&mut PageWriter)) -> String {
        let mut page = PageWriter::default();
        build(&mut page);
        page.finish()
    }

    #[test]
    fn a_family_without_samples_leaves_no_trace() {
        let text = page(|page| {
            page.family("a", "gauge", "first");
            page.family("b", "gauge", "second");
            page.sample(&LabelText::default(), Value::U64(1));
        });
        assert_eq!(text, "# HELP b second\n# TYPE b gauge\nb 1\n");
    }

    #[test]
    fn values_print_without_exponent() {
        let text = page(|page| {
            page.family("v", "gauge", "h");
            for value in [120.534, 0.0, 1e-7, 1e20, 42.0, f64::NAN, f64::INFINITY, -0.25] {
                page.sample(&LabelText::default(), Value::F64(value));
            }
        });
        let values: Vec<&str> = text.lines().skip(2).map(|line| &line[2..]).collect();
        assert_eq!(values, ["120.534", "0", "0.0000001", "100000000000000000000", "42", "-0.25"]);
    }

    /// The reference encoder: the official client's, fed with the same sample.
    #[derive(Debug)]
    struct Reference {
        value: String,
        number: f64,
    }

    impl Collector for Reference {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let mut family =
                encoder.encode_descriptor("name_total", "help text", None, MetricType::Counter)?;
            let labels = [("a", self.value.as_str()), ("b", "plain")];
            let gauge = prometheus_client::metrics::gauge::ConstGauge::new(self.number);
            gauge.encode(family.encode_family(&labels)?)?;
            Ok(())
        }
    }

    proptest::proptest! {
        #[test]
        fn labels_escape_as_the_official_client_escapes(value in "[ -~\\n]{1,40}", number in -1e9f64..1e9) {
            let ours = page(|page| {
                page.family("name_total", "counter", "help text");
                let labels = LabelText::default().with("a", &value).with("b", "plain");
                page.sample(&labels, Value::F64(number));
            });
            let mut registry = prometheus_client::registry::Registry::default();
            registry.register_collector(Box::new(Reference { value, number }));
            let mut theirs = String::new();
            prometheus_client::encoding::text::encode_registry(&mut theirs, &registry).unwrap();
            let (our_head, our_number) = ours.trim_end().rsplit_once(' ').unwrap();
            let (their_head, their_number) = theirs.trim_end().rsplit_once(' ').unwrap();
            proptest::prop_assert_eq!(our_head, their_head);
            proptest::prop_assert_eq!(our_number.parse::<f64>().unwrap(), their_number.parse::<f64>().unwrap());
        }
    }
}

//! Reads Prometheus text 0.0.4: one pass, slices borrowed from the page.

use std::borrow::Cow;

/// One sample line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    /// In the page's order, values unescaped.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// NaN and infinities come through as they are written.
    pub value: f64,
    /// Milliseconds since the Unix epoch, if the page gives one.
    pub timestamp_ms: Option<i64>,
}

/// Where and why a page is not Prometheus text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    pub message: String,
}

/// Iterates over a page's samples, skipping comments. After an error it ends.
#[derive(Debug)]
pub struct Samples<'a> {
    rest: &'a str,
    line: usize,
    max_labels: usize,
}

/// Most labels a sample may have unless [`Samples::with_max_labels`] says otherwise.
pub const MAX_LABELS: usize = 64;

/// Reads a page.
pub fn samples(page: &str) -> Samples<'_> {
    Samples { rest: page, line: 0, max_labels: MAX_LABELS }
}

// === impl Sample ===

impl Sample<'_> {
    /// The value of a label, if it is there and not empty.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.as_ref())
            .filter(|v| !v.is_empty())
    }
}

// === impl Samples ===

impl Samples<'_> {
    /// Refuses samples with more labels.
    #[must_use]
    pub fn with_max_labels(mut self, max: usize) -> Self {
        self.max_labels = max;
        self
    }
}

impl<'a> Iterator for Samples<'a> {
    type Item = Result<Sample<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
            self.rest = rest;
            self.line += 1;
            let line = line.trim_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            return Some(sample(line, self.max_labels).map_err(|message| {
                self.rest = "";
                ParseError { line: self.line, message }
            }));
        }
        None
    }
}

fn sample(line: &str, max_labels: usize) -> Result<Sample<'_>, String> {
    let name_end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .ok_or_else(|| format!("{:?} has no value", excerpt(line)))?;
    let name = &line[..name_end];
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{:?} does not begin with a metric name", excerpt(line)));
    }
    let mut rest = line[name_end..].trim_start_matches([' ', '\t']);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels, max_labels)?;
    }
    let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty());
    let word = words.next().ok_or_else(|| format!("sample of {name} has no value"))?;
    let value =
        value(word).ok_or_else(|| format!("sample of {name}: {:?} is not a number", excerpt(word)))?;
    let timestamp_ms = match words.next() {
        None => None,
        Some(word) => Some(
            word.parse().map_err(|_| format!("sample of {name}: {:?} is not a timestamp", excerpt(word)))?,
        ),
    };
    if let Some(word) = words.next() {
        return Err(format!("sample of {name}: {:?} after the timestamp", excerpt(word)));
    }
    Ok(Sample { name, labels, value, timestamp_ms })
}

/// Reads `name="value",…}` and returns what follows the brace.
fn read_labels<'a>(
    inside: &'a str,
    labels: &mut Vec<(&'a str, Cow<'a, str>)>,
    max_labels: usize,
) -> Result<&'a str, String> {
    let mut rest = Labels { rest: inside };
    for label in rest.by_ref() {
        if labels.len() == max_labels {
            return Err(format!("more than {max_labels} labels"));
        }
        labels.push(label?);
    }
    Ok(rest.rest.strip_prefix('}').unwrap_or_default())
}

/// Iterates over `name="value",…` up to a closing brace or the end. After an error it ends.
#[derive(Debug, Clone)]
pub struct Labels<'a> {
    rest: &'a str,
}

/// The labels of a text as it is between the braces of a sample that was read before.
pub fn labels(text: &str) -> Labels<'_> {
    Labels { rest: text }
}

impl Labels<'_> {
    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = Result<(&'a str, Cow<'a, str>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rest = self.rest.trim_start_matches([' ', '\t', ',']);
        if self.rest.is_empty() || self.rest.starts_with('}') {
            return None;
        }
        let label = label(self.rest);
        let (label, after) = match label {
            Ok((label, after)) => (Ok(label), after),
            Err(error) => (Err(error), ""),
        };
        self.rest = after;
        Some(label)
    }
}

/// A label, and what follows it.
fn label(text: &str) -> Result<((&str, Cow<'_, str>), &str), String> {
    let end = text.bytes().position(|byte| !(byte.is_ascii_alphanumeric() || byte == b'_'));
    let (name, after) = text.split_at(end.unwrap_or(text.len()));
    let after = after.trim_start_matches([' ', '\t']);
    let Some(after) = after.strip_prefix('=') else {
        return Err(match text.split_once('=') {
            None => format!("{:?}: a label without =", excerpt(text)),
            Some((name, _)) => {
                format!("{:?} is not a label name", excerpt(name.trim_end_matches([' ', '\t'])))
            }
        });
    };
    if name.is_empty() {
        return Err(format!("{:?} is not a label name", excerpt(name)));
    }
    let after = after
        .trim_start_matches([' ', '\t'])
        .strip_prefix('"')
        .ok_or_else(|| format!("label {name}: its value is not quoted"))?;
    let (value, after) = quoted(after).ok_or_else(|| format!("label {name}: its value has no end"))?;
    Ok(((name, value), after))
}

/// Reads up to the closing quote; allocates only if something is escaped.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let bytes = text.as_bytes();
    let mut at = memchr::memchr2(b'"', b'\\', bytes)?;
    if bytes[at] == b'"' {
        return Some((Cow::Borrowed(&text[..at]), &text[at + 1..]));
    }
    loop {
        match bytes.get(at)? {
            b'"' => break,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    let (raw, after) = (text.get(..at)?, &text[at + 1..]);
    let mut value = String::with_capacity(raw.len());
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            value.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => value.push('\n'),
            Some(other @ ('\\' | '"')) => value.push(other),
            Some(other) => value.extend(['\\', other]),
            None => value.push('\\'),
        }
    }
    Some((Cow::Owned(value), after))
}

/// The number that a sample's value is written as.
pub fn value(word: &str) -> Option<f64> {
    match word {
        "NaN" => Some(f64::NAN),
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        // Rust also reads "nan" and "infinity"; the format has only the three above.
        other if other.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => {
            other.parse().ok().filter(|value: &f64| value.is_finite())
        }
        _ => None,
    }
}

/// The head of untrusted text, for an error message.
fn excerpt(text: &str) -> &str {
    let end = text.char_indices().nth(40).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::super::write::{LabelText, PageWriter, Value};
    use super::*;

    fn all(page: &str) -> Vec<Sample<'_>> {
        samples(page).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn reads_names_labels_values_and_timestamps() {
        let page = "# HELP a x\n# TYPE a gauge\na{b=\"c\",d=\"e}\\\"\\n\"} 1.5 1700\n\nf:g NaN\nh{} +Inf\n";
        let read = all(page);
        assert_eq!(read[0].name, "a");
        assert_eq!(read[0].label("b"), Some("c"));
        assert_eq!(read[0].label("d"), Some("e}\"\n"));
        assert_eq!((read[0].value, read[0].timestamp_ms), (1.5, Some(1700)));
        assert!(read[1].value.is_nan());
        assert_eq!((read[2].name, read[2].value), ("h", f64::INFINITY));
    }

    #[test]
    fn an_error_names_its_line_and_ends_the_reading() {
        for (page, message) in [
            ("a 1\nb\n", "line 2: \"b\" has no value"),
            ("a{b=1} 1", "line 1: label b: its value is not quoted"),
            ("a{b=\"1} 1", "line 1: label b: its value has no end"),
            ("a inf", "line 1: sample of a: \"inf\" is not a number"),
            ("a 1 2 3", "line 1: sample of a: \"3\" after the timestamp"),
            ("1a 1", "line 1: \"1a 1\" does not begin with a metric name"),
        ] {
            let mut samples = samples(page);
            let error = samples.by_ref().find_map(Result::err).unwrap();
            assert_eq!(error.to_string(), message);
            assert!(samples.next().is_none());
        }
    }

    #[test]
    fn labels_are_bounded() {
        let labels: Vec<String> = (0..9).map(|i| format!("l{i}=\"v\"")).collect();
        let page = format!("a{{{}}} 1", labels.join(","));
        assert!(samples(&page).with_max_labels(9).next().unwrap().is_ok());
        assert!(samples(&page).with_max_labels(8).next().unwrap().is_err());
    }

    proptest::proptest! {
        #[test]
        fn reads_back_what_the_writer_wrote(values in proptest::collection::vec(("\\PC{1,20}", -1e12f64..1e12), 1..6)) {
            let mut page = PageWriter::default();
            page.family("m", "gauge", "h");
            for (label, value) in &values {
                page.sample(&LabelText::default().with("l", label), Value::F64(*value));
            }
            let page = page.finish();
            let read = all(&page);
            proptest::prop_assert_eq!(read.len(), values.len());
            for (sample, (label, value)) in read.iter().zip(&values) {
                proptest::prop_assert_eq!(sample.label("l"), Some(label.as_str()));
                proptest::prop_assert_eq!(sample.value, *value);
            }
        }

        #[test]
        fn never_panics(page in "\\PC{0,80}") {
            let _ = samples(&page).count();
        }
    }
}

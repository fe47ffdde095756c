//! Owns label selectors as they arrive in a query: parsed with limits, matched against labels,
//! written back as a LabelSelector object.

use serde_json::{Value, json};

/// The characters that separate words: those of Kubernetes' own parser. Other blanks of Unicode are
/// part of a word, which is then refused.
const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];
/// Longest selector that is read, bytes.
pub const MAX_BYTES: usize = 16 * 1024;
/// Most requirements and listed values together.
pub const MAX_TERMS: usize = 512;
/// Longest key: 253 for the prefix, a slash, 63 for the name.
const MAX_KEY: usize = 317;
const MAX_VALUE: usize = 63;

/// Requirements that must all hold. An empty one matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub condition: Condition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Equals(String),
    /// Also true where the label is missing, as in Kubernetes.
    NotEquals(String),
    In(Vec<String>),
    /// Also true where the label is missing, as in Kubernetes.
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// Why a selector is refused; the text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("the selector is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the selector has more than {MAX_TERMS} terms")]
    TooManyTerms,
    #[error("found {found:?} where {expected} was expected")]
    Unexpected { found: String, expected: &'static str },
    #[error("{0:?} is not a label key")]
    Key(String),
    #[error("{0:?} is not a label value")]
    Value(String),
    #[error("the list of values is empty")]
    NoValues,
    #[error("{0} compares numbers, which is not supported for metrics: use in (…)")]
    Comparison(char),
}

// === impl Selector ===

impl Selector {
    /// Parses the string form (`app=web,tier in (a,b),!x`).
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_BYTES {
            return Err(SelectorError::TooLong);
        }
        let mut parser = Parser { rest: text.trim_start_matches(BLANKS), terms: 0 };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            if !requirements.is_empty() {
                parser.expect(',', "a comma")?;
            }
            requirements.push(parser.requirement()?);
        }
        Ok(Self { requirements })
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether labels, looked up by key, meet every requirement.
    pub fn matches<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.matches_beside(None, label)
    }

    /// Whether labels meet every requirement but the one at `met`, which is known to be met.
    pub(super) fn matches_beside<'l>(
        &self,
        met: Option<usize>,
        label: impl Fn(&str) -> Option<&'l str>,
    ) -> bool {
        let open = self.requirements.iter().enumerate().filter(|(at, _)| Some(*at) != met);
        open.map(|(_, requirement)| requirement)
            .all(|Requirement { key, condition }| condition.holds(label(key)))
    }

    /// As the object form: equalities under `matchLabels`, everything else under
    /// `matchExpressions`. `null` when empty.
    pub fn to_json(&self) -> Value {
        if self.is_empty() {
            return Value::Null;
        }
        let mut labels = serde_json::Map::new();
        let mut expressions = Vec::new();
        for Requirement { key, condition } in &self.requirements {
            let (operator, values): (_, &[String]) = match condition {
                Condition::Equals(value) => {
                    // The object has one value a key; a second one is a requirement all the same.
                    match labels.get(key) {
                        Some(known) if *known != json!(value) => ("In", std::slice::from_ref(value)),
                        _ => {
                            labels.insert(key.clone(), json!(value));
                            continue;
                        }
                    }
                }
                Condition::NotEquals(value) => ("NotIn", std::slice::from_ref(value)),
                Condition::In(values) => ("In", values),
                Condition::NotIn(values) => ("NotIn", values),
                Condition::Exists => ("Exists", &[]),
                Condition::Missing => ("DoesNotExist", &[]),
            };
            let mut expression = json!({"key": key, "operator": operator});
            if !values.is_empty() {
                expression["values"] = json!(values);
            }
            expressions.push(expression);
        }
        let mut selector = serde_json::Map::new();
        if !labels.is_empty() {
            selector.insert("matchLabels".to_owned(), Value::Object(labels));
        }
        if !expressions.is_empty() {
            selector.insert("matchExpressions".to_owned(), Value::Array(expressions));
        }
        Value::Object(selector)
    }
}

// === impl Condition ===

impl Condition {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Equals(wanted) => value == Some(wanted),
            Self::NotEquals(unwanted) => value != Some(unwanted),
            Self::In(wanted) => value.is_some_and(|value| wanted.iter().any(|w| w == value)),
            Self::NotIn(unwanted) => value.is_none_or(|value| unwanted.iter().all(|u| u != value)),
            Self::Exists => value.is_some(),
            Self::Missing => value.is_none(),
        }
    }
}

// === impl Parser ===

struct Parser<'a> {
    /// Without white space at its start.
    rest: &'a str,
    terms: usize,
}

impl<'a> Parser<'a> {
    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        self.count()?;
        if self.accept("!") {
            let key = self.key()?;
            return Ok(Requirement { key, condition: Condition::Missing });
        }
        let key = self.key()?;
        let condition = if self.rest.is_empty() || self.rest.starts_with(',') {
            Condition::Exists
        } else if self.accept("!=") {
            Condition::NotEquals(self.value()?)
        } else if self.accept("==") || self.accept("=") {
            Condition::Equals(self.value()?)
        } else if let Some(sign @ ('<' | '>')) = self.rest.chars().next() {
            return Err(SelectorError::Comparison(sign));
        } else {
            match self.word() {
                "in" => Condition::In(self.values()?),
                "notin" => Condition::NotIn(self.values()?),
                word => {
                    let found = if word.is_empty() { self.rest } else { word };
                    return Err(unexpected(found, "an operator"));
                }
            }
        };
        Ok(Requirement { key, condition })
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.expect('(', "(")?;
        if self.accept(")") {
            return Err(SelectorError::NoValues);
        }
        let mut values = Vec::new();
        loop {
            self.count()?;
            values.push(self.value()?);
            if self.accept(")") {
                return Ok(values);
            }
            self.expect(',', ", or )")?;
        }
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let word = self.word();
        if word.is_empty() {
            return Err(unexpected(self.rest, "a label key"));
        }
        if word.len() > MAX_KEY || !is_qualified_name(word) {
            return Err(SelectorError::Key(word.to_owned()));
        }
        Ok(word.to_owned())
    }

    /// A value, which may be empty.
    fn value(&mut self) -> Result<String, SelectorError> {
        let word = self.word();
        if word.is_empty() && !(self.rest.is_empty() || self.rest.starts_with([',', ')'])) {
            return Err(unexpected(self.rest, "a label value"));
        }
        if !word.is_empty() && !is_name(word, MAX_VALUE) {
            return Err(SelectorError::Value(word.to_owned()));
        }
        Ok(word.to_owned())
    }

    fn word(&mut self) -> &'a str {
        let special = |c: char| BLANKS.contains(&c) || matches!(c, ',' | '(' | ')' | '=' | '!' | '<' | '>');
        let end = self.rest.find(special).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        self.rest = self.rest[end..].trim_start_matches(BLANKS);
        word
    }

    fn accept(&mut self, sign: &str) -> bool {
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest.trim_start_matches(BLANKS);
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, sign: char, expected: &'static str) -> Result<(), SelectorError> {
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest.trim_start_matches(BLANKS);
                Ok(())
            }
            None => Err(unexpected(self.rest, expected)),
        }
    }

    fn count(&mut self) -> Result<(), SelectorError> {
        self.terms += 1;
        if self.terms > MAX_TERMS { Err(SelectorError::TooManyTerms) } else { Ok(()) }
    }
}

fn unexpected(found: &str, expected: &'static str) -> SelectorError {
    let found: String =
        if found.is_empty() { "the end".to_owned() } else { found.chars().take(20).collect() };
    SelectorError::Unexpected { found, expected }
}

/// `[prefix/]name`, the prefix a DNS subdomain: labels with a letter or digit at both ends.
fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name(key, 63),
        Some((prefix, name)) => {
            let label = |part: &str| {
                !(part.is_empty() || part.starts_with('-') || part.ends_with('-'))
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            prefix.len() <= 253 && prefix.split('.').all(label) && is_name(name, 63)
        }
    }
}

/// Letters and digits at both ends, `-`, `_` and `.` between.
fn is_name(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= max
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector = Selector::parse(selector).unwrap();
        selector.matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, value)| *value))
    }

    #[test]
    fn every_operator_as_kubernetes_means_it() {
        let labels = [("app", "web"), ("tier", "b"), ("empty", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier = b", true),
            ("app=web,tier=a", false),
            ("app!=web", false),
            ("other!=web", true),
            ("tier in (a, b)", true),
            ("tier in (a)", false),
            ("tier notin (a)", true),
            ("tier notin (a,b)", false),
            ("other notin (a)", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("!app", false),
            ("empty=", true),
            ("app=", false),
            ("app in (w2,web),tier,!x", true),
            ("in in (a)", false),
            ("empty in (,)", true),
            ("a,\tb\r\n", false),
            ("app\n", true),
        ] {
            assert_eq!(matches(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_not_a_selector_is_refused_with_the_reason() {
        for (selector, message) in [
            ("app===bad", "found \"=bad\" where a label value was expected"),
            ("app>1", "> compares numbers, which is not supported for metrics: use in (…)"),
            ("app web", "found \"web\" where an operator was expected"),
            ("app in web", "found \"web\" where ( was expected"),
            ("app in (a", "found \"the end\" where , or ) was expected"),
            ("a,,b", "found \",b\" where a label key was expected"),
            ("-a=b", "\"-a\" is not a label key"),
            ("a=b%", "\"b%\" is not a label value"),
            ("A.com/x=b", "\"A.com/x\" is not a label key"),
            ("-x.io/k", "\"-x.io/k\" is not a label key"),
            ("x-.io/k=1", "\"x-.io/k\" is not a label key"),
            ("x.io-/k", "\"x.io-/k\" is not a label key"),
            ("x..io/k", "\"x..io/k\" is not a label key"),
            ("/k", "\"/k\" is not a label key"),
            ("x.io/", "\"x.io/\" is not a label key"),
            ("a/b/c", "\"a/b/c\" is not a label key"),
            ("k in ()", "the list of values is empty"),
            ("k notin ( )", "the list of values is empty"),
            ("a=b\u{a0},c", "\"b\\u{a0}\" is not a label value"),
            ("a\u{3000}in (b)", "\"a\\u{3000}in\" is not a label key"),
            ("\u{2003}a", "\"\\u{2003}a\" is not a label key"),
            ("a\u{b}", "\"a\\u{b}\" is not a label key"),
        ] {
            assert_eq!(Selector::parse(selector).unwrap_err().to_string(), message, "{selector}");
        }
    }

    #[test]
    fn selectors_are_bounded() {
        let terms = |n: usize| (0..n).map(|i| format!("a{i}")).collect::<Vec<_>>().join(",");
        assert!(Selector::parse(&terms(MAX_TERMS)).is_ok());
        assert_eq!(Selector::parse(&terms(MAX_TERMS + 1)), Err(SelectorError::TooManyTerms));
        assert_eq!(Selector::parse(&"a".repeat(MAX_BYTES + 1)), Err(SelectorError::TooLong));
    }

    #[test]
    fn written_back_as_an_object() {
        let selector = Selector::parse("a=b,c!=d,e in (f,g),!h,i").unwrap();
        assert_eq!(
            selector.to_json(),
            json!({"matchLabels": {"a": "b"}, "matchExpressions": [
                {"key": "c", "operator": "NotIn", "values": ["d"]},
                {"key": "e", "operator": "In", "values": ["f", "g"]},
                {"key": "h", "operator": "DoesNotExist"},
                {"key": "i", "operator": "Exists"},
            ]})
        );
        assert_eq!(Selector::default().to_json(), Value::Null);
        assert_eq!(
            Selector::parse("a=1,a=2,a=1").unwrap().to_json(),
            json!({"matchLabels": {"a": "1"},
                "matchExpressions": [{"key": "a", "operator": "In", "values": ["2"]}]})
        );
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[ -~]{0,60}") {
            let _ = Selector::parse(&text);
        }
    }
}

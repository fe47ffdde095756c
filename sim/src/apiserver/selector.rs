//! Owns label and field selectors.

use std::collections::BTreeMap;

use serde_json::Value;

/// Which objects a list or watch is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Missing(String),
    In(String, Vec<String>),
    /// Also met by an object without the label.
    NotIn(String, Vec<String>),
}

/// Field selectors this server knows.
const FIELDS: [&str; 5] =
    ["metadata.name", "metadata.namespace", "spec.driver", "spec.nodeName", "status.phase"];

// === impl Selector ===

impl Selector {
    /// Parses the two query parameters; absent and empty ones select everything.
    ///
    /// # Errors
    /// A text that says what is wrong with which selector.
    pub fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        Ok(Self {
            labels: split_outside_brackets(labels.unwrap_or_default())
                .map(requirement)
                .collect::<Result<_, _>>()
                .map_err(|what| format!("unable to parse requirement: {what}"))?,
            fields: fields
                .unwrap_or_default()
                .split(',')
                .filter(|term| !term.is_empty())
                .map(field)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether an object is selected.
    pub fn selects(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| requirement.is_met(|key| labels[key].as_str()))
            && self.fields.iter().all(|(path, equal, want)| {
                let found =
                    path.split('.').fold(object, |value, key| &value[key]).as_str().unwrap_or_default();
                (found == want) == *equal
            })
    }

    /// Whether a set of labels is selected; field selectors are not looked at.
    pub fn selects_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|requirement| requirement.is_met(|key| labels.get(key).map(String::as_str)))
    }
}

// === impl Requirement ===

impl Requirement {
    fn is_met<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Exists(key) => label(key).is_some(),
            Self::Missing(key) => label(key).is_none(),
            Self::In(key, values) => label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(key, values) => !label(key).is_some_and(|value| values.iter().any(|v| v == value)),
        }
    }
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let term = term.trim();
    if let Some(key) = term.strip_prefix('!') {
        return Ok(Requirement::Missing(name(key)?));
    }
    if let Some((head, list)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        return match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => Ok(Requirement::In(name(key)?, values)),
            [key, "notin"] => Ok(Requirement::NotIn(name(key)?, values)),
            _ => Err(format!("{term:?}: want <key> in (…) or <key> notin (…)")),
        };
    }
    if let Some((key, text)) = term.split_once("!=") {
        return Ok(Requirement::NotIn(name(key)?, vec![value(text)?]));
    }
    if let Some((key, text)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(Requirement::In(name(key)?, vec![value(text)?]));
    }
    Ok(Requirement::Exists(name(term)?))
}

fn name(text: &str) -> Result<String, String> {
    let text = text.trim();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.is_empty() || !text.chars().all(legal) {
        return Err(format!("{text:?} is not a label key"));
    }
    Ok(text.to_owned())
}

fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        return Err(format!("{text:?} is not a label value"));
    }
    Ok(text.to_owned())
}

fn field(term: &str) -> Result<(String, bool, String), String> {
    let (path, equal, want) = if let Some((path, want)) = term.split_once("!=") {
        (path, false, want)
    } else if let Some((path, want)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (path, true, want)
    } else {
        return Err(format!("invalid field selector {term:?}: want <field>=<value>"));
    };
    if !FIELDS.contains(&path) {
        return Err(format!("field label not supported: {path}"));
    }
    Ok((path.to_owned(), equal, want.to_owned()))
}

/// The terms of a selector: commas within brackets do not separate.
fn split_outside_brackets(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .filter(|term| !term.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        serde_json::json!({
            "metadata": {"name": "w-0", "labels": {"app": "w2", "tier": "gpu"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        })
    }

    #[test]
    fn label_selectors() {
        for (selector, selected) in [
            ("", true),
            ("app=w2", true),
            ("app==w2,tier", true),
            ("app in (w2,w3),tier,!x", true),
            ("app notin (w2, w3)", false),
            ("app!=w1", true),
            ("x!=1", true),
            ("x", false),
            ("app=w3", false),
        ] {
            assert_eq!(
                Selector::parse(Some(selector), None).unwrap().selects(&pod()),
                selected,
                "{selector}"
            );
        }
    }

    #[test]
    fn field_selectors() {
        for (selector, selected) in [
            ("spec.nodeName=n1", true),
            ("spec.nodeName=n2", false),
            ("metadata.name==w-0,status.phase!=Failed", true),
            ("status.phase!=Running", false),
        ] {
            assert_eq!(
                Selector::parse(None, Some(selector)).unwrap().selects(&pod()),
                selected,
                "{selector}"
            );
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for selector in ["app===bad", "a b", "app in w2", "(x)"] {
            Selector::parse(Some(selector), None).unwrap_err();
        }
        Selector::parse(None, Some("spec.color=red")).unwrap_err();
    }
}

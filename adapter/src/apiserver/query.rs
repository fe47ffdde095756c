//! Reads the query of a request.

use super::path::{Objects, percent_decode};
use super::status::Status;
use crate::cluster::Selector;

/// The parameters that mean something here.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// The pods that are asked for.
    pub(super) label_selector: Selector,
    /// … as it was written.
    pub(super) labels: String,
    /// The devices that count.
    pub(super) metric_label_selector: Selector,
    /// … as it was written.
    pub(super) metric_labels: String,
    pub(super) pretty: bool,
    field_selector: Option<String>,
}

impl Query {
    /// Reads form encoding. The first of several values counts, as in Go.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Status> {
        let mut labels = None;
        let mut metric_labels = None;
        let mut read = Self::default();
        let mut pretty = None;
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match key {
                "labelSelector" => &mut labels,
                "metricLabelSelector" => &mut metric_labels,
                "fieldSelector" => &mut read.field_selector,
                "pretty" => &mut pretty,
                _ => continue,
            };
            if slot.is_none() {
                *slot = Some(decode(key, value)?);
            }
        }
        let selector = |name: &str, text: Option<String>| {
            Selector::parse(&text.unwrap_or_default())
                .map_err(|error| Status::bad_request(format!("unable to parse {name}: {error}")))
        };
        read.labels = labels.clone().unwrap_or_default();
        read.label_selector = selector("labelSelector", labels)?;
        read.metric_labels = metric_labels.clone().unwrap_or_default();
        read.metric_label_selector = selector("metricLabelSelector", metric_labels)?;
        read.pretty = pretty.is_some_and(|pretty| is_yes(&pretty));
        Ok(read)
    }

    /// A field selector may only say again what the path says.
    pub(super) fn check_fields(&self, objects: &Objects) -> Result<(), Status> {
        let Some(selector) = self.field_selector.as_deref().filter(|selector| !selector.is_empty()) else {
            return Ok(());
        };
        let name = selector.strip_prefix("metadata.name=").map(|name| name.strip_prefix('=').unwrap_or(name));
        match (name, objects) {
            (Some(name), Objects::Named(named)) if name == named => Ok(()),
            // The name of all of them is a name, too.
            (Some("*"), Objects::Selected) => Ok(()),
            _ => Err(Status::bad_request(
                "fieldSelector metadata.name doesn't match requested name: only metadata.name=NAME is supported",
            )),
        }
    }
}

/// The first value of a parameter.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Status> {
    let mut pairs =
        query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(key, value)| decode(key, value)).transpose()
}

/// Whether a query asks for indented JSON, however wrong the rest of it is.
pub(super) fn pretty(query: Option<&str>) -> bool {
    let mut pairs =
        query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == "pretty").is_some_and(|(_, value)| is_yes(value))
}

fn is_yes(value: &str) -> bool {
    !matches!(value, "false" | "0")
}

fn decode(key: &str, value: &str) -> Result<String, Status> {
    let value = value.replace('+', " ");
    percent_decode(value.as_bytes())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Status::bad_request(format!("the value of {key} is not percent-encoded UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kube_controller_manager_writes() {
        let query = Query::parse(Some(
            "labelSelector=app+in+%28w2%2Cw3%29%2Ctier%2C%21x&metricLabelSelector=gpu%3Da100%2Cmig%3Dno&watch=true",
        ))
        .unwrap();
        assert_eq!(query.label_selector, Selector::parse("app in (w2,w3),tier,!x").unwrap());
        assert_eq!(query.metric_label_selector, Selector::parse("gpu=a100,mig=no").unwrap());
        assert!(!query.pretty);
        assert!(Query::parse(Some("pretty")).unwrap().pretty);
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for query in ["labelSelector=app%3D%3D%3Dbad", "labelSelector=%zz", "metricLabelSelector=a%3Eb"] {
            assert_eq!(Query::parse(Some(query)).unwrap_err().code, 400, "{query}");
        }
    }

    #[test]
    fn errors_are_indented_as_answers_are() {
        assert!(pretty(Some("labelSelector=%zz&pretty=true")) && pretty(Some("pretty")));
        assert!(!pretty(Some("pretty=0")) && !pretty(Some("a=pretty")) && !pretty(None));
    }

    #[test]
    fn field_selectors_repeat_the_name_or_are_refused() {
        let check = |selector: &str, objects: &Objects| {
            Query::parse(Some(&format!("fieldSelector={selector}"))).unwrap().check_fields(objects).is_ok()
        };
        let named = Objects::Named("p".to_owned());
        assert!(check("metadata.name%3Dp", &named));
        assert!(!check("metadata.name%3Dq", &named));
        assert!(!check("metadata.name%3Dp", &Objects::Selected));
        assert!(check("metadata.name%3D%2A", &Objects::Selected));
        assert!(!check("spec.nodeName%3Dn", &named));
        assert!(check("", &Objects::Selected));
    }
}

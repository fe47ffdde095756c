//! Where values come from: exporters scraped straight.
//!
//! ```text
//! Target ─► scrape ─► page (Page) ─► store (ExporterState, History, Recent) ─► evaluate
//! ```

pub mod access;
mod body;
pub mod budget;
mod client;
mod gunzip;
pub mod history;
pub mod joined;
pub mod labels;
pub mod page;
pub mod recent;
mod retention;
pub mod schedule;
pub mod scrape;
pub mod set;
pub mod store;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// An exporter to scrape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The node whose pods its samples may speak of; `None`: it is believed for every node.
    pub node: Option<Arc<str>>,
    pub url: http::Uri,
}

impl Target {
    /// How metrics and messages call it.
    pub fn name(&self) -> String {
        match &self.node {
            Some(node) => node.to_string(),
            None => self.url.authority().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "exporter on node {node}"),
            None => write!(f, "exporter {}", self.url),
        }
    }
}

impl Ord for Target {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |target: &Self| (target.node.clone(), target.url.to_string());
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

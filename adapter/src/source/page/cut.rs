//! Remembers what a limit kept out of a page, so that no number is made of the rest.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{MAX_DEVICES, MAX_HOLDINGS};

/// Most pods that are remembered one by one.
const MAX_PODS: usize = 4096;

/// The most that may be kept of a page, or of all pages of an exporter.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Histories; a container on a device counts as [`HOLDING_SERIES`] at least.
    pub series: usize,
    /// Bytes of names and labels.
    pub text: usize,
}

/// Histories that a container on a device counts as at least. The built-in metrics keep as many.
pub const HOLDING_SERIES: usize = 4;

/// Bytes that a device counts as beside its names.
pub const DEVICE_TEXT: usize = 64;

/// Which limit was reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Devices,
    Holdings,
    Series,
    Text,
}

/// The part of a page that is missing.
#[derive(Debug)]
pub struct Cut {
    pub limit: Limit,
    /// Devices are missing.
    pub devices: bool,
    /// The pods that something is missing of, as hashes of their names.
    pods: HashSet<u64>,
    /// There were more than are remembered.
    all: bool,
}

impl Limit {
    pub const ALL: [Self; 4] = [Self::Devices, Self::Holdings, Self::Series, Self::Text];

    /// How metrics call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Holdings => "containers",
            Self::Series => "series",
            Self::Text => "text",
        }
    }
}

impl Room {
    /// The larger of both, each by itself.
    pub fn max(self, other: Self) -> Self {
        Self { series: self.series.max(other.series), text: self.text.max(other.text) }
    }
}

impl Cut {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, devices: false, pods: HashSet::new(), all: false }
    }

    pub(super) fn pod(&mut self, namespace: &str, name: &str) {
        self.all |= self.pods.len() >= MAX_PODS;
        if !self.all {
            self.pods.insert(hash(namespace, name));
        }
    }

    /// Whether something of that pod may be missing.
    pub fn concerns(&self, namespace: &str, name: &str) -> bool {
        self.all || self.pods.contains(&hash(namespace, name))
    }
}

fn hash(namespace: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, name).hash(&mut hasher);
    hasher.finish()
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices => write!(f, "more than {MAX_DEVICES} devices on its page"),
            Self::Holdings => write!(f, "more than {MAX_HOLDINGS} containers with a device on its page"),
            Self::Series => f.write_str("more series than its share of --max-series"),
            Self::Text => f.write_str("longer names and labels than its share of --max-series allows"),
        }
    }
}

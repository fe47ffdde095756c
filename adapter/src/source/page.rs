//! Reads an exporter's page, podgauge's or NVIDIA's, into what is kept of it: piece by piece as it
//! comes, so that a page never lies in memory whole.
//!
//! ```text
//! bytes ─► lines (PageReader) ─► label_sets (of which device and container) ─► kept ─► whole ─► Page
//! ```

mod cut;
mod kept;
mod label_sets;
mod lines;
mod memory;
mod said;
mod sample;
mod spare;
#[cfg(test)]
mod tests;
mod types;
mod whole;

use podgauge_common::exposition::parse::ParseError;

pub use self::cut::{Cut, DEVICE_TEXT, HOLDING_SERIES, Limit, Room};
pub use self::kept::Scratch;
pub use self::lines::PageReader;
use self::memory::Memory;
use self::sample::{RecentSums, Repeated};
use super::history::Reading;
use super::labels::Labels;
use super::recent::Recent;
use crate::metric::{FamilyId, Metrics};

/// Longest label value that is kept, bytes. Kubernetes names have at most 253.
const MAX_LABEL_BYTES: usize = 512;
/// Most devices of one page. A node has at most 112, 16 GPUs of 7 instances each, but an exporter
/// without a node may report a whole cluster.
const MAX_DEVICES: usize = 4096;
/// Most containers of one page's devices.
const MAX_HOLDINGS: usize = 8192;
/// Longest line, bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

/// What is kept of one page.
#[derive(Debug, Default)]
pub struct Page {
    pub devices: Vec<Device>,
    /// Whether it is podgauge's: use is then read from its counters, not from the gauge. `None` if
    /// the page does not show it, as an empty one.
    pub native: Option<bool>,
    /// When its exporter started, seconds since 1970, if it says so.
    pub started: Option<f64>,
    /// Samples that were not kept because of a limit, because their value cannot be true, or because
    /// several say different things of the same.
    pub dropped: u64,
    /// The things that a limit kept out; `None` if everything had room.
    pub cut: Option<Cut>,
}

/// A GPU or MIG instance.
#[derive(Debug, Default)]
pub struct Device {
    /// UUID, with `/GI` for a MIG instance.
    pub key: String,
    /// What distinguishes devices, for `metricLabelSelector`.
    pub labels: Labels,
    pub owners: Option<f64>,
    /// A limit kept something of it out.
    pub incomplete: bool,
    /// Why its use cannot be attributed.
    pub unavailable: Option<String>,
    pub holdings: Vec<Holding>,
    /// What is known of the whole device, without what its only holding says as well.
    pub readings: Vec<(FamilyId, Reading)>,
    /// How much anybody used it lately.
    pub recent: Option<Recent>,
    /// Seconds in which it was busy, whoever used it.
    pub active: Option<f64>,
    /// MiB, what all owners use.
    memory_used: Option<f64>,
    /// MiB.
    pub memory_total: Option<f64>,
    /// Its use as a gauge, percent.
    utilization: Option<f64>,
    /// Memory samples by classic names and by those of 4.9.
    memory: [Memory; 2],
    /// Seconds for which its use is known, of the series without a pod.
    pub observed: Option<f64>,
    recent_sums: RecentSums,
    /// The samples without a pod, one entry a family.
    samples: Vec<Repeated>,
}

/// What a container has of a device.
#[derive(Debug, Default)]
pub struct Holding {
    pub namespace: String,
    pub pod: String,
    /// Empty if the exporter does not know.
    pub container: String,
    /// The part of the device that it was given.
    pub allocation: Option<f64>,
    /// It was given a part of the device whose size is not known: podgauge's exporter says so, or
    /// another exporter prints a replica of the device, and never how many replicas there are.
    pub part_unknown: bool,
    pub pod_uid: Option<String>,
    active: Option<f64>,
    /// Seconds for which its use is known, since it began.
    pub observed: Option<f64>,
    /// How much it used the device lately.
    pub recent: Option<Recent>,
    pub readings: Vec<(FamilyId, Reading)>,
    recent_sums: RecentSums,
    /// The samples as they are read, one entry a family.
    samples: Vec<Repeated>,
    /// Its samples are of a replica of the device.
    replica: bool,
    /// Samples of two pods have the same labels: nobody knows which of them the readings are of.
    two_pods: bool,
}

impl Holding {
    /// The observed seconds that are surely of the pod named: the counter goes on when a pod takes the
    /// name of another one, the sums of the last seconds begin again.
    pub fn observed_of_its_pod(&self) -> f64 {
        let observed = self.observed.unwrap_or(0.0);
        let begun = self.recent.filter(|recent| self.pod_uid.is_some() && !recent.is_of_whole_window());
        begun.map_or(observed, |recent| observed.min(recent.observed))
    }
}

/// Why what an exporter sends is no page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("the page cannot be read: {0}")]
    Line(#[from] ParseError),
    #[error("the page cannot be read: line {line} or one soon after is not UTF-8")]
    NotText { line: usize },
    #[error("the page cannot be read: line {line} is longer than {MAX_LINE_BYTES} bytes")]
    LongLine { line: usize },
    #[error("the page ends in the middle of line {line}")]
    Cut { line: usize },
}

/// Reads a whole page. The error names the line.
pub fn read(text: &str, metrics: &Metrics) -> Result<Page, PageError> {
    let room = Room { series: usize::MAX, text: usize::MAX };
    let mut reader = PageReader::new(metrics, room, Box::default());
    reader.push(text.as_bytes())?;
    reader.finish().0
}

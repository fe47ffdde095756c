//! Reads an exporter's page, podgauge's or NVIDIA's, into what is kept of it: piece by piece as it
//! comes, so that a page never lies in memory whole.

mod kept;
mod lines;
mod sample;
#[cfg(test)]
mod tests;
mod whole;

use podgauge_common::exposition::parse::ParseError;

use self::kept::{MemoryUsed, Repeated};
pub use self::lines::PageReader;
use super::history::Reading;
use super::labels::Labels;
use crate::metric::{FamilyId, Metrics};

/// Longest label value that is kept, bytes. Kubernetes names have at most 253.
const MAX_LABEL_BYTES: usize = 512;
/// Most devices of one page: 16 GPUs of 7 instances, with room.
const MAX_DEVICES: usize = 512;
/// Most owners of one page's devices.
const MAX_HOLDINGS: usize = 8192;
/// Most bytes of names and labels that are kept of one page. 56 instances with 5,600 owners have
/// half of it.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Longest line, bytes.
const MAX_LINE_BYTES: usize = 64 << 10;

/// What is kept of one page.
#[derive(Debug, Default)]
pub struct Page {
    pub devices: Vec<Device>,
    /// Whether it is podgauge's: use is then read from its counters, not from the gauge. `None` if
    /// the page does not tell, as an empty one.
    pub native: Option<bool>,
    /// Samples that were not kept because of a limit, because their value cannot be true, or because
    /// several say different things of the same.
    pub dropped: u64,
}

/// A GPU or MIG instance.
#[derive(Debug, Default)]
pub struct Device {
    /// UUID, with `/GI` for a MIG instance.
    pub key: String,
    /// What distinguishes devices, for `metricLabelSelector`.
    pub labels: Labels,
    pub owners: Option<f64>,
    /// Seconds in which it was busy, whoever used it.
    active: Option<f64>,
    /// Its use as a gauge, percent.
    utilization: Option<f64>,
    /// MiB. The parts of all owners add up to what the device uses.
    memory_used: Option<f64>,
    memory_samples: MemoryUsed,
    memory_free: Option<f64>,
    memory_reserved: Option<f64>,
    /// Why its use cannot be attributed.
    pub unavailable: Option<String>,
    pub holdings: Vec<Holding>,
    /// What is known of the whole device, without what its only holding says as well.
    pub readings: Vec<(FamilyId, Reading)>,
    /// Seconds for which its use is known, of the series without a pod.
    observed: Option<f64>,
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
    pub readings: Vec<(FamilyId, Reading)>,
    /// The samples as they are read, one entry a family.
    samples: Vec<Repeated>,
    /// Its samples are of a replica of the device.
    replica: bool,
    /// Samples of two pods under the same labels: whose the readings are is unknown.
    two_pods: bool,
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
    let mut reader = PageReader::new(metrics);
    reader.push(text.as_bytes())?;
    reader.finish()
}

//! Owns the reasons why a pod has no value: shown in the 404's text and counted.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::pods::Phase;
use crate::source::page::Limit;

/// Most different reasons that one message tells.
const MAX_REASONS: usize = 4;

/// Why a pod is left out of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Omission {
    Terminating,
    Finished(Phase),
    NotScheduled,
    NotStarted,
    /// It has not been Ready yet: a model that still loads would read 0 and shrink the service.
    NotReadyYet,
    /// A container with a GPU restarted, and it has not been Ready since.
    Restarted {
        container: Box<str>,
    },
    NoExporter {
        node: Box<str>,
    },
    ExporterNeverAnswered {
        exporter: String,
        failure: Option<String>,
    },
    ExporterSilent {
        exporter: String,
        seconds: u64,
    },
    NoGpu {
        exporter: String,
    },
    /// The exporter knows of no GPU of the node that is asked for.
    NoGpuOnNode {
        exporter: String,
    },
    OtherUid {
        exporter: String,
    },
    NoMatchingDevice,
    /// Not observed long enough for a first answer; seconds.
    Collecting {
        observed: u64,
    },
    /// This adapter has not read it long enough for a first answer; seconds that it needs.
    Reading {
        needed: u64,
    },
    /// No two scrapes in a row have it.
    TooFewScrapes,
    /// The exporter answers, but the device's newest reading is old.
    DeviceStale {
        seconds: u64,
    },
    /// The page has no such family for the device.
    NoSuchFamily {
        family: Box<str>,
    },
    /// The device is shared, and the family cannot be divided.
    Shared {
        pods: usize,
    },
    AttributionUnavailable {
        reason: Box<str>,
    },
    /// The device is a MIG instance, and the family speaks of the whole GPU.
    OfWholeGpu,
    /// The exporter's page is larger than what is kept of it, and something of the pod may be missing.
    PageLimit {
        exporter: String,
        limit: Limit,
    },
    /// The exporter's numbers are beyond what a quantity can hold.
    OutOfRange,
    /// Some of several devices have no value; the reason of the first.
    Devices {
        without: usize,
        of: usize,
        reason: Box<Omission>,
    },
}

impl Omission {
    /// The label under which it is counted.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Terminating => "terminating",
            Self::Finished(_) => "finished",
            Self::NotScheduled => "not_scheduled",
            Self::NotStarted => "not_started",
            Self::NotReadyYet => "not_ready_yet",
            Self::Restarted { .. } => "restarted",
            Self::NoExporter { .. } => "no_exporter",
            Self::ExporterNeverAnswered { .. } => "exporter_never_answered",
            Self::ExporterSilent { .. } => "exporter_silent",
            Self::NoGpu { .. } | Self::NoGpuOnNode { .. } => "no_gpu",
            Self::OtherUid { .. } => "other_uid",
            Self::NoMatchingDevice => "no_matching_device",
            Self::Collecting { .. } | Self::Reading { .. } => "collecting",
            Self::TooFewScrapes => "too_few_scrapes",
            Self::DeviceStale { .. } => "device_stale",
            Self::NoSuchFamily { .. } => "no_such_family",
            Self::Shared { .. } => "shared_device",
            Self::AttributionUnavailable { .. } => "attribution_unavailable",
            Self::OfWholeGpu => "of_whole_gpu",
            Self::PageLimit { .. } => "page_limit",
            Self::OutOfRange => "out_of_range",
            Self::Devices { reason, .. } => reason.label(),
        }
    }

    /// Whether it says something of known devices, and not that none is known.
    pub(super) const fn is_of_devices(&self) -> bool {
        !matches!(
            self,
            Self::NoExporter { .. }
                | Self::NoGpuOnNode { .. }
                | Self::ExporterNeverAnswered { .. }
                | Self::ExporterSilent { .. }
        )
    }

    /// Among several exporters' reasons the one that knows most of the pod is told.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::NoExporter { .. } => 0,
            Self::NoGpu { .. } | Self::NoGpuOnNode { .. } => 1,
            Self::ExporterNeverAnswered { .. } | Self::ExporterSilent { .. } => 2,
            Self::OtherUid { .. } => 3,
            _ => 4,
        }
    }
}

impl fmt::Display for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Terminating => f.write_str("terminating"),
            Self::Finished(phase) => write!(f, "finished ({})", phase.as_str()),
            Self::NotScheduled => f.write_str("not scheduled to a node yet"),
            Self::NotStarted => f.write_str("no container has started yet"),
            Self::NotReadyYet => f.write_str("not Ready yet"),
            Self::Restarted { container } => {
                write!(f, "container {container} restarted and is not Ready again")
            }
            Self::NoExporter { node } => write!(f, "no exporter is known on node {node}"),
            Self::ExporterNeverAnswered { exporter, failure: None } => {
                write!(f, "{exporter} has not been asked yet")
            }
            Self::ExporterNeverAnswered { exporter, failure: Some(failure) } => {
                write!(f, "{exporter} has never answered: {failure}")
            }
            Self::ExporterSilent { exporter, seconds } => {
                write!(f, "{exporter} last answered {seconds}s ago")
            }
            Self::NoGpu { exporter } => write!(f, "{exporter} knows of no GPU that it uses"),
            Self::NoGpuOnNode { exporter } => write!(f, "{exporter} knows of no GPU on it"),
            Self::OtherUid { exporter } => {
                write!(f, "{exporter} speaks of another pod of that name (its UID differs)")
            }
            Self::NoMatchingDevice => f.write_str("none of its devices matches the metricLabelSelector"),
            Self::Collecting { observed } => {
                write!(f, "observed for {observed}s, a first answer needs 15s")
            }
            Self::Reading { needed } => {
                write!(f, "this adapter has read it for less than {needed}s, which a first answer needs")
            }
            Self::TooFewScrapes => f.write_str("not seen in two scrapes in a row yet"),
            Self::DeviceStale { seconds } => write!(f, "the newest reading of its device is {seconds}s old"),
            Self::NoSuchFamily { family } => write!(f, "its exporter gives no {family} for it"),
            Self::Shared { pods } => {
                write!(f, "its device is shared by {pods} pods and this value cannot be divided")
            }
            Self::AttributionUnavailable { reason } => {
                write!(f, "the use of its device cannot be attributed: {reason}")
            }
            Self::OfWholeGpu => f.write_str("its device is a MIG instance and this value is the whole GPU's"),
            Self::PageLimit { exporter, limit } => {
                write!(f, "{exporter} has {limit}: something of it may be missing")
            }
            Self::OutOfRange => f.write_str("its value is larger than a quantity can be"),
            Self::Devices { without, of, reason } => {
                let verb = if *without == 1 { "has" } else { "have" };
                write!(f, "{without} of {of} devices {verb} no value: {reason}")
            }
        }
    }
}

/// One sentence on why no object of an answer has a value; equal reasons are told once. `what`:
/// `pod` or `node`.
pub fn summary(what: &str, omissions: &[Omission]) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for omission in omissions {
        *reasons.entry(omission.to_string()).or_default() += 1;
    }
    let pods = match omissions.len() {
        1 => format!("1 {what} matches, it has no value"),
        n => format!("{n} {what}s match, none has a value"),
    };
    if reasons.len() == 1 {
        let reason = reasons.into_keys().next().unwrap_or_default();
        return format!("{pods}: {reason}");
    }
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more = reasons.len().saturating_sub(MAX_REASONS);
    let mut told: Vec<String> =
        reasons.iter().take(MAX_REASONS).map(|(reason, count)| format!("{count}: {reason}")).collect();
    if more > 0 {
        told.push(format!("and {more} more reasons"));
    }
    format!("{pods}: {}", told.join("; "))
}

//! Names the reasons why a pod or node has no value: shown in the 404's text, explained and counted.

mod text;

pub use text::summary;

use super::labels::DeviceLabels;
use super::part::UnknownPart;
use crate::cluster::pods::Phase;
use crate::source::page::Limit;

/// Why a pod is left out of an answer.
///
/// Written with `{}` it is a text that stays the same while nothing changes, or moves in coarse
/// steps, because an HPA writes a new status and event for each new text. `{:#}` has the numbers.
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
        /// This annotation gives the pod a part of a GPU without naming the GPU.
        unnamed_by: Option<&'static str>,
    },
    /// The exporter knows of no GPU of the node that is asked for.
    NoGpuOnNode {
        exporter: String,
    },
    /// An annotation names a GPU on which the pod has no process, and it is not proven that it used
    /// none of it.
    NamedGpu {
        annotation: &'static str,
        uuid: Box<str>,
        unproven: Unproven,
    },
    OtherUid {
        exporter: String,
    },
    NoMatchingDevice(DeviceLabels),
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
    /// The part of the device that the pod was given has an unknown size.
    PartUnknown(UnknownPart),
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

/// Why it is not proven that a pod used nothing of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unproven {
    /// The exporter does not report the GPU.
    NotReported,
    /// The exporter does not know which containers use the GPU.
    OwnersUnknown,
    /// The annotation gives a MIG instance of the GPU, and does not say which one.
    Instance,
}

macro_rules! reasons {
    ($($variant:ident $label:literal)*) => {
        /// The reasons as they are counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason {
            $($variant,)*
        }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The value of the label `reason`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }
    };
}

reasons! {
    Terminating "terminating"
    Finished "finished"
    NotScheduled "not_scheduled"
    NotStarted "not_started"
    NotReadyYet "not_ready_yet"
    Restarted "restarted"
    NoExporter "no_exporter"
    ExporterNeverAnswered "exporter_never_answered"
    ExporterSilent "exporter_silent"
    NoGpu "no_gpu"
    NamedGpu "named_gpu"
    OtherUid "other_uid"
    NoMatchingDevice "no_matching_device"
    Collecting "collecting"
    TooFewScrapes "too_few_scrapes"
    DeviceStale "device_stale"
    NoSuchFamily "no_such_family"
    PartUnknown "part_unknown"
    SharedDevice "shared_device"
    AttributionUnavailable "attribution_unavailable"
    OfWholeGpu "of_whole_gpu"
    PageLimit "page_limit"
    OutOfRange "out_of_range"
}

impl Omission {
    /// The reason under which it is counted.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Terminating => Reason::Terminating,
            Self::Finished(_) => Reason::Finished,
            Self::NotScheduled => Reason::NotScheduled,
            Self::NotStarted => Reason::NotStarted,
            Self::NotReadyYet => Reason::NotReadyYet,
            Self::Restarted { .. } => Reason::Restarted,
            Self::NoExporter { .. } => Reason::NoExporter,
            Self::ExporterNeverAnswered { .. } => Reason::ExporterNeverAnswered,
            Self::ExporterSilent { .. } => Reason::ExporterSilent,
            Self::NoGpu { .. } | Self::NoGpuOnNode { .. } => Reason::NoGpu,
            Self::NamedGpu { .. } => Reason::NamedGpu,
            Self::OtherUid { .. } => Reason::OtherUid,
            Self::NoMatchingDevice(_) => Reason::NoMatchingDevice,
            Self::Collecting { .. } | Self::Reading { .. } => Reason::Collecting,
            Self::TooFewScrapes => Reason::TooFewScrapes,
            Self::DeviceStale { .. } => Reason::DeviceStale,
            Self::NoSuchFamily { .. } => Reason::NoSuchFamily,
            Self::PartUnknown(_) => Reason::PartUnknown,
            Self::Shared { .. } => Reason::SharedDevice,
            Self::AttributionUnavailable { .. } => Reason::AttributionUnavailable,
            Self::OfWholeGpu => Reason::OfWholeGpu,
            Self::PageLimit { .. } => Reason::PageLimit,
            Self::OutOfRange => Reason::OutOfRange,
            Self::Devices { reason, .. } => reason.reason(),
        }
    }

    /// Whether it says something of known devices, and not that none is known.
    pub(super) fn is_of_devices(&self) -> bool {
        match self {
            Self::NoExporter { .. }
            | Self::NoGpuOnNode { .. }
            | Self::ExporterNeverAnswered { .. }
            | Self::ExporterSilent { .. } => false,
            Self::Devices { reason, .. } => reason.is_of_devices(),
            _ => true,
        }
    }

    /// Among several exporters' reasons the one that knows most of the pod is given.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::NoExporter { .. } => 0,
            Self::NoGpu { .. }
            | Self::NoGpuOnNode { .. }
            | Self::NamedGpu { unproven: Unproven::NotReported, .. } => 1,
            Self::ExporterNeverAnswered { .. } | Self::ExporterSilent { .. } => 2,
            Self::OtherUid { .. } => 3,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The table of docs/ADAPTER.md and this enum name the same reasons.
    #[test]
    fn the_documented_reasons_are_those_that_are_counted() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ADAPTER.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, table) = text.split_once("\n## Why a pod is left out\n").unwrap();
        let table = table.split("\n## ").next().unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        let documented: Vec<&str> =
            rows.flat_map(|cell| cell.split('`').filter(|name| !name.is_empty() && *name != ", ")).collect();
        let names: BTreeSet<&str> = documented.iter().copied().collect();
        assert_eq!(names, Reason::ALL.iter().map(|reason| reason.as_str()).collect());
        assert_eq!(names.len(), documented.len(), "a reason has one row");
    }
}

//! Writes omissions for people: texts that an HPA repeats at each sync, and exact ones for `explain`.

use std::collections::BTreeMap;
use std::fmt;

use super::{Omission, Unproven};
use crate::evaluate::labels::DeviceLabels;

/// Most different reasons in one message.
const MAX_REASONS: usize = 4;

/// The steps in which an age moves in a text: seconds, and how they are written.
const STEPS: [(u64, &str); 7] =
    [(86_400, "1d"), (21_600, "6h"), (3_600, "1h"), (1_800, "30m"), (300, "5m"), (60, "1m"), (30, "30s")];

/// An age in coarse steps; `None` below the first.
fn coarse(seconds: u64) -> Option<&'static str> {
    STEPS.iter().find(|(step, _)| seconds >= *step).map(|(_, text)| *text)
}

impl fmt::Display for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = f.alternate();
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
            Self::ExporterSilent { exporter, seconds } if exact => {
                write!(f, "{exporter} last answered {seconds}s ago")
            }
            Self::ExporterSilent { exporter, seconds } => match coarse(*seconds) {
                Some(age) => write!(f, "{exporter} last answered more than {age} ago"),
                None => write!(f, "{exporter} last answered longer ago than --staleness"),
            },
            Self::NoGpu { exporter, unnamed_by: None } => {
                write!(f, "{exporter} knows of no GPU that it uses")
            }
            Self::NoGpu { exporter, unnamed_by: Some(annotation) } => write!(
                f,
                "{exporter} knows of no GPU that it uses, and its annotation {annotation} names none: \
                 it has a value once a process of it uses a GPU"
            ),
            Self::NoGpuOnNode { exporter } => write!(f, "{exporter} knows of no GPU on it"),
            Self::NamedGpu { annotation, uuid, unproven } => {
                write!(f, "its annotation {annotation} names {uuid}, ")?;
                f.write_str(match unproven {
                    Unproven::NotReported => "which its exporter does not report",
                    Unproven::OwnersUnknown => "of which its exporter does not know the owners",
                    Unproven::Instance => "and not which MIG instance of it",
                })
            }
            Self::OtherUid { exporter } => {
                write!(f, "{exporter} speaks of another pod of that name (its UID differs)")
            }
            Self::NoMatchingDevice(labels) => {
                write!(f, "none of its devices matches the metricLabelSelector: {labels}")
            }
            Self::Collecting { observed } if exact => {
                write!(f, "observed for {observed}s, a first answer needs 15s")
            }
            Self::Collecting { .. } => {
                f.write_str("observed for less than the 15s that a first answer needs")
            }
            Self::TooFewScrapes => f.write_str("not seen in two scrapes in a row yet"),
            Self::DeviceStale { seconds } if exact => {
                write!(f, "the newest reading of its device is {seconds}s old")
            }
            Self::DeviceStale { seconds } => match coarse(*seconds) {
                Some(age) => write!(f, "the newest reading of its device is more than {age} old"),
                None => f.write_str("the newest reading of its device is older than --staleness"),
            },
            Self::NoSuchFamily { family } => write!(f, "its exporter gives no {family} for it"),
            Self::PartUnknown(unknown) => {
                write!(f, "the part of its device that it was given is not known: {unknown}")
            }
            Self::Shared { pods } => {
                write!(f, "its device is shared by {pods} pods and this value cannot be divided")
            }
            Self::AttributionUnavailable { reason } => {
                write!(f, "the use of its device cannot be attributed: {reason}")
            }
            Self::OfWholeGpu => f.write_str("its device is a MIG instance and this value is the whole GPU's"),
            Self::OutOfRange => f.write_str("its value is larger than a quantity can be"),
            Self::Devices { without, of, reason } => {
                let verb = if *without == 1 { "has" } else { "have" };
                write!(f, "{without} of {of} devices {verb} no value: ")?;
                if exact { write!(f, "{reason:#}") } else { write!(f, "{reason}") }
            }
        }
    }
}

/// One sentence on why no object of an answer has a value; equal reasons are given once. `what`:
/// `pod` or `node`.
pub fn summary(what: &str, omissions: &[Omission]) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut unmatched: Option<(DeviceLabels, usize)> = None;
    for omission in omissions {
        match omission {
            // Each object has other devices: together they are one reason.
            Omission::NoMatchingDevice(labels) => match &mut unmatched {
                Some((all, count)) => {
                    all.merge(labels);
                    *count += 1;
                }
                None => unmatched = Some((labels.clone(), 1)),
            },
            omission => *reasons.entry(omission.to_string()).or_default() += 1,
        }
    }
    reasons.extend(unmatched.map(|(labels, count)| (Omission::NoMatchingDevice(labels).to_string(), count)));
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
    let mut given: Vec<String> =
        reasons.iter().take(MAX_REASONS).map(|(reason, count)| format!("{count}: {reason}")).collect();
    if more > 0 {
        given.push(format!("and {more} more reasons"));
    }
    format!("{pods}: {}", given.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(seconds: u64) -> Omission {
        Omission::ExporterSilent { exporter: "exporter on node gpu-7".to_owned(), seconds }
    }

    /// An HPA writes a status and an event for each text that it has not seen before.
    #[test]
    fn an_age_moves_in_coarse_steps() {
        for (seconds, text) in [
            (5, "exporter on node gpu-7 last answered longer ago than --staleness"),
            (31, "exporter on node gpu-7 last answered more than 30s ago"),
            (75, "exporter on node gpu-7 last answered more than 1m ago"),
            (299, "exporter on node gpu-7 last answered more than 1m ago"),
            (300, "exporter on node gpu-7 last answered more than 5m ago"),
            (4000, "exporter on node gpu-7 last answered more than 1h ago"),
            (999_999, "exporter on node gpu-7 last answered more than 1d ago"),
        ] {
            assert_eq!(silent(seconds).to_string(), text);
            assert_eq!(
                format!("{:#}", silent(seconds)),
                format!("exporter on node gpu-7 last answered {seconds}s ago")
            );
        }
        let texts = |make: fn(u64) -> Omission| {
            let all: std::collections::BTreeSet<String> =
                (0..600).map(|seconds| make(seconds).to_string()).collect();
            all.len()
        };
        assert_eq!(texts(|observed| Omission::Collecting { observed }), 1);
        assert_eq!(texts(|seconds| Omission::DeviceStale { seconds }), 4);
        let nested = |seconds| Omission::Devices { without: 1, of: 8, reason: Box::new(silent(seconds)) };
        assert_eq!(texts(nested), 4);
        assert!(format!("{:#}", nested(75)).ends_with("last answered 75s ago"));
    }

    #[test]
    fn equal_reasons_are_given_once() {
        assert_eq!(
            summary("pod", &[silent(95), silent(96), silent(97)]),
            "3 pods match, none has a value: exporter on node gpu-7 last answered more than 1m ago"
        );
        assert_eq!(
            summary("pod", &[silent(95), Omission::NotReadyYet, silent(95)]),
            "3 pods match, none has a value: 2: exporter on node gpu-7 last answered more than 1m ago; 1: not Ready yet"
        );
    }
}

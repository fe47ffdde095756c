//! Owns the judgement of `--once`: is every answer near the truth, is every omission expected.

use super::reading::{Reading, Row};

/// How far an answer may be from the scenario's mean over the same window, in points: the
/// adapter's window ends up to a scrape earlier than ours.
pub(super) const TOLERANCE: f64 = 2.0;

/// The exporter's reason for which a pod may be left out whose use the driver hides.
const HIDDEN: &str = "mps_server";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    /// What is wrong, one line each.
    pub(super) misses: Vec<String>,
    /// Whether all that is wrong are answers that are not there yet.
    pub(super) may_mend: bool,
}

pub(super) fn judge(reading: &Reading) -> Judgement {
    let mut misses = Vec::new();
    let mut wrong = false;
    for row in &reading.rows {
        if let Some(miss) = miss(row) {
            wrong |= row.answer.is_ok();
            misses.push(format!("{}/{}: {miss}", row.namespace, row.pod));
        }
    }
    Judgement { may_mend: !misses.is_empty() && !wrong, misses }
}

fn miss(row: &Row) -> Option<String> {
    match (&row.answer, row.truth.utilization) {
        (Ok(value), Some(truth)) if (value - truth).abs() <= TOLERANCE => None,
        (Ok(value), Some(truth)) => Some(format!("{value:.1} % was answered, the truth is {truth:.1} %")),
        (Ok(value), None) => Some(format!("{value:.1} % was answered for a pod without a known truth")),
        // A pod without a device has nothing to be answered.
        (Err(_), None) => None,
        (Err(reason), Some(_)) if row.truth.is_hidden && reason.contains(HIDDEN) => None,
        (Err(reason), Some(_)) => Some(format!("not answered: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::truth::Truth;

    fn row(hidden: bool, truth: Option<f64>, answer: Result<f64, &str>) -> Reading {
        let row = Row {
            namespace: "demo".into(),
            pod: "p".into(),
            truth: Truth {
                devices: [(0, hidden.then_some((1, 2)))].into(),
                device_load: truth,
                utilization: truth,
                is_hidden: hidden,
            },
            answer: answer.map_err(str::to_owned),
            scaling: None,
        };
        Reading { rows: vec![row], free: Vec::new() }
    }

    #[test]
    fn answers_are_held_against_the_truth() {
        assert!(judge(&row(false, Some(40.0), Ok(41.9))).misses.is_empty());
        let wrong = judge(&row(false, Some(40.0), Ok(42.1)));
        assert_eq!((wrong.misses.len(), wrong.may_mend), (1, false));
        assert!(judge(&row(false, Some(0.0), Ok(0.0))).misses.is_empty());
    }

    #[test]
    fn only_pods_whose_use_is_hidden_may_be_left_out_and_only_for_that() {
        let reason = "the use of its device cannot be attributed: mps_server";
        assert!(judge(&row(true, Some(60.0), Err(reason))).misses.is_empty());
        assert!(judge(&row(true, Some(60.0), Ok(60.5))).misses.is_empty());
        let stale = judge(&row(true, Some(60.0), Err("last answered 40s ago")));
        assert_eq!((stale.misses.len(), stale.may_mend), (1, true));
        assert_eq!(judge(&row(false, Some(60.0), Err(reason))).misses.len(), 1);
    }
}

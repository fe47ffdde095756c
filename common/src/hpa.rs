//! Owns the HorizontalPodAutoscaler's arithmetic for a Pods metric: from an adapter's answer to a
//! number of replicas. `explain` and the simulated cluster's demo compute with it.
//!
//! Pure functions over the values of one sync. Quantities are in thousandths, as the controller
//! reads them; its ratios are floats, as the controller's are.

use std::collections::BTreeMap;

/// By how much usage may differ from the target before anything happens.
pub const TOLERANCE: f64 = 0.1;

/// What the controller looks at in a pod of its scale target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaledPod {
    pub name: String,
    /// Kubernetes' pod phase.
    pub phase: String,
    /// Has a deletionTimestamp.
    pub terminating: bool,
}

/// The items of an answer: pod to value, in thousandths. Of two items for one pod the last counts.
pub type Items = BTreeMap<String, i64>;

/// What a sync proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposal {
    /// Before `minReplicas` and `maxReplicas`.
    pub replicas: i32,
    /// The mean over the items that counted, in thousandths.
    pub usage_milli: i64,
}

/// Why a sync proposes nothing; the replicas stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HpaError {
    #[error("no metrics returned from custom metrics API")]
    NoMetrics,
    #[error("did not receive metrics for targeted pods (pods might be unready)")]
    NoUsableMetrics,
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$': {0:?}"
    )]
    BadQuantity(String),
    #[error("the answer is no MetricValueList: {0}")]
    BadAnswer(String),
}

/// What the controller proposes for a Pods metric with this target (`averageValue`, in
/// thousandths).
///
/// # Errors
/// If no item is left to average.
pub fn propose(
    current: i32,
    target_milli: i64,
    tolerance: f64,
    pods: &[ScaledPod],
    items: &Items,
) -> Result<Proposal, HpaError> {
    if items.is_empty() {
        return Err(HpaError::NoMetrics);
    }
    let mut items = items.clone();
    let mut counted = 0i32;
    let mut unready = Vec::new();
    let mut missing = Vec::new();
    for pod in pods {
        if pod.terminating || pod.phase == "Failed" {
            items.remove(&pod.name);
        } else if pod.phase == "Pending" {
            items.remove(&pod.name);
            unready.push(&pod.name);
        } else if items.contains_key(&pod.name) {
            // Whether it is Ready is asked for CPU only.
            counted += 1;
        } else {
            missing.push(&pod.name);
        }
    }
    let (ratio, usage_milli) = ratio(&items, target_milli).ok_or(HpaError::NoUsableMetrics)?;
    let keep = Proposal { replicas: current, usage_milli };
    let growing_with_unready = ratio > 1.0 && !unready.is_empty();
    if missing.is_empty() && !growing_with_unready {
        let replicas = if within(ratio, tolerance) { current } else { ceiling(ratio * f64::from(counted)) };
        return Ok(Proposal { replicas, usage_milli });
    }
    // The unknown must not make it worse: a missing pod counts as on target for shrinking, and as
    // idle for growing.
    let assumed = if ratio < 1.0 { target_milli } else { 0 };
    items.extend(missing.into_iter().map(|name| (name.clone(), assumed)));
    if growing_with_unready {
        items.extend(unready.into_iter().map(|name| (name.clone(), 0)));
    }
    let Some((damped, _)) = self::ratio(&items, target_milli) else { return Ok(keep) };
    if within(damped, tolerance) || (ratio < 1.0 && damped > 1.0) || (ratio > 1.0 && damped < 1.0) {
        return Ok(keep);
    }
    let replicas = ceiling(damped * items.len() as f64);
    if (damped < 1.0 && replicas > current) || (damped > 1.0 && replicas < current) {
        return Ok(keep);
    }
    Ok(Proposal { replicas, usage_milli })
}

/// A proposal within the HPA's bounds.
pub fn bounded(replicas: i32, min: i32, max: i32) -> i32 {
    replicas.clamp(min, max.max(min))
}

/// The items of a `MetricValueList`, v1beta1 or v1beta2.
///
/// # Errors
/// A body that is no such list, or a value that is no quantity.
pub fn items(answer: &serde_json::Value) -> Result<Items, HpaError> {
    let list = answer["items"].as_array().ok_or_else(|| HpaError::BadAnswer("no items".to_owned()))?;
    list.iter()
        .map(|item| {
            let name = item["describedObject"]["name"]
                .as_str()
                .ok_or_else(|| HpaError::BadAnswer("an item without describedObject.name".to_owned()))?;
            let value = item["value"]
                .as_str()
                .ok_or_else(|| HpaError::BadAnswer(format!("the item of {name} has no value")))?;
            Ok((name.to_owned(), milli(value).ok_or_else(|| HpaError::BadQuantity(value.to_owned()))?))
        })
        .collect()
}

/// A quantity in thousandths, rounded up as the controller's `MilliValue` does: `63500m`, `90.5`,
/// `1k`, `1e2`, `2Gi`. `None` for what is none.
pub fn milli(quantity: &str) -> Option<i64> {
    let digits = quantity.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')));
    let (number, suffix) = quantity.split_at(digits.unwrap_or(quantity.len()));
    // Thousandths of one unit, as a fraction of integers: floats would round 0.1 up to 101.
    let (up, down): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1000i128.pow(2), 1),
        "M" => (1000i128.pow(3), 1),
        "G" => (1000i128.pow(4), 1),
        "T" => (1000i128.pow(5), 1),
        "P" => (1000i128.pow(6), 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent >= 0 { (power.checked_mul(1000)?, 1) } else { (1000, power) }
        }
    };
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let text = format!("{whole}{fraction}");
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let down = down.checked_mul(10i128.checked_pow(fraction.len().try_into().ok()?)?)?;
    let value = text.parse::<i128>().ok()?.checked_mul(up)?;
    let signed = if negative { -value } else { value };
    // Away from zero, as the controller rounds.
    let rounded = signed / down + if signed % down == 0 { 0 } else { signed.signum() };
    i64::try_from(rounded).ok()
}

/// Usage over target, and the usage: the sum over the number of items, in integers.
fn ratio(items: &Items, target_milli: i64) -> Option<(f64, i64)> {
    let count = i64::try_from(items.len()).ok().filter(|count| *count > 0)?;
    let usage = items.values().copied().fold(0i64, i64::saturating_add) / count;
    Some((usage as f64 / target_milli as f64, usage))
}

fn within(ratio: f64, tolerance: f64) -> bool {
    (1.0 - tolerance..=1.0 + tolerance).contains(&ratio)
}

fn ceiling(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Running pods p0, p1, …, and an item for the first of them each.
    fn propose_for(current: i32, target: i64, pods: usize, values: &[i64]) -> Proposal {
        let pods: Vec<ScaledPod> = (0..pods).map(|i| pod(&format!("p{i}"), "Running")).collect();
        propose(current, target, TOLERANCE, &pods, &items_of(values)).unwrap()
    }

    fn pod(name: &str, phase: &str) -> ScaledPod {
        ScaledPod { name: name.into(), phase: phase.into(), terminating: false }
    }

    fn items_of(values: &[i64]) -> Items {
        values.iter().enumerate().map(|(i, value)| (format!("p{i}"), *value)).collect()
    }

    #[test]
    fn the_controllers_own_numbers() {
        // (replicas now, target, pods, values, replicas proposed)
        for (current, target, pods, values, proposed) in [
            (3, 20_000, 3, &[20_000, 21_000, 21_000][..], 3),
            (2, 17_000, 3, &[10_000, 10_000], 2),
            (3, 15_000, 3, &[20_000, 10_000, 30_000], 4),
            (5, 20_000, 5, &[12_000, 12_000, 12_000, 12_000, 12_000], 3),
            (3, 15_000, 3, &[50_000, 10_000, 30_000], 6),
        ] {
            assert_eq!(propose_for(current, target, pods, values).replicas, proposed, "{values:?}");
        }
        assert_eq!(propose_for(3, 20_000, 3, &[20_000, 21_000, 21_000]).usage_milli, 20_666);
    }

    #[test]
    fn what_a_real_controller_was_seen_to_do() {
        // One of two reports 90 against 60: the missing one counts as idle, so nothing grows.
        assert_eq!(propose_for(2, 60_000, 2, &[90_000]).replicas, 2);
        // 200: 2 -> 4 -> 6, the new pods missing each time.
        assert_eq!(propose_for(2, 60_000, 2, &[200_000]).replicas, 4);
        assert_eq!(propose_for(1, 60_000, 1, &[90_000]).replicas, 2);
        assert_eq!(propose_for(3, 60_000, 3, &[10_000, 10_000, 10_000]).replicas, 1);
    }

    #[test]
    fn unknown_pods_never_make_it_shrink_wrongly() {
        // One reports 0, one is missing: the missing one counts as on target.
        assert_eq!(propose_for(2, 60_000, 2, &[0]).replicas, 1);
        assert_eq!(propose_for(4, 60_000, 4, &[50_000]).replicas, 4);
        // But right on target, where it is neither growing nor shrinking, the controller takes a
        // missing pod for idle and shrinks.
        assert_eq!(propose_for(2, 60_000, 2, &[60_000]).replicas, 1);
    }

    #[test]
    fn pending_pods_count_as_idle_for_growth_and_terminating_ones_not_at_all() {
        let pods = [pod("p0", "Running"), pod("p1", "Pending")];
        let grown = propose(1, 60_000, TOLERANCE, &pods, &items_of(&[200_000])).unwrap();
        assert_eq!(grown.replicas, 4);
        let shrunk = propose(2, 60_000, TOLERANCE, &pods, &items_of(&[30_000])).unwrap();
        assert_eq!(shrunk.replicas, 1);
        let leaving = [pod("p0", "Running"), ScaledPod { terminating: true, ..pod("p1", "Running") }];
        let without = propose(2, 60_000, TOLERANCE, &leaving, &items_of(&[60_000, 600_000])).unwrap();
        assert_eq!(without, Proposal { replicas: 2, usage_milli: 60_000 });
    }

    #[test]
    fn items_of_unknown_pods_inflate_the_mean_but_not_the_count() {
        let pods = [pod("p0", "Running")];
        let proposal = propose(1, 60_000, TOLERANCE, &pods, &items_of(&[60_000, 180_000])).unwrap();
        assert_eq!(proposal, Proposal { replicas: 2, usage_milli: 120_000 });
    }

    #[test]
    fn without_items_nothing_is_proposed() {
        assert_eq!(propose(2, 60_000, TOLERANCE, &[], &Items::new()), Err(HpaError::NoMetrics));
        let pending = [pod("p0", "Pending")];
        assert_eq!(propose(2, 60_000, TOLERANCE, &pending, &items_of(&[1])), Err(HpaError::NoUsableMetrics));
    }

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("90", Some(90_000)),
            ("90.5", Some(90_500)),
            ("59999m", Some(59_999)),
            ("1e2", Some(100_000)),
            ("-5", Some(-5000)),
            ("0.1", Some(100)),
            ("1k", Some(1_000_000)),
            ("2Ki", Some(2_048_000)),
            ("1n", Some(1)),
            ("0.0004", Some(1)),
            ("abc", None),
            ("", None),
            ("1x", None),
            ("-", None),
        ] {
            assert_eq!(milli(text), expected, "{text}");
        }
    }
}

//! Owns the table that people read.

use std::fmt::Write as _;

use podgauge_common::hpa;

use super::document::{Device, Explanation, Hpa, Pod};

/// The source of a part that needs no note.
const EXPORTER: &str = "exporter";

const COLUMNS: usize = 11;

/// The heads of the columns; VALUE and MEAN with their unit.
fn heads(unit: &str) -> [String; COLUMNS] {
    let in_unit = |head: &str| if unit.is_empty() { head.to_owned() } else { format!("{head} ({unit})") };
    [
        "POD".to_owned(),
        "PHASE".to_owned(),
        "READY".to_owned(),
        in_unit("VALUE"),
        "AGE".to_owned(),
        "DEVICE".to_owned(),
        "CONTAINER".to_owned(),
        "PART".to_owned(),
        "SOURCE".to_owned(),
        "COVERED".to_owned(),
        in_unit("MEAN"),
    ]
}

/// An explanation as text.
pub(super) fn render(explanation: &Explanation) -> String {
    let Explanation { namespace, metric, aggregation, window_seconds, staleness_seconds, .. } = explanation;
    let selected = match explanation.label_selector.as_str() {
        "" => String::new(),
        selector => format!(" that match {selector}"),
    };
    let mut text = format!(
        "{metric} of {} pods in namespace {namespace}{selected}\n{aggregation} over a pod's devices, each a mean over {window_seconds}s; \
         the last value is kept for {staleness_seconds}s\n\n",
        explanation.pods.len()
    );
    let mut rows: Vec<Row> = vec![Row::Cells(heads(&explanation.unit).to_vec())];
    for pod in &explanation.pods {
        let devices =
            if pod.devices.is_empty() { vec![None] } else { pod.devices.iter().map(Some).collect() };
        rows.extend(
            devices.into_iter().enumerate().map(|(at, device)| Row::Cells(cells(pod, at == 0, device))),
        );
        if let Some(omitted) = &pod.omitted {
            rows.push(Row::Note(format!("left out, {}: {}", omitted.reason, omitted.message)));
        }
        for ignored in &pod.ignored_annotations {
            rows.push(Row::Note(format!("annotation {} is ignored: {}", ignored.annotation, ignored.reason)));
        }
        for device in pod.devices.iter().filter(|device| device.part_source != EXPORTER) {
            rows.push(Row::Note(format!("part of {}: {}", device.device, device.part_source)));
        }
        for exporter in &pod.exporters {
            if let Some(failure) = &exporter.failure {
                rows.push(Row::Note(format!("{} does not answer: {failure}", exporter.name)));
            }
            if let Some(limit) = &exporter.limit {
                rows.push(Row::Note(format!("{} has {limit}", exporter.name)));
            }
        }
    }
    write_rows(&mut text, &rows);
    if let Some(failure) = &explanation.watch_failure {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{failure}");
    }
    if let Some(hpa) = &explanation.hpa {
        text.push('\n');
        write_hpa(&mut text, hpa);
    }
    text
}

enum Row {
    Cells(Vec<String>),
    /// A line of its own below a pod.
    Note(String),
}

fn cells(pod: &Pod, first: bool, device: Option<&Device>) -> Vec<String> {
    let dash = || "-".to_owned();
    let of_pod = |cell: String| if first { cell } else { String::new() };
    let device_name = device.map_or_else(dash, |device| match device.labels.get("gpu") {
        Some(gpu) => format!("{gpu} {}", device.device),
        None => device.device.clone(),
    });
    vec![
        of_pod(pod.name.clone()),
        of_pod(if pod.terminating { "Terminating".to_owned() } else { pod.phase.clone() }),
        of_pod(if pod.ready { "yes" } else { "no" }.to_owned()),
        of_pod(pod.value.as_deref().map_or_else(dash, plain)),
        of_pod(pod.age_seconds.map_or_else(dash, seconds)),
        device_name,
        device.map(|device| device.container.clone()).filter(|name| !name.is_empty()).unwrap_or_else(dash),
        device.and_then(|device| device.part).map_or_else(dash, short),
        device.and_then(|device| device.source.clone()).unwrap_or_else(dash),
        device.map_or_else(dash, |device| {
            let newest = device.newest_seconds.map(|age| format!(", newest {} ago", seconds(age)));
            format!("{}{}", seconds(device.covered_seconds), newest.unwrap_or_default())
        }),
        device.and_then(|device| device.mean).map_or_else(dash, short),
    ]
}

fn write_rows(text: &mut String, rows: &[Row]) {
    let mut widths = [0; COLUMNS];
    for row in rows {
        if let Row::Cells(cells) = row {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
    }
    for row in rows {
        let line = match row {
            Row::Cells(cells) => {
                let mut line = String::new();
                for (cell, width) in cells.iter().zip(widths) {
                    // Writing to a String cannot fail.
                    let _ = write!(line, "{cell:width$}  ");
                }
                line
            }
            Row::Note(note) => format!("  {note}"),
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn write_hpa(text: &mut String, hpa: &Hpa) {
    let target = &hpa.target_average_value;
    let bounds = match (hpa.min_replicas, hpa.max_replicas) {
        (None, None) => String::new(),
        (Some(min), None) => format!(", at least {min}"),
        (None, Some(max)) => format!(", at most {max}"),
        (Some(min), Some(max)) => format!(", {min} to {max}"),
    };
    let _ =
        writeln!(text, "An HPA with averageValue {target}, {} replicas now{bounds}:", hpa.current_replicas);
    if let (Some(average), Some(ratio)) = (&hpa.average_value, hpa.ratio) {
        let tolerance = hpa.tolerance;
        let _ = writeln!(
            text,
            "  average {average}, {ratio:.3} of the target; within ±{tolerance} nothing happens"
        );
    }
    for (pods, meaning) in [
        (&hpa.missing, "missing, on target for shrinking and idle for growing"),
        (&hpa.unready, "pending, idle for growing"),
        (&hpa.ignored, "not looked at, they end or ended"),
    ] {
        if !pods.is_empty() {
            let _ = writeln!(text, "  {}: {}", meaning, pods.join(", "));
        }
    }
    match (hpa.desired_replicas, &hpa.error) {
        (Some(desired), _) => {
            let _ = writeln!(text, "  {} -> {desired} replicas", hpa.current_replicas);
        }
        (None, error) => {
            let error = error.as_deref().unwrap_or("it fails");
            let _ = writeln!(text, "  holds {} replicas: {error}", hpa.current_replicas);
        }
    }
    let _ = writeln!(text, "  not modelled: {}", hpa.not_modelled);
}

/// A quantity as a plain number, so that it can be compared with the means.
fn plain(quantity: &str) -> String {
    hpa::milli(quantity).map_or_else(|| quantity.to_owned(), |milli| short(milli as f64 / 1000.0))
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.1}s")
}

/// At most three decimals, no zeros at the end.
fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::document::Omitted;
    use super::*;

    #[test]
    fn columns_are_aligned_and_reasons_stand_below() {
        let device = Device {
            exporter: "exporter on node n".to_owned(),
            device: "GPU-a".to_owned(),
            labels: BTreeMap::from([("gpu".to_owned(), "0".to_owned())]),
            container: "main".to_owned(),
            part: Some(0.5),
            part_source: EXPORTER.to_owned(),
            present: true,
            seen_seconds: Some(0.4),
            observed_seconds: 600.0,
            source: Some("exporter".to_owned()),
            covered_seconds: 60.0,
            newest_seconds: Some(0.4),
            oldest_seconds: Some(60.4),
            mean: Some(42.5),
        };
        let pod = Pod {
            name: "chat-0".to_owned(),
            node: Some("n".to_owned()),
            phase: "Running".to_owned(),
            ready: true,
            terminating: false,
            value: Some("85500m".to_owned()),
            age_seconds: Some(0.4),
            omitted: None,
            exporters: Vec::new(),
            devices: vec![device.clone(), Device { device: "GPU-b".to_owned(), ..device }],
            ignored_annotations: Vec::new(),
        };
        let silent = Pod {
            name: "chat-with-a-long-name-1".to_owned(),
            value: None,
            age_seconds: None,
            omitted: Some(Omitted {
                reason: "no_exporter".to_owned(),
                message: "no exporter is known".to_owned(),
            }),
            devices: Vec::new(),
            ..pod.clone()
        };
        let hpa = Hpa {
            target_average_value: "60".to_owned(),
            tolerance: 0.1,
            current_replicas: 2,
            min_replicas: Some(1),
            max_replicas: Some(3),
            average_value: Some("85".to_owned()),
            ratio: Some(85.0 / 60.0),
            missing: vec!["chat-with-a-long-name-1".to_owned()],
            unready: Vec::new(),
            ignored: Vec::new(),
            desired_replicas: Some(2),
            error: None,
            not_modelled: "policies".to_owned(),
        };
        let explanation = Explanation {
            kind: "MetricExplanation".to_owned(),
            namespace: "demo".to_owned(),
            label_selector: "app=chat".to_owned(),
            metric_label_selector: String::new(),
            metric: "gpu_utilization".to_owned(),
            unit: "%".to_owned(),
            aggregation: "mean".to_owned(),
            window_seconds: 60.0,
            staleness_seconds: 30.0,
            watch_failure: None,
            pods: vec![pod, silent],
            hpa: Some(hpa),
        };
        let text = render(&explanation);
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[3].find("VALUE (%)").unwrap();
        assert_eq!(&lines[4][column..column + 4], "85.5");
        assert!(lines[3].ends_with("MEAN (%)") && lines[4].ends_with(" 42.5"), "{text}");
        assert_eq!(lines[4].find("0 GPU-a"), lines[5].find("0 GPU-b"));
        assert!(lines[5].starts_with("   "), "a pod's name stands once: {text}");
        assert_eq!(lines[7], "  left out, no_exporter: no exporter is known");
        assert!(text.contains("1.417 of the target") && text.contains("2 -> 2 replicas"), "{text}");
    }
}

//! Owns the demo's table.

use std::fmt::Write as _;

use super::reading::{MAX, MIN, Reading, Row, Scaling, TARGET};

/// The widest reason shown; the whole of it is in the adapter's answer.
const REASON_WIDTH: usize = 62;

/// The first line of everything the demo prints.
pub(super) const BANNER: &str = "The GPUs here are simulated: no GPU, no driver, no cluster. The exporter and the adapter are the real programs.\n";

/// The table as text.
pub(super) fn render(reading: &Reading, window_s: u32) -> String {
    let heads =
        ["POD", "GPUS", "GPU LOAD", "ADAPTER ANSWERS", &format!("HPA (TARGET {TARGET}, {MIN} TO {MAX})")];
    let mut lines: Vec<[String; 5]> = vec![heads.map(str::to_owned)];
    lines.extend(reading.rows.iter().map(line));
    for gpu in &reading.free {
        let dash = || "-".to_owned();
        lines.push(["(free)".to_owned(), gpu.to_string(), dash(), dash(), dash()]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let mut text = format!(
        "Mean over the last {window_s}s: GPU LOAD is the scenario's truth, ADAPTER ANSWERS what came back for gpu_utilization.\n\n"
    );
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(row, "{cell:width$}  ");
        }
        row.push_str(&line[4]);
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> [String; 5] {
    let gpus: Vec<String> = row
        .truth
        .devices
        .iter()
        .map(|(index, shared)| match shared {
            Some((held, of)) => format!("{index} ({held} of {of})"),
            None => index.to_string(),
        })
        .collect();
    [
        format!("{}/{}", row.namespace, row.pod),
        if gpus.is_empty() { "-".to_owned() } else { gpus.join(", ") },
        row.truth.device_load.map_or_else(|| "-".to_owned(), percent),
        match &row.answer {
            Ok(value) => percent(*value),
            Err(reason) => shortened(reason),
        },
        row.scaling.as_ref().map(scaling).unwrap_or_default(),
    ]
}

fn percent(value: f64) -> String {
    // A sum of nothing is -0: that is no load below 0.
    format!("{:.1} %", value + 0.0)
}

fn scaling(scaling: &Scaling) -> String {
    let Scaling { app, current, wanted } = scaling;
    match wanted {
        Ok(wanted) if wanted == current => format!("{app}: stays at {current}"),
        Ok(wanted) => format!("{app}: {current} -> {wanted}"),
        Err(_) => format!("{app}: holds {current}, no metric"),
    }
}

/// The part of a message that says why, on one line and not too wide.
fn shortened(message: &str) -> String {
    let what = message.strip_prefix("the server could not find the metric ");
    let why = what.and_then(|what| what.split_once(": ")).map_or(message, |(_, why)| why);
    let why = why.rsplit_once("no value: ").map_or(why, |(_, why)| why).replace('\n', " ");
    if why.chars().count() <= REASON_WIDTH {
        return why;
    }
    let start: String = why.chars().take(REASON_WIDTH - 1).collect();
    format!("{}…", start.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::truth::Truth;

    #[test]
    fn a_table() {
        let row = |pod: &str, shared, answer: Result<f64, String>, scaling| Row {
            namespace: "demo".into(),
            pod: pod.into(),
            truth: Truth {
                devices: [(3, shared)].into(),
                device_load: Some(64.5),
                utilization: Some(64.5),
                is_hidden: false,
            },
            answer,
            scaling,
        };
        let up = Scaling { app: "chat".into(), current: 2, wanted: Ok(3) };
        let reason =
            "the server could not find the metric x for pods share-a: its device is shared".to_owned();
        let reading = Reading {
            rows: vec![
                row("chat-0", None, Ok(64.4), Some(up)),
                row("share-a", Some((1, 2)), Err(reason), None),
            ],
            free: vec![7],
        };
        let text = render(&reading, 20);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[3], "demo/chat-0   3           64.5 %    64.4 %                chat: 2 -> 3");
        assert_eq!(lines[4], "demo/share-a  3 (1 of 2)  64.5 %    its device is shared");
        assert_eq!(lines[5], "(free)        7           -         -                     -");
    }

    #[test]
    fn a_long_reason_is_cut() {
        let cut = shortened(&"x".repeat(200));
        assert_eq!(cut.chars().count(), REASON_WIDTH);
        assert!(cut.ends_with('…'));
    }
}

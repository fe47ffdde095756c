//! Owns the table: rows, their budgets and verdicts.

use std::fmt::Write as _;

use crate::explained::Explanations;
use crate::machine::Machine;

/// What a figure is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Ms,
    Seconds,
    PercentOfCore,
    Mib,
    Kib,
    /// How many times.
    Ratio,
    MbPerSecond,
}

/// The most that a figure may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// What explanations call the row.
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: Unit,
    pub(crate) limit: f64,
    /// What another program was measured at, on another machine.
    pub(crate) anchor: &'static str,
}

#[derive(Debug)]
struct Row {
    id: String,
    what: String,
    unit: Unit,
    limit: Option<f64>,
    /// Or why there is no figure.
    measured: Result<f64, String>,
    note: String,
    anchor: &'static str,
}

/// What was measured, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// A figure with a budget.
    pub(crate) fn judge(&mut self, budget: Budget, measured: f64, note: impl Into<String>) {
        self.rows.push(Row {
            id: budget.id.to_owned(),
            what: budget.what.to_owned(),
            unit: budget.unit,
            limit: Some(budget.limit),
            measured: Ok(measured),
            note: note.into(),
            anchor: budget.anchor,
        });
    }

    /// A figure that has no budget.
    pub(crate) fn tell(&mut self, what: &str, unit: Unit, measured: f64, note: impl Into<String>) {
        self.push_told(what, unit, Ok(measured), note.into());
    }

    /// A figure without a budget that could not be had.
    pub(crate) fn tell_missing(&mut self, what: &str, unit: Unit, why: String) {
        self.push_told(what, unit, Err(why), String::new());
    }

    fn push_told(&mut self, what: &str, unit: Unit, measured: Result<f64, String>, note: String) {
        let what = what.to_owned();
        self.rows.push(Row { id: String::new(), what, unit, limit: None, measured, note, anchor: "" });
    }

    /// The missed rows that nobody explained up to what was measured.
    pub(crate) fn unexplained(&self, explanations: &Explanations) -> Vec<String> {
        self.rows
            .iter()
            .filter(|row| row.missed() && !row.explained(explanations))
            .map(|row| format!("{}: {}, budget {}", row.id, row.figure(), row.budget()))
            .collect()
    }

    /// The table, with where, when and how it was made.
    pub(crate) fn markdown(&self, machine: &Machine, explanations: &Explanations) -> String {
        let mut text = format!("{machine}\n\n");
        text.push_str("| row | what | budget | measured | verdict | how | anchor, other machine |\n");
        text.push_str("|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let verdict = match (row.limit, row.missed()) {
                (None, _) => "",
                (Some(_), false) => "kept",
                (Some(_), true) if row.explained(explanations) => "missed, explained below",
                (Some(_), true) => "MISSED",
            };
            let id = if row.id.is_empty() { String::new() } else { format!("`{}`", row.id) };
            let _ = writeln!(
                text,
                "| {id} | {} | {} | {} | {verdict} | {} | {} |",
                row.what,
                row.budget(),
                row.figure(),
                row.note,
                row.anchor
            );
        }
        text
    }
}

impl Row {
    fn missed(&self) -> bool {
        self.limit.is_some_and(|limit| self.measured.as_ref().map_or(true, |measured| *measured > limit))
    }

    fn explained(&self, explanations: &Explanations) -> bool {
        self.measured.as_ref().is_ok_and(|measured| explanations.cover(&self.id, *measured))
    }

    fn budget(&self) -> String {
        self.limit.map_or_else(String::new, |limit| format!("≤ {}", self.unit.plain(limit)))
    }

    fn figure(&self) -> String {
        match &self.measured {
            Ok(measured) => self.unit.figure(*measured),
            Err(why) => format!("not measured: {why}"),
        }
    }
}

impl Unit {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Ms => " ms",
            Self::Seconds => " s",
            Self::PercentOfCore => " % of a core",
            Self::Mib => " MiB",
            Self::Kib => " KiB",
            Self::Ratio => " ×",
            Self::MbPerSecond => " MB/s",
        }
    }

    fn plain(self, value: f64) -> String {
        format!("{value}{}", self.suffix())
    }

    fn figure(self, value: f64) -> String {
        let decimals = match self {
            Self::Ms => 3,
            Self::Seconds | Self::PercentOfCore | Self::Mib | Self::Kib => 2,
            Self::Ratio => 1,
            Self::MbPerSecond => 0,
        };
        format!("{value:.decimals$}{}", self.suffix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{ADAPTER_RSS, EXPORTER_P50};

    #[test]
    fn a_miss_is_excused_by_an_explanation_that_reaches_so_far() {
        let mut report = Report::default();
        report.judge(EXPORTER_P50, 0.1, "");
        report.judge(ADAPTER_RSS, 70.0, "");
        let explained = |text| Explanations::parse(text);
        assert_eq!(report.unexplained(&explained("")), ["adapter-rss: 70.00 MiB, budget ≤ 60 MiB"]);
        let reaching = "## Misses\n| `adapter-rss` | 75 MiB | pods have names |\n";
        assert!(report.unexplained(&explained(reaching)).is_empty());
        let short = "## Misses\n| `adapter-rss` | 65 MiB | pods have names |\n";
        assert_eq!(report.unexplained(&explained(short)).len(), 1);
    }
}

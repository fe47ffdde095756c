//! Writes docs/METRICS.md from the catalogue.

use std::fmt::Write as _;

use super::base_units::{in_4_9, renamed};
use super::{Kind, Metric, OWN, Pace, Reading, SERVED, Scope};

/// The whole page.
pub fn page() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         <!-- Written from the catalogue by `cargo run -p podgauge-common --example metrics`; a test holds it current. -->\n\n\
         A counters file asks for these. Values that a GPU or driver does not have are left out: never 0, never NaN.\n\
         Read: every `-c`; *slow*: at most every 30 s; *once*: until it was read. `DCGM_FI_PROF_…` are the mean between\n\
         two GPM samples `-c` apart (the first 0.25 s), on Hopper and newer.\n\n\
         | field | id | type | unit | of | read | |\n|---|---|---|---|---|---|---|\n",
    );
    for metric in classic() {
        let id = metric.field.map_or_else(String::new, |field| field.to_string());
        let _ = writeln!(
            text,
            "| `{}` | {id} | {} | {} | {} | {} | {} |",
            metric.name,
            metric.kind.as_str(),
            metric.unit,
            scope(metric),
            read(metric.reading),
            metric.help
        );
    }
    text.push_str(
        "\nOther names of the same fields (DCGM 4.6's, and the lower-case ones of dcgm-exporter 1.x) are accepted, and printed\n\
         as the counters file writes them. A name of DCGM's form that is not listed here costs one warning.\n\n\
         ## Names and units of dcgm-exporter 4.9\n\n\
         A counters file may use these names as well; `--metric-names 4.9` prints them in place of the classic ones. A field in\n\
         another unit is another field of DCGM's, with an id of its own; without an id the field is the same and has another\n\
         name alone. Fields that are not listed keep their names.\n\n\
         | classic | unit | 4.9 | id | unit |\n|---|---|---|---|---|\n",
    );
    for metric in classic() {
        let (name, other) = in_4_9(metric);
        if name != metric.name {
            let id = other.field.filter(|id| Some(*id) != metric.field);
            let id = id.map_or_else(String::new, |id| id.to_string());
            let _ =
                writeln!(text, "| `{}` | {} | `{name}` | {id} | {} |", metric.name, metric.unit, other.unit);
        }
    }
    text.push_str(
        "\n## podgauge's own\n\nOn every page, whatever the counters file says; `podgauge_exporter_…` with `--enable-exporter-metrics`.\n\n| family | type | unit | |\n|---|---|---|---|\n",
    );
    let mut own: Vec<_> = OWN.iter().collect();
    own.sort_by_key(|own| own.name);
    for own in own {
        let _ = writeln!(text, "| `{}` | {} | {} | {} |", own.name, own.kind.as_str(), own.unit, own.help);
    }
    text
}

/// The metrics without those that are others in another unit.
fn classic() -> impl Iterator<Item = &'static Metric> {
    SERVED.iter().filter(|metric| renamed(metric.name).is_none())
}

fn scope(metric: &Metric) -> &'static str {
    match (metric.kind, metric.scope) {
        (Kind::Label, _) => "a label of every sample",
        (_, Scope::Gpu) => "GPU",
        (_, Scope::Instance) => "GPU, MIG instance",
        (_, Scope::Node) => "node",
    }
}

fn read(reading: Reading) -> &'static str {
    match reading.pace() {
        _ if reading.is_event() => "events",
        Pace::Interval => "",
        Pace::Slow => "slow",
        Pace::Once => "once",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_docs_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == super::page(),
            "docs/METRICS.md is not what the catalogue says: cargo run -p podgauge-common --example metrics"
        );
    }
}

//! Prints a registry of the official client as text 0.0.4.
//!
//! The client writes OpenMetrics, in which a counter's family lacks the `_total` of its samples. In
//! the older text both have one name, or the samples would be untyped.

use std::fmt::Write as _;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

/// The registry's metrics as Prometheus text 0.0.4.
pub fn text(registry: &Registry) -> String {
    let mut open = String::new();
    encode_registry(&mut open, registry).expect("because a String takes every write");
    let counters: Vec<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open.len() + 32 * counters.len());
    for line in open.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        // Writing to a String cannot fail.
        let _ = match words[..] {
            ["#", kind @ ("HELP" | "TYPE"), name, rest] if counters.contains(&name) => {
                writeln!(text, "# {kind} {name}_total {rest}")
            }
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn counters_are_named_as_their_samples() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("scrapes", "Scrapes made", counter);
        registry.register("pods", "Pods known", Gauge::<i64>::default());
        assert_eq!(
            text(&registry),
            "# HELP scrapes_total Scrapes made.\n# TYPE scrapes_total counter\nscrapes_total 1\n\
             # HELP pods Pods known.\n# TYPE pods gauge\npods 0\n"
        );
    }
}

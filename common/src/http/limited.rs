//! Counts what the limits of a server took effect on, for the program's own metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

/// Counts since the start. Shared by the server and the program's metrics.
#[derive(Debug, Default)]
pub struct Limited {
    counts: [AtomicU64; KINDS.len()],
}

/// A limit that cut something short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// A connection was closed to make room for another one.
    Connections,
    /// A connection was closed because its client did not read while others had to wait.
    Unread,
    /// A request was answered 429: too many are under way.
    Requests,
    /// An answer was replaced by a 429: too many bytes of answers are unsent.
    UnsentBytes,
    /// A stream was reset, or a connection closed, because its client read nothing for too long.
    Write,
}

/// The label value of each [`Limit`], in its order.
const KINDS: [&str; 5] = ["connections", "unread", "requests", "unsent_bytes", "write_timeout"];

impl Limited {
    /// Each limit's name and how often it took effect.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(&self.counts).map(|(kind, count)| (kind, count.load(Ordering::Relaxed)))
    }

    /// Adds the counts to a registry, as `http_limited_total{limit}`.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Shown(Arc::clone(self))));
    }

    pub(super) fn count(&self, limit: Limit) {
        self.counts[limit as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The counts, as a registry shows them.
#[derive(Debug)]
struct Shown(Arc<Limited>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        const HELP: &str =
            "Connections, requests and streams that were cut short, by the limit that was reached.";
        let mut family = encoder.encode_descriptor("http_limited", HELP, None, MetricType::Counter)?;
        for (limit, count) in self.0.each() {
            ConstCounter::new(count).encode(family.encode_family(&[("limit", limit)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_its_own_count() {
        let limited = Limited::default();
        limited.count(Limit::Connections);
        limited.count(Limit::Write);
        limited.count(Limit::Write);
        let found: Vec<_> = limited.each().filter(|(_, count)| *count > 0).collect();
        assert_eq!(found, [("connections", 1), ("write_timeout", 2)]);
        let (limited, mut registry) = (Arc::new(limited), Registry::default());
        limited.register(&mut registry);
        let text = crate::exposition::registry::text(&registry);
        assert!(text.contains("http_limited_total{limit=\"write_timeout\"} 2\n"), "{text}");
    }
}

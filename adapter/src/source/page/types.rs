//! Reads a page's TYPE lines, and whose page it is.

use std::collections::HashSet;

use crate::metric::{FamilyId, Metrics};

/// The meanings of the names of a page's families.
#[derive(Debug, Default)]
pub(super) struct Types {
    /// The kept families that are counters.
    pub(super) counters: HashSet<FamilyId>,
    /// The page is podgauge's.
    pub(super) native: bool,
}

impl Types {
    /// Reads what follows the `#` of a comment.
    pub(super) fn comment(&mut self, comment: &str, metrics: &Metrics) {
        let Some((name, kind)) = comment.strip_prefix(" TYPE ").and_then(|of| of.split_once(' ')) else {
            return;
        };
        self.name(name);
        if kind.trim() == "counter" {
            self.counters.extend(metrics.family(name).and_then(|family| family.kept));
        }
    }

    /// Only podgauge's exporter has such families. Its metrics about itself prove nothing: they are
    /// on an empty page, too, but any exporter behind a proxy of ours could have them.
    pub(super) fn name(&mut self, name: &str) {
        self.native |= name.starts_with("podgauge_gpu_") || name == "podgauge_attribution_unavailable";
    }
}

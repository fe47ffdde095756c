//! The hash map of what is looked up with every scrape.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A hash map that costs less than std's. Its keys are names that exporters report: one that makes
/// names with equal hashes, which it would have to guess, slows down the reading of its own page alone.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

//! The hash map of what is looked up with every scrape.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A hash map that costs less than std's. It is for names that one exporter reports, or that were there
/// at start: there are few of them, so that names with equal hashes, which somebody would have to guess,
/// slow nobody down.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

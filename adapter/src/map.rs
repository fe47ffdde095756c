//! The hash map of what is looked up with every scrape.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A hash map that costs less than std's. It is for names that one exporter reports, of which there are
/// few, and for those that the program or an administrator gives (families, nodes): names with equal
/// hashes, which somebody would have to guess, slow nobody down.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

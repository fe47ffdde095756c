//! Owns a small cache: answers are kept for a fixed time, the oldest give way.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keeps `capacity` answers for `ttl` each.
#[derive(Debug)]
pub struct TtlCache<K, V> {
    ttl: Duration,
    capacity: usize,
    inner: Mutex<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    values: HashMap<K, (Instant, V)>,
    /// By age. Because all live equally long, the first to expire is in front.
    order: VecDeque<(Instant, K)>,
}

impl<K: Eq + Hash + Clone, V: Clone> TtlCache<K, V> {
    pub fn new(ttl: Duration, capacity: usize) -> Self {
        let inner = Inner { values: HashMap::new(), order: VecDeque::new() };
        Self { ttl, capacity, inner: Mutex::new(inner) }
    }

    pub fn get(&self, key: &K, now: Instant) -> Option<V> {
        let inner = self.inner.lock();
        let (since, value) = inner.values.get(key)?;
        (now.saturating_duration_since(*since) < self.ttl).then(|| value.clone())
    }

    pub fn insert(&self, key: K, value: V, now: Instant) {
        let mut inner = self.inner.lock();
        inner.values.insert(key.clone(), (now, value));
        inner.order.push_back((now, key));
        while let Some((since, key)) = inner.order.front() {
            let (since, expired) = (*since, now.saturating_duration_since(*since) >= self.ttl);
            if !expired && inner.order.len() <= self.capacity {
                break;
            }
            let key = key.clone();
            inner.order.pop_front();
            // A newer answer under the same key has its own place in the order.
            if inner.values.get(&key).is_some_and(|(at, _)| *at == since) {
                inner.values.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_expire_and_the_oldest_give_way() {
        let cache = TtlCache::new(Duration::from_secs(10), 2);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        cache.insert("a", 1, at(0));
        cache.insert("b", 2, at(1));
        assert_eq!(cache.get(&"a", at(9)), Some(1));
        assert_eq!(cache.get(&"a", at(10)), None);
        cache.insert("c", 3, at(5));
        assert_eq!((cache.get(&"a", at(5)), cache.get(&"b", at(5))), (None, Some(2)));
        cache.insert("b", 4, at(6));
        assert_eq!(cache.get(&"b", at(12)), Some(4));
        cache.insert("d", 5, at(100));
        let inner = cache.inner.lock();
        assert_eq!((inner.values.len(), inner.order.len()), (1, 1));
    }
}

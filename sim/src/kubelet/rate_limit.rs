//! Owns the kubelet's rate limit: a bucket of calls that fills steadily.

use parking_lot::Mutex;
use tokio::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: f64,
    burst: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Option<Instant>,
}

impl RateLimit {
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst, bucket: Mutex::new(Bucket { tokens: burst, filled: None }) }
    }

    /// Whether a call at `now` is let through.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock();
        let since = bucket.filled.map_or(0.0, |filled| now.saturating_duration_since(filled).as_secs_f64());
        bucket.tokens = (bucket.tokens + since * self.per_second).min(self.burst);
        bucket.filled = Some(now);
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let limit = RateLimit::new(100.0, 10.0);
        let start = Instant::now();
        assert_eq!((0..20).filter(|_| limit.allows(start)).count(), 10);
        let later = start + Duration::from_millis(50);
        assert_eq!((0..20).filter(|_| limit.allows(later)).count(), 5);
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| limit.allows(much_later)).count(), 10);
    }
}

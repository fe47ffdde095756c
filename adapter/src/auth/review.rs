//! Sends reviews to the API server, within limits of number and time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::cluster::client::one_line;

/// Longest wait for the API server's word. The aggregation layer's own checks wait 5 s.
const CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);
/// How many questions are asked for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    /// Most questions of one kind under way at once.
    parallel: usize,
    /// Most questions a second over time, and at once after a pause; `None`: any number.
    rate: Option<(f64, f64)>,
}

/// For those whom a certificate vouches for.
pub(super) const VERIFIED: Lane = Lane { parallel: 64, rate: None };
/// For everybody else: whoever can reach the port. However many they are, they take nothing of what
/// the HPA needs.
pub(super) const UNVERIFIED: Lane = Lane { parallel: 8, rate: Some((20.0, 100.0)) };

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Too many ask.
    Busy,
    /// In one line.
    Failed(String),
}

/// Tokens that come with time and go with questions.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    most: f64,
    state: Mutex<(f64, Instant)>,
}

/// Sends questions of one kind to the API server, within limits.
#[derive(Debug)]
pub(super) struct Reviews<K> {
    api: Api<K>,
    parallel: Semaphore,
    bucket: Option<Bucket>,
    /// The newest question had no answer.
    failing: AtomicBool,
}

impl<K> Reviews<K>
where
    K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    pub(super) fn new(client: Client, lane: Lane) -> Self
    where
        K: k8s_openapi::Resource,
    {
        Self {
            api: Api::all(client),
            parallel: Semaphore::new(lane.parallel),
            bucket: lane.rate.map(|(per_second, most)| Bucket::new(per_second, most, Instant::now())),
            failing: AtomicBool::new(false),
        }
    }

    /// The answered review, or why there is none.
    pub(super) async fn ask(&self, question: &K) -> Result<K, Unanswered> {
        if self.bucket.as_ref().is_some_and(|bucket| !bucket.take(Instant::now())) {
            return Err(Unanswered::Busy);
        }
        let asked = async {
            let _permit = self.parallel.acquire().await.map_err(|error| error.to_string())?;
            self.api.create(&PostParams::default(), question).await.map_err(|error| one_line(&error))
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Err(format!("no answer of the API server within {CALL_TIMEOUT:?}")));
        let failed_before = self.failing.swap(answer.is_err(), Ordering::Relaxed);
        match &answer {
            Err(reason) if !failed_before => {
                warn!("{} fails, so requests that need one are refused: {reason}", K::kind(&()));
            }
            Ok(_) if failed_before => info!("{} works again", K::kind(&())),
            _ => {}
        }
        answer.map_err(Unanswered::Failed)
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(per_second: f64, most: f64, now: Instant) -> Self {
        Self { per_second, most, state: Mutex::new((most, now)) }
    }

    fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let (left, since) = *state;
        let more = now.saturating_duration_since(since).as_secs_f64() * self.per_second;
        let left = (left + more).min(self.most);
        let taken = left >= 1.0;
        *state = (if taken { left - 1.0 } else { left }, now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_let_through_in_drops() {
        let start = Instant::now();
        let bucket = Bucket::new(2.0, 3.0, start);
        let taken = |at| (0..10).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(start), 3);
        assert_eq!(taken(start + std::time::Duration::from_secs(1)), 2);
        assert_eq!(taken(start + std::time::Duration::from_secs(100)), 3);
    }
}

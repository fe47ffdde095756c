//! Sends reviews to the API server, within limits of number and time.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use podgauge_common::http::bucket::{Buckets, Rate};
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
    rate: Option<Rate>,
}

/// For those whom a certificate vouches for, or a token that was good just now.
pub(super) const VERIFIED: Lane = Lane { parallel: 64, rate: None };
/// For users whom a token vouches for.
pub(super) const BY_TOKEN: Lane =
    Lane { parallel: 16, rate: Some(Rate { all: (40.0, 200.0), each: (20.0, 100.0) }) };
/// For everybody else: whoever can reach the port. However many they are, they take nothing of what
/// the HPA needs.
pub(super) const UNVERIFIED: Lane =
    Lane { parallel: 8, rate: Some(Rate { all: (20.0, 100.0), each: (5.0, 40.0) }) };

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Too many ask.
    Busy,
    /// In one line.
    Failed(String),
}

/// Sends questions of one kind to the API server, within limits.
#[derive(Debug)]
pub(super) struct Reviews<K> {
    api: Api<K>,
    parallel: Semaphore,
    rate: Option<Mutex<Buckets>>,
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
            rate: lane.rate.map(|rate| Mutex::new(Buckets::new(rate, Instant::now()))),
            failing: AtomicBool::new(false),
        }
    }

    /// The answered review, or why there is none. `from` is who caused the question.
    pub(super) async fn ask(&self, question: &K, from: IpAddr) -> Result<K, Unanswered> {
        if let Some(buckets) = &self.rate
            && !buckets.lock().take(from, Instant::now())
        {
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

//! Sends reviews to the API server, within limits of number and time.

use std::sync::atomic::{AtomicBool, Ordering};

use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::cluster::client::one_line;

/// Longest wait for the API server's word. The aggregation layer's own checks wait 5 s.
const CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);
/// Most questions of one kind under way at once.
const PARALLEL_CALLS: usize = 64;

/// Sends questions of one kind to the API server, within limits.
#[derive(Debug)]
pub(super) struct Reviews<K> {
    api: Api<K>,
    parallel: Semaphore,
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
    pub(super) fn new(client: Client) -> Self
    where
        K: k8s_openapi::Resource,
    {
        Self {
            api: Api::all(client),
            parallel: Semaphore::new(PARALLEL_CALLS),
            failing: AtomicBool::new(false),
        }
    }

    /// The answered review, or in one line why there is none.
    pub(super) async fn ask(&self, question: &K) -> Result<K, String> {
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
        answer
    }
}

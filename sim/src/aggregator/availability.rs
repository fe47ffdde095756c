//! Owns the availability checks: five requests at once per APIService, the first 2xx decides.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::header::{ACCEPT_ENCODING, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;

use super::{Aggregator, ApiService, set_user};
use crate::apiserver::User;

/// Requests sent at once.
const PROBES: usize = 5;
/// Time limit of each.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Between checks of an available APIService.
const RESYNC: Duration = Duration::from_secs(30);
/// The first wait after a failed check; it doubles up to [`RESYNC`].
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// Whether an APIService is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AvailabilityStatus {
    /// Not checked yet. Requests are refused as if it were false.
    Unknown,
    True,
    False,
}

/// An APIService's Available condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    pub api_service: ApiService,
    pub status: AvailabilityStatus,
    /// `Passed` or `FailedDiscoveryCheck`.
    pub reason: &'static str,
    pub message: String,
    /// When `status` last changed.
    pub changed: Timestamp,
}

// === impl AvailabilityStatus ===

impl AvailabilityStatus {
    /// As a condition's status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::True => "True",
            Self::False => "False",
        }
    }
}

// === impl Availability ===

impl Availability {
    pub(crate) fn unknown(api_service: ApiService, now: Timestamp) -> Self {
        Self {
            api_service,
            status: AvailabilityStatus::Unknown,
            reason: "NotChecked",
            message: String::new(),
            changed: now,
        }
    }
}

// === impl Aggregator ===

impl Aggregator {
    /// As of the last check.
    pub fn availability(&self) -> Vec<Availability> {
        self.availability.lock().clone()
    }

    /// Whether a group and version was available at the last check.
    pub fn is_available(&self, group: &str, version: &str) -> bool {
        self.availability.lock().iter().any(|a| {
            a.api_service.group == group
                && a.api_service.version == version
                && a.status == AvailabilityStatus::True
        })
    }

    /// Checks every APIService now.
    pub async fn check_availability(&self) -> Vec<Availability> {
        let checks =
            self.settings().api_services.iter().map(|api| async move { (api, self.check(api).await) });
        for (api, result) in futures::future::join_all(checks).await {
            let (status, reason, message) = match result {
                Ok(()) => (AvailabilityStatus::True, "Passed", "all checks passed".to_owned()),
                Err(message) => (AvailabilityStatus::False, "FailedDiscoveryCheck", message),
            };
            let mut all = self.availability.lock();
            let Some(entry) = all.iter_mut().find(|entry| entry.api_service == *api) else { continue };
            if entry.status != status {
                tracing::info!(
                    api_service = api.name(),
                    available = status.as_str(),
                    message,
                    "availability changed"
                );
                entry.changed = Timestamp::now();
            }
            entry.status = status;
            entry.reason = reason;
            entry.message = message;
        }
        self.availability()
    }

    /// Checks for ever: every 30 s, after a failure or a change of the APIServices sooner. `checked` is called after each.
    pub async fn keep_checking(&self, checked: impl Fn()) {
        let mut retry = FIRST_RETRY;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let all = self.check_availability().await;
            checked();
            let wait = if all.iter().all(|a| a.status == AvailabilityStatus::True) {
                retry = FIRST_RETRY;
                RESYNC
            } else {
                let wait = retry;
                retry = (retry * 2).min(RESYNC);
                wait
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// One APIService's check: the losers of a success are cancelled, as kube-apiserver does.
    async fn check(&self, api: &ApiService) -> Result<(), String> {
        let path = api.path();
        let url = format!("https://{}{path}", self.address());
        let mut probes: FuturesUnordered<_> = (0..PROBES).map(|_| self.probe(&path, &url)).collect();
        let mut failure = String::new();
        while let Some(result) = probes.next().await {
            match result {
                Ok(()) => return Ok(()),
                Err(message) => failure = message,
            }
        }
        Err(failure)
    }

    async fn probe(&self, path: &str, url: &str) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static("Go-http-client/1.1"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let aggregator = User { groups: vec!["system:masters".into()], ..User::of("system:kube-aggregator") };
        let missing = |error: super::AdapterError| format!("failing or missing response from {url}: {error}");
        set_user(&mut headers, &aggregator).map_err(missing)?;
        let answer =
            self.client_for(path).send(Method::GET, path, headers, PROBE_LIMIT).await.map_err(missing)?;
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(format!("bad status from {url}: {}", answer.status.as_u16()))
        }
    }
}

//! Who asks, and whether they may: Kubernetes' delegated authentication and authorization.
//!
//! ```text
//! ConfigMap ─► trust ─┐
//! certificate, headers, token ─► User ─► access (SubjectAccessReview) ─► allowed or a Status
//! ```
//! Closed by default: what cannot be verified is nobody, what cannot be authorized is refused.

pub mod access;
pub mod cache;
pub mod certificate;
pub mod request_header;
mod review;
pub mod token;
pub mod trust;

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderMap;
use kube::Client;
use rustls::pki_types::CertificateDer;
use tracing::debug;

use crate::apiserver::Status;
use crate::self_metrics::SelfMetrics;
use access::{Access, Attributes, Decision, Undecided};
use certificate::Certificates;
use token::{TokenError, Tokens};
use trust::Trust;

/// How long the API server's answers are believed.
pub(crate) const CACHE_TTL: Duration = Duration::from_secs(10);
/// Most answers kept.
pub(crate) const CACHE_ENTRIES: usize = 8192;

pub const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";
const MASTERS: &str = "system:masters";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Whether a certificate vouches for who asks. Everybody else may be anybody who reaches the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The front proxy's word, or a certificate of their own.
    Verified,
    /// By token, or nobody.
    Unverified,
}

/// Finds out who asks and whether they may.
#[derive(Debug)]
pub struct Auth {
    trust: Trust,
    certificates: Certificates,
    tokens: Tokens,
    access: Access,
    self_metrics: SelfMetrics,
}

// === impl User ===

impl User {
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// Adds `system:authenticated`, which the aggregation layer leaves out of some requests.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        let has = |group: &str| self.groups.iter().any(|known| known == group);
        if self.name != ANONYMOUS && !has(AUTHENTICATED) && !has(UNAUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

// === impl Auth ===

impl Auth {
    pub fn new(client: Client, trust: Trust, self_metrics: SelfMetrics) -> Self {
        Self {
            trust,
            certificates: Certificates::default(),
            tokens: Tokens::new(client.clone()),
            access: Access::new(client),
            self_metrics,
        }
    }

    /// Who asks: front proxy, client certificate, bearer token, else anonymous. A credential that
    /// is none is 401; it never makes somebody anonymous.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        chain: &[CertificateDer<'static>],
    ) -> Result<(User, Standing), Status> {
        let counted = |method, result| self.self_metrics.authentication(method, result);
        let trust = self.trust.load_full();
        let mut refused = Vec::new();
        if !chain.is_empty() {
            let verdict = self.certificates.verify(chain, &trust);
            match (&verdict.front_proxy, &trust.front_proxy) {
                (Ok(()), Some(front_proxy)) => match request_header::user(headers, &front_proxy.headers) {
                    Err(too_many) => {
                        counted("request_header", "error");
                        return Err(Status::head_too_large(too_many.to_string()));
                    }
                    Ok(Some(user)) => {
                        counted("request_header", "success");
                        return Ok((user.authenticated(), Standing::Verified));
                    }
                    Ok(None) => refused.push("the front proxy names no user".to_owned()),
                },
                (Err(reason), _) => refused.push(format!("as front proxy: {reason}")),
                (Ok(()), None) => {}
            }
            match &verdict.client {
                Ok(user) => {
                    counted("certificate", "success");
                    return Ok((user.clone().authenticated(), Standing::Verified));
                }
                Err(reason) => refused.push(format!("as client: {reason}")),
            }
        }
        if let Some(token) = token::bearer(headers) {
            match self.tokens.review(token).await {
                Ok(user) => {
                    counted("token", "success");
                    return Ok((user.authenticated(), Standing::Unverified));
                }
                Err(TokenError::Busy) => {
                    counted("token", "limited");
                    return Err(Status::too_many_requests("too many bearer tokens that are not known yet"));
                }
                Err(TokenError::Invalid(reason)) => refused.push(format!("as token: {reason}")),
                Err(TokenError::Unavailable(reason)) => {
                    counted("token", "error");
                    debug!("TokenReview failed: {reason}");
                    return Err(Status::internal(
                        "the API server cannot be asked whether the bearer token is valid",
                    ));
                }
            }
        }
        if refused.is_empty() {
            counted("anonymous", "success");
            return Ok((User::anonymous(), Standing::Unverified));
        }
        counted("any", "failure");
        debug!("refused: {}", refused.join("; "));
        Err(Status::unauthorized())
    }

    /// Whether `user` may; an error is the answer to send.
    pub async fn authorize(
        &self,
        user: &User,
        standing: Standing,
        attributes: &Attributes,
    ) -> Result<(), Status> {
        let counted = |method, result| self.self_metrics.authorization(method, result);
        if user.is_master() {
            counted("masters", "allowed");
            return Ok(());
        }
        match self.access.review(user, standing, attributes).await {
            Ok((Decision::Allowed, from)) => {
                counted(from, "allowed");
                Ok(())
            }
            Ok((Decision::Denied(reason), from)) => {
                counted(from, "denied");
                Err(attributes.forbidden(user, &reason))
            }
            Err(Undecided::Busy) => {
                counted("review", "limited");
                Err(Status::too_many_requests("too many questions of users whom no certificate vouches for"))
            }
            Err(Undecided::Failed(reason)) => {
                counted("review", "error");
                debug!("SubjectAccessReview failed: {reason}");
                Err(Status::internal(format!(
                    "the API server cannot be asked whether user {:?} may do this",
                    user.name
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_with_a_name_is_authenticated_once() {
        let user = |name: &str, groups: &[&str]| {
            let groups = groups.iter().map(|&group| group.to_owned()).collect();
            User { name: name.to_owned(), groups, ..User::default() }.authenticated().groups
        };
        assert_eq!(user("system:aggregator", &[]), [AUTHENTICATED]);
        assert_eq!(user("u", &["a", AUTHENTICATED]), ["a", AUTHENTICATED]);
        assert_eq!(user("system:anonymous", &[]), [""; 0]);
        assert_eq!(User::anonymous().authenticated(), User::anonymous());
    }
}

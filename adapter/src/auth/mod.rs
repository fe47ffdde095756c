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
pub mod paths;
pub mod request_header;
mod review;
pub mod token;
pub mod trust;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use kube::Client;
use podgauge_common::http::serve::Peer;
use rustls::pki_types::CertificateDer;
use tracing::debug;

use crate::apiserver::Status;
use crate::self_metrics::SelfMetrics;
use access::{Access, AnswerTtl, Attributes, Decision, Undecided};
use certificate::Certificates;
use paths::OpenPaths;
use token::{TokenError, Tokens};
use trust::Trust;

/// How long a verdict on a certificate stands: as long as the certificate itself may be outdated.
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

/// What vouches for who asks. Nobody may be anybody who reaches the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The front proxy's word, or a certificate of their own.
    Verified,
    /// A bearer token's user.
    ByToken,
    Nobody,
}

/// Finds out who asks and whether they may.
#[derive(Debug)]
pub struct Auth {
    trust: Trust,
    certificates: Certificates,
    tokens: Tokens,
    access: Access,
    open: OpenPaths,
    self_metrics: SelfMetrics,
}

/// How answers of the API server are used, and what needs none.
#[derive(Debug, Clone)]
pub struct Rules {
    pub token_ttl: Duration,
    pub access_ttl: AnswerTtl,
    pub open: OpenPaths,
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
    /// `tokens` and `access` reach the API server for TokenReviews and SubjectAccessReviews.
    pub fn new(
        tokens: &Client,
        access: &Client,
        trust: Trust,
        rules: Rules,
        self_metrics: SelfMetrics,
    ) -> Self {
        Self {
            trust,
            certificates: Certificates::default(),
            tokens: Tokens::new(tokens, rules.token_ttl),
            access: Access::new(access, rules.access_ttl),
            open: rules.open,
            self_metrics,
        }
    }

    /// Whether a path needs no permission.
    pub fn is_open(&self, path: &str) -> bool {
        self.open.contains(path)
    }

    /// Whether a certificate chain is the front proxy's, or a client's own.
    pub fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let verdict = self.certificates.verify(chain, &self.trust.load());
        verdict.front_proxy.is_ok() || verdict.client.is_ok()
    }

    /// Who asks: front proxy, client certificate, bearer token, else anonymous. A credential that
    /// is none is 401; it never makes somebody anonymous.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<(User, Standing), Status> {
        let chain = &peer.certificates;
        let counted = |method, result| self.self_metrics.authentication(method, result);
        let trust = self.trust.load_full();
        let mut refused = Vec::new();
        if !chain.is_empty() {
            let verdict = self.certificates.verify(chain, &trust);
            match (&verdict.front_proxy, &trust.front_proxy) {
                (Ok(()), Some(front_proxy)) => match request_header::user(headers, &front_proxy.headers) {
                    Err(unreadable) => {
                        counted("request_header", "error");
                        return Err(Status::head_too_large(unreadable.to_string()));
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
            let (answer, from) = self.tokens.review(token, peer.address.ip()).await;
            match answer {
                Ok(user) => {
                    counted(from, "success");
                    return Ok((user.authenticated(), Standing::ByToken));
                }
                Err(TokenError::Busy) => {
                    counted(from, "limited");
                    return Err(Status::too_many_requests("too many bearer tokens that are not known yet"));
                }
                Err(TokenError::Invalid(reason)) => {
                    counted(from, "failure");
                    refused.push(format!("as token: {reason}"));
                }
                Err(TokenError::Unavailable(reason)) => {
                    counted(from, "error");
                    debug!("TokenReview failed: {reason}");
                    return Err(Status::internal(
                        "the API server cannot be asked whether the bearer token is valid",
                    ));
                }
            }
        }
        if refused.is_empty() {
            counted("anonymous", "success");
            return Ok((User::anonymous(), Standing::Nobody));
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
        from: IpAddr,
        attributes: &Attributes,
    ) -> Result<(), Status> {
        let counted = |method, result| self.self_metrics.authorization(method, result);
        if user.is_master() {
            counted("masters", "allowed");
            return Ok(());
        }
        if matches!(attributes, Attributes::Path { path, verb: _ } if self.is_open(path)) {
            counted("open_path", "allowed");
            return Ok(());
        }
        match self.access.review(user, standing, from, attributes).await {
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

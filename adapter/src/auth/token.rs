//! Owns bearer tokens: asks the API server whose they are (TokenReview).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Client;
use sha2::{Digest as _, Sha256};

use super::cache::TtlCache;
use super::review::{Reviews, UNVERIFIED, Unanswered, VERIFIED};
use super::{CACHE_ENTRIES, User};

/// Most tokens remembered that are nobody's.
const REFUSED_ENTRIES: usize = 1024;
/// How long a good token is known as one that was good: when its answer has expired it is asked
/// about before those that nobody ever saw.
const KNOWN_TTL: Duration = Duration::from_secs(3600);

/// Asks about tokens, and remembers the answers by the tokens' hashes. A flood of tokens that are
/// nobody's neither pushes a good one's answer out nor delays its next review.
#[derive(Debug)]
pub struct Tokens {
    reviews: Reviews<TokenReview>,
    reviews_of_known: Reviews<TokenReview>,
    users: TtlCache<[u8; 32], User>,
    refused: TtlCache<[u8; 32], String>,
    known: TtlCache<[u8; 32], bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// Nobody's, for the API server's reason.
    Invalid(String),
    /// The API server could not be asked.
    Unavailable(String),
    /// Too many unknown tokens.
    Busy,
}

/// The token of an Authorization header, if it has one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl Tokens {
    /// `ttl`: how long an answer is believed.
    pub fn new(client: &Client, ttl: Duration) -> Self {
        Self {
            reviews: Reviews::new(client.clone(), UNVERIFIED),
            reviews_of_known: Reviews::new(client.clone(), VERIFIED),
            users: TtlCache::new(ttl, CACHE_ENTRIES),
            refused: TtlCache::new(ttl, REFUSED_ENTRIES),
            known: TtlCache::new(KNOWN_TTL, CACHE_ENTRIES),
        }
    }

    /// Whose token it is, or why nobody's, and where that is from (`token_cache` or `token`).
    pub async fn review(&self, token: &str, from: IpAddr) -> (Result<User, TokenError>, &'static str) {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = Instant::now();
        if let Some(user) = self.users.get(&key, now) {
            return (Ok(user), "token_cache");
        }
        if let Some(reason) = self.refused.get(&key, now) {
            return (Err(TokenError::Invalid(reason)), "token_cache");
        }
        (self.ask(token, key, from).await, "token")
    }

    async fn ask(&self, token: &str, key: [u8; 32], from: IpAddr) -> Result<User, TokenError> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
        let question = TokenReview { spec, ..TokenReview::default() };
        let was_good = self.known.get(&key, Instant::now()) == Some(true);
        let reviews = if was_good { &self.reviews_of_known } else { &self.reviews };
        let review = reviews.ask(&question, from).await.map_err(|unanswered| match unanswered {
            Unanswered::Busy => TokenError::Busy,
            Unanswered::Failed(reason) => TokenError::Unavailable(reason),
        })?;
        let status = review.status.unwrap_or_default();
        let now = Instant::now();
        match (status.authenticated, status.user.map(User::from)) {
            (Some(true), Some(user)) if !user.name.is_empty() => {
                self.users.insert(key, user.clone(), now);
                self.known.insert(key, true, now);
                Ok(user)
            }
            _ => {
                let reason = status.error.unwrap_or_else(|| "the API server does not know it".to_owned());
                self.refused.insert(key, reason.clone(), now);
                if was_good {
                    self.known.insert(key, false, now);
                }
                Err(TokenError::Invalid(reason))
            }
        }
    }
}

impl From<UserInfo> for User {
    fn from(user: UserInfo) -> Self {
        Self {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_bearer_tokens_only() {
        let with = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(with("bearer  abc "), Some("abc".to_owned()));
        assert_eq!(with("Basic abc"), None);
        assert_eq!(with("Bearer "), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}

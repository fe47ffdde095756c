//! Owns bearer tokens: asks the API server whose they are (TokenReview).

use std::collections::BTreeMap;
use std::time::Instant;

use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Client;
use sha2::{Digest as _, Sha256};

use super::cache::TtlCache;
use super::review::{Reviews, UNVERIFIED, Unanswered};
use super::{CACHE_ENTRIES, CACHE_TTL, User};

/// Asks about tokens, and remembers the answers by the tokens' hashes.
#[derive(Debug)]
pub struct Tokens {
    reviews: Reviews<TokenReview>,
    answers: TtlCache<[u8; 32], Result<User, String>>,
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
    pub fn new(client: Client) -> Self {
        Self { reviews: Reviews::new(client, UNVERIFIED), answers: TtlCache::new(CACHE_TTL, CACHE_ENTRIES) }
    }

    /// Whose token it is.
    pub async fn review(&self, token: &str) -> Result<User, TokenError> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(answer) = self.answers.get(&key, Instant::now()) {
            return answer.map_err(TokenError::Invalid);
        }
        let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
        let question = TokenReview { spec, ..TokenReview::default() };
        let review = self.reviews.ask(&question).await.map_err(|unanswered| match unanswered {
            Unanswered::Busy => TokenError::Busy,
            Unanswered::Failed(reason) => TokenError::Unavailable(reason),
        })?;
        let status = review.status.unwrap_or_default();
        let answer = match (status.authenticated, status.user) {
            (Some(true), Some(user)) => Ok(user.into()),
            _ => Err(status.error.unwrap_or_else(|| "the API server does not know it".to_owned())),
        };
        self.answers.insert(key, answer.clone(), Instant::now());
        answer.map_err(TokenError::Invalid)
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

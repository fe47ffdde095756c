//! Owns TokenReview and SubjectAccessReview: the answers, and the record of what was asked.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Response, StatusCode};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::{Access, ResourceAttributes, User, Wanted};
use super::status::{self, Body};

/// Reviews kept for tests to look at; older ones are dropped, the counts go on.
const RECORDED: usize = 10_000;

/// A review that was asked for, with its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Review {
    Token {
        token: String,
        /// The user it was answered with.
        user: Option<User>,
    },
    Access {
        user: User,
        wanted: Wanted,
        allowed: bool,
    },
}

/// Which reviews fail with 500, and what was asked so far.
#[derive(Debug, Default)]
pub(crate) struct Reviews {
    recorded: Mutex<VecDeque<Review>>,
    pub(crate) token_reviews: AtomicU64,
    pub(crate) access_reviews: AtomicU64,
    pub(crate) failing: Mutex<Failing>,
}

/// Which reviews are answered with a failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failing {
    /// TokenReviews are answered 500.
    pub token_reviews: bool,
    /// SubjectAccessReviews are answered 500.
    pub access_reviews: bool,
}

#[derive(Deserialize)]
struct TokenReview {
    spec: TokenReviewSpec,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct TokenReviewSpec {
    token: String,
    audiences: Vec<String>,
}

#[derive(Deserialize)]
struct SubjectAccessReview {
    spec: SubjectAccessReviewSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SubjectAccessReviewSpec {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: std::collections::BTreeMap<String, Vec<String>>,
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<PathAttributes>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PathAttributes {
    path: String,
    verb: String,
}

// === impl Reviews ===

impl Reviews {
    /// What was asked, oldest first.
    pub(crate) fn recorded(&self) -> Vec<Review> {
        self.recorded.lock().iter().cloned().collect()
    }

    fn record(&self, review: Review) {
        let mut recorded = self.recorded.lock();
        if recorded.len() == RECORDED {
            recorded.pop_front();
        }
        recorded.push_back(review);
    }

    /// Answers a TokenReview.
    pub(crate) fn token(&self, access: &Access, body: &Value) -> Response<Body> {
        self.token_reviews.fetch_add(1, Ordering::Relaxed);
        if self.failing.lock().token_reviews {
            return status::failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal error occurred: told to fail by the simulation",
            );
        }
        let review: TokenReview = match serde_json::from_value(body.clone()) {
            Ok(review) => review,
            Err(error) => return status::failure(StatusCode::BAD_REQUEST, &format!("TokenReview: {error}")),
        };
        let user = access.user(&review.spec.token).cloned();
        let answer = match &user {
            Some(user) => {
                let mut answer = json!({"authenticated": true, "user": user});
                if !review.spec.audiences.is_empty() {
                    answer["audiences"] = json!(review.spec.audiences);
                }
                answer
            }
            None => json!({"user": {}, "error": "[invalid bearer token, unknown to the simulation]"}),
        };
        self.record(Review::Token { token: review.spec.token, user });
        created(body, &answer)
    }

    /// Answers a SubjectAccessReview, or with `of` a SelfSubjectAccessReview of that user.
    pub(crate) fn access(&self, access: &Access, body: &Value, of: Option<&User>) -> Response<Body> {
        self.access_reviews.fetch_add(1, Ordering::Relaxed);
        if self.failing.lock().access_reviews {
            return status::failure(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal error occurred: told to fail by the simulation",
            );
        }
        let review: SubjectAccessReview = match serde_json::from_value(body.clone()) {
            Ok(review) => review,
            Err(error) => {
                return status::failure(StatusCode::BAD_REQUEST, &format!("SubjectAccessReview: {error}"));
            }
        };
        let spec = review.spec;
        let wanted = match (spec.resource_attributes, spec.non_resource_attributes) {
            (Some(resource), None) => Wanted::Resource(resource),
            (None, Some(path)) => Wanted::Path { path: path.path, verb: path.verb },
            _ => {
                return status::failure(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                );
            }
        };
        let user = match of {
            Some(user) => user.clone(),
            None if spec.user.is_empty() && spec.groups.is_empty() => {
                return status::failure(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "spec: at least one of user or group must be specified",
                );
            }
            None => User { username: spec.user, uid: spec.uid, groups: spec.groups, extra: spec.extra },
        };
        let reason = access.allows(&user, &wanted);
        let mut answer = json!({"allowed": reason.is_some()});
        if let Some(reason) = reason.as_ref().filter(|reason| !reason.is_empty()) {
            answer["reason"] = reason.as_str().into();
        }
        self.record(Review::Access { user, wanted, allowed: reason.is_some() });
        created(body, &answer)
    }
}

/// The review itself with its status, as a creation answers.
fn created(body: &Value, answer: &Value) -> Response<Body> {
    let mut review = body.clone();
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    review["metadata"]["creationTimestamp"] = Value::Null;
    review["status"] = answer.clone();
    status::json(StatusCode::CREATED, &review)
}

//! Owns the stand-in API server's requests: authentication, authorization, and which answer.

use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::Instant;

use super::access::{ResourceAttributes, User, Wanted};
use super::record::Asked;
use super::request_info::RequestInfo;
use super::selector::Selector;
use super::server::Peer;
use super::status::{self, Body};
use super::{State, discovery, kinds, watches, writes};
use crate::aggregator::{Aggregator, Answer, ProxiedRequest};

/// The largest request body read.
const BODY_LIMIT: usize = 1 << 20;

/// Answers a request, whatever it is.
pub(crate) async fn handle(state: &Arc<State>, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
    wait(state).await;
    let info = match RequestInfo::read(request.method(), request.uri()) {
        Ok(info) => info,
        Err(error) => return status::failure(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let Some(user) = authenticate(state, peer, request.headers()) else {
        return status::failure(StatusCode::UNAUTHORIZED, "Unauthorized");
    };
    let allowed = state.access.read().allows(&user, &info.wanted).is_some();
    if let Wanted::Resource(wanted) = &info.wanted {
        let fields = info.parameter("fieldSelector").unwrap_or_default().to_owned();
        state.record.add(Asked { user: user.username.clone(), wanted: wanted.clone(), fields, allowed });
    }
    if !allowed {
        return status::failure(StatusCode::FORBIDDEN, &forbidden(&user, &info.wanted));
    }
    if let Some(aggregator) = aggregated(state, &info) {
        return proxied(&aggregator, peer, request, info, user).await;
    }
    match &info.wanted {
        Wanted::Path { .. } => path(state, request.method(), &info),
        Wanted::Resource(wanted) if wanted.verb == "create" => {
            create(state, &user, wanted, &info, request).await
        }
        Wanted::Resource(wanted) if ["update", "patch", "delete"].contains(&wanted.verb.as_str()) => {
            writes::write(state, wanted, &info, request).await
        }
        Wanted::Resource(wanted) => read(state, wanted, &info),
    }
}

async fn wait(state: &State) {
    let asked = Instant::now();
    let mut delay = state.delay.subscribe();
    loop {
        let until = asked + *delay.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            changed = delay.changed() => if changed.is_err() { return },
        }
    }
}

/// The user, or `None` for credentials that are wrong; none at all is the anonymous user.
fn authenticate(state: &State, peer: &Peer, headers: &HeaderMap) -> Option<User> {
    if let Some(user) = &peer.certificate {
        return Some(user.clone());
    }
    let Some(authorization) = headers.get(AUTHORIZATION) else {
        return Some(User::anonymous());
    };
    let token = authorization.to_str().ok()?.strip_prefix("Bearer ")?;
    state.access.read().user(token).cloned()
}

/// The refusal, in the API machinery's words.
fn forbidden(user: &User, wanted: &Wanted) -> String {
    let user = &user.username;
    match wanted {
        Wanted::Path { path, verb } => format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""),
        Wanted::Resource(wanted) => {
            let ResourceAttributes { namespace, verb, group, resource, subresource, name, .. } = wanted;
            let dot = if group.is_empty() { "" } else { "." };
            let object = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
            let below = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
            let place = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{namespace}\"")
            };
            format!(
                "{resource}{dot}{group}{object} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}{below}\" in API group \"{group}\" {place}"
            )
        }
    }
}

pub(super) fn not_found(path: &str) -> Response<Body> {
    status::failure(
        StatusCode::NOT_FOUND,
        &format!("the server could not find the requested resource: {path}"),
    )
}

fn path(state: &State, method: &Method, info: &RequestInfo) -> Response<Body> {
    if method != Method::GET && method != Method::HEAD {
        return status::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "the server does not allow this method on the requested resource",
        );
    }
    let aggregator = state.aggregator.read().clone();
    let aggregated = aggregator.as_ref().map(|a| a.settings().api_services.as_slice()).unwrap_or_default();
    let segments: Vec<&str> = info.path.split('/').filter(|segment| !segment.is_empty()).collect();
    let found = match segments.as_slice() {
        ["healthz" | "livez" | "readyz"] => return status::text(StatusCode::OK, "ok"),
        ["version"] => Some(discovery::version()),
        ["api"] => Some(discovery::core_versions(state.address)),
        ["api", version] => discovery::resources("", version),
        ["apis"] => Some(discovery::groups(aggregated, &state.unserved.read())),
        ["apis", group, ..] if state.unserved.read().contains(*group) => None,
        ["apis", group] => discovery::group(group, aggregated),
        ["apis", group, version] => discovery::resources(group, version),
        _ => None,
    };
    found.map_or_else(|| not_found(&info.path), |document| status::json(StatusCode::OK, &document))
}

fn read(state: &State, wanted: &ResourceAttributes, info: &RequestInfo) -> Response<Body> {
    let resource = kinds::find(&wanted.group, &wanted.version, &wanted.resource)
        .filter(|resource| !state.unserved.read().contains(resource.group));
    let Some((resource, kind)) = resource.and_then(|resource| Some((resource, resource.stored?))) else {
        return not_found(&info.path);
    };
    if !wanted.subresource.is_empty() {
        return not_found(&info.path);
    }
    let listed_by_name = wanted.verb != "get";
    match wanted.verb.as_str() {
        "get" => {
            let namespace = if resource.name == "namespaces" { "" } else { &wanted.namespace };
            state.store.get(kind, namespace, &wanted.name).map_or_else(
                || {
                    let dot = if wanted.group.is_empty() { "" } else { "." };
                    let message =
                        format!("{}{dot}{} \"{}\" not found", wanted.resource, wanted.group, wanted.name);
                    status::failure(StatusCode::NOT_FOUND, &message)
                },
                |object| status::json(StatusCode::OK, &object),
            )
        }
        "list" | "watch" if listed_by_name => {
            let selector =
                match Selector::parse(info.parameter("labelSelector"), info.parameter("fieldSelector")) {
                    Ok(selector) => selector,
                    Err(message) => return status::failure(StatusCode::BAD_REQUEST, &message),
                };
            if wanted.verb == "list" {
                return watches::list(&state.store, resource, kind, &wanted.namespace, &selector, info);
            }
            let generation = state.generation.subscribe();
            let store = Arc::clone(&state.store);
            watches::watch(store, resource, kind, &wanted.namespace, selector, info, generation)
                .unwrap_or_else(|message| status::failure(StatusCode::BAD_REQUEST, &message))
        }
        _ => status::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "the server does not allow this method on the requested resource",
        ),
    }
}

async fn create(
    state: &State,
    user: &User,
    wanted: &ResourceAttributes,
    info: &RequestInfo,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(resource) = kinds::find(&wanted.group, &wanted.version, &wanted.resource) else {
        return not_found(request.uri().path());
    };
    if resource.is_written() {
        return writes::write(state, wanted, info, request).await;
    }
    let body = match json_body(request, &["application/json"]).await {
        Ok((body, _)) => body,
        Err(refused) => return *refused,
    };
    let access = state.access.read();
    match resource.kind {
        "TokenReview" => state.reviews.token(&access, &body),
        "SubjectAccessReview" => state.reviews.access(&access, &body, None),
        "SelfSubjectAccessReview" => state.reviews.access(&access, &body, Some(user)),
        _ => status::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "the server does not allow this method on the requested resource",
        ),
    }
}

/// The body of a request in one of these formats, and which it is. YAML is taken for JSON's sake:
/// an apply patch is called YAML whatever it is.
pub(super) async fn json_body(
    request: Request<Incoming>,
    accepted: &[&'static str],
) -> Result<(Value, &'static str), Box<Response<Body>>> {
    let refused = |status, message: &str| Box::new(status::failure(status, message));
    let content_type =
        request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let Some(format) = accepted.iter().find(|format| content_type.starts_with(**format)) else {
        let message = format!(
            "the body of the request was in an unknown format: {content_type:?}, want {}",
            accepted.join(", ")
        );
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, &message));
    };
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|error| refused(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()))?.to_bytes();
    let read = match serde_json::from_slice(&body) {
        Err(_) if format.ends_with("yaml") => {
            serde_saphyr::from_slice(&body).map_err(|error| error.to_string())
        }
        read => read.map_err(|error| error.to_string()),
    };
    match read {
        Ok(body) => Ok((body, format)),
        Err(error) => {
            Err(refused(StatusCode::BAD_REQUEST, &format!("the body cannot be understood: {error}")))
        }
    }
}

/// The aggregated server that a request is for, if it is for one.
fn aggregated(state: &State, info: &RequestInfo) -> Option<Arc<Aggregator>> {
    let aggregator = state.aggregator.read().clone()?;
    let serves = match &info.wanted {
        Wanted::Resource(wanted) => aggregator.serves(&wanted.group, &wanted.version),
        Wanted::Path { path, .. } => {
            aggregator.settings().api_services.iter().any(|api| path.trim_end_matches('/') == api.path())
        }
    };
    serves.then_some(aggregator)
}

async fn proxied(
    aggregator: &Aggregator,
    peer: &Peer,
    request: Request<Incoming>,
    info: RequestInfo,
    user: User,
) -> Response<Body> {
    let mut segments = info.path.split('/').filter(|segment| !segment.is_empty()).skip(1);
    let (group, version) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    if !aggregator.is_available(group, version) {
        return status::text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n");
    }
    let (parts, _) = request.into_parts();
    let proxied = ProxiedRequest {
        method: parts.method,
        path: info.path,
        query: info.query,
        headers: parts.headers,
        user,
        from: peer.address.ip(),
    };
    match aggregator.proxy(proxied).await {
        Ok(answer) => passed_on(answer),
        Err(error) => status::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("error trying to reach service: {error}"),
        ),
    }
}

fn passed_on(answer: Answer) -> Response<Body> {
    let mut response = Response::new(status::full(answer.body));
    *response.status_mut() = answer.status;
    for name in [CONTENT_TYPE, http::header::ETAG, http::header::CACHE_CONTROL, http::header::RETRY_AFTER] {
        if let Some(value) = answer.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

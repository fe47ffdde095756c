//! Owns clients' writes of objects: create, update, patch, delete, with the conflicts they meet.

use std::sync::Arc;

use http::header::USER_AGENT;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::access::ResourceAttributes;
use super::kinds::{self, Kind, Resource};
use super::pods::rfc3339;
use super::request_info::RequestInfo;
use super::routes::{json_body, not_found};
use super::status::{self, Body};
use super::store::Refused;
use super::{State, fields};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// Of JSON patches, those that remove fields.
const JSON_PATCH: &str = "application/json-patch+json";

/// Answers a create, update, patch or delete of an object.
pub(super) async fn write(
    state: &State,
    wanted: &ResourceAttributes,
    info: &RequestInfo,
    request: Request<Incoming>,
) -> Response<Body> {
    let resource = kinds::find(&wanted.group, &wanted.version, &wanted.resource);
    let Some((resource, kind)) = resource.and_then(|found| Some((found, found.stored?))) else {
        return not_found(&info.path);
    };
    if !resource.is_written() || !wanted.subresource.is_empty() {
        return status::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "the server does not allow this method on the requested resource",
        );
    }
    let agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("unknown");
    let agent = agent.split('/').next().unwrap_or_default().to_owned();
    let write = Write {
        state,
        resource,
        kind,
        namespace: &wanted.namespace,
        manager: info.parameter("fieldManager").map_or(agent, str::to_owned),
    };
    if wanted.verb == "delete" {
        return write.delete(&wanted.name);
    }
    let accepted: &[&str] = if wanted.verb == "patch" { &[MERGE, APPLY, JSON_PATCH] } else { &[JSON] };
    let (body, format) = match json_body(request, accepted).await {
        Ok(read) => read,
        Err(refused) => return *refused,
    };
    match (wanted.verb.as_str(), format) {
        ("create", _) => write.create(body),
        ("update", _) => write.update(&wanted.name, body),
        (_, MERGE) => write.merge(&wanted.name, &body),
        (_, JSON_PATCH) => write.remove_fields(&wanted.name, &body),
        _ if info.parameter("fieldManager").is_none() => {
            status::failure(StatusCode::BAD_REQUEST, "PatchOptions.fieldManager: Required value")
        }
        _ => write.apply(&wanted.name, &body, info.is_set("force")),
    }
}

/// One write: of what, and in whose name.
struct Write<'a> {
    state: &'a State,
    resource: &'static Resource,
    kind: Kind,
    namespace: &'a str,
    manager: String,
}

impl Write<'_> {
    fn create(&self, mut object: Value) -> Response<Body> {
        let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
            return status::failure(
                StatusCode::UNPROCESSABLE_ENTITY,
                "metadata.name: Required value: name or generateName is required",
            );
        };
        self.identify(&mut object, &name);
        let outcome = self.state.store.change(self.kind, self.namespace, &name, |before| match before {
            Some(_) => Err(Refused::AlreadyExists),
            None => {
                fields::update(None, &mut object, &self.manager);
                valid(object)
            }
        });
        self.answer(&name, StatusCode::CREATED, outcome)
    }

    fn update(&self, name: &str, mut object: Value) -> Response<Body> {
        let outcome = self.state.store.change(self.kind, self.namespace, name, |before| {
            let before = before.ok_or(Refused::NotFound)?;
            same(before, &object, "resourceVersion")?;
            same(before, &object, "uid")?;
            for field in ["uid", "creationTimestamp", "name", "namespace", "managedFields"] {
                object["metadata"][field] = before["metadata"][field].clone();
            }
            object["apiVersion"] = self.resource.api_version().into();
            object["kind"] = self.resource.kind.into();
            fields::update(Some(before), &mut object, &self.manager);
            valid(without_nulls(object))
        });
        self.answer(name, StatusCode::OK, outcome)
    }

    fn merge(&self, name: &str, patch: &Value) -> Response<Body> {
        let outcome = self.state.store.change(self.kind, self.namespace, name, |before| {
            let before = before.ok_or(Refused::NotFound)?;
            same(before, patch, "resourceVersion")?;
            let mut object = before.clone();
            merged(&mut object, patch);
            fields::update(Some(before), &mut object, &self.manager);
            valid(object)
        });
        self.answer(name, StatusCode::OK, outcome)
    }

    fn remove_fields(&self, name: &str, patch: &Value) -> Response<Body> {
        let outcome = self.state.store.change(self.kind, self.namespace, name, |before| {
            let before = before.ok_or(Refused::NotFound)?;
            let mut object = before.clone();
            for operation in patch.as_array().into_iter().flatten() {
                removed(&mut object, operation)?;
            }
            fields::update(Some(before), &mut object, &self.manager);
            valid(object)
        });
        self.answer(name, StatusCode::OK, outcome)
    }

    fn apply(&self, name: &str, configuration: &Value, force: bool) -> Response<Body> {
        let outcome = self.state.store.change(self.kind, self.namespace, name, |before| {
            let mut object = match before {
                Some(before) => {
                    same(before, configuration, "uid")?;
                    before.clone()
                }
                // Whoever names a UID means an object that was there.
                None if configuration["metadata"]["uid"].is_string() => {
                    return Err(Refused::Conflict("uid mismatch: the object is not there".to_owned()));
                }
                None => {
                    let mut object = json!({"metadata": {}});
                    self.identify(&mut object, name);
                    object
                }
            };
            fields::apply(&mut object, configuration, &self.manager, force).map_err(Refused::Conflict)?;
            valid(object)
        });
        self.answer(name, StatusCode::OK, outcome)
    }

    fn delete(&self, name: &str) -> Response<Body> {
        let outcome = self
            .state
            .store
            .change(self.kind, self.namespace, name, |before| before.ok_or(Refused::NotFound).map(|_| None));
        match outcome {
            Ok(_) => status::json(
                StatusCode::OK,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
            ),
            Err(refused) => self.answer(name, StatusCode::OK, Err(refused)),
        }
    }

    /// Fills in what the server says of a new object.
    fn identify(&self, object: &mut Value, name: &str) {
        object["apiVersion"] = self.resource.api_version().into();
        object["kind"] = self.resource.kind.into();
        let metadata = &mut object["metadata"];
        let now = jiff::Timestamp::now();
        metadata["name"] = name.into();
        if !self.namespace.is_empty() {
            metadata["namespace"] = self.namespace.into();
        }
        // Another object of this name is another object.
        metadata["uid"] = format!("{}-{name}-{}", self.resource.name, now.as_nanosecond()).into();
        metadata["creationTimestamp"] = rfc3339(now).into();
    }

    fn answer(
        &self,
        name: &str,
        success: StatusCode,
        outcome: Result<Option<Arc<Value>>, Refused>,
    ) -> Response<Body> {
        let dot = if self.resource.group.is_empty() { "" } else { "." };
        let of = format!("{}{dot}{} \"{name}\"", self.resource.name, self.resource.group);
        let (code, message) = match outcome {
            Ok(object) => return status::json(success, object.as_deref().unwrap_or(&Value::Null)),
            Err(Refused::NotFound) => (StatusCode::NOT_FOUND, format!("{of} not found")),
            Err(Refused::AlreadyExists) => {
                let mut failure =
                    status::failure_object(StatusCode::CONFLICT, &format!("{of} already exists"));
                failure["reason"] = "AlreadyExists".into();
                return status::json(StatusCode::CONFLICT, &failure);
            }
            Err(Refused::Conflict(why)) => {
                (StatusCode::CONFLICT, format!("Operation cannot be fulfilled on {of}: {why}"))
            }
            Err(Refused::Invalid(why)) => {
                let of = format!("{}{dot}{} \"{name}\"", self.resource.kind, self.resource.group);
                (StatusCode::UNPROCESSABLE_ENTITY, format!("{of} is invalid: {why}"))
            }
        };
        status::failure(code, &message)
    }
}

/// A field of the metadata that a client names must be the object's.
fn same(before: &Value, named: &Value, field: &str) -> Result<(), Refused> {
    match named["metadata"][field].as_str() {
        None | Some("") => Ok(()),
        Some(text) if before["metadata"][field] == text => Ok(()),
        Some(_) => Err(Refused::Conflict(
            "the object has been modified; please apply your changes to the latest version and try again"
                .to_owned(),
        )),
    }
}

/// The one rule about objects that podgauge can break.
fn valid(object: Value) -> Result<Option<Value>, Refused> {
    let spec = &object["spec"];
    let bundle = spec["caBundle"].as_str().is_some_and(|bundle| !bundle.is_empty());
    if object["kind"] == "APIService" && spec["insecureSkipTLSVerify"] == true && bundle {
        return Err(Refused::Invalid(
            "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"
                .to_owned(),
        ));
    }
    Ok(Some(object))
}

/// A JSON merge patch: null removes.
fn merged(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    object.remove(key);
                } else {
                    merged(object.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}

/// One operation of a JSON patch: `remove` of a field that is there.
fn removed(object: &mut Value, operation: &Value) -> Result<(), Refused> {
    let path = operation["path"].as_str().filter(|_| operation["op"] == "remove");
    let (above, field) =
        path.and_then(|path| path.rsplit_once('/')).ok_or_else(|| Refused::Invalid(operation.to_string()))?;
    let fields = object.pointer_mut(above).and_then(Value::as_object_mut);
    match fields.and_then(|fields| fields.remove(field)) {
        Some(_) => Ok(()),
        None => Err(Refused::Invalid(format!("{above}/{field} is not there"))),
    }
}

fn without_nulls(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    object
}

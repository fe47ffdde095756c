//! Every object of the manifests is one that Kubernetes knows, with no field that it would drop.

use std::path::PathBuf;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use podgauge_tests::checkout;
use serde_json::Value;

/// Every object of every file, with the file's name.
fn objects() -> Vec<(String, Value)> {
    let mut files: Vec<PathBuf> = ["deploy/manifests", "deploy/examples"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(checkout(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("kustomization.yaml"))
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{file:?}: {e}"));
            documents.into_iter().map(|document| (file.display().to_string(), document))
        })
        .collect()
}

/// The object as its type understands it. What the type does not know is gone from it.
fn understood(object: &Value) -> Value {
    fn through<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(object.clone()).unwrap()).unwrap()
    }
    match (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap()) {
        ("v1", "Namespace") => through::<Namespace>(object),
        ("v1", "ServiceAccount") => through::<ServiceAccount>(object),
        ("v1", "Service") => through::<Service>(object),
        ("apps/v1", "DaemonSet") => through::<DaemonSet>(object),
        ("apps/v1", "Deployment") => through::<Deployment>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => through::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<RoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => through::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => through::<ClusterRoleBinding>(object),
        ("apiregistration.k8s.io/v1", "APIService") => through::<APIService>(object),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => through::<HorizontalPodAutoscaler>(object),
        other => panic!("{other:?} is a kind that this test does not know"),
    }
}

/// Where `written` says something that `understood` does not.
fn lost(written: &Value, understood: &Value, path: &str, found: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                lost(value, b.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                lost(a, b, &format!("{path}[{index}]"), found);
            }
        }
        (a, b) if a == b => {}
        // An empty list is the same as none.
        (Value::Array(a), Value::Null) if a.is_empty() => {}
        (a, b) => found.push(format!("{path}: {a} is read as {b}")),
    }
}

#[test]
fn every_object_decodes_without_a_lost_field() {
    let objects = objects();
    assert!(objects.len() >= 15, "{} objects", objects.len());
    for (file, object) in &objects {
        let mut found = Vec::new();
        lost(object, &understood(object), &format!("{file}: {}", object["kind"]), &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }
    // The check itself works: a field that Kubernetes does not know is found.
    let mut broken = objects.iter().find(|(_, object)| object["kind"] == "DaemonSet").unwrap().1.clone();
    broken["spec"]["template"]["spec"]["hostPidd"] = true.into();
    let mut found = Vec::new();
    lost(&broken, &understood(&broken), "", &mut found);
    assert_eq!(found, [".spec.template.spec.hostPidd: true is read as null"]);
}

#[test]
fn nothing_skips_verification_and_the_exporter_has_no_rights() {
    for (file, object) in objects() {
        let text = object.to_string();
        assert!(!text.contains("insecureSkipTLSVerify") && !text.contains("caBundle"), "{file}");
        assert!(!text.contains("\"privileged\":true"), "{file}");
    }
    let daemon_set = objects().into_iter().find(|(_, object)| object["kind"] == "DaemonSet").unwrap().1;
    let pod = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"], true);
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(security["runAsUser"], 0);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        assert_eq!(mount["readOnly"], true, "{mount}");
    }
}

/// The stand-in API server gives the adapter what the manifests give it: what works there works here.
#[test]
fn the_adapter_has_the_rights_that_the_tests_give_it() {
    use podgauge_sim::apiserver::{ADAPTER, Access};
    use std::collections::BTreeSet;

    let mut written = BTreeSet::new();
    for (_, role) in objects() {
        if !matches!(role["kind"].as_str(), Some("Role" | "ClusterRole"))
            || role["metadata"]["name"] != "podgauge-adapter"
        {
            continue;
        }
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        for rule in role["rules"].as_array().unwrap() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        written.insert([namespace.to_owned(), group.clone(), resource.clone(), verb]);
                    }
                }
            }
        }
    }
    let mut given = BTreeSet::new();
    for rule in Access::built_in().rules {
        if rule.role != "podgauge-adapter" || !rule.users.iter().any(|user| user == ADAPTER) {
            continue;
        }
        let namespace = rule.namespaces.first().cloned().unwrap_or_default();
        for group in &rule.groups {
            for resource in &rule.resources {
                for verb in &rule.verbs {
                    given.insert([namespace.clone(), group.clone(), resource.clone(), verb.clone()]);
                }
            }
        }
    }
    assert_eq!(written, given);
    assert!(written.len() >= 13, "{written:?}");
}

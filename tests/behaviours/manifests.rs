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

/// What a rule grants: namespace, groups, resources, names, verbs, each sorted.
type Grant = (String, [Vec<String>; 4]);

#[test]
fn the_adapter_has_the_rights_that_the_simulation_gives_it_and_no_more() {
    let sorted = |list: &[String]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    let mut shipped: Vec<Grant> = Vec::new();
    for (_, object) in objects() {
        let role = ["Role", "ClusterRole"].iter().any(|kind| object["kind"] == *kind);
        if !role || object["metadata"]["name"] != "podgauge-adapter" {
            continue;
        }
        for rule in object["rules"].as_array().unwrap() {
            let list = |name: &str| -> Vec<String> {
                let texts = rule[name].as_array().into_iter().flatten();
                sorted(&texts.map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>())
            };
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
            shipped.push((
                namespace,
                [list("apiGroups"), list("resources"), list("resourceNames"), list("verbs")],
            ));
        }
    }
    let mut simulated: Vec<Grant> = podgauge_sim::apiserver::Access::built_in()
        .rules
        .into_iter()
        .filter(|rule| rule.role == "podgauge-adapter")
        .map(|rule| {
            let lists = [&rule.groups, &rule.resources, &rule.names, &rule.verbs];
            (rule.namespaces.first().cloned().unwrap_or_default(), lists.map(|list| sorted(list)))
        })
        .collect();
    shipped.sort();
    simulated.sort();
    assert_eq!(shipped, simulated);
    // Secrets: one by name; of others only their making.
    for (namespace, [groups, resources, names, verbs]) in &shipped {
        if resources.iter().any(|resource| resource == "secrets") {
            assert_eq!(namespace, "podgauge");
            assert!(!names.is_empty() || verbs == &["create"], "{verbs:?}");
        }
        // What it serves itself it may read whole, for `explain`; of the rest nothing unnamed.
        let own = groups == &["custom.metrics.k8s.io"];
        assert!(!verbs.iter().any(|text| text == "*") && (own || !resources.iter().any(|text| text == "*")));
    }
}

#[test]
fn the_adapter_is_started_without_certificate_files_for_the_service_of_the_api_services() {
    let objects = objects();
    let find = |kind: &str, name: &str| {
        let found = objects.iter().find(|(_, o)| o["kind"] == kind && o["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}")).1.clone()
    };
    let container = &find("Deployment", "podgauge-adapter")["spec"]["template"]["spec"]["containers"][0];
    assert!(!container["args"].to_string().contains("tls-"), "{}", container["args"]);
    assert_eq!(container["env"][0]["name"], "POD_NAMESPACE");
    for version in ["v1beta1", "v1beta2"] {
        let service = &find("APIService", &format!("{version}.custom.metrics.k8s.io"))["spec"]["service"];
        let service = (service["namespace"].as_str().unwrap(), service["name"].as_str().unwrap());
        assert_eq!(service, ("podgauge", "podgauge-adapter"));
        find("Service", service.1);
    }
}

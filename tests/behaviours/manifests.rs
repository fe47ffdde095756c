//! Every object of the manifests is one that Kubernetes knows, with no field that it would drop.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use podgauge_sim::apiserver::{ADAPTER, Access, Rule};
use podgauge_tests::deploy::{objects, rules};
use serde_json::Value;

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
        ("networking.k8s.io/v1", "NetworkPolicy") => through::<NetworkPolicy>(object),
        ("policy/v1", "PodDisruptionBudget") => through::<PodDisruptionBudget>(object),
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
    let account = pod["serviceAccountName"].as_str().unwrap();
    let made = objects()
        .into_iter()
        .find(|(_, object)| object["kind"] == "ServiceAccount" && object["metadata"]["name"] == account);
    let mounts = |object: &Value| object["automountServiceAccountToken"].as_bool();
    let mounted = mounts(pod).or(made.as_ref().and_then(|(_, account)| mounts(account)));
    assert_eq!(mounted, Some(false), "its account's token is not mounted");
    // The examples have rights for those who want more.
    for (file, object) in objects().into_iter().filter(|(file, _)| file.contains("deploy/manifests")) {
        for subject in object["subjects"].as_array().into_iter().flatten() {
            assert_ne!(subject["name"], account, "{file} gives the exporter rights");
        }
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
    let grants = |rules: Vec<Rule>| -> Vec<Grant> {
        let grant = |rule: Rule| {
            let lists = [&rule.groups, &rule.resources, &rule.names, &rule.verbs];
            (rule.namespaces.first().cloned().unwrap_or_default(), lists.map(|list| sorted(list)))
        };
        rules.into_iter().map(grant).collect()
    };
    let mut shipped = grants(rules("podgauge-adapter", ADAPTER));
    let simulated = Access::built_in().rules.into_iter().filter(|rule| rule.role == "podgauge-adapter");
    let mut simulated = grants(simulated.collect());
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

/// The pod template of a workload.
fn template(kind: &str) -> Value {
    objects().into_iter().find(|(_, object)| object["kind"] == kind).unwrap().1["spec"]["template"].clone()
}

#[test]
fn network_policies_select_the_pods_of_the_manifests_and_name_their_ports() {
    let policies: Vec<Value> =
        objects().into_iter().map(|(_, object)| object).filter(|o| o["kind"] == "NetworkPolicy").collect();
    for kind in ["Deployment", "DaemonSet"] {
        let template = template(kind);
        let labels = template["metadata"]["labels"].as_object().unwrap();
        let selects = |policy: &&Value| {
            let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap();
            wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let [policy] = policies.iter().filter(selects).collect::<Vec<_>>()[..] else { panic!("{kind}") };
        let port = &template["spec"]["containers"][0]["ports"][0]["name"];
        for rule in policy["spec"]["ingress"].as_array().unwrap() {
            assert_eq!(rule["ports"], serde_json::json!([{"port": port, "protocol": "TCP"}]), "{kind}");
            assert!(
                !rule["from"].as_array().unwrap().is_empty(),
                "{kind}: a rule without from admits everybody"
            );
        }
    }
}

#[test]
fn pods_have_more_time_to_end_than_their_programs_take() {
    // The shutdown delay, and the time for open requests.
    for (kind, seconds) in [("Deployment", 5 + 5), ("DaemonSet", 5)] {
        let grace = template(kind)["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap();
        assert!(grace > seconds, "{kind}: {grace} s");
    }
}

/// Structures that the API server keeps as a whole and fills in: whoever leaves a default out and applies
/// on the server's side wants to change the whole, which the first apply owns.
fn without_a_default(object: &Value, path: &str, found: &mut Vec<String>) {
    let defaults = |name: &str| match name {
        "fieldRef" => Some("apiVersion"),
        "resourceFieldRef" => Some("divisor"),
        _ => None,
    };
    match object {
        Value::Object(fields) => {
            for (name, value) in fields {
                if defaults(name).is_some_and(|default| value[default].is_null()) {
                    found.push(format!("{path}.{name}"));
                }
                without_a_default(value, &format!("{path}.{name}"), found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| without_a_default(item, path, found)),
        _ => {}
    }
}

#[test]
fn an_apply_on_the_servers_side_after_one_on_the_clients_conflicts_with_nothing() {
    let mut found = Vec::new();
    for (file, object) in objects() {
        without_a_default(&object, &format!("{file}: {}", object["kind"]), &mut found);
        // The rules of a NetworkPolicy are kept as a whole, and their ports' protocol is filled in.
        if object["kind"] == "NetworkPolicy" {
            for direction in ["ingress", "egress"] {
                let rules = object["spec"][direction].as_array().into_iter().flatten();
                let ports = rules.flat_map(|rule| rule["ports"].as_array().into_iter().flatten());
                let bare = ports.filter(|port| port["protocol"].is_null()).count();
                assert_eq!(bare, 0, "{file}: {direction}");
            }
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn the_adapter_outlives_the_loss_of_a_pod_or_a_node() {
    let objects = objects();
    let find = |kind: &str| {
        let found =
            objects.iter().find(|(_, o)| o["kind"] == kind && o["metadata"]["name"] == "podgauge-adapter");
        &found.unwrap_or_else(|| panic!("no {kind}")).1["spec"]
    };
    let (deployment, budget) = (find("Deployment"), find("PodDisruptionBudget"));
    assert_eq!(deployment["replicas"], 2);
    assert_eq!(deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
    let selector = &deployment["selector"];
    assert_eq!((&budget["selector"], &budget["maxUnavailable"]), (selector, &1.into()));
    let spread = deployment["template"]["spec"]["topologySpreadConstraints"].as_array().unwrap();
    for constraint in spread {
        assert_eq!(&constraint["labelSelector"], selector);
        // One node alone is enough to start with.
        assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway");
    }
    assert_eq!(spread[0]["topologyKey"], "kubernetes.io/hostname");
}

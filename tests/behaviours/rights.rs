//! The rights in the manifests are the ones that the programs use: none is missing, none is idle.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use http::Method;
use podgauge_sim::aggregator::{AdapterClient, Protocol};
use podgauge_sim::apiserver::{
    ADAPTER, Access, ApiServer, ApiServerHandle, ApiServerOptions, Credentials, EXPORTER_TOKEN, NOBODY_TOKEN,
    Rule,
};
use podgauge_tests::built;
use podgauge_tests::cluster::{SERVICE, headers};
use podgauge_tests::deploy::rules;
use podgauge_tests::managed::{SECRET, Site, available};
use podgauge_tests::node::Node;
use podgauge_tests::program::run;
use podgauge_tests::wait::{LIMIT, until};
use serde_json::json;

const EXPORTER: &str = "system:serviceaccount:podgauge:podgauge-exporter";
const OWN: &str = "custom.metrics.k8s.io";

/// Namespace, group, resource and verb.
type Right = [String; 4];

fn right(parts: [&str; 4]) -> Right {
    parts.map(str::to_owned)
}

/// The rights that rules grant, one verb of one resource each.
fn granted(rules: &[Rule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        let namespace = rule.namespaces.first().map_or("", String::as_str);
        for group in &rule.groups {
            for resource in &rule.resources {
                for verb in &rule.verbs {
                    rights.insert(right([namespace, group, resource, verb]));
                }
            }
        }
    }
    rights
}

/// The requests of a user so far, each as the right in `granted` that allows it. Panics if anything was
/// refused.
fn used(server: &ApiServerHandle, user: &str, granted: &BTreeSet<Right>) -> BTreeSet<Right> {
    let asked = server.requests().into_iter().filter(|asked| asked.user == user);
    asked
        .map(|asked| {
            assert!(asked.allowed, "{asked:?}");
            let wanted = asked.wanted;
            // A metric is a subresource, and any resource has them.
            let resource = if wanted.group == OWN { "*" } else { &*wanted.resource };
            let within = |namespace| right([namespace, &wanted.group, resource, &wanted.verb]);
            // A ClusterRole grants it in every namespace.
            let everywhere = within("");
            if granted.contains(&everywhere) { everywhere } else { within(&wanted.namespace) }
        })
        .collect()
}

#[tokio::test]
async fn the_adapter_uses_every_right_it_has_and_needs_no_other() {
    let site = Site::start().await;
    let adapter = site.adapter(&[]).await;
    available(&site.aggregate(adapter.address)).await;
    adapter.ready().await;
    // A Secret that somebody emptied is written again.
    let target = format!("/api/v1/namespaces/podgauge/secrets/{SECRET}");
    let merge = "application/merge-patch+json";
    assert_eq!(site.administrate(Method::PATCH, &target, merge, &json!({"data": null})).await.status, 200);
    let secret = until("the Secret", || async { site.secret().ok_or("empty") }).await;
    // A user with a token, of whom the adapter asks who he is and what he may do.
    let client =
        AdapterClient::new(adapter.address, SERVICE, &secret["ca.crt"], None, Protocol::Negotiated).unwrap();
    let bearer = headers(&[("authorization", &format!("Bearer {NOBODY_TOKEN}"))]);
    assert_eq!(client.send(Method::GET, "/metrics", bearer, LIMIT).await.unwrap().status, 403);
    let mut explain = Command::new(built("podgauge-adapter"));
    explain.env("KUBECONFIG", site.folder.path().join("adapter.kubeconfig"));
    explain.args(["explain", "pods", "default", "app=x", "gpu_utilization"]);
    tokio::task::spawn_blocking(move || run(&mut explain)).await.unwrap();

    let mut expected = granted(&rules("podgauge-adapter", ADAPTER));
    // Kubernetes' own roles, which the manifests bind.
    expected.extend([
        right(["", "authentication.k8s.io", "tokenreviews", "create"]),
        right(["", "authorization.k8s.io", "subjectaccessreviews", "create"]),
        right(["kube-system", "", "configmaps", "list"]),
        right(["kube-system", "", "configmaps", "watch"]),
    ]);
    until("every right to be used", || async {
        let used = used(&site.server, ADAPTER, &expected);
        if used == expected { Ok(()) } else { Err((used, &expected)) }
    })
    .await;
}

#[tokio::test]
async fn the_exporter_with_every_flag_that_asks_the_api_server_uses_the_rights_of_the_example() {
    let node = Node::new(
        "gpus: [{}]\nclaims: [{namespace: ml, name: c, devices: ['0']}]\nresource_slices: {generation: 1}\n\
         pods: [{namespace: ml, name: a, labels: {team: blue}, containers: [{claims: [c]}]}]\n",
    );
    let _kubelet = node.kubelet().await;
    let options = ApiServerOptions { scenarios: vec![node.scenario()], ..ApiServerOptions::default() };
    let server = ApiServer::start(options).await.unwrap();
    let counters = "DCGM_FI_DEV_GPU_TEMP, gauge, temperature";
    let data = BTreeMap::from([("metrics".to_owned(), counters.to_owned())]);
    server.set_config_map("podgauge", "podgauge-counters", Some(data));
    let rules = rules("podgauge-exporter", EXPORTER);
    server.extend_access(Access { rules: rules.clone(), ..Access::default() });
    let kubeconfig = node.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token(EXPORTER_TOKEN.to_owned())).unwrap();
    let exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.args(["--kubernetes-enable-dra", "--kubernetes-enable-pod-labels"]);
            command.args(["-m", "podgauge:podgauge-counters", "--kubeconfig"]).arg(&kubeconfig);
        })
        .await;
    let labels = [("pod", "a"), ("team", "blue")];
    exporter.until("the claimed GPU", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &labels)).await;
    let expected = granted(&rules);
    until("every right to be used", || async {
        let used = used(&server, EXPORTER, &expected);
        if used == expected { Ok(()) } else { Err((used, &expected)) }
    })
    .await;
}

//! Pods' own labels on samples.

use podgauge_sim::apiserver::{ADMIN_TOKEN, ApiServer, ApiServerOptions, Credentials};
use podgauge_tests::node::Node;
use podgauge_tests::wait::until;

const TEMP: &str = "DCGM_FI_DEV_GPU_TEMP";

#[tokio::test]
async fn c9_pod_labels_are_sanitised_and_take_no_other_labels_place() {
    let yaml = |team: &str| {
        format!(
            "gpus: [{{}}]\npods:\n- name: a\n  namespace: ml\n  containers: [{{devices: ['0']}}]\n  \
             labels: {{key-with-dashes: one, key.with.dots: two, gpu: evil, UUID: evil, pod: evil, a-b: '1', a.b: '2', team: {team}, hidden: x}}\n"
        )
    };
    let node = Node::new(&yaml("blue"));
    let _kubelet = node.kubelet().await;
    let server = ApiServer::start(ApiServerOptions {
        scenarios: vec![node.scenario()],
        ..ApiServerOptions::default()
    })
    .await
    .unwrap();
    let kubeconfig = node.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADMIN_TOKEN.to_owned())).unwrap();
    let mut exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.args(["--kubernetes-enable-pod-labels", "--kubernetes-enable-pod-uid"]);
            command.args(["--kubernetes-pod-label-allowlist-regex", "^key,^gpu$,^UUID$,^pod$,^a,^team$,("]);
            command.arg("--kubeconfig").arg(&kubeconfig);
        })
        .await;
    exporter.program.logged("\"(\" is left out").await;
    let page =
        exporter.until("pod labels", |page| page.want(TEMP, &[("team", "blue")]).map(|_| page.clone())).await;
    let labels = &page.all(TEMP, &[])[0].labels;
    for (name, value) in [
        ("gpu", "0"),
        ("UUID", "GPU-00000000-0000-0000-0000-000000000000"),
        ("pod", "a"),
        ("namespace", "ml"),
        ("key_with_dashes", "one"),
        ("key_with_dots", "two"),
        ("pod_label_gpu", "evil"),
        ("pod_label_UUID", "evil"),
        ("pod_label_pod", "evil"),
        ("a_b", "1"),
        ("pod_label_a_b", "2"),
    ] {
        assert_eq!(labels.get(name).map(String::as_str), Some(value), "{name} of {labels:?}");
    }
    assert!(labels.contains_key("pod_uid") && !labels.contains_key("hidden"), "{labels:?}");
    // podgauge's own families carry none of it.
    assert!(!page.samples.iter().any(|s| s.name.starts_with("podgauge_") && s.labels.contains_key("team")));
    node.play(&yaml("green"));
    exporter.until("the changed label", |page| page.want(TEMP, &[("team", "green")])).await;
    // An API server that is away takes no label away.
    server.stop().await;
    exporter.program.logged("the watch fails").await;
    assert!(exporter.page().await.value(TEMP, &[("team", "green")]).is_some());
}

/// Both of the exporter's watches stop with the API server: one line, and a new list once it is back.
#[tokio::test]
async fn watches_that_an_outage_ended_begin_again_with_a_list() {
    let yaml = |team: &str| {
        format!(
            "gpus: [{{}}]\nclaims: [{{namespace: ml, name: c, devices: ['0']}}]\nresource_slices: {{generation: 1}}\n\
             pods: [{{namespace: ml, name: a, labels: {{team: {team}}}, containers: [{{claims: [c]}}]}}]\n"
        )
    };
    let node = Node::new(&yaml("blue"));
    let _kubelet = node.kubelet().await;
    let options = ApiServerOptions { scenarios: vec![node.scenario()], ..ApiServerOptions::default() };
    let server = ApiServer::start(options).await.unwrap();
    let kubeconfig = node.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &Credentials::Token(ADMIN_TOKEN.to_owned())).unwrap();
    let mut exporter = node
        .exporter_with(|command| {
            node.in_kubernetes(command);
            command.args(["--kubernetes-enable-pod-labels", "--kubernetes-enable-dra"]);
            command.arg("--kubeconfig").arg(&kubeconfig);
        })
        .await;
    exporter.until("the label", |page| page.want(TEMP, &[("pod", "a"), ("team", "blue")])).await;
    until("both watches", || async {
        let asked = server.requests().into_iter().filter(|asked| asked.wanted.verb == "watch").count();
        if asked == 2 { Ok(()) } else { Err(asked) }
    })
    .await;

    server.stop().await;
    node.play(&yaml("green"));
    let line = exporter.program.logged("pods of gpu-node-0").await;
    assert!(line.contains("the watches fail") && line.contains("onnection refused"), "{line}");
    exporter.until("the label of before", |page| page.want(TEMP, &[("team", "blue")])).await;
    // An API server that starts knows no changes of before.
    server.expire_watches();
    let before = server.requests().len();
    server.restart().await.unwrap();
    exporter.until("the changed label", |page| page.want(TEMP, &[("pod", "a"), ("team", "green")])).await;
    for resource in ["pods", "resourceslices"] {
        let asked = until("a request", || async {
            let mut asked = server.requests().into_iter().skip(before).map(|asked| asked.wanted);
            asked.find(|wanted| wanted.resource == resource).ok_or(resource)
        })
        .await;
        assert_eq!(asked.verb, "list", "{resource}");
    }
    exporter.program.logged("the watches work again").await;
    let log = exporter.program.log();
    assert_eq!(log.matches("the watch").count(), 2, "{log}");
    assert_eq!(log.matches("ResourceSlices of gpu-node-0").count(), 2, "{log}");
}

#[tokio::test]
async fn pod_labels_without_a_nodes_name_are_refused() {
    let node = Node::new("gpus: [{}]");
    let output = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(podgauge_tests::built("podgauge-exporter"));
        command.args(["-a", "127.0.0.1:0", "--kubernetes-enable-pod-labels"]).env_remove("NODE_NAME");
        command.arg("--nvml-library").arg(podgauge_tests::nvml_library());
        node.in_kubernetes(&mut command);
        podgauge_tests::program::run(&mut command)
    })
    .await
    .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--node-name"), "{errors}");
}

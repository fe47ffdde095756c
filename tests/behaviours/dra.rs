//! Dynamic resource allocation: what pods hold by claims is theirs as what a device plugin gave them.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use podgauge_sim::apiserver::{
    Access, ApiServer, ApiServerHandle, ApiServerOptions, Credentials, EXPORTER_TOKEN,
};
use podgauge_sim::kubelet::KubeletHandle;
use podgauge_sim_nvml::scenario::Scenario;
use podgauge_tests::deploy::rules;
use podgauge_tests::node::Node;
use podgauge_tests::page::{Page, Sample};
use podgauge_tests::program::Exporter;
use podgauge_tests::wait::until;
use serde_json::{Value, json};

const TEMP: &str = "DCGM_FI_DEV_GPU_TEMP";
const USED: &str = "DCGM_FI_DEV_FB_USED";
const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const ALLOCATION: &str = "podgauge_gpu_allocation";
const GPU: &str = "GPU-00000000-0000-0000-0000-00000000000";

/// GPU 0 and the instance 7 of GPU 1 are claimed; a device plugin gave GPU 2; GPU 3 is free.
const NODE: &str = "
gpus:
  - load: {constant: 30}
  - mig: {instances: [{profile: 1g.10gb, gi: 7, load: {constant: 40}}, {profile: 3g.40gb, gi: 2}]}
  - {}
  - {}
claims:
  - {namespace: ml, name: whole-7f, devices: ['0']}
  - {namespace: ml, name: slice-9a, devices: [1/gi7]}
pods:
  - {namespace: ml, name: a, containers: [{name: main, claims: [whole-7f]}]}
  - {namespace: ml, name: b, containers: [{name: serve, claims: [slice-9a]}, {name: log}]}
  - {namespace: ml, name: c, containers: [{name: main, devices: ['2']}]}
";
const PUBLISHED: &str = "resource_slices: {generation: 4}\n";

/// A node whose cluster knows ResourceSlices, and the exporter on it.
struct Claimed {
    node: Node,
    kubelet: KubeletHandle,
    server: ApiServerHandle,
}

impl Claimed {
    async fn new(yaml: &str) -> Self {
        let node = Node::new(yaml);
        let kubelet = node.kubelet().await;
        let options = ApiServerOptions { scenarios: vec![node.scenario()], ..ApiServerOptions::default() };
        let server = ApiServer::start(options).await.unwrap();
        server.write_kubeconfig(&kubeconfig(&node), &Credentials::Token(EXPORTER_TOKEN.into())).unwrap();
        Self { node, kubelet, server }
    }

    /// As [`new`](Self::new), and the exporter has the rights of deploy/examples.
    async fn permitted(yaml: &str) -> Self {
        let claimed = Self::new(yaml).await;
        claimed.permit();
        claimed
    }

    fn permit(&self) {
        self.permit_all_but("");
    }

    /// The rights of deploy/examples without those to a resource.
    fn permit_all_but(&self, resource: &str) {
        let mut rules = rules("podgauge-exporter", "system:serviceaccount:podgauge:podgauge-exporter");
        rules.retain(|rule| !rule.resources.iter().any(|name| name == resource));
        self.server.extend_access(Access { rules, ..Access::default() });
    }

    /// Waits for three more lists of the kubelet, during which pod a has so many samples of its memory.
    async fn three_lists(&self, exporter: &Exporter, samples: usize) {
        let before = self.kubelet.calls().list;
        until("three more lists", || async {
            let page = exporter.page().await;
            assert_eq!(page.all(USED, &[("pod", "a")]).len(), samples, "{}", page.text);
            let more = self.kubelet.calls().list - before;
            if more >= 3 { Ok(()) } else { Err(more) }
        })
        .await;
    }

    async fn exporter(&self, configure: impl FnOnce(&mut Command)) -> Exporter {
        self.node
            .exporter_with(|command| {
                self.node.in_kubernetes(command);
                command.arg("--kubernetes-enable-dra").arg("--kubeconfig").arg(kubeconfig(&self.node));
                configure(command);
            })
            .await
    }
}

fn kubeconfig(node: &Node) -> std::path::PathBuf {
    node.path().join("exporter.kubeconfig")
}

fn none() -> Vec<&'static Sample> {
    Vec::new()
}

/// A page on which that pod has a sample.
async fn page_with(exporter: &Exporter, label: &str, pod: &str) -> Page {
    exporter
        .until(&format!("samples of {pod}"), |page| match page.all(TEMP, &[(label, pod)])[..] {
            [] => Err(page.text.clone()),
            _ => Ok(page.clone()),
        })
        .await
}

fn claim_labels(sample: &Sample) -> BTreeMap<&str, &str> {
    let labels = sample.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    labels.filter(|(name, _)| name.starts_with("dra_")).collect()
}

fn instance_uuid() -> String {
    let scenario = Scenario::parse(NODE).unwrap();
    scenario.gpus[1].instances()[0].uuid(&scenario.gpus[1], 1)
}

#[tokio::test]
async fn c10_a_claimed_gpu_and_a_claimed_mig_device_have_the_claims_labels_on_their_own_series() {
    let claimed = Claimed::permitted(&format!("{NODE}{PUBLISHED}")).await;
    let exporter = claimed.exporter(|_| {}).await;
    let page = page_with(&exporter, "pod", "a").await;
    for family in [TEMP, USED, "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_POWER_USAGE"] {
        let sample = page.all(family, &[("gpu", "0")])[0];
        let owner = ["namespace", "pod", "container"].map(|label| sample.labels[label].as_str());
        assert_eq!(owner, ["ml", "a", "main"], "{family}");
        assert_eq!(
            claim_labels(sample),
            BTreeMap::from([
                ("dra_claim_name", "whole-7f"),
                ("dra_claim_namespace", "ml"),
                ("dra_device_name", "gpu-0"),
                ("dra_driver_name", "gpu.nvidia.com"),
                ("dra_pool_name", "gpu-node-0"),
            ]),
            "{family}"
        );
    }
    for family in [TEMP, USED] {
        let sample = page.all(family, &[("gpu", "1"), ("GPU_I_ID", "7")])[0];
        let owner = ["namespace", "pod", "container"].map(|label| sample.labels[label].as_str());
        assert_eq!(owner, ["ml", "b", "serve"], "{family}");
        assert_eq!(
            claim_labels(sample),
            BTreeMap::from([
                ("dra_claim_name", "slice-9a"),
                ("dra_claim_namespace", "ml"),
                ("dra_device_name", "gpu-1-mig-1g10gb-7-0"),
                ("dra_driver_name", "gpu.nvidia.com"),
                ("dra_mig_device_uuid", instance_uuid().as_str()),
                ("dra_mig_profile", "1g.10gb"),
                ("dra_pool_name", "gpu-node-0"),
            ]),
            "{family}"
        );
        // The other instance of that GPU and a free GPU are nobody's, a plugin's device has no claim.
        for others in [&[("gpu", "1"), ("GPU_I_ID", "2")][..], &[("gpu", "3")]] {
            let sample = page.all(family, others)[0];
            assert_eq!((sample.labels.get("pod"), claim_labels(sample).len()), (None, 0), "{family}");
        }
        let given = page.all(family, &[("gpu", "2")])[0];
        assert_eq!((given.labels["pod"].as_str(), claim_labels(given).len()), ("c", 0), "{family}");
    }
    // podgauge's own families know the owner, and have no label of the claim in any mode.
    for (pod, gpu) in [("a", "0"), ("b", "1"), ("c", "2")] {
        assert_eq!(page.value(ALLOCATION, &[("pod", pod), ("gpu", gpu)]), Some(1.0), "{}", page.text);
        assert_eq!(page.all(ACTIVE, &[("pod", pod), ("gpu", gpu)]).len(), 1, "{}", page.text);
    }
    assert_eq!(page.value("podgauge_gpu_owners", &[("GPU_I_ID", "7")]), Some(1.0));
    let own = page.samples.iter().filter(|sample| sample.name.starts_with("podgauge_"));
    assert_eq!(own.filter(|sample| !claim_labels(sample).is_empty()).count(), 0, "{}", page.text);
    // GPM's alone.
    exporter.program.logs("WARN", 1).await;
    // Of the whole cluster's slices those of this node and this driver alone were asked for.
    let selectors = until("a list and a watch", || async {
        let selectors = claimed.server.selectors_of("resourceslices");
        if selectors.len() >= 2 { Ok(selectors) } else { Err(selectors) }
    })
    .await;
    for selector in selectors {
        assert_eq!(selector, "spec.nodeName=gpu-node-0,spec.driver=gpu.nvidia.com");
    }
    assert_eq!(claimed.server.selectors_of("pods"), Vec::<String>::new());
}

#[tokio::test]
async fn c10_in_every_labelling_mode() {
    let claimed = Claimed::permitted(&format!("{NODE}{PUBLISHED}")).await;
    let modes: [(&[&str], &str); 3] = [
        (&["--kubernetes-virtual-gpus"], "pod"),
        (&["-o"], "pod_name"),
        (&["--kubernetes-virtual-gpus", "--kubernetes-enable-pod-uid", "-o"], "pod_name"),
    ];
    for (args, pod) in modes {
        let exporter = claimed
            .exporter(|command| {
                command.args(args);
            })
            .await;
        let page = page_with(&exporter, pod, "a").await;
        for family in [TEMP, USED] {
            let sample = page.all(family, &[("gpu", "0"), (pod, "a")])[0];
            assert_eq!(claim_labels(sample).len(), 5, "{args:?}");
            let sample = page.all(family, &[("gpu", "1"), ("GPU_I_ID", "7"), (pod, "b")])[0];
            assert_eq!(sample.labels["dra_mig_device_uuid"], instance_uuid(), "{args:?}");
            assert_eq!(claim_labels(sample).len(), 7, "{args:?}");
        }
    }
}

/// Without the flag claims are left alone, and the API server is not asked; one warning says so.
#[tokio::test]
async fn c10_without_the_flag_claims_are_left_alone() {
    let claimed = Claimed::permitted(&format!("{NODE}{PUBLISHED}")).await;
    let mut exporter = claimed.node.exporter_in_kubernetes().await;
    let page = page_with(&exporter, "pod", "c").await;
    assert_eq!(page.all(TEMP, &[("pod", "a")]), none());
    let line = exporter.program.logged("pods hold devices of gpu.nvidia.com by claims").await;
    for words in ["such as ml/a", "--kubernetes-enable-dra", "resourceslices", "resourceclaims"] {
        assert!(line.contains(words), "no {words:?} in {line}");
    }
    assert_eq!(exporter.program.count_logged("by claims"), 1);
    assert_eq!(claimed.server.selectors_of("resourceslices"), Vec::<String>::new());
}

/// One claim of two pods, one of them with two containers, and their processes.
const SHARED: &str = "
gpus: [{}]
claims: [{namespace: ml, name: shared, devices: ['0']}]
resource_slices: {}
pods:
  - namespace: ml
    name: a
    containers: [{name: main, claims: [shared], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}}]}]
  - namespace: ml
    name: b
    containers:
      - {name: x, claims: [shared], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}, memory_mib: 256}]}
      - {name: y, claims: [shared]}
";

#[tokio::test]
async fn c10_a_claim_that_two_pods_share_is_one_device_with_several_owners() {
    const UTIL: &str = "DCGM_FI_DEV_GPU_UTIL";
    let claimed = Claimed::permitted(SHARED).await;
    let exporter = claimed.exporter(|_| {}).await;
    let share = |page: &Page, pod: &str, container: &str| {
        page.want(UTIL, &[("pod", pod), ("container", container), ("dra_claim_name", "shared")])
    };
    let page = exporter
        .until("the shares", |page| {
            let (a, b) = (share(page, "a", "main")?, share(page, "b", "x")?);
            if a > b && b > 0.0 { Ok(page.clone()) } else { Err(page.text.clone()) }
        })
        .await;
    let parts: f64 = page.all(UTIL, &[]).iter().map(|sample| sample.value).sum();
    let device = page.value("podgauge_gpu_utilization", &[]).unwrap();
    assert!((parts - device).abs() < 0.015, "{parts} of {device}");
    assert_eq!(page.value("podgauge_gpu_owners", &[]), Some(3.0));
    let part = |container: &str| page.value(ALLOCATION, &[("container", container)]);
    assert_eq!([part("main"), part("x"), part("y")], [Some(0.5), Some(0.25), Some(0.25)]);
    let used = |container: &str| page.value(USED, &[("container", container)]);
    assert_eq!([used("main"), used("x"), used("y")], [Some(512.0), Some(256.0), Some(0.0)]);
    // What cannot be divided is nobody's.
    let temperature = page.all(TEMP, &[]);
    assert_eq!((temperature.len(), temperature[0].labels.get("pod")), (1, None));
    assert_eq!(claim_labels(temperature[0]).len(), 0);

    let copies = claimed
        .exporter(|command| {
            command.arg("--kubernetes-virtual-gpus");
        })
        .await;
    let page = page_with(&copies, "pod", "b").await;
    assert_eq!(page.all(TEMP, &[("dra_claim_name", "shared")]).len(), 3, "{}", page.text);
}

/// A container with two claims of one GPU, and another pod with one of them.
#[tokio::test]
async fn c10_several_claims_of_one_device_make_one_series_an_owner() {
    let yaml = "
gpus: [{load: {constant: 10}}]
claims: [{name: two, devices: ['0']}, {name: one, devices: ['0']}]
resource_slices: {}
pods:
  - {name: a, containers: [{claims: [two, one]}]}
  - {name: b, containers: [{claims: [two]}]}
";
    let claimed = Claimed::permitted(yaml).await;
    for mode in [&[][..], &["--kubernetes-virtual-gpus"]] {
        let exporter = claimed
            .exporter(|command| {
                command.args(mode);
            })
            .await;
        // A page on which a series stands twice does not parse.
        let page =
            exporter.until("the owners", |page| page.want(USED, &[("pod", "b")]).map(|_| page.clone())).await;
        let claim = |pod: &str| page.all(USED, &[("pod", pod)])[0].labels["dra_claim_name"].clone();
        assert_eq!((claim("a"), claim("b")), ("one".into(), "two".into()), "{mode:?}");
        // How much of the device each claim has is not known.
        assert_eq!(page.all(ALLOCATION, &[]), none(), "{mode:?}");
        assert_eq!(page.all("podgauge_gpu_part_unknown", &[]).len(), 2, "{mode:?}");
    }
}

/// A slice as the driver publishes it, of this pool's generation, with one device.
fn slice(name: &str, generation: u32, device: &str, attributes: &Value) -> Value {
    json!({
        "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1", "metadata": {"name": name},
        "spec": {
            "driver": "gpu.nvidia.com", "nodeName": "gpu-node-0",
            "pool": {"name": "gpu-node-0", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": device, "attributes": attributes}],
        },
    })
}

fn gpu_attributes(index: u32) -> Value {
    json!({"type": {"string": "gpu"}, "uuid": {"string": format!("{GPU}{index}")}})
}

const ONE: &str = "
gpus: [{}, {}]
claims: [{name: c, devices: ['0']}]
pods: [{name: a, containers: [{claims: [c]}]}, {name: b, containers: [{devices: ['1']}]}]
";

#[tokio::test]
async fn c10_a_slice_that_comes_late_tells_the_device_and_one_that_goes_takes_no_label_away() {
    let claimed = Claimed::permitted(ONE).await;
    let mut exporter = claimed.exporter(|_| {}).await;
    let line = exporter.program.logged("1 claimed devices of gpu.nvidia.com are not known").await;
    assert!(line.contains("device gpu-0 of pool gpu-node-0, claim demo/c: no ResourceSlice"), "{line}");
    let page = page_with(&exporter, "pod", "b").await;
    assert_eq!(page.all(TEMP, &[("gpu", "0"), ("pod", "")]).len(), 1, "{}", page.text);

    // Of two generations the newer alone counts: the older one's devices are not there any more.
    let left_over = slice("left-over", 1, "gpu-0", &gpu_attributes(1));
    claimed.server.set_resource_slices(vec![slice("other", 2, "gpu-9", &gpu_attributes(1)), left_over]);
    claimed.three_lists(&exporter, 0).await;
    let (old, new) =
        (slice("old", 3, "gpu-0", &gpu_attributes(1)), slice("new", 4, "gpu-0", &gpu_attributes(0)));
    claimed.server.set_resource_slices(vec![new, old]);
    let page = page_with(&exporter, "pod", "a").await;
    assert_eq!(page.all(TEMP, &[("pod", "a")])[0].labels["gpu"], "0");
    exporter.program.logged("every device is known now").await;

    // The driver is replaced: its slices go, the pod runs on.
    claimed.server.set_resource_slices(Vec::new());
    claimed.three_lists(&exporter, 1).await;
    // The claim goes with its pod.
    claimed.node.play("gpus: [{}, {}]\npods: [{name: b, containers: [{devices: ['1']}]}]");
    exporter
        .until("the pod to go", |page| match page.all(TEMP, &[("pod", "a")])[..] {
            [] => Ok(()),
            _ => Err(page.text.clone()),
        })
        .await;
    exporter.program.logs("are not known", 1).await;
}

/// A slow API server delays the first page of devices, so that no series begins without its labels;
/// one that hangs delays it for 3 s.
#[tokio::test]
async fn c10_no_series_begins_without_the_labels_that_it_is_about_to_have() {
    let claimed = Claimed::permitted(&format!("{ONE}{PUBLISHED}")).await;
    let first = |exporter: Exporter| async move {
        let page = page_with(&exporter, "pod", "b").await;
        (page.all(TEMP, &[("pod", "a")]).len(), exporter)
    };
    claimed.server.set_delay(Duration::from_millis(700));
    assert_eq!(first(claimed.exporter(|_| {}).await).await.0, 1);
    claimed.server.set_delay(Duration::from_secs(3600));
    let (labelled, exporter) = first(claimed.exporter(|_| {}).await).await;
    assert_eq!(labelled, 0);
    claimed.server.set_delay(Duration::ZERO);
    page_with(&exporter, "pod", "a").await;
}

/// No rights, then a cluster that does not know the API, then one that does: a warning each, while
/// everything else goes on.
#[tokio::test]
async fn c10_an_older_cluster_and_missing_rights_are_one_warning_each() {
    let claimed = Claimed::new(&format!("{ONE}{PUBLISHED}")).await;
    let mut exporter = claimed.exporter(|_| {}).await;
    let line = exporter.program.logged("the API server refuses").await;
    assert!(line.contains("list and watch resourceslices of resource.k8s.io in a ClusterRole"), "{line}");
    claimed.server.set_group_served("resource.k8s.io", false);
    claimed.permit();
    exporter.program.logged("this cluster does not serve resource.k8s.io/v1").await;
    until("further tries", || async {
        let asked = claimed.server.selectors_of("resourceslices").len();
        if asked >= 3 { Ok(()) } else { Err(asked) }
    })
    .await;
    exporter.ready(200).await;
    let page = page_with(&exporter, "pod", "b").await;
    assert_eq!(page.all(TEMP, &[("gpu", "0"), ("pod", "")]).len(), 1, "{}", page.text);
    assert_eq!(page.all("podgauge_attribution_unavailable", &[]), none());
    claimed.server.set_group_served("resource.k8s.io", true);
    page_with(&exporter, "pod", "a").await;
    exporter.program.logged("the watch works again").await;
    for once in ["the API server refuses", "does not serve", "works again"] {
        exporter.program.logs(once, 1).await;
    }
    // One that is away takes no label away.
    claimed.server.stop().await;
    exporter.program.logged("the watch fails").await;
    assert_eq!(exporter.page().await.all(TEMP, &[("pod", "a")]).len(), 1);
}

#[tokio::test]
async fn c10_claims_of_other_drivers_are_ignored() {
    let yaml = "
gpus: [{}, {}]
claims: [{name: nic, driver: net.example.com, device_names: [gpu-0]}, {name: gpu, devices: ['1']}]
resource_slices: {}
pods: [{name: a, containers: [{claims: [nic]}]}, {name: b, containers: [{claims: [gpu]}]}]
";
    let claimed = Claimed::permitted(yaml).await;
    let exporter = claimed.exporter(|_| {}).await;
    let page = page_with(&exporter, "pod", "b").await;
    for family in [TEMP, USED, ALLOCATION] {
        assert_eq!(page.all(family, &[("pod", "a")]), none(), "{family}");
        assert_eq!(page.all(family, &[("pod", "b")])[0].labels["gpu"], "1", "{family}");
    }
    assert_eq!(exporter.program.count_logged("are not known"), 0, "{}", exporter.program.log());
}

/// What is certain without slices is told, and nothing else: here by a CDI name that is a UUID.
#[tokio::test]
async fn c10_without_a_nodes_name_no_slice_of_the_cluster_is_watched() {
    let yaml = format!(
        "
gpus: [{{}}, {{}}]
claims: [{{name: told, devices: ['0'], cdi: ['nvidia.com/gpu={GPU}0']}}, {{name: not, devices: ['1']}}]
resource_slices: {{}}
pods: [{{name: a, containers: [{{claims: [told]}}]}}, {{name: b, containers: [{{claims: [not]}}]}}]
"
    );
    let claimed = Claimed::permitted(&yaml).await;
    let mut exporter = claimed
        .exporter(|command| {
            command.env_remove("NODE_NAME");
        })
        .await;
    let line = exporter.program.logged("--kubernetes-enable-dra watches").await;
    assert!(line.contains("NODE_NAME"), "{line}");
    let page = page_with(&exporter, "pod", "a").await;
    let sample = page.all(TEMP, &[("pod", "a")])[0];
    assert_eq!((sample.labels["gpu"].as_str(), sample.labels["dra_claim_name"].as_str()), ("0", "told"));
    assert_eq!(page.all(TEMP, &[("pod", "b")]), none());
    assert_eq!(claimed.server.selectors_of("resourceslices"), Vec::<String>::new());
}

/// The driver publishes a MIG device that it makes only when it is claimed without a UUID: which
/// instance became of it is not guessed, even where there is but one.
#[tokio::test]
async fn c10_a_mig_device_without_a_uuid_is_not_guessed() {
    let yaml = "
gpus: [{mig: {instances: [{profile: 1g.10gb, gi: 7}]}}, {}]
claims: [{name: made, device_names: [gpu-0-mig-1g10gb-19-0]}]
pods: [{name: a, containers: [{claims: [made]}]}, {name: b, containers: [{devices: ['1']}]}]
";
    let claimed = Claimed::permitted(yaml).await;
    let attributes = json!({
        "type": {"string": "mig"}, "parentUUID": {"string": format!("{GPU}0")},
        "profile": {"string": "1g.10gb"},
    });
    claimed.server.set_resource_slices(vec![slice("s", 1, "gpu-0-mig-1g10gb-19-0", &attributes)]);
    let mut exporter = claimed
        .exporter(|command| {
            command.arg("--enable-exporter-metrics");
        })
        .await;
    let line = exporter.program.logged("are not known").await;
    assert!(line.contains("its ResourceSlice has no UUID"), "{line}");
    let page = page_with(&exporter, "pod", "b").await;
    assert_eq!(page.all(TEMP, &[("GPU_I_ID", "7"), ("pod", "")]).len(), 1, "{}", page.text);
    assert_eq!(page.value("podgauge_exporter_claimed_devices_unknown", &[]), Some(1.0));
}

/// A monitoring pod has an admin claim on the GPU that another pod uses.
const WATCHED: &str = "
gpus: [{load: {constant: 30}}]
claims: [{namespace: ml, name: mine, devices: ['0']}, {namespace: ops, name: all, devices: ['0'], admin: true}]
resource_slices: {}
pods:
  - {namespace: ml, name: a, containers: [{claims: [mine]}]}
  - {namespace: ops, name: monitor, containers: [{claims: [all]}]}
";

#[tokio::test]
async fn a_claim_with_admin_access_owns_nothing() {
    let claimed = Claimed::permitted(WATCHED).await;
    let exporter = claimed.exporter(|_| {}).await;
    let page = page_with(&exporter, "pod", "a").await;
    assert!(!page.text.contains("monitor"), "{}", page.text);
    assert_eq!(page.value("podgauge_gpu_owners", &[]), Some(1.0), "{}", page.text);
    assert_eq!(page.value(ALLOCATION, &[("pod", "a")]), Some(1.0), "{}", page.text);
}

/// Without the right to read claims nobody knows which are for watching: one warning names the right,
/// and the parts of the device are unknown. The exporter's own pod is known all the same.
#[tokio::test]
async fn without_the_right_to_read_claims_the_missing_right_is_named() {
    let claimed = Claimed::new(WATCHED).await;
    claimed.permit_all_but("resourceclaims");
    let mut exporter = claimed.exporter(|_| {}).await;
    exporter.program.logged("let this service account get resourceclaims of resource.k8s.io").await;
    let page = exporter
        .until("both owners", |page| match page.want("podgauge_gpu_owners", &[])? {
            2.0 => Ok(page.clone()),
            owners => Err(owners.to_string()),
        })
        .await;
    assert_eq!(page.all(ALLOCATION, &[]), none(), "{}", page.text);
    assert_eq!(page.all("podgauge_gpu_part_unknown", &[]).len(), 2, "{}", page.text);
    let exporter = claimed
        .exporter(|command| {
            command.env("POD_NAMESPACE", "ops").env("POD_NAME", "monitor");
        })
        .await;
    let page = page_with(&exporter, "pod", "a").await;
    assert_eq!(page.value(ALLOCATION, &[("pod", "a")]), Some(1.0), "{}", page.text);
}

/// Two claims with a part each of one GPU's memory, and one whose part is not known.
#[tokio::test]
async fn consumed_capacity_is_the_part_of_the_device() {
    let yaml = "
gpus: [{memory_mib: 81920}]
claims:
  - {name: quarter, devices: ['0'], share: s1, consumed: {memory: 20Gi}}
  - {name: half, devices: ['0'], share: s2, consumed: {memory: 40Gi}}
  - {name: unknown, devices: ['0'], share: s3}
resource_slices: {}
pods:
  - {name: a, containers: [{claims: [quarter]}]}
  - {name: b, containers: [{claims: [half]}]}
  - {name: c, containers: [{claims: [unknown]}]}
";
    let claimed = Claimed::permitted(yaml).await;
    let exporter = claimed.exporter(|_| {}).await;
    let page = exporter
        .until("the parts", |page| page.want(ALLOCATION, &[("pod", "b")]).map(|_| page.clone()))
        .await;
    let part = |pod: &str| page.value(ALLOCATION, &[("pod", pod)]);
    assert_eq!([part("a"), part("b"), part("c")], [Some(0.25), Some(0.5), None], "{}", page.text);
    assert_eq!(page.value("podgauge_gpu_part_unknown", &[("pod", "c")]), Some(1.0), "{}", page.text);
}

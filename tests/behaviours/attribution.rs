//! Whose a GPU is: device-id forms, labelling modes, processes, and what happens without them.

use std::cell::Cell;
use std::os::unix::fs::symlink;

use podgauge_tests::node::Node;
use podgauge_tests::page::{Page, Sample};
use podgauge_tests::program::Exporter;

const UTIL: &str = "DCGM_FI_DEV_GPU_UTIL";
const TEMP: &str = "DCGM_FI_DEV_GPU_TEMP";
const USED: &str = "DCGM_FI_DEV_FB_USED";
const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const UNAVAILABLE: &str = "podgauge_attribution_unavailable";

fn uuid(index: usize) -> String {
    format!("GPU-00000000-0000-0000-0000-{index:012}")
}

async fn virtual_gpus(node: &Node) -> Exporter {
    node.exporter_with(|command| {
        node.in_kubernetes(command);
        command.arg("--kubernetes-virtual-gpus");
    })
    .await
}

/// Pods whose devices are written in a form, with the GPU they mean and the replica.
#[tokio::test]
async fn c1_every_form_of_a_whole_gpus_id() {
    let forms = [
        (uuid(0), "0", ""),
        (format!("{}::3", uuid(1)), "1", "3"),
        ("nvidia2".to_owned(), "2", ""),
        ("nvidia3/vgpu1".to_owned(), "3", "1"),
    ];
    let mut yaml = "gpus: [{}, {}, {}, {}, {}]\npods:\n".to_owned();
    for (number, (id, ..)) in forms.iter().enumerate() {
        yaml += &format!("  - {{name: p{number}, containers: [{{device_ids: [{id:?}]}}]}}\n");
    }
    // Forms of instances mean no whole GPU, and a form that nobody knows is no mistake.
    let others = ["MIG-1", "MIG-1::7", "MIG-GPU-1/2/0", "nvidia4/gi2", "nvidia4/gi2/vgpu1", "vgpu-odd"];
    yaml += &format!("  - {{name: other, containers: [{{device_ids: {others:?}}}]}}\n");
    let node = Node::new(&yaml);
    let _kubelet = node.kubelet().await;
    for virtual_mode in [false, true] {
        for id_type in ["uid", "device-name"] {
            let exporter = node
                .exporter_with(|command| {
                    node.in_kubernetes(command);
                    command.arg(format!("--kubernetes-gpu-id-type={id_type}"));
                    command.arg(format!("--kubernetes-virtual-gpus={virtual_mode}"));
                })
                .await;
            let page = exporter
                .until("a labelled page", |page| page.want(UTIL, &[("pod", "p0")]).map(|_| page.clone()))
                .await;
            for (number, (_, gpu, replica)) in forms.iter().enumerate() {
                let pod = format!("p{number}");
                let replica = if virtual_mode { replica } else { "" };
                let labels = [("gpu", *gpu), ("pod", pod.as_str()), ("vgpu", replica)];
                for family in [TEMP, UTIL] {
                    assert!(page.value(family, &labels).is_some(), "{family} {labels:?} in\n{}", page.text);
                }
            }
            assert_eq!(page.all(TEMP, &[("gpu", "4"), ("pod", "")]).len(), 1, "{}", page.text);
            assert_eq!(page.all(TEMP, &[]).len(), 5, "{}", page.text);
        }
    }
}

/// Pod a holds one replica of three, b two of which each gets half of its share.
const SHARED: &str = "
gpus: [{replicas: 3}, {}]
pods:
  - {name: a, containers: [{devices: ['0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 40}, memory_mib: 1000}]}]}
  - {name: b, containers: [{devices: ['0::1', '0::2'], processes: [{pid: 4100002, gpu: 0, load: {constant: 20}, memory_mib: 500}]}]}
";

#[tokio::test]
async fn c5_virtual_gpus_are_copies_and_shares() {
    let node = Node::new(SHARED);
    let _kubelet = node.kubelet().await;
    let exporter = virtual_gpus(&node).await;
    let copies = [("a", "0"), ("b", "1"), ("b", "2")];
    let page = exporter
        .until("shares", |page| {
            for (pod, vgpu) in copies {
                page.want(UTIL, &[("pod", pod), ("vgpu", vgpu)])?;
            }
            Ok(page.clone())
        })
        .await;
    let of = |family: &str, pod: &str, vgpu: &str| {
        page.value(family, &[("gpu", "0"), ("pod", pod), ("vgpu", vgpu)]).unwrap()
    };
    // The GPU's own sample stays, and a pod's share is divided among its replicas.
    assert!((of(UTIL, "", "") - 60.0).abs() <= 1.0, "{}", page.text);
    assert_eq!(of(UTIL, "b", "1"), of(UTIL, "b", "2"));
    assert!(copies.iter().map(|(pod, vgpu)| of(UTIL, pod, vgpu)).sum::<f64>() <= of(UTIL, "", ""));
    assert_eq!(copies.map(|(pod, vgpu)| of(USED, pod, vgpu)), [1000.0, 250.0, 250.0]);
    assert_eq!(of(USED, "", ""), 1500.0);
    // What cannot be divided is copied; a GPU without pods has its plain sample.
    assert_eq!(page.all(TEMP, &[("gpu", "0")]).len(), 3, "{}", page.text);
    assert_eq!(page.all(TEMP, &[("gpu", "0"), ("pod", "")]).len(), 0);
    for family in [TEMP, UTIL] {
        let plain = page.all(family, &[("gpu", "1")]);
        assert_eq!(plain.len(), 1, "{family}");
        assert!(!plain[0].labels.contains_key("pod"));
    }
    // podgauge's own families are the same in every mode.
    assert!(!page.samples.iter().any(|s| s.name.starts_with("podgauge_") && s.labels.contains_key("vgpu")));
    assert_eq!(page.all(ACTIVE, &[("gpu", "0")]).len(), 3);
}

/// Waits for pages on which nothing is said of the pods of a shared GPU, each without a false 0.
async fn unattributed(exporter: &Exporter, reason: &str) -> Page {
    exporter
        .until("the reason", |page| {
            for pod in ["a", "b"] {
                for family in [UTIL, USED] {
                    assert_eq!(page.all(family, &[("pod", pod)]), Vec::<&Sample>::new(), "{}", page.text);
                }
                let observed = page.value("podgauge_gpu_observed_seconds_total", &[("pod", pod)]);
                assert_eq!(observed.unwrap_or(0.0), 0.0, "{}", page.text);
            }
            page.want(UNAVAILABLE, &[("gpu", "0"), ("reason", reason)])?;
            page.want(UTIL, &[("gpu", "0")]).map(|_| page.clone())
        })
        .await
}

/// The exporter is in another PID namespace than the processes.
#[tokio::test]
async fn c7_without_the_hosts_pids_nothing_is_said_of_pods_that_share() {
    let node = Node::new(&SHARED.replace("gpus: [{replicas: 3}, {}]", "gpus: [{replicas: 3, lists_processes: false}, {lists_processes: false}]").replace(
        "pods:\n",
        "pods:\n  - {name: alone, containers: [{devices: ['1'], processes: [{pid: 4100005, gpu: 1, load: {constant: 50}}]}]}\n",
    ));
    let link = node.trees().join("proc/self/ns/pid");
    std::fs::remove_file(&link).unwrap();
    symlink("pid:[4026532999]", &link).unwrap();
    let _kubelet = node.kubelet().await;
    for virtual_mode in [false, true] {
        let mut exporter =
            if virtual_mode { virtual_gpus(&node).await } else { node.exporter_in_kubernetes().await };
        let page = unattributed(&exporter, "no_host_pid_namespace").await;
        // The allocation still counts where it is the only one.
        for family in [UTIL, USED, TEMP, ACTIVE] {
            let labels = [("gpu", "1"), ("pod", "alone")];
            assert_eq!(page.all(family, &labels).len(), 1, "{family} in\n{}", page.text);
        }
        assert_eq!(page.all(UNAVAILABLE, &[]).len(), 1, "{}", page.text);
        let parts = page.all("podgauge_gpu_allocation", &[("gpu", "0")]);
        assert_eq!(parts.len(), 2, "{}", page.text);
        exporter.program.logged("set hostPID: true").await;
        exporter.program.logs("set hostPID: true", 1).await;
    }
}

/// Cgroups cannot be read: the processes are nobody's, and that is no 0 for anybody.
#[tokio::test]
async fn c7_unreadable_processes_are_no_zero() {
    let node = Node::new(SHARED);
    for pid in [4_100_001, 4_100_002] {
        std::fs::remove_dir_all(node.trees().join(format!("proc/{pid}"))).unwrap();
    }
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = unattributed(&exporter, "no_process_memory").await;
    assert_eq!(page.all(UTIL, &[("gpu", "0")]).len(), 1, "{}", page.text);
}

/// One pod of two containers that share a GPU: its total is not multiplied.
#[tokio::test]
async fn c8_containers_and_replicas_do_not_multiply_a_pods_use() {
    let node = Node::new(
        "gpus: [{replicas: 4}]\npods:\n\
         - name: a\n  containers:\n  \
         - {name: x, devices: ['0::0', '0::1'], processes: [{pid: 4100001, gpu: 0, load: {constant: 20}, memory_mib: 700}]}\n  \
         - {name: y, devices: ['0::2'], processes: [{pid: 4100002, gpu: 0, load: {constant: 10}, memory_mib: 300}]}\n\
         - {name: b, containers: [{devices: ['0::3'], processes: [{pid: 4100003, gpu: 0, load: {constant: 10}, memory_mib: 100}]}]}\n",
    );
    let _kubelet = node.kubelet().await;
    for virtual_mode in [false, true] {
        let exporter =
            if virtual_mode { virtual_gpus(&node).await } else { node.exporter_in_kubernetes().await };
        let page = exporter
            .until("shares", |page| {
                let shares: Vec<_> = page.all(UTIL, &[("pod", "a")]);
                if shares.len() == if virtual_mode { 3 } else { 2 } {
                    Ok(page.clone())
                } else {
                    Err(page.text.clone())
                }
            })
            .await;
        let total = |family| page.all(family, &[("pod", "a")]).iter().map(|sample| sample.value).sum::<f64>();
        assert_eq!(total(USED), 1000.0, "{}", page.text);
        let device = page.value("podgauge_gpu_utilization", &[]).unwrap();
        assert!(total(UTIL) <= device && (device - 40.0).abs() <= 1.0, "{}", page.text);
        let containers = |container| page.value(ACTIVE, &[("pod", "a"), ("container", container)]);
        assert!(containers("x").is_some() && containers("y").is_some(), "{}", page.text);
    }
}

/// A pod that uses a GPU without having asked for one, and a process outside any pod.
#[tokio::test]
async fn a_pod_that_bypasses_the_device_plugin_is_seen_by_its_process() {
    let with = |bypass: &str| {
        format!(
            "gpus: [{{}}, {{}}]\npods:\n\
             - {{name: holder, containers: [{{devices: ['0'], processes: [{{pid: 4100001, gpu: 0, load: {{constant: 30}}}}]}}]}}\n\
             - {{name: bypass, containers: [{{name: tool, processes: [{bypass}]}}]}}\n\
             processes: [{{pid: 4100009, gpu: 1, load: {{constant: 10}}}}]\n"
        )
    };
    let node = Node::new(&with(""));
    let kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("the holder", |page| page.want(UTIL, &[("pod", "holder")]).map(|_| page.clone()))
        .await;
    assert_eq!(page.all(UTIL, &[("gpu", "0")]).len(), 1);
    assert_eq!(page.all(UTIL, &[("gpu", "1"), ("pod", "")]).len(), 1, "outside any pod has no labels");
    assert_eq!(page.value("podgauge_gpu_owners", &[("gpu", "1")]), Some(1.0));
    let lists = kubelet.calls().list;

    node.play(&with("{pid: 4100002, gpu: 0, load: {constant: 20}}"));
    let page = exporter
        .until("the bypassing pod's share", |page| {
            match page.want(UTIL, &[("gpu", "0"), ("pod", "bypass"), ("container", "tool")])? {
                share if share > 5.0 => Ok(page.clone()),
                share => Err(share.to_string()),
            }
        })
        .await;
    // What cannot be divided stays the holder's, and so does its share.
    assert_eq!(page.all(TEMP, &[("gpu", "0"), ("pod", "holder")]).len(), 1, "{}", page.text);
    assert_eq!(page.all(TEMP, &[("gpu", "0")]).len(), 1);
    assert!(page.value(UTIL, &[("pod", "holder")]).unwrap() > 15.0, "{}", page.text);
    assert_eq!(page.value("podgauge_gpu_owners", &[("gpu", "0")]), Some(2.0));
    assert_eq!(page.all("podgauge_gpu_allocation", &[("pod", "bypass")]).len(), 0);
    assert!(kubelet.calls().list > lists);

    // After its last process it stays an owner for a minute: what it did is still in the window.
    node.play(&with(""));
    let active = page.value(ACTIVE, &[("pod", "bypass")]).unwrap();
    let page = exporter
        .until("later pages", |later| {
            let observed = "podgauge_gpu_observed_seconds_total";
            let now = later.want(observed, &[("pod", "bypass")])?;
            if now > page.want(observed, &[("pod", "bypass")])? + 5.0 {
                Ok(later.clone())
            } else {
                Err(now.to_string())
            }
        })
        .await;
    assert!(page.value(ACTIVE, &[("pod", "bypass")]).unwrap() >= active);
    assert_eq!(page.value(USED, &[("pod", "bypass")]), Some(0.0), "{}", page.text);
}

/// Kubelets before 1.34 list a finished pod's GPU beside the new pod's.
#[tokio::test]
async fn a_whole_gpu_listed_for_two_pods_is_the_one_with_processes() {
    let node = Node::new(
        "gpus: [{}]\npods:\n\
         - {name: living, containers: [{devices: ['0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 50}}]}]}\n\
         - {name: finished, containers: [{devices: ['0']}]}\n",
    );
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page =
        exporter.until("labels", |page| page.want(TEMP, &[("pod", "living")]).map(|_| page.clone())).await;
    assert!((page.value(UTIL, &[("pod", "living")]).unwrap() - 50.0).abs() <= 0.5, "{}", page.text);
    assert!(!page.text.contains("finished"), "{}", page.text);
}

/// Everything at once, in every mode: a page that holds a series twice does not parse here.
#[tokio::test]
async fn a7_no_series_is_there_twice_in_any_mode() {
    let node = Node::new(
        "gpus: [{replicas: 4}, {}, {replicas: 2, mps_server: 4100020}, {}]\npods:\n\
         - name: a\n  containers:\n  \
         - {name: x, devices: ['0::0', '0::1', '0::0'], processes: [{pid: 4100001, gpu: 0, load: {constant: 20}}, {pid: 4100001, gpu: 1, load: {constant: 3}}]}\n  \
         - {name: y, devices: ['0::2', '2::0'], processes: [{pid: 4100002, gpu: 0, load: {constant: 10}}, {pid: 4100002, gpu: 2, load: {constant: 9}}]}\n\
         - {name: b, containers: [{devices: ['1'], device_ids: [nvidia1, nvidia3/vgpu0, nvidia3/vgpu1]}]}\n\
         - {name: b, namespace: other, containers: [{devices: ['2::1', '0::3']}]}\n\
         processes: [{pid: 4100009, gpu: 0, load: {constant: 10}}, {pid: 4100009, gpu: 3}]\n",
    );
    let _kubelet = node.kubelet().await;
    for flags in [
        &[][..],
        &["--kubernetes-virtual-gpus"],
        &["--kubernetes-virtual-gpus", "--kubernetes-enable-pod-uid"],
        &["--kubernetes-enable-pod-uid", "--kubernetes-gpu-id-type=device-name", "--hostname-label=both"],
    ] {
        let exporter = node
            .exporter_with(|command| {
                node.in_kubernetes(command);
                command.args(flags);
            })
            .await;
        // Some pages, from the first on: parsing each looks for doubles.
        let page = exporter
            .until("the reason on the MPS GPU, and parts of the others", |page| {
                page.want(UNAVAILABLE, &[("gpu", "2"), ("reason", "mps_server")])?;
                // Its utilization is divided once all of the window is known.
                match page.all(UTIL, &[("pod", "a")]).len() {
                    0 | 1 => Err(format!("no parts of pod a with {flags:?} in\n{}", page.text)),
                    _ => Ok(page.clone()),
                }
            })
            .await;
        let uids = page.all(TEMP, &[("gpu", "1"), ("pod", "b")]);
        let wanted = flags.contains(&"--kubernetes-enable-pod-uid");
        assert!(!uids.is_empty() && uids.iter().all(|s| s.labels.contains_key("pod_uid") == wanted));
    }
}

/// The counters go on under a name; the sums of the last seconds are of one pod alone.
#[tokio::test]
async fn a_pod_that_takes_anothers_name_has_none_of_its_recent_seconds() {
    sums_begin_again_with_the_uid("podgauge_gpu_allocation", |uid| {
        format!(
            "gpus: [{{load: {{constant: 80}}}}]\n\
             pods: [{{name: web-0, uid: {uid}, containers: [{{devices: ['0']}}]}}]\n"
        )
    })
    .await;
}

/// The kubelet names no card for a virtual GPU, and a pod's processes are remembered for a minute.
#[tokio::test]
async fn a_pod_that_takes_anothers_name_and_virtual_gpu_is_known_by_its_process() {
    sums_begin_again_with_the_uid("podgauge_gpu_part_unknown", |uid| {
        let pid = if uid.ends_with('6') { 4_100_001 } else { 4_100_002 };
        format!(
            "gpus: [{{uuid: GPU-13719f71-412c-d11e-b236-a262f530a4fc}}]\n\
             pods:\n\
             - name: web-0\n  uid: {uid}\n  containers:\n\
            \x20 - device_ids: [GPU-23719f71-412c-d11e-b236-a262f530a4fc-3]\n\
            \x20   processes: [{{pid: {pid}, gpu: 0, load: {{constant: 80}}}}]\n"
        )
    })
    .await;
}

/// `family` has the UID of the pod on the page.
async fn sums_begin_again_with_the_uid(family: &str, yaml: impl Fn(&str) -> String) {
    const OBSERVED: &str = "podgauge_gpu_observed_seconds_total";
    const RECENT: &str = "podgauge_gpu_recent_observed_seconds";
    let uids = ["0f2e4a60-1111-4222-8333-444455556666", "0f2e4a60-1111-4222-8333-444455557777"];
    let node = Node::new(&yaml(uids[0]));
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let pod = [("pod", "web-0")];
    let of = |page: &Page, name: &str| page.value(name, &pod).ok_or_else(|| page.text.clone());
    let is_of = |page: &Page, uid: &str| {
        let all = page.all(family, &pod);
        all.iter().any(|sample| sample.labels.get("pod_uid").is_some_and(|known| known == uid))
    };
    let first = exporter
        .until("five seconds of the first pod", |page| match of(page, RECENT)? {
            5.0.. if is_of(page, uids[0]) => of(page, OBSERVED),
            _ => Err(page.text.clone()),
        })
        .await;
    // Of the last page that names the first pod.
    let counted = Cell::new(first);
    node.play(&yaml(uids[1]));
    exporter
        .until("two seconds of the second pod", |page| {
            if !is_of(page, uids[1]) {
                counted.set(of(page, OBSERVED)?);
                // Processes that are gone are remembered for 60 s, and name nobody meanwhile.
                assert!(counted.get() - first < 45.0, "{first}\n{}", page.text);
                return Err(page.text.clone());
            }
            let recent = of(page, RECENT)?;
            assert!(recent <= of(page, OBSERVED)? - counted.get() + 0.01, "{counted:?}\n{}", page.text);
            if recent >= 2.0 { Ok(()) } else { Err(page.text.clone()) }
        })
        .await;
}

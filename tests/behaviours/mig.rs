//! MIG: instances are devices of their own, with what they have of their own and their GPU's
//! values for the rest.

use podgauge_sim_nvml::scenario::{IdForm, Scenario};
use podgauge_tests::cluster::Cluster;
use podgauge_tests::node::Node;
use podgauge_tests::page::{Page, Sample};
use podgauge_tests::wait::until;

const ACTIVE: &str = "podgauge_gpu_active_seconds_total";
const OBSERVED: &str = "podgauge_gpu_observed_seconds_total";
const UTILIZATION: &str = "podgauge_gpu_utilization";

/// GPU 1 has two instances, listed at slots 2 and 5.
const CUT: &str = "
gpus:
  - load: {constant: 30}
  - nvlink: {links: 18, tx_mib_s: 1000, rx_mib_s: 1000}
    mig:
      instances:
        - {profile: 1g.10gb, gi: 7, slot: 2, load: {constant: 40}}
        - {profile: 3g.40gb, gi: 2, slot: 5, memory_mib: 40448}
processes: [{pid: 77, gpu: 1, gi: 2, load: {square: {low: 50, high: 90, period_s: 2}}, memory_mib: 4096}]
";

fn none() -> Vec<&'static Sample> {
    Vec::new()
}

/// A page on which the instances' utilization is known.
async fn measured(exporter: &podgauge_tests::program::Exporter, ids: &[&str]) -> Page {
    exporter
        .until("the instances' utilization", |page| {
            for id in ids {
                page.want(UTILIZATION, &[("GPU_I_ID", id)])?;
            }
            Ok(page.clone())
        })
        .await
}

#[tokio::test]
async fn a4_mig_lines_carry_profile_and_id_and_the_parents_uuid() {
    let node = Node::new(CUT);
    let exporter = node.exporter().await;
    let page = measured(&exporter, &["7", "2"]).await;
    for (id, profile) in [("7", "1g.10gb"), ("2", "3g.40gb")] {
        let clock = page.all("DCGM_FI_DEV_SM_CLOCK", &[("gpu", "1"), ("GPU_I_ID", id)])[0];
        let labels: Vec<(&str, &str)> = clock.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            labels,
            [
                ("DCGM_FI_DRIVER_VERSION", "580.159.04"),
                ("GPU_I_ID", id),
                ("GPU_I_PROFILE", profile),
                ("UUID", "GPU-00000000-0000-0000-0000-000000000001"),
                ("device", "nvidia1"),
                ("gpu", "1"),
                ("hostname", "gpu-node-0"),
                ("modelName", "NVIDIA H100 80GB HBM3"),
                ("pci_bus_id", "00000000:18:00.0"),
            ]
        );
        let order = format!("HBM3\",GPU_I_PROFILE=\"{profile}\",GPU_I_ID=\"{id}\",hostname=");
        assert!(page.text.contains(&order), "{}", page.text);
    }
    // A GPU that is cut has series of its instances alone; one that is not has no such labels.
    for name in page.families() {
        assert_eq!(page.all(name, &[("gpu", "1"), ("GPU_I_ID", "")]), none(), "{name}");
        assert_eq!(
            page.all(name, &[("gpu", "0"), ("GPU_I_ID", "")]).len(),
            page.all(name, &[("gpu", "0")]).len()
        );
    }
    // Memory is the instance's.
    let memory = |id| {
        ["USED", "FREE", "RESERVED"].map(|part| {
            page.value(&format!("DCGM_FI_DEV_FB_{part}"), &[("gpu", "1"), ("GPU_I_ID", id)]).unwrap()
        })
    };
    assert_eq!(memory("2"), [4096.0, 40448.0 - 4096.0, 0.0]);
    assert_eq!(memory("7"), [0.0, f64::from(81559 / 8), 0.0]);
    // The rest is the GPU's, the same for both.
    for family in ["POWER_USAGE", "GPU_TEMP", "MEM_CLOCK", "TOTAL_ENERGY_CONSUMPTION", "XID_ERRORS"] {
        let samples = page.all(&format!("DCGM_FI_DEV_{family}"), &[("gpu", "1")]);
        assert_eq!((samples.len(), samples[0].value), (2, samples[1].value), "{family}");
    }
    assert!(page.all("DCGM_FI_DEV_POWER_USAGE", &[("gpu", "1")])[0].value > 200.0, "{}", page.text);
    // NVML has none of these for a GPU that is cut; DCGM has no utilization of instances at all.
    for family in ["GPU_UTIL", "MEM_COPY_UTIL", "ENC_UTIL", "DEC_UTIL", "NVLINK_BANDWIDTH_TOTAL"] {
        assert_eq!(page.all(&format!("DCGM_FI_DEV_{family}"), &[("gpu", "1")]), none(), "{family}");
    }
    assert_eq!(page.value("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "0")]), Some(30.0));
    assert_eq!(page.all("podgauge_attribution_unavailable", &[]), none());
}

/// What `-d` selects: GPU and instance of every device on the page.
async fn selected(node: &Node, devices: &str, expected: &[(&str, &str)]) {
    let exporter = node
        .exporter_with(|command| {
            command.args(["-d", devices]);
        })
        .await;
    exporter
        .until(&format!("what {devices} selects"), |page| {
            let label = |sample: &Sample, name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            let up = page.all("podgauge_gpu_up", &[]);
            let found: Vec<(String, String)> =
                up.iter().map(|sample| (label(sample, "gpu"), label(sample, "GPU_I_ID"))).collect();
            let expected: Vec<(String, String)> =
                expected.iter().map(|(gpu, id)| ((*gpu).into(), (*id).into())).collect();
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    let page = exporter.page().await;
    // A GPU as a whole has its own temperature and memory, whether it is cut or not.
    for (gpu, id) in expected {
        for family in ["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_USED"] {
            assert_eq!(page.all(family, &[("gpu", gpu), ("GPU_I_ID", id)]).len(), 1, "{devices}: {family}");
        }
        assert_eq!(page.all("DCGM_FI_DEV_GPU_TEMP", &[]).len(), expected.len(), "{devices}");
    }
}

#[tokio::test]
async fn instances_and_whole_gpus_are_selected() {
    let node = Node::new(CUT);
    for (devices, expected) in [
        ("f", &[("0", ""), ("1", "2"), ("1", "7")][..]),
        ("g", &[("0", ""), ("1", "")]),
        ("g:1", &[("1", "")]),
        ("i", &[("1", "2"), ("1", "7")]),
        // The smaller one has the lower number.
        ("i:8", &[("1", "7")]),
        ("i:9", &[("1", "2")]),
        ("g:0+i:8-9", &[("0", ""), ("1", "2"), ("1", "7")]),
        ("g+i", &[("0", ""), ("1", ""), ("1", "2"), ("1", "7")]),
    ] {
        selected(&node, devices, expected).await;
    }
}

#[tokio::test]
async fn a_selected_instance_that_is_not_there_ends_the_start_and_none_at_all_is_waited_for() {
    let node = Node::new(CUT);
    for (devices, why) in [
        ("i:8,10", "--devices i:8,10: there is no MIG instance 10; GPU 1 has 2, numbered from 8"),
        ("i:0", "there is no MIG instance 0; GPU 0 has 0, numbered from 0"),
        ("i:16", "there is no MIG instance 16; this node has 2 GPUs"),
    ] {
        let mut exporter = node
            .exporter_with(|command| {
                command.args(["-d", devices]);
            })
            .await;
        assert_eq!(exporter.program.ended().await.code(), Some(1), "{devices}");
        exporter.program.logs(why, 1).await;
    }
    let uncut = Node::new("gpus: [{}, {}]");
    let mut exporter = uncut
        .exporter_with(|command| {
            command.args(["-d", "i"]);
        })
        .await;
    exporter.program.logged("selects MIG instances alone, and no GPU has any").await;
    assert_eq!(exporter.page().await.all("podgauge_gpu_up", &[]), none());
    uncut.play(CUT);
    measured(&exporter, &["7", "2"]).await;
}

#[tokio::test]
async fn an_instances_use_is_the_scenarios() {
    let node = Node::new(CUT);
    let exporter = node.exporter().await;
    let count = |page: &Page, id| {
        [ACTIVE, OBSERVED, "podgauge_gpu_device_active_seconds_total"]
            .map(|name| page.value(name, &[("gpu", "1"), ("GPU_I_ID", id)]).unwrap())
    };
    let before = measured(&exporter, &["7", "2"]).await;
    let after = exporter
        .until("ten more seconds", |page| {
            let observed = page.want(OBSERVED, &[("GPU_I_ID", "2")])?;
            if observed >= count(&before, "2")[1] + 10.0 {
                Ok(page.clone())
            } else {
                Err(observed.to_string())
            }
        })
        .await;
    let scenario = Scenario::parse(CUT).unwrap();
    for (id, gi) in [("7", 7), ("2", 2)] {
        let ([a0, o0, d0], [a1, o1, d1]) = (count(&before, id), count(&after, id));
        let truth = scenario.mean_instance_load(1, gi, 0, 1e9, 1e9 + 2.0).unwrap();
        // Half a period of the wave at either end, as far as a tick is off a period.
        let slack = if gi == 2 { 40.0 * 0.5 / (o1 - o0) } else { 0.0 };
        let measured = (a1 - a0) / (o1 - o0) * 100.0;
        assert!((measured - truth).abs() <= 1.0 + slack, "{id}: {measured} measured, {truth} true");
        assert!((d1 - d0 - (a1 - a0)).abs() < 1e-6, "{id}");
    }
    let gauge = after.value(UTILIZATION, &[("GPU_I_ID", "7")]).unwrap();
    assert!((gauge - 40.0).abs() <= 1.0, "{gauge}");
}

/// The profiling counters of an instance are its own; a GPU that is not cut keeps its.
#[tokio::test]
async fn profiling_counters_of_an_instance_are_its_own() {
    let node = Node::new(CUT);
    let file = node.path().join("counters.csv");
    std::fs::write(&file, "DCGM_FI_PROF_GR_ENGINE_ACTIVE, gauge, x\n").unwrap();
    let exporter = node
        .exporter_with(|command| {
            command.arg("-f").arg(file).args(["-c", "1000"]);
        })
        .await;
    let ratio =
        |page: &Page, gpu, id| page.want("DCGM_FI_PROF_GR_ENGINE_ACTIVE", &[("gpu", gpu), ("GPU_I_ID", id)]);
    let (whole, constant, wave) = exporter
        .until("the ratios", |page| {
            Ok((ratio(page, "0", "")?, ratio(page, "1", "7")?, ratio(page, "1", "2")?))
        })
        .await;
    assert!((whole - 0.3).abs() < 0.01 && (constant - 0.4).abs() < 0.01, "{whole} {constant}");
    assert!((0.49..=0.91).contains(&wave), "{wave}");
}

/// One pod for each form in which device plugins name instances.
fn held_in_every_form() -> String {
    let instances: Vec<String> = (1..=6)
        .map(|gi| format!("{{profile: 1g.10gb, gi: {gi}, load: {{constant: {}}}}}", 10 * gi))
        .collect();
    format!(
        "
gpus:
  - load: {{constant: 5}}
  - mig: {{instances: [{}]}}
pods:
  - {{name: uuid, containers: [{{devices: [1/gi1], resource: nvidia.com/mig-1g.10gb}}]}}
  - {{name: replica, containers: [{{devices: [\"1/gi2::7\"], resource: nvidia.com/gpu}}]}}
  - {{name: legacy, containers: [{{devices: [1/gi3], id_form: legacy, resource: nvidia.com/mig-1g.10gb}}]}}
  - {{name: gke, containers: [{{devices: [1/gi4], id_form: gke}}]}}
  - {{name: gke-shared, containers: [{{devices: [\"1/gi5::1\"], id_form: gke}}]}}
  - {{name: other, containers: [{{devices: [1/gi6], resource: example.com/mig-1g.10gb}}]}}
",
        instances.join(", ")
    )
}

#[tokio::test]
async fn c1_every_form_of_an_instances_id_gives_its_samples_the_pod() {
    let yaml = held_in_every_form();
    let node = Node::new(&yaml);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = measured(&exporter, &["1", "2", "3", "4", "5", "6"]).await;
    let scenario = Scenario::parse(&yaml).unwrap();
    let ids: Vec<String> =
        scenario.pods.iter().flat_map(|pod| pod.containers[0].device_ids(&scenario)).collect();
    assert!(
        ids[0].starts_with("MIG-") && ids[1].ends_with("::7") && ids[2].starts_with("MIG-GPU-"),
        "{ids:?}"
    );
    assert_eq!((ids[3].as_str(), ids[4].as_str()), ("nvidia1/gi4", "nvidia1/gi5/vgpu1"));
    assert_eq!(scenario.pods[3].containers[0].id_form, IdForm::Gke);
    for (id, pod) in [("1", "uuid"), ("2", "replica"), ("3", "legacy"), ("4", "gke"), ("5", "gke-shared")] {
        for family in ["DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_GPU_TEMP", ACTIVE, OBSERVED] {
            let samples = page.all(family, &[("gpu", "1"), ("GPU_I_ID", id)]);
            assert_eq!(samples.len(), 1, "{family} of {id}");
            let labels = ["namespace", "pod", "container"].map(|label| samples[0].labels[label].as_str());
            assert_eq!(labels, ["demo", pod, "main"], "{family} of {id}");
        }
        assert_eq!(page.value("podgauge_gpu_owners", &[("GPU_I_ID", id)]), Some(1.0), "{id}");
    }
    assert_eq!(page.value("podgauge_gpu_allocation", &[("pod", "uuid")]), Some(1.0));
    assert_eq!(page.all("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "0"), ("pod", "")]).len(), 1);
}

#[tokio::test]
async fn a_mig_instance_is_known_by_its_id_under_any_resource() {
    let node = Node::new(&held_in_every_form());
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = measured(&exporter, &["1", "6"]).await;
    assert_eq!(page.all("DCGM_FI_DEV_FB_USED", &[("GPU_I_ID", "1"), ("pod", "uuid")]).len(), 1);
    // Its resource is example.com/mig-1g.10gb, which nobody named.
    assert_eq!(page.all("DCGM_FI_DEV_FB_USED", &[("GPU_I_ID", "6"), ("pod", "other")]).len(), 1);
}

#[tokio::test]
async fn another_partition_is_followed_and_nothing_is_inherited() {
    let cut = |instances: &str| format!("gpus: [{{mig: {{instances: [{instances}]}}}}]");
    let node = Node::new(&cut(
        "{profile: 3g.40gb, gi: 1, load: {constant: 80}, xids: [13]}, {profile: 1g.10gb, gi: 7, load: {constant: 20}}",
    ));
    let exporter = node.exporter().await;
    let page = exporter
        .until("work and an XID", |page| {
            let active = page.want(ACTIVE, &[("GPU_I_ID", "1")])?;
            let xid = page.want("DCGM_FI_DEV_XID_ERRORS", &[("GPU_I_ID", "1"), ("err_code", "13")])?;
            if active > 2.0 && xid == 13.0 { Ok(page.clone()) } else { Err(page.text.clone()) }
        })
        .await;
    // The driver attributed the XID to one instance.
    assert_eq!(page.value("DCGM_FI_DEV_XID_ERRORS", &[("GPU_I_ID", "7"), ("err_code", "0")]), Some(0.0));
    let kept = page.value(ACTIVE, &[("GPU_I_ID", "7")]).unwrap();

    // Instance 1 is another one now, under the same id.
    node.play(&cut(
        "{profile: 2g.20gb, gi: 1, load: {constant: 50}}, {profile: 1g.10gb, gi: 7, load: {constant: 20}}",
    ));
    let page = exporter
        .until("the new instance", |page| {
            page.want(OBSERVED, &[("GPU_I_PROFILE", "2g.20gb")]).map(|_| page.clone())
        })
        .await;
    assert_eq!(page.all("podgauge_gpu_up", &[]).len(), 2, "{}", page.text);
    let xid = page.value("DCGM_FI_DEV_XID_ERRORS", &[("GPU_I_PROFILE", "2g.20gb"), ("err_code", "0")]);
    assert_eq!(xid, Some(0.0), "{}", page.text);
    // Half of what was seen of the new one; the old one's account was larger than that alone.
    let [active, observed] =
        [ACTIVE, OBSERVED].map(|family| page.value(family, &[("GPU_I_PROFILE", "2g.20gb")]).unwrap());
    assert!((active - observed / 2.0).abs() < 0.5, "{}", page.text);
    assert!(page.value(ACTIVE, &[("GPU_I_ID", "7")]).unwrap() >= kept, "an instance that stays goes on");
    let page = exporter
        .until("five seconds of it", |page| match page.want(OBSERVED, &[("GPU_I_PROFILE", "2g.20gb")])? {
            observed if observed >= 5.0 => Ok(page.clone()),
            observed => Err(observed.to_string()),
        })
        .await;
    let count = |name| page.value(name, &[("GPU_I_PROFILE", "2g.20gb")]).unwrap();
    // Of the old instance's 80 % nothing is in it.
    assert!((count(ACTIVE) / count(OBSERVED) * 100.0 - 50.0).abs() <= 1.0, "{}", page.text);

    // MIG is turned off: the GPU is one device again, with rings.
    node.play("gpus: [{load: {constant: 60}}]");
    let page = exporter
        .until("the whole GPU", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[]).map(|_| page.clone()))
        .await;
    assert_eq!(
        page.all("podgauge_gpu_up", &[]).len(),
        page.all("podgauge_gpu_up", &[("GPU_I_ID", "")]).len()
    );
    exporter
        .until("its counters", |page| match page.want(OBSERVED, &[("GPU_I_ID", "")])? {
            observed if observed > 2.0 => Ok(()),
            observed => Err(observed.to_string()),
        })
        .await;
    // On without an instance: the GPU itself is there, without utilization.
    node.play("gpus: [{load: {constant: 60}, mig: {}}]");
    exporter
        .until("a GPU in no parts", |page| {
            let gone = page.value("DCGM_FI_DEV_ENC_UTIL", &[]).is_none();
            page.want("DCGM_FI_DEV_GPU_TEMP", &[("GPU_I_ID", "")])?;
            if gone { Ok(()) } else { Err(page.text.clone()) }
        })
        .await;
    exporter.program.logs("MIG instances: 1 (2g.20gb), 7 (1g.10gb)", 1).await;
}

/// Before Hopper there is no GPM: no value, never 0, and the reason.
#[tokio::test]
async fn without_gpm_an_instance_has_no_utilization_and_says_why() {
    let yaml = |calls: &[&str], error: &str| {
        let errors: Vec<String> = calls.iter().map(|call| format!("{call}: {error}")).collect();
        format!(
            "
gpus: [{{errors: {{{}}}, mig: {{instances: [{{profile: 1g.5gb, gi: 9, load: {{constant: 50}}}}]}}}}]
pods: [{{name: a, labels: {{app: a}}, containers: [{{devices: [0/gi9], resource: nvidia.com/mig-1g.5gb}}]}}]
",
            errors.join(", ")
        )
    };
    let calls = ["nvmlGpmSampleGet", "nvmlGpmMigSampleGet", "nvmlGpmQueryDeviceSupport"];
    let cluster = Cluster::start(&yaml(&calls, "NOT_SUPPORTED")).await;
    let exporter = cluster.exporter.as_ref().unwrap();
    let reason = |page: &Page| {
        page.all("podgauge_attribution_unavailable", &[("GPU_I_ID", "9")])
            .first()
            .map(|s| s.labels["reason"].clone())
    };
    let page = exporter
        .until("the reason", |page| {
            page.want("DCGM_FI_DEV_FB_USED", &[("pod", "a")])?;
            if reason(page).as_deref() == Some("mig_without_gpm") {
                Ok(page.clone())
            } else {
                Err(page.text.clone())
            }
        })
        .await;
    for family in
        [ACTIVE, OBSERVED, UTILIZATION, "podgauge_gpu_device_active_seconds_total", "DCGM_FI_DEV_GPU_UTIL"]
    {
        assert_eq!(page.all(family, &[]), none(), "{family}");
    }
    assert_eq!(page.value("podgauge_gpu_allocation", &[("pod", "a")]), Some(1.0));
    exporter.program.logs("no utilization", 1).await;
    let aggregator = cluster.aggregator();
    until("the reason in the adapter's answer", || async {
        let answer = aggregator.hpa_request("demo", "app=a", "gpu_utilization").await.unwrap();
        let text = answer.text();
        if answer.status == 404 && text.contains("mig_without_gpm") { Ok(()) } else { Err(text) }
    })
    .await;
    cluster.node.play(&yaml(&calls[..2], "NO_PERMISSION"));
    let fresh = cluster.node.exporter_in_kubernetes().await;
    fresh
        .until("the other reason", |page| {
            if reason(page).as_deref() == Some("mig_gpm_not_permitted") {
                Ok(())
            } else {
                Err(page.text.clone())
            }
        })
        .await;
    // Once it is granted the use is read.
    cluster.node.play(&yaml(&[], ""));
    let page = measured(&fresh, &["9"]).await;
    assert_eq!(reason(&page), None);
}

#[tokio::test]
async fn an_hpa_reads_the_use_of_a_pods_instances() {
    const NODE: &str = "
gpus:
  - mig:
      instances:
        - {profile: 1g.10gb, gi: 7, load: {constant: 40}}
        - {profile: 3g.40gb, gi: 2, memory_mib: 40960, load: {constant: 90}}
        - {profile: 1g.10gb, gi: 9}
pods:
  - {name: small, labels: {app: x}, containers: [{devices: [0/gi7], resource: nvidia.com/mig-1g.10gb}]}
  - name: two
    labels: {app: x}
    containers:
      - devices: [0/gi2, 0/gi9]
        processes: [{pid: 4001, gpu: 0, gi: 2, memory_mib: 10240}, {pid: 4002, gpu: 0, gi: 9, load: {constant: 20}, memory_mib: 1024}]
";
    let cluster = Cluster::start(NODE).await;
    let aggregator = cluster.aggregator();
    for (pod, truth) in [("small", 40.0), ("two", 55.0)] {
        let value = cluster.value(&aggregator, pod, "gpu_utilization").await;
        assert!((value - truth).abs() <= 1.0, "{pod}: {value}, {truth} true");
    }
    let used = cluster.value(&aggregator, "two", "gpu_memory_used_bytes").await;
    assert_eq!(used, 11264.0 * 1024.0 * 1024.0);
    let memory = cluster.value(&aggregator, "two", "gpu_memory_utilization").await;
    let truth = 11264.0 / (40960.0 + f64::from(81559 / 8)) * 100.0;
    assert!((memory - truth).abs() < 0.1, "{memory}, {truth} true");
    let power = aggregator.hpa_request("demo", "app=x", "gpu_power_watts").await.unwrap();
    assert_eq!(power.status, 404);
    assert!(power.text().contains("MIG instance"), "{}", power.text());
}

/// Compute instances share the memory of their GPU instance: they are one device, of which a
/// container may hold a part. So is an instance of which replicas are made.
#[tokio::test]
async fn parts_of_an_instance_are_parts_of_one_device() {
    let node = Node::new(
        "
gpus:
  - mig:
      instances:
        - {profile: 1c.2g.20gb, gi: 3, ci: 0, memory_mib: 20480, load: {constant: 40}}
        - {profile: 1c.2g.20gb, gi: 3, ci: 1, memory_mib: 20480, load: {constant: 80}}
        - {profile: 1g.10gb, gi: 7, replicas: 4, load: {constant: 30}}
pods:
  - {name: half, containers: [{devices: [0/gi3/ci1], resource: nvidia.com/mig-1c.2g.20gb}]}
  - {name: one, containers: [{devices: [\"0/gi7::0\"]}]}
  - {name: more, containers: [{devices: [\"0/gi7::1\", \"0/gi7::2\"]}]}
",
    );
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = measured(&exporter, &["3", "7"]).await;
    let of = [("GPU_I_ID", "3"), ("GPU_I_PROFILE", "2g.20gb")];
    assert_eq!(page.all("DCGM_FI_DEV_FB_FREE", &of).len(), 1, "{}", page.text);
    assert_eq!(page.value("DCGM_FI_DEV_FB_FREE", &of), Some(20480.0));
    assert!((page.value(UTILIZATION, &of).unwrap() - 60.0).abs() <= 1.0, "{}", page.text);
    let part = |pod| page.value("podgauge_gpu_allocation", &[("pod", pod)]);
    assert_eq!([part("half"), part("one"), part("more")], [Some(0.5), Some(0.25), Some(0.5)]);
    // Whose the use of a shared instance is, nobody can tell.
    assert_eq!(page.all("DCGM_FI_DEV_GPU_TEMP", &[("GPU_I_ID", "7"), ("pod", "")]).len(), 1);
    for reason in ["no_process_utilization", "no_process_memory"] {
        let of = [("GPU_I_ID", "7"), ("reason", reason)];
        assert_eq!(page.value("podgauge_attribution_unavailable", &of), Some(1.0), "{reason}");
    }
    assert_eq!(page.value("podgauge_gpu_owners", &[("GPU_I_ID", "7")]), Some(2.0));
}

#[tokio::test]
async fn a_lost_gpu_takes_its_instances_along_and_they_come_back() {
    let yaml = |errors: &str| {
        format!(
            "gpus: [{{{errors}mig: {{instances: [{{profile: 1g.10gb, gi: 7, load: {{constant: 40}}}}, {{profile: 1g.10gb, \
             gi: 8}}]}}}}, {{load: {{constant: 20}}}}]"
        )
    };
    let node = Node::new(&yaml(""));
    let exporter = node.exporter().await;
    let before = measured(&exporter, &["7", "8"]).await.value(ACTIVE, &[("GPU_I_ID", "7")]).unwrap();
    node.play(&yaml("errors: {all: GPU_IS_LOST}, "));
    let page = exporter
        .until("the loss", |page| match page.want("podgauge_gpu_up", &[("GPU_I_ID", "8")])? {
            0.0 => Ok(page.clone()),
            up => Err(up.to_string()),
        })
        .await;
    assert_eq!(page.value("podgauge_gpu_up", &[("GPU_I_ID", "7")]), Some(0.0));
    for family in ["DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE", UTILIZATION] {
        assert_eq!(page.all(family, &[("gpu", "0")]), none(), "{family}");
    }
    // XIDs say why.
    assert_eq!(page.all("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "0")]).len(), 2);
    assert!(page.value("DCGM_FI_DEV_GPU_TEMP", &[("gpu", "1")]).is_some());
    node.play(&yaml(""));
    let after = exporter
        .until("its return", |page| {
            page.want("DCGM_FI_DEV_FB_USED", &[("GPU_I_ID", "8")])?;
            page.want(ACTIVE, &[("GPU_I_ID", "7")])
        })
        .await;
    assert!(after >= before, "{after} after {before}");
}

/// 8 GPUs of 7 instances and 100 pods: every instance has every family, each with its pod.
#[tokio::test]
async fn a_node_full_of_instances_serves_a_complete_page() {
    let instances: Vec<String> = (0..7)
        .map(|gi| format!("{{profile: 1g.10gb, gi: {}, load: {{constant: {}}}}}", 7 + gi, 10 + 10 * gi))
        .collect();
    let mut yaml = String::from("gpus:\n");
    for _ in 0..8 {
        yaml += &format!("  - mig: {{instances: [{}]}}\n", instances.join(", "));
    }
    yaml += "pods:\n";
    for pod in 0..100 {
        let device = if pod < 56 { format!("{}/gi{}", pod / 7, 7 + pod % 7) } else { String::new() };
        yaml += &format!(
            "  - {{name: p{pod}, containers: [{{devices: [{device}], resource: nvidia.com/mig-1g.10gb}}]}}\n"
        );
    }
    let node = Node::new(&yaml);
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    let page = exporter
        .until("every instance", |page| {
            let known = page.all(UTILIZATION, &[]).len();
            if known == 56 { Ok(page.clone()) } else { Err(known) }.map_err(|known: usize| known.to_string())
        })
        .await;
    let families = [
        "SM_CLOCK",
        "MEM_CLOCK",
        "MEMORY_TEMP",
        "GPU_TEMP",
        "POWER_USAGE",
        "TOTAL_ENERGY_CONSUMPTION",
        "PCIE_REPLAY_COUNTER",
        "XID_ERRORS",
        "FB_FREE",
        "FB_USED",
        "FB_RESERVED",
        "VGPU_LICENSE_STATUS",
    ]
    .map(|family| format!("DCGM_FI_DEV_{family}"));
    for pod in 0..56 {
        let (gpu, gi, name) = ((pod / 7).to_string(), (7 + pod % 7).to_string(), format!("p{pod}"));
        let device = [("gpu", gpu.as_str()), ("GPU_I_ID", gi.as_str())];
        for family in families.iter().map(String::as_str).chain([ACTIVE, OBSERVED, "podgauge_gpu_allocation"])
        {
            let samples = page.all(family, &device);
            assert_eq!(samples.len(), 1, "{family} {device:?}");
            assert_eq!(samples[0].labels["pod"], name, "{family} {device:?}");
            assert_eq!(samples[0].labels["GPU_I_PROFILE"], "1g.10gb");
        }
        let truth = f64::from(10 + 10 * (pod % 7));
        let used = page.value(UTILIZATION, &device).unwrap();
        assert!((used - truth).abs() <= 1.0, "{device:?}: {used}, {truth} true");
    }
    for family in &families {
        assert_eq!(page.all(family, &[]).len(), 56, "{family}");
    }
}

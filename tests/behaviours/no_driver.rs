//! A node without a driver or without GPUs: the exporter stays, says why, and recovers by itself.

use podgauge_tests::node::Node;
use podgauge_tests::nvml_library;

#[tokio::test]
async fn d4_a_missing_library_is_waited_for() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let library = node.path().join("driver/libnvidia-ml.so.1");
    let exporter = podgauge_tests::program::Exporter::start(|command| {
        command.arg("--nvml-library").arg(&library).env("PODGAUGE_SIM_SCENARIO", node.scenario());
    })
    .await;
    exporter.unready(&[library.to_str().unwrap(), "driver"]).await;
    assert_eq!(exporter.get("/health").await.status(), 200);
    let page = exporter.get("/metrics").await;
    assert_eq!((page.status().as_u16(), page.body().len()), (200, 0));
    assert_eq!(page.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");

    std::fs::create_dir(library.parent().unwrap()).unwrap();
    std::fs::copy(nvml_library(), library.with_extension("part")).unwrap();
    std::fs::rename(library.with_extension("part"), &library).unwrap();
    exporter.ready(200).await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_TEMP", &[])).await;
    exporter.program.logs("no GPU values", 1).await;
}

#[tokio::test]
async fn d4_no_gpu_and_no_driver_have_their_reasons_and_gpus_may_come() {
    let node = Node::new("gpus: []");
    let exporter = node.exporter().await;
    exporter.unready(&["no GPU"]).await;
    node.play("gpus: []\nerrors: {nvmlInit_v2: DRIVER_NOT_LOADED}");
    exporter.unready(&["driver"]).await;
    node.play("gpus: [{load: {constant: 1}}, {load: {constant: 2}}]");
    exporter.ready(200).await;
    exporter.until("both GPUs", |page| page.want("podgauge_gpu_up", &[("gpu", "1")])).await;
    // A third one is plugged in.
    node.play("gpus: [{}, {}, {}]");
    exporter.until("the third GPU", |page| page.want("podgauge_gpu_up", &[("gpu", "2")])).await;
}

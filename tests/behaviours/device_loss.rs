//! One bad GPU is one bad GPU, and a driver call that hangs takes no scrape with it.

use std::cell::Cell;

use podgauge_tests::node::Node;

#[tokio::test]
async fn d3_a_lost_gpu_leaves_the_others_alone_and_comes_back() {
    let healthy = "gpus: [{load: {constant: 30}}, {load: {constant: 40}}]";
    let node = Node::new(healthy);
    let exporter = node.exporter().await;
    exporter.until("both", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "1")])).await;
    node.play("gpus: [{load: {constant: 30}}, {load: {constant: 40}, errors: {all: GPU_IS_LOST}}]");
    let page = exporter
        .until("the loss", |page| match page.want("podgauge_gpu_up", &[("gpu", "1")])? {
            0.0 => Ok(page.clone()),
            up => Err(up.to_string()),
        })
        .await;
    assert_eq!(
        page.all("DCGM_FI_DEV_SM_CLOCK", &[("gpu", "1")]),
        Vec::<&podgauge_tests::page::Sample>::new()
    );
    assert_eq!(page.value("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "1")]), None);
    assert_eq!(page.value("podgauge_gpu_up", &[("gpu", "0")]), Some(1.0));
    assert!(page.value("DCGM_FI_DEV_GPU_UTIL", &[("gpu", "0")]).is_some());
    node.play(healthy);
    exporter.until("its return", |page| page.want("DCGM_FI_DEV_SM_CLOCK", &[("gpu", "1")])).await;
    exporter.program.logs("is lost", 1).await;
}

#[tokio::test]
async fn a_call_that_hangs_drops_the_values_and_answers_every_scrape() {
    let node = Node::new("gpus: [{load: {constant: 30}}]");
    let exporter = node
        .exporter_with(|command| {
            command.arg("--enable-exporter-metrics");
        })
        .await;
    exporter.until("values", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[])).await;
    node.play("gpus: [{load: {constant: 30}, blocks: {nvmlDeviceGetClockInfo: 12}}]");
    let oldest = Cell::new(0.0);
    exporter
        .until("the values to be dropped", |page| match page.value("podgauge_gpu_up", &[]) {
            None => Ok(()),
            Some(_) => {
                let age = page.want("podgauge_exporter_readings_age_seconds", &[])?;
                oldest.set(f64::max(oldest.get(), age));
                Err(page.text.clone())
            }
        })
        .await;
    let oldest = oldest.get();
    assert!((2.0..6.0).contains(&oldest), "values are kept while they are fresh: {oldest} s");
    exporter.unready(&["does not return"]).await;
    node.play("gpus: [{load: {constant: 30}}]");
    exporter.ready(200).await;
    exporter.until("values again", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[])).await;
}

#[tokio::test]
async fn an_xid_is_told() {
    let node = Node::new("gpus: [{}, {}]");
    let exporter = node.exporter().await;
    exporter
        .until("no XID", |page| page.want("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "1"), ("err_code", "0")]))
        .await;
    node.play("gpus: [{}, {xids: [79]}]");
    let value = exporter
        .until("the XID", |page| {
            page.want("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "1"), ("err_msg", "GPU has fallen off the bus")])
        })
        .await;
    assert_eq!(value, 79.0);
    assert_eq!(exporter.page().await.value("DCGM_FI_DEV_XID_ERRORS", &[("gpu", "0")]), Some(0.0));
}

//! A real Prometheus scrapes the exporter for a minute.

use std::process::Command;
use std::time::Duration;

use podgauge_sim::free_address;
use podgauge_tests::client;
use podgauge_tests::node::Node;
use podgauge_tests::program::{Program, tool};
use podgauge_tests::wait::until_within;
use serde_json::Value;

/// Percent-encodes everything but letters and digits.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// The values of an instant query, with their labels.
async fn query(prometheus: &str, promql: &str) -> Result<Vec<(Value, f64)>, String> {
    let path = format!("/api/v1/query?query={}", encode(promql));
    let response =
        client::get(prometheus, &path, &http::HeaderMap::new()).await.map_err(|error| error.to_string())?;
    let body: Value = serde_json::from_slice(response.body()).map_err(|error| error.to_string())?;
    let results = body["data"]["result"].as_array().ok_or_else(|| body.to_string())?;
    Ok(results
        .iter()
        .map(|result| (result["metric"].clone(), result["value"][1].as_str().unwrap().parse().unwrap()))
        .collect())
}

#[tokio::test]
async fn a_minute_of_scrapes_gives_the_scenarios_means() {
    let node = Node::new(
        "gpus: [{load: {square: {low: 20, high: 60, period_s: 2}}}, {load: {constant: 33}}, {load: {constant: 0}}]\n\
         pods: [{name: wave, containers: [{devices: [\"0\"]}]}, {name: even, containers: [{devices: [\"1\"]}]}]",
    );
    let _kubelet = node.kubelet().await;
    let exporter = node.exporter_in_kubernetes().await;
    exporter.until("labels", |page| page.want("DCGM_FI_DEV_GPU_UTIL", &[("pod", "wave")])).await;

    let config = node.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 5s, scrape_timeout: 4s}}\n\
         scrape_configs: [{{job_name: gpus, honor_labels: true, static_configs: [{{targets: ['{}']}}]}}]\n",
        exporter.address
    );
    std::fs::write(&config, text).unwrap();
    let free = free_address().unwrap();
    let mut command = Command::new(tool("prometheus").get_program());
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", node.path().join("tsdb").display()))
        .arg(format!("--web.listen-address={free}"));
    let prometheus = Program::start("prometheus", command);
    let address = free.to_string();

    let minute = Duration::from_secs(180);
    until_within(minute, "a minute of scrapes", || async {
        match query(&address, "count_over_time(up[2m])").await?.first() {
            Some((_, scrapes)) if *scrapes >= 13.0 => Ok(()),
            other => Err(format!("{other:?}\n{}", prometheus.log())),
        }
    })
    .await;
    let one = |found: Vec<(Value, f64)>| -> f64 {
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].1
    };
    assert_eq!(one(query(&address, "min_over_time(up[1m])").await.unwrap()), 1.0);
    // Nothing that was scraped was refused: out of order, duplicate, or cut off.
    let scraped = one(query(&address, "scrape_samples_scraped").await.unwrap());
    let kept = one(query(&address, "scrape_samples_post_metric_relabeling").await.unwrap());
    assert_eq!(scraped, kept);
    let stored =
        one(query(&address, "count({job=\"gpus\",__name__=~\"DCGM_.*|podgauge_.*\"})").await.unwrap());
    assert_eq!(stored, scraped);
    assert!(!prometheus.log().contains("level=warn"), "{}", prometheus.log());

    let mean = |pod: &str| {
        format!(
            "100 * increase(podgauge_gpu_active_seconds_total{{pod=\"{pod}\"}}[1m]) \
             / increase(podgauge_gpu_observed_seconds_total{{pod=\"{pod}\"}}[1m])"
        )
    };
    // A whole number of periods of the wave: its mean is 40.
    for (pod, truth) in [("wave", 40.0), ("even", 33.0), ("", 0.0)] {
        let measured = one(query(&address, &mean(pod)).await.unwrap());
        assert!((measured - truth).abs() <= 0.5, "{pod}: {measured} measured, {truth} true");
    }
}

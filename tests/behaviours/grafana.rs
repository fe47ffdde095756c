//! The expressions of Grafana's dashboard 12239 against a real Prometheus.

use std::process::Command;

use podgauge_sim::free_address;
use podgauge_tests::node::Node;
use podgauge_tests::program::{Program, tool};
use podgauge_tests::{client, wait::until};
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

async fn ask(prometheus: &str, path: &str) -> Result<Value, String> {
    let response =
        client::get(prometheus, path, &http::HeaderMap::new()).await.map_err(|error| error.to_string())?;
    let body: Value = serde_json::from_slice(response.body()).map_err(|error| error.to_string())?;
    if body["status"] == "success" { Ok(body["data"].clone()) } else { Err(body.to_string()) }
}

#[tokio::test]
async fn a12_every_panel_of_dashboard_12239_has_data() {
    let node = Node::new("gpus: [{load: {constant: 40}}, {load: {constant: 80}}]");
    let exporter = node.exporter().await;
    exporter
        .until("profiling counters", |page| page.want("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", &[("gpu", "1")]))
        .await;
    let config = node.path().join("prometheus.yml");
    let target = &exporter.address;
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: gpus, static_configs: [{{targets: ['{target}']}}]}}]\n"
        ),
    )
    .unwrap();
    let address = free_address().unwrap().to_string();
    let mut command = Command::new(tool("prometheus").get_program());
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", node.path().join("tsdb").display()))
        .arg(format!("--web.listen-address={address}"));
    let prometheus = Program::start("prometheus", command);

    // The dashboard's two variables are the values of labels of the temperature.
    let temperature = "DCGM_FI_DEV_GPU_TEMP";
    for (label, values) in [("instance", vec![target.as_str()]), ("gpu", vec!["0", "1"])] {
        let path = format!("/api/v1/label/{label}/values?match%5B%5D={temperature}");
        let found = until("the variables", || async {
            let found = ask(&address, &path).await?;
            if found.as_array().is_some_and(|found| !found.is_empty()) {
                Ok(found)
            } else {
                Err(prometheus.log())
            }
        })
        .await;
        assert_eq!(found, serde_json::json!(values), "{label}");
    }
    let of = |name: &str| format!("{name}{{instance=~\"{target}\", gpu=~\"(0|1)\"}}");
    let watts = (69.635 + 621.234 * 0.4) + (69.635 + 621.234 * 0.8);
    // Each panel: expression, series, and a truth where the load gives one.
    let panels = [
        (of(temperature), 2, None),
        (format!("avg({})", of(temperature)), 1, None),
        (of("DCGM_FI_DEV_POWER_USAGE"), 2, None),
        (format!("sum({})", of("DCGM_FI_DEV_POWER_USAGE")), 1, Some(watts)),
        (format!("{} * 1000000", of("DCGM_FI_DEV_SM_CLOCK")), 2, None),
        (of("DCGM_FI_DEV_GPU_UTIL"), 2, Some(40.0)),
        (of("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), 2, Some(0.935 * 0.4)),
        (of("DCGM_FI_DEV_FB_USED"), 2, None),
    ];
    for (expression, series, truth) in panels {
        let path = format!("/api/v1/query?query={}", encode(&expression));
        // A scrape that is late for once takes the series away until the next one.
        let mut values = until(&expression, || async {
            let found = ask(&address, &path).await?;
            let found = found["result"].as_array().unwrap();
            let values: Vec<f64> =
                found.iter().map(|one| one["value"][1].as_str().unwrap().parse().unwrap()).collect();
            if values.len() == series { Ok(values) } else { Err(format!("{found:?}")) }
        })
        .await;
        values.sort_by(f64::total_cmp);
        if let Some(truth) = truth {
            assert!((values[0] / truth - 1.0).abs() < 0.03, "{expression}: {values:?}, true {truth}");
        }
        // The unit of clocks is baked into the panel: hertz from MHz.
        if expression.contains("CLOCK") {
            assert!(values.iter().all(|hertz| (1e9..3e9).contains(hertz)), "{values:?}");
        }
    }
}

//! `podgauge-sim demo --once` judges itself.

use std::process::Command;

use podgauge_tests::built;
use podgauge_tests::program::run;

#[tokio::test]
async fn the_demo_is_right_about_every_pod() {
    let output =
        tokio::task::spawn_blocking(|| run(Command::new(built("podgauge-sim")).args(["demo", "--once"])))
            .await
            .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{table}{errors}");
    assert!(table.lines().next().unwrap().contains("simulated"), "{table}");
    for pod in ["demo/chat-0", "demo/wave-0", "demo/train-0", "demo/idle-0", "demo/share-a", "demo/mps-a"] {
        assert!(table.contains(pod), "no {pod} in\n{table}");
    }
}

/// A scenario that lies about its truth is found out: the verdict is no formality.
#[tokio::test]
async fn the_demo_finds_a_wrong_answer() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("wrong.yaml");
    // The driver reports another GPU's load: utilization calls fail, so no pod can have a value.
    std::fs::write(
        &scenario,
        "gpus: [{load: {constant: 50}, errors: {nvmlDeviceGetSamples: NOT_SUPPORTED, nvmlDeviceGetUtilizationRates: NOT_SUPPORTED}}]\n\
         pods: [{name: a, containers: [{devices: [\"0\"]}]}]\n",
    )
    .unwrap();
    let output = tokio::task::spawn_blocking(move || {
        run(Command::new(built("podgauge-sim")).args(["demo", "--once", "--scenario"]).arg(scenario))
    })
    .await
    .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("WRONG"), "{table}");
}

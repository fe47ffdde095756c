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

/// The table of `demo --once` of a scenario, of which it says that it is wrong.
async fn wrong(scenario: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.yaml");
    std::fs::write(&file, scenario).unwrap();
    let output = tokio::task::spawn_blocking(move || {
        run(Command::new(built("podgauge-sim")).args(["demo", "--once", "--scenario"]).arg(file))
    })
    .await
    .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    table
}

/// The verdict is no formality: NVML's samples are wrong about services of unlike requests.
#[tokio::test]
async fn the_demo_finds_a_wrong_answer() {
    let table = wrong(
        "gpus: [{replicas: 2}]\n\
         pods:\n\
         - name: long\n  containers:\n  - devices: ['0::0']\n\
        \x20   processes: [{pid: 4100001, gpu: 0, load: {requests: {ms: 5.3, percent: 40}}}]\n\
         - name: short\n  containers:\n  - devices: ['0::1']\n\
        \x20   processes: [{pid: 4100002, gpu: 0, load: {requests: {ms: 0.43, percent: 20}}}]\n",
    )
    .await;
    let words = ["WRONG: demo/long: ", "% was answered, the truth is 80.0 %", "WRONG: demo/short: "];
    words.iter().for_each(|word| assert!(table.contains(word), "no {word:?} in\n{table}"));
}

#[tokio::test]
async fn the_demo_finds_an_answer_that_is_missing() {
    let table = wrong(
        "gpus: [{load: {constant: 50}, errors: {nvmlDeviceGetSamples: NOT_SUPPORTED, nvmlDeviceGetUtilizationRates: NOT_SUPPORTED}}]\n\
         pods: [{name: a, containers: [{devices: [\"0\"]}]}]\n",
    )
    .await;
    assert!(table.contains("WRONG: demo/a: not answered: "), "{table}");
}

//! Bad input ends the exporter at start with one clear line and the right exit code.

use std::process::Command;

use podgauge_tests::program::run;
use podgauge_tests::{built, nvml_library};

/// Runs the exporter with these arguments and gives its exit code and the error lines of its log.
fn exporter(args: &[&str]) -> (i32, Vec<String>) {
    let output = run(Command::new(built("podgauge-exporter")).args(args).env_remove("RUST_LOG"));
    let log = String::from_utf8(output.stderr).unwrap();
    let errors = log.lines().filter(|line| line.contains("ERROR") || line.starts_with("error:"));
    (output.status.code().unwrap(), errors.map(str::to_owned).collect())
}

#[track_caller]
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let (exit, errors) = exporter(args);
    assert_eq!(exit, code, "{args:?}: {errors:?}");
    let [line] = errors.as_slice() else { panic!("{args:?}: not one error line: {errors:#?}") };
    for word in words {
        assert!(line.contains(word), "{args:?}: no {word:?} in {line:?}");
    }
}

#[test]
fn a_counters_file_that_cannot_be_read_is_named() {
    refused(&["-f", "/nonexistent/counters.csv"], 1, &["/nonexistent/counters.csv", "No such file"]);
}

#[test]
fn every_wrong_line_is_named_at_once_with_file_text_and_cause() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counters.csv");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "# mine\nDCGM_FI_DEV_GPU_UTIL, gauge, ok\ngpu_util, gauge, x\n").unwrap();
    refused(&["-f", path], 1, &[&format!("{path}:3: gpu_util, gauge, x: "), "not the name of a DCGM field"]);
    std::fs::write(&file, "DCGM_FI_DEV_GPU_UTIL, gauge\n").unwrap();
    refused(&["-f", path], 1, &[&format!("{path}:1: "), "want 3"]);

    std::fs::write(
        &file,
        "DCGM_FI_DEV_GPU_UTIL, gage, x\n\nDCGM_FI_DEV_GPU_TEMP\nDCGM_FI_DEV_FB_USED, gauge, \"x\n",
    )
    .unwrap();
    let output = run(Command::new(built("podgauge-exporter")).args(["-f", path]).env_remove("RUST_LOG"));
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    for line in [
        "1: DCGM_FI_DEV_GPU_UTIL, gage, x: \"gage\" is not a metric type",
        "3: DCGM_FI_DEV_GPU_TEMP: 1 columns, want 3",
        "4: DCGM_FI_DEV_FB_USED, gauge, \"x: the quote that begins in it is not closed",
    ] {
        assert!(log.contains(&format!("{path}:{line}")), "{line} in {log}");
    }
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["-a", &address], 1, &[&address, "in use"]);
    refused(&["-a", "nonsense"], 1, &["nonsense", "listen address"]);
}

#[test]
fn a_library_that_is_not_nvml_is_named() {
    refused(
        &["-a", "127.0.0.1:0", "--nvml-library", "/etc/passwd"],
        1,
        &["/etc/passwd", "not an NVML library"],
    );
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("libother.so");
    let init = ["nvmlInit_v2".to_owned()];
    podgauge_sim_nvml::library::write_library_without(&nvml_library(), &other, &init).unwrap();
    let path = other.to_str().unwrap();
    refused(&["-a", "127.0.0.1:0", "--nvml-library", path], 1, &[path, "not an NVML library", "nvmlInit_v2"]);
}

#[test]
fn wrong_usage_exits_with_2() {
    refused(&["--no-such-flag"], 2, &["--no-such-flag"]);
    refused(&["-c", "soon"], 2, &["soon", "--collect-interval"]);
    refused(&["--kubernetes=perhaps"], 2, &["perhaps", "--kubernetes"]);
}

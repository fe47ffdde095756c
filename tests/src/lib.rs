//! What the behaviours are made with: the shipped programs as processes, the simulated node
//! around them, real Prometheus tools, and waiting for events.

// A failed unwrap is a failed test.
#![allow(clippy::unwrap_used)]

pub mod client;
pub mod cluster;
pub mod deploy;
pub mod fake_exporter;
pub mod fleet;
pub mod flood;
pub mod lacking;
pub mod managed;
pub mod node;
pub mod page;
pub mod program;
pub mod python;
pub mod raw;
pub mod wait;

use std::path::{Path, PathBuf};

/// The folder with the built programs, `target/<profile>`.
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("because a running program has a path");
    // target/<profile>/deps/behaviours-<hash>
    test.ancestors().nth(2).map(Path::to_owned).expect("because cargo runs tests in target/<profile>/deps")
}

/// The path of a built program or library. Panics with what to do if it is not there.
pub fn built(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(path.exists(), "{} is not built; run `make build` first, or `make test`", path.display());
    path
}

/// The simulated libnvidia-ml.
pub fn nvml_library() -> PathBuf {
    built("libpodgauge_sim_nvml.so")
}

/// A folder of the checkout.
pub fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("because tests/ is in the checkout").join(path)
}

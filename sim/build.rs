//! Compiles the kubelet's pod-resources proto in pure Rust: no protoc is needed. The simulation
//! serves it; the client is there for tests that ask a kubelet themselves.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../exporter/proto/podresources.proto");
    let descriptors = protox::compile(["podresources.proto"], ["../exporter/proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

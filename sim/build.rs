//! Compiles the kubelet's pod-resources proto to a server, in pure Rust: no protoc is needed.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../exporter/proto/podresources.proto");
    let descriptors = protox::compile(["podresources.proto"], ["../exporter/proto"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}

//! Compiles the kubelet's pod-resources proto to a client, in pure Rust: no protoc is needed.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/podresources.proto");
    let descriptors = protox::compile(["podresources.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}

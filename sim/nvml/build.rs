//! Links the library so that it stays loaded once it is.
//!
//! An exporter that lost its GPUs closes the library and opens it again. The real driver
//! remembers across that which events it delivered, and so must this one, whose memory is the
//! library's own.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}

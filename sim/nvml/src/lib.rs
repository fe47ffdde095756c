//! A GPU node's NVML without a GPU: libnvidia-ml's C ABI as a shared library, driven by the
//! scenario file named in `PODGAUGE_SIM_SCENARIO`.
//!
//! As a Rust library it is what the other parts of the simulation share: the scenario's types,
//! the file trees that go with it, and a way to make a library that lacks some of its calls.

mod abi;
pub mod library;
pub mod load;
mod model;
mod pci;
pub mod recording;
pub mod scenario;
mod status;
pub mod switching;
pub mod trees;

pub use library::{LibraryError, write_library_without};
pub use model::SCENARIO_VARIABLE;

//! A GPU node's NVML without a GPU: libnvidia-ml's C ABI as a shared library, driven by the
//! scenario file named in `PODGAUGE_SIM_SCENARIO`.

pub mod load;
pub mod scenario;

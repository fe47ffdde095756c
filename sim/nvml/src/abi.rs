//! Owns NVML's C ABI: the exported calls, each a thin layer over the model.

mod arguments;
mod call;
mod clocks;
mod devices;
mod events;
mod fields;
mod gpm;
mod health;
mod library;
mod links;
mod memory;
mod mig;
mod modes;
mod processes;
mod utilization;

/// Name of every exported call.
pub(crate) fn calls() -> impl Iterator<Item = &'static str> {
    [
        clocks::CALLS,
        devices::CALLS,
        events::CALLS,
        events::WAIT,
        fields::CALLS,
        gpm::CALLS,
        health::CALLS,
        library::CALLS,
        library::UNGUARDED,
        links::CALLS,
        memory::CALLS,
        mig::CALLS,
        modes::CALLS,
        processes::CALLS,
        utilization::CALLS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// A call's name without its version.
pub(crate) fn base(call: &str) -> &str {
    match call.rsplit_once("_v") {
        Some((base, version)) if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => call,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_exported_once_and_versions_come_off() {
        let mut all: Vec<&str> = calls().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), all.iter().all(|call| call.starts_with("nvml"))), (count, true));
        assert_eq!(
            ["nvmlInit_v2", "nvmlX_v12", "nvmlX_v", "nvmlX"].map(base),
            ["nvmlInit", "nvmlX", "nvmlX_v", "nvmlX"]
        );
    }
}

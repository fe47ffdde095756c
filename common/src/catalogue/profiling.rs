//! Owns the table of profiling metrics: GPM of Hopper and newer.

use super::links::row;
use super::served::metrics;
use super::{GpmUnit, Kind, Metric, Reading};

const fn ratio(metric: u32) -> Reading {
    Reading::Gpm { metric, unit: GpmUnit::Ratio }
}

const fn bytes(metric: u32) -> Reading {
    Reading::Gpm { metric, unit: GpmUnit::Bytes }
}

const fn integer(metric: u32) -> Reading {
    Reading::Gpm { metric, unit: GpmUnit::Integer }
}

pub(super) const ENGINES: &[Metric] = metrics! {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE" Some(1001), Gauge Instance "ratio" ratio(1)
        => "Part of the time in which the graphics engine was active."
    "DCGM_FI_PROF_SM_ACTIVE" Some(1002), Gauge Instance "ratio" ratio(2)
        => "Part of the cycles in which a multiprocessor had a warp, mean over all of them."
    "DCGM_FI_PROF_SM_OCCUPANCY" Some(1003), Gauge Instance "ratio" ratio(3)
        => "Warps on a multiprocessor divided by the most it can hold."
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE" Some(1004), Gauge Instance "ratio" ratio(5)
        => "Part of the cycles in which the tensor pipe was active."
    "DCGM_FI_PROF_DRAM_ACTIVE" Some(1005), Gauge Instance "ratio" ratio(10)
        => "Part of the cycles in which the memory interface was active."
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE" Some(1006), Gauge Instance "ratio" ratio(11)
        => "Part of the cycles in which the FP64 pipe was active."
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE" Some(1007), Gauge Instance "ratio" ratio(12)
        => "Part of the cycles in which the FP32 pipe was active."
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE" Some(1008), Gauge Instance "ratio" ratio(13)
        => "Part of the cycles in which the FP16 pipe was active."
    "DCGM_FI_PROF_PCIE_TX_BYTES" Some(1009), Gauge Gpu "B/s" bytes(20)
        => "Bytes per second that the GPU sent over PCIe."
    "DCGM_FI_PROF_PCIE_RX_BYTES" Some(1010), Gauge Gpu "B/s" bytes(21)
        => "Bytes per second that the GPU received over PCIe."
    "DCGM_FI_PROF_NVLINK_TX_BYTES" Some(1011), Gauge Gpu "B/s" bytes(61)
        => "Bytes per second that the GPU sent over NVLink."
    "DCGM_FI_PROF_NVLINK_RX_BYTES" Some(1012), Gauge Gpu "B/s" bytes(60)
        => "Bytes per second that the GPU received over NVLink."
    "DCGM_FI_PROF_PIPE_TENSOR_IMMA_ACTIVE" Some(1013), Gauge Instance "ratio" ratio(9)
        => "Part of the cycles in which the tensor pipe multiplied integers."
    "DCGM_FI_PROF_PIPE_TENSOR_HMMA_ACTIVE" Some(1014), Gauge Instance "ratio" ratio(7)
        => "Part of the cycles in which the tensor pipe multiplied halves."
    "DCGM_FI_PROF_PIPE_TENSOR_DFMA_ACTIVE" Some(1015), Gauge Instance "ratio" ratio(6)
        => "Part of the cycles in which the tensor pipe multiplied doubles."
    "DCGM_FI_PROF_PIPE_INT_ACTIVE" Some(1016), Gauge Instance "ratio" ratio(4)
        => "Part of the cycles in which the integer pipe was active."
    "DCGM_FI_PROF_C2C_TX_ALL_BYTES" Some(1076), Gauge Gpu "B/s" bytes(100)
        => "Bytes per second sent over the chip-to-chip link, headers included."
    "DCGM_FI_PROF_C2C_TX_DATA_BYTES" Some(1077), Gauge Gpu "B/s" bytes(102)
        => "Bytes of data per second sent over the chip-to-chip link."
    "DCGM_FI_PROF_C2C_RX_ALL_BYTES" Some(1078), Gauge Gpu "B/s" bytes(101)
        => "Bytes per second received over the chip-to-chip link, headers included."
    "DCGM_FI_PROF_C2C_RX_DATA_BYTES" Some(1079), Gauge Gpu "B/s" bytes(103)
        => "Bytes of data per second received over the chip-to-chip link."
    "DCGM_FI_PROF_HOSTMEM_CACHE_HIT" Some(1080), Gauge Gpu "%" integer(160)
        => "Host memory accesses that the cache answered (in %)."
    "DCGM_FI_PROF_HOSTMEM_CACHE_MISS" Some(1081), Gauge Gpu "%" integer(161)
        => "Host memory accesses that the cache could not answer (in %)."
    "DCGM_FI_PROF_PEERMEM_CACHE_HIT" Some(1082), Gauge Gpu "%" integer(162)
        => "Accesses to other GPUs' memory that the cache answered (in %)."
    "DCGM_FI_PROF_PEERMEM_CACHE_MISS" Some(1083), Gauge Gpu "%" integer(163)
        => "Accesses to other GPUs' memory that the cache could not answer (in %)."
    "DCGM_FI_PROF_SM_CYCLES_ELAPSED_TOTAL" Some(1084), Counter Gpu "" integer(248)
        => "Cycles of the multiprocessors since the last reboot."
    "DCGM_FI_PROF_SM_CYCLES_ACTIVE_TOTAL" Some(1085), Counter Gpu "" integer(249)
        => "Cycles with a warp on the multiprocessor since the last reboot."
    "DCGM_FI_PROF_MMA_CYCLES_ACTIVE_TOTAL" Some(1086), Counter Gpu "" integer(250)
        => "Cycles of an active tensor pipe since the last reboot."
    "DCGM_FI_PROF_DMMA_CYCLES_ACTIVE_TOTAL" Some(1087), Counter Gpu "" integer(251)
        => "Cycles of an active tensor pipe (double matrices) since the last reboot."
    "DCGM_FI_PROF_HMMA_CYCLES_ACTIVE_TOTAL" Some(1088), Counter Gpu "" integer(252)
        => "Cycles of an active tensor pipe (half matrices) since the last reboot."
    "DCGM_FI_PROF_IMMA_CYCLES_ACTIVE_TOTAL" Some(1089), Counter Gpu "" integer(253)
        => "Cycles of an active tensor pipe (integer matrices) since the last reboot."
    "DCGM_FI_PROF_DFMA_CYCLES_ACTIVE_TOTAL" Some(1090), Counter Gpu "" integer(254)
        => "Cycles of an active tensor pipe (doubles) since the last reboot."
    "DCGM_FI_PROF_PCIE_TX_BYTES_TOTAL" Some(1091), Counter Gpu "B" integer(255)
        => "Bytes that the GPU sent over PCIe since the last reboot."
    "DCGM_FI_PROF_PCIE_RX_BYTES_TOTAL" Some(1092), Counter Gpu "B" integer(256)
        => "Bytes that the GPU received over PCIe since the last reboot."
    "DCGM_FI_PROF_INT_CYCLES_ACTIVE_TOTAL" Some(1093), Counter Gpu "" integer(257)
        => "Cycles of an active integer pipe since the last reboot."
    "DCGM_FI_PROF_FP64_CYCLES_ACTIVE_TOTAL" Some(1094), Counter Gpu "" integer(258)
        => "Cycles of an active FP64 pipe since the last reboot."
    "DCGM_FI_PROF_FP32_CYCLES_ACTIVE_TOTAL" Some(1095), Counter Gpu "" integer(259)
        => "Cycles of an active FP32 pipe since the last reboot."
    "DCGM_FI_PROF_FP16_CYCLES_ACTIVE_TOTAL" Some(1096), Counter Gpu "" integer(260)
        => "Cycles of an active FP16 pipe since the last reboot."
};

/// The engines for video and images, and each NVLink.
pub(super) fn metrics() -> impl Iterator<Item = Metric> {
    let engine = |word: &'static str, count: u32, first: u32, what: &'static str| {
        (0..count).map(move |n| {
            let help = format!("Part of the time in which {what} {n} was active.");
            row(&format!("DCGM_FI_PROF_{word}{n}_ACTIVE"), Kind::Gauge, "ratio", help, ratio(first + n))
        })
    };
    let links = (0..18).flat_map(|link| {
        let one = move |word: &str, did: &str, metric| {
            let help = format!("Bytes per second that the GPU {did} over NVLink {link}.");
            row(&format!("DCGM_FI_PROF_NVLINK_L{link}_{word}_BYTES"), Kind::Gauge, "B/s", help, bytes(metric))
        };
        // NVML has a link's received bytes first, DCGM its sent ones.
        [one("TX", "sent", 63 + 2 * link), one("RX", "received", 62 + 2 * link)]
    });
    engine("NVDEC", 8, 30, "video decoder")
        .chain(engine("NVJPG", 8, 40, "image decoder"))
        .chain(engine("NVOFA", 2, 50, "optical flow engine"))
        .chain(links)
}

//! Calls for PCIe and NVLink.
#![allow(unsafe_code, non_snake_case)]

use super::arguments::Out;
use super::call::calls;
use crate::model::Reading;
use crate::status::Failure;

const PCIE_GENERATION: u32 = 5;
const PCIE_WIDTH: u32 = 16;
/// MT/s of one lane.
const PCIE_SPEED: u32 = 32_000;
/// What the NVML of an H200 calls the version of its links.
const NVLINK_VERSION: u32 = 6;

calls! {
    gpu fn nvmlDeviceGetMaxPcieLinkGeneration(generation: Out<u32>) |_gpu| { generation.put(PCIE_GENERATION) }
    gpu fn nvmlDeviceGetGpuMaxPcieLinkGeneration(generation: Out<u32>) |_gpu| { generation.put(PCIE_GENERATION) }
    gpu fn nvmlDeviceGetCurrPcieLinkGeneration(generation: Out<u32>) |_gpu| { generation.put(PCIE_GENERATION) }
    gpu fn nvmlDeviceGetMaxPcieLinkWidth(width: Out<u32>) |_gpu| { width.put(PCIE_WIDTH) }
    gpu fn nvmlDeviceGetCurrPcieLinkWidth(width: Out<u32>) |_gpu| { width.put(PCIE_WIDTH) }
    gpu fn nvmlDeviceGetPcieSpeed(speed: Out<u32>) |_gpu| { speed.put(PCIE_SPEED) }
    gpu fn nvmlDeviceGetPcieReplayCounter(replays: Out<u32>) |gpu| {
        replays.put(gpu.answer("nvmlDeviceGetPcieReplayCounter").map_or(0, |replays| replays as u32))
    }
    gpu fn nvmlDeviceGetPcieThroughput(direction: u32, kib_s: Out<u32>) |gpu| {
        let (sent, received) = gpu.pcie_kib_s();
        match direction {
            0 => kib_s.put(sent),
            1 => kib_s.put(received),
            _ => Err(Failure::INVALID_ARGUMENT),
        }
    }
    gpu fn nvmlDeviceGetNvLinkState(link: u32, active: Out<u32>) |gpu| {
        active.put(has_link(gpu, link).map(|()| 1)?)
    }
    gpu fn nvmlDeviceGetNvLinkVersion(link: u32, version: Out<u32>) |gpu| {
        version.put(has_link(gpu, link).map(|()| NVLINK_VERSION)?)
    }
    gpu fn nvmlDeviceGetNvLinkErrorCounter(link: u32, _counter: u32, errors: Out<u64>) |gpu| {
        errors.put(has_link(gpu, link).map(|()| 0)?)
    }
}

fn has_link(gpu: &Reading<'_>, link: u32) -> Result<(), Failure> {
    match &gpu.gpu.nvlink {
        None => Err(Failure::NOT_SUPPORTED),
        Some(nvlink) if link >= nvlink.links => Err(Failure::INVALID_ARGUMENT),
        Some(_) => Ok(()),
    }
}

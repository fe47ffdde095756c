//! Calls that find GPUs and say which they are.
#![allow(unsafe_code, non_snake_case)]

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlPciInfo_t};

use super::arguments::{Name, Out, Text, fixed};
use super::call::{calls, pointer};
use crate::model::Reading;
use crate::pci::PciAddress;
use crate::status::{Answer, Failure};

/// PCI ids of an H100 SXM.
const PCI_DEVICE_ID: u32 = 590_352_606;
const PCI_SUBSYSTEM_ID: u32 = 381_751_518;
/// NVML_BRAND_NVIDIA.
const BRAND: u32 = 14;
/// NVML_DEVICE_ARCH_HOPPER.
const ARCHITECTURE: u32 = 9;
const COMPUTE_CAPABILITY: (i32, i32) = (9, 0);

calls! {
    node fn nvmlDeviceGetCount(count: Out<u32>) |node| { count.put(node.scenario()?.gpus.len() as u32) }
    node fn nvmlDeviceGetCount_v2(count: Out<u32>) |node| { count.put(node.scenario()?.gpus.len() as u32) }
    node fn nvmlDeviceGetHandleByIndex(index: u32, device: Out<nvmlDevice_t>) |node| {
        device.put(pointer(node.handle_by_index("nvmlDeviceGetHandleByIndex", index as usize)?))
    }
    node fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<nvmlDevice_t>) |node| {
        device.put(pointer(node.handle_by_index("nvmlDeviceGetHandleByIndex_v2", index as usize)?))
    }
    node fn nvmlDeviceGetHandleByUUID(uuid: Name, device: Out<nvmlDevice_t>) |node| {
        device.put(pointer(node.handle_by_uuid("nvmlDeviceGetHandleByUUID", uuid.get()?)?))
    }
    node fn nvmlDeviceGetHandleBySerial(serial: Name, device: Out<nvmlDevice_t>) |node| {
        let serial = serial.get()?;
        let handle = node.handle_of("nvmlDeviceGetHandleBySerial", |index, gpu| gpu.serial(index) == serial)?;
        device.put(pointer(handle))
    }
    node fn nvmlDeviceGetHandleByPciBusId(address: Name, device: Out<nvmlDevice_t>) |node| {
        device.put(pointer(node.handle_by_pci("nvmlDeviceGetHandleByPciBusId", address.get()?)?))
    }
    node fn nvmlDeviceGetHandleByPciBusId_v2(address: Name, device: Out<nvmlDevice_t>) |node| {
        device.put(pointer(node.handle_by_pci("nvmlDeviceGetHandleByPciBusId_v2", address.get()?)?))
    }
    gpu fn nvmlDeviceGetName(name: Text, length: u32) |gpu| { name.put(length, &gpu.name()) }
    gpu fn nvmlDeviceGetUUID(uuid: Text, length: u32) |gpu| { uuid.put(length, &gpu.uuid()) }
    gpu fn nvmlDeviceGetSerial(serial: Text, length: u32) |gpu| { serial.put(length, &gpu.gpu.serial(gpu.index)) }
    gpu fn nvmlDeviceGetBrand(brand: Out<u32>) |gpu| { brand.put(gpu.gpu.brand.unwrap_or(BRAND)) }
    gpu fn nvmlDeviceGetIndex(index: Out<u32>) |gpu| { index.put(gpu.slot()) }
    gpu fn nvmlDeviceGetMinorNumber(minor: Out<u32>) |gpu| { minor.put(gpu.gpu.minor(gpu.index)) }
    gpu fn nvmlDeviceGetModuleId(module: Out<u32>) |gpu| { module.put(gpu.index as u32) }
    gpu fn nvmlDeviceGetPciInfo(pci: Out<nvmlPciInfo_t>) |gpu| { put_pci(gpu, &pci) }
    gpu fn nvmlDeviceGetPciInfo_v2(pci: Out<nvmlPciInfo_t>) |gpu| { put_pci(gpu, &pci) }
    gpu fn nvmlDeviceGetPciInfo_v3(pci: Out<nvmlPciInfo_t>) |gpu| { put_pci(gpu, &pci) }
    gpu fn nvmlDeviceGetVbiosVersion(version: Text, length: u32) |_gpu| { version.put(length, "96.00.DA.00.0C") }
    gpu fn nvmlDeviceGetInforomImageVersion(version: Text, length: u32) |_gpu| {
        version.put(length, "G520.0200.00.05")
    }
    gpu fn nvmlDeviceGetInforomVersion(object: u32, version: Text, length: u32) |_gpu| {
        // OEM, ECC, power; there is no power object on this board.
        match object {
            0 => version.put(length, "2.1"),
            1 => version.put(length, "7.16"),
            2 => Err(Failure::NOT_SUPPORTED),
            _ => Err(Failure::INVALID_ARGUMENT),
        }
    }
    gpu fn nvmlDeviceGetArchitecture(architecture: Out<u32>) |_gpu| { architecture.put(ARCHITECTURE) }
    gpu fn nvmlDeviceGetCudaComputeCapability(major: Out<i32>, minor: Out<i32>) |_gpu| {
        major.put(COMPUTE_CAPABILITY.0)?;
        minor.put(COMPUTE_CAPABILITY.1)
    }
    gpu fn nvmlDeviceGetNumGpuCores(cores: Out<u32>) |_gpu| { cores.put(16_896) }
    gpu fn nvmlDeviceGetMemoryBusWidth(bits: Out<u32>) |_gpu| { bits.put(5_120) }
    gpu fn nvmlDeviceGetBoardId(id: Out<u32>) |gpu| { id.put(address(gpu)?.bus.into()) }
    gpu fn nvmlDeviceGetMultiGpuBoard(multi: Out<u32>) |_gpu| { multi.put(0) }
    gpu fn nvmlDeviceGetBoardPartNumber(part: Text, length: u32) |_gpu| { part.put(length, "695-2G520-0200-000") }
    gpu fn nvmlDeviceGetGspFirmwareVersion(version: Text) |gpu| {
        // The call has no length: the header promises 0x50 bytes.
        version.put(0x50, &gpu.scenario.driver.version)
    }
    gpu fn nvmlDeviceGetGspFirmwareMode(enabled: Out<u32>, by_default: Out<u32>) |_gpu| {
        enabled.put(1)?;
        by_default.put(1)
    }
    gpu fn nvmlDeviceGetNumaNodeId(node: Out<u32>) |_gpu| {
        node.get()?;
        Err(Failure::NOT_SUPPORTED)
    }
}

fn address(gpu: &Reading<'_>) -> Result<PciAddress, Failure> {
    PciAddress::parse(&gpu.gpu.pci_bus_id(gpu.index)).ok_or(Failure::UNKNOWN)
}

fn put_pci(gpu: &Reading<'_>, pci: &Out<nvmlPciInfo_t>) -> Answer {
    let PciAddress { domain, bus, device, function } = address(gpu)?;
    pci.put(nvmlPciInfo_t {
        busIdLegacy: fixed(&format!("{domain:04X}:{bus:02X}:{device:02X}.{function}")),
        domain,
        bus: bus.into(),
        device: device.into(),
        pciDeviceId: PCI_DEVICE_ID,
        pciSubSystemId: PCI_SUBSYSTEM_ID,
        busId: fixed(&format!("{domain:08X}:{bus:02X}:{device:02X}.{function}")),
    })
}

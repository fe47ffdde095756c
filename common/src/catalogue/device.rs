//! Owns the tables of what a GPU is ([`IDENTITY`]), does ([`STATE`]) and suffers ([`HEALTH`],
//! [`EVENTS`]).

use super::served::metrics;
use super::{
    Clock, Codec, Direction, Engine, Memory, Metric, PcieLink, PowerLimit, Reading, RemapBanks, Text,
    Threshold,
};

const ANY: u64 = u64::MAX;

pub(super) const IDENTITY: &[Metric] = metrics! {
    "DCGM_FI_DRIVER_VERSION" Some(1), Label Node "" Reading::Text(Text::DriverVersion)
        => "Version of the NVIDIA driver."
    "DCGM_FI_NVML_VERSION" Some(2), Label Node "" Reading::Text(Text::NvmlVersion)
        => "Version of the NVML library."
    "DCGM_FI_DEV_COUNT" Some(4), Gauge Node "" Reading::DeviceCount
        => "GPUs on the node."
    "DCGM_FI_CUDA_DRIVER_VERSION" Some(5), Gauge Node "" Reading::CudaVersion
        => "Highest CUDA version of the driver (1000 times major plus 10 times minor)."
    "DCGM_FI_DEV_NAME" Some(50), Label Gpu "" Reading::Text(Text::Name)
        => "Model of the GPU."
    "DCGM_FI_DEV_BRAND" Some(51), Label Gpu "" Reading::Text(Text::Brand)
        => "Brand of the GPU."
    "DCGM_FI_DEV_NVML_INDEX" Some(52), Gauge Gpu "" Reading::Index
        => "NVML's index of the GPU."
    "DCGM_FI_DEV_SERIAL" Some(53), Label Gpu "" Reading::Text(Text::Serial)
        => "Serial number of the board."
    "DCGM_FI_DEV_UUID" Some(54), Label Gpu "" Reading::Text(Text::Uuid)
        => "UUID of the GPU."
    "DCGM_FI_DEV_MINOR_NUMBER" Some(55), Gauge Gpu "" Reading::MinorNumber
        => "Number of the GPU's device node."
    "DCGM_FI_DEV_OEM_INFOROM_VER" Some(56), Label Gpu "" Reading::Text(Text::OemInforom)
        => "Version of the InfoROM's OEM object."
    "DCGM_FI_DEV_PCI_BUSID" Some(57), Label Gpu "" Reading::Text(Text::PciBusId)
        => "PCI address of the GPU."
    "DCGM_FI_DEV_PCI_COMBINED_ID" Some(58), Gauge Gpu "" Reading::PciId { subsystem: false }
        => "PCI device and vendor in one number."
    "DCGM_FI_DEV_PCI_SUBSYS_ID" Some(59), Gauge Gpu "" Reading::PciId { subsystem: true }
        => "PCI subsystem in one number."
    "DCGM_FI_DEV_CUDA_COMPUTE_CAPABILITY" Some(63), Gauge Gpu "" Reading::ComputeCapability
        => "CUDA compute capability (65536 times major plus minor)."
    "DCGM_FI_DEV_COMPUTE_MODE" Some(65), Gauge Gpu "" Reading::ComputeMode
        => "Who may compute: 0 everybody, 1 nobody, 2 one process."
    "DCGM_FI_DEV_PERSISTENCE_MODE" Some(66), Gauge Gpu "" Reading::PersistenceMode
        => "1 if the driver stays loaded while nobody uses the GPU."
    "DCGM_FI_DEV_MIG_MODE" Some(67), Gauge Gpu "" Reading::MigMode
        => "1 if MIG is on."
    "DCGM_FI_DEV_CUDA_VISIBLE_DEVICES_STR" Some(68), Label Gpu "" Reading::Text(Text::Uuid)
        => "Name of the GPU in CUDA_VISIBLE_DEVICES."
    "DCGM_FI_DEV_MIG_MAX_SLICES" Some(69), Gauge Gpu "" Reading::MigMaxInstances
        => "MIG instances that the GPU can hold."
    "DCGM_FI_DEV_ECC_INFOROM_VER" Some(80), Label Gpu "" Reading::Text(Text::EccInforom)
        => "Version of the InfoROM's ECC object."
    "DCGM_FI_DEV_POWER_INFOROM_VER" Some(81), Label Gpu "" Reading::Text(Text::PowerInforom)
        => "Version of the InfoROM's power object."
    "DCGM_FI_DEV_INFOROM_IMAGE_VER" Some(82), Label Gpu "" Reading::Text(Text::InforomImage)
        => "Version of the InfoROM's image."
    "DCGM_FI_DEV_INFOROM_CONFIG_CHECK" Some(83), Gauge Gpu "" Reading::InforomChecksum
        => "Checksum of the InfoROM's configuration."
    "DCGM_FI_DEV_INFOROM_CONFIG_VALID" Some(84), Gauge Gpu "" Reading::InforomValid
        => "1 if the InfoROM is sound, 0 if it is corrupted."
    "DCGM_FI_DEV_VBIOS_VERSION" Some(85), Label Gpu "" Reading::Text(Text::Vbios)
        => "Version of the VBIOS."
    "DCGM_FI_DEV_GPM_SUPPORT" Some(94), Gauge Gpu "" Reading::GpmSupport
        => "1 if NVML can read profiling counters."
    "DCGM_FI_DEV_VIRTUAL_MODE" Some(500), Gauge Gpu "" Reading::VirtualMode
        => "Virtualization: 0 none, 1 passed through, 2 vGPU guest, 3 vGPU host, 4 vSGA host."
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS" Some(526), Gauge Gpu "" Reading::VgpuLicense
        => "1 if a vGPU feature is licensed."
};

pub(super) const STATE: &[Metric] = metrics! {
    "DCGM_FI_DEV_BAR1_TOTAL" Some(90), Gauge Instance "MiB" Reading::Bar1(Memory::Total)
        => "BAR1 address space (in MiB)."
    "DCGM_FI_DEV_BAR1_USED" Some(92), Gauge Instance "MiB" Reading::Bar1(Memory::Used)
        => "BAR1 address space in use (in MiB)."
    "DCGM_FI_DEV_BAR1_FREE" Some(93), Gauge Instance "MiB" Reading::Bar1(Memory::Free)
        => "BAR1 address space that is free (in MiB)."
    "DCGM_FI_DEV_SM_CLOCK" Some(100), Gauge Gpu "MHz" Reading::Clock(Clock::Sm)
        => "Clock of the streaming multiprocessors (in MHz)."
    "DCGM_FI_DEV_MEM_CLOCK" Some(101), Gauge Gpu "MHz" Reading::Clock(Clock::Memory)
        => "Clock of the device memory (in MHz)."
    "DCGM_FI_DEV_VIDEO_CLOCK" Some(102), Gauge Gpu "MHz" Reading::Clock(Clock::Video)
        => "Clock of the video engines (in MHz)."
    "DCGM_FI_DEV_APP_SM_CLOCK" Some(110), Gauge Gpu "MHz" Reading::ApplicationClock(Clock::Graphics)
        => "Clock that applications ask for, of the multiprocessors (in MHz)."
    "DCGM_FI_DEV_APP_MEM_CLOCK" Some(111), Gauge Gpu "MHz" Reading::ApplicationClock(Clock::Memory)
        => "Clock that applications ask for, of the memory (in MHz)."
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS" Some(112), Gauge Gpu "" Reading::ClockEventReasons
        => "Why the clocks are as they are, one bit a reason."
    "DCGM_FI_DEV_MAX_SM_CLOCK" Some(113), Gauge Gpu "MHz" Reading::MaxClock(Clock::Sm)
        => "Highest clock of the streaming multiprocessors (in MHz)."
    "DCGM_FI_DEV_MAX_MEM_CLOCK" Some(114), Gauge Gpu "MHz" Reading::MaxClock(Clock::Memory)
        => "Highest clock of the device memory (in MHz)."
    "DCGM_FI_DEV_MAX_VIDEO_CLOCK" Some(115), Gauge Gpu "MHz" Reading::MaxClock(Clock::Video)
        => "Highest clock of the video engines (in MHz)."
    "DCGM_FI_DEV_AUTOBOOST" Some(120), Gauge Gpu "" Reading::AutoBoost
        => "1 if clocks are raised automatically."
    "DCGM_FI_DEV_MEMORY_TEMP" Some(140), Gauge Gpu "°C" Reading::Field { id: 82, max: 200 }
        => "Temperature of the device memory (in °C)."
    "DCGM_FI_DEV_GPU_TEMP" Some(150), Gauge Gpu "°C" Reading::GpuTemperature
        => "Temperature of the GPU (in °C)."
    "DCGM_FI_DEV_MEM_MAX_OP_TEMP" Some(151), Gauge Gpu "°C" Reading::TemperatureThreshold(Threshold::MemoryMax)
        => "Temperature that the memory may have in operation (in °C)."
    "DCGM_FI_DEV_GPU_MAX_OP_TEMP" Some(152), Gauge Gpu "°C" Reading::TemperatureThreshold(Threshold::GpuMax)
        => "Temperature that the GPU may have in operation (in °C)."
    "DCGM_FI_DEV_GPU_TEMP_LIMIT" Some(153), Gauge Gpu "°C" Reading::TemperatureMargin
        => "Degrees left until the GPU slows down (in °C)."
    "DCGM_FI_DEV_POWER_USAGE" Some(155), Gauge Gpu "W" Reading::PowerUsage
        => "Power drawn by the board (in W)."
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION" Some(156), Counter Gpu "mJ" Reading::Field { id: 83, max: ANY }
        => "Energy used since the driver was loaded (in mJ)."
    "DCGM_FI_DEV_POWER_USAGE_INSTANT" Some(157), Gauge Gpu "W" Reading::FieldWatts(186)
        => "Power drawn by the board at this moment (in W)."
    "DCGM_FI_DEV_SLOWDOWN_TEMP" Some(158), Gauge Gpu "°C" Reading::TemperatureThreshold(Threshold::Slowdown)
        => "Temperature at which the GPU slows down (in °C)."
    "DCGM_FI_DEV_SHUTDOWN_TEMP" Some(159), Gauge Gpu "°C" Reading::TemperatureThreshold(Threshold::Shutdown)
        => "Temperature at which the GPU switches off (in °C)."
    "DCGM_FI_DEV_POWER_MGMT_LIMIT" Some(160), Gauge Gpu "W" Reading::PowerLimit(PowerLimit::Set)
        => "Power limit that was set (in W)."
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN" Some(161), Gauge Gpu "W" Reading::PowerLimit(PowerLimit::Least)
        => "Lowest power limit that can be set (in W)."
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX" Some(162), Gauge Gpu "W" Reading::PowerLimit(PowerLimit::Most)
        => "Highest power limit that can be set (in W)."
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF" Some(163), Gauge Gpu "W" Reading::PowerLimit(PowerLimit::Default)
        => "Power limit after a reboot (in W)."
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT" Some(164), Gauge Gpu "W" Reading::PowerLimit(PowerLimit::Enforced)
        => "Power limit in force, whoever set it (in W)."
    "DCGM_FI_DEV_PSTATE" Some(190), Gauge Gpu "" Reading::PerformanceState
        => "Performance state, from 0 (fastest) to 15."
    "DCGM_FI_DEV_FAN_SPEED" Some(191), Gauge Gpu "%" Reading::FanSpeed
        => "Speed of the fan (in % of its fastest)."
    "DCGM_FI_DEV_PCIE_TX_THROUGHPUT" Some(200), Gauge Gpu "KiB/s" Reading::PcieRate(Direction::Tx)
        => "Data that the GPU sent over PCIe (in KiB per second)."
    "DCGM_FI_DEV_PCIE_RX_THROUGHPUT" Some(201), Gauge Gpu "KiB/s" Reading::PcieRate(Direction::Rx)
        => "Data that the GPU received over PCIe (in KiB per second)."
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER" Some(202), Counter Gpu "" Reading::PcieReplays
        => "PCIe packets sent again."
    "DCGM_FI_DEV_GPU_UTIL" Some(203), Gauge Instance "%" Reading::Utilization(Engine::Gpu)
        => "Time with at least one kernel running, mean over the utilization window (in %)."
    "DCGM_FI_DEV_MEM_COPY_UTIL" Some(204), Gauge Gpu "%" Reading::Utilization(Engine::Memory)
        => "Time in which device memory was read or written, mean over the utilization window (in %)."
    "DCGM_FI_DEV_ENC_UTIL" Some(206), Gauge Gpu "%" Reading::Codec(Codec::Encoder)
        => "Use of the video encoders (in %)."
    "DCGM_FI_DEV_DEC_UTIL" Some(207), Gauge Gpu "%" Reading::Codec(Codec::Decoder)
        => "Use of the video decoders (in %)."
    "DCGM_FI_DEV_PCIE_MAX_LINK_GEN" Some(235), Gauge Gpu "" Reading::PcieLink(PcieLink::MaxGeneration)
        => "Highest PCIe generation of GPU and slot."
    "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH" Some(236), Gauge Gpu "" Reading::PcieLink(PcieLink::MaxWidth)
        => "Highest number of PCIe lanes of GPU and slot."
    "DCGM_FI_DEV_PCIE_LINK_GEN" Some(237), Gauge Gpu "" Reading::PcieLink(PcieLink::Generation)
        => "PCIe generation of the link now; an idle GPU lowers it."
    "DCGM_FI_DEV_PCIE_LINK_WIDTH" Some(238), Gauge Gpu "" Reading::PcieLink(PcieLink::Width)
        => "PCIe lanes of the link now."
    "DCGM_FI_DEV_FB_TOTAL" Some(250), Gauge Instance "MiB" Reading::Memory(Memory::Total)
        => "Device memory (in MiB)."
    "DCGM_FI_DEV_FB_FREE" Some(251), Gauge Instance "MiB" Reading::Memory(Memory::Free)
        => "Device memory that is free (in MiB)."
    "DCGM_FI_DEV_FB_USED" Some(252), Gauge Instance "MiB" Reading::Memory(Memory::Used)
        => "Device memory that is used, without the driver's reserve (in MiB)."
    "DCGM_FI_DEV_FB_RESERVED" Some(253), Gauge Instance "MiB" Reading::Memory(Memory::Reserved)
        => "Device memory that driver and firmware reserve (in MiB)."
    "DCGM_FI_DEV_FB_USED_PERCENT" Some(254), Gauge Instance "ratio" Reading::Memory(Memory::UsedRatio)
        => "Part of the device memory without the reserve that is used (0 to 1)."
};

pub(super) const HEALTH: &[Metric] = metrics! {
    "DCGM_FI_DEV_POWER_VIOLATION" Some(240), Counter Gpu "ns" Reading::Field { id: 74, max: ANY }
        => "Time held back by the power limit (in ns)."
    "DCGM_FI_DEV_THERMAL_VIOLATION" Some(241), Counter Gpu "ns" Reading::Field { id: 75, max: ANY }
        => "Time held back by temperature (in ns)."
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION" Some(242), Counter Gpu "ns" Reading::Field { id: 76, max: ANY }
        => "Time held back by the other GPUs of a sync boost group (in ns)."
    "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION" Some(243), Counter Gpu "ns" Reading::Field { id: 77, max: ANY }
        => "Time held back by a limit of the board (in ns)."
    "DCGM_FI_DEV_LOW_UTIL_VIOLATION" Some(244), Counter Gpu "ns" Reading::Field { id: 78, max: ANY }
        => "Time at lower clocks for lack of work (in ns)."
    "DCGM_FI_DEV_RELIABILITY_VIOLATION" Some(245), Counter Gpu "ns" Reading::Field { id: 79, max: ANY }
        => "Time held back for reliability (in ns)."
    "DCGM_FI_DEV_TOTAL_APP_CLOCKS_VIOLATION" Some(246), Counter Gpu "ns" Reading::Field { id: 80, max: ANY }
        => "Time below the clocks that applications ask for (in ns)."
    "DCGM_FI_DEV_TOTAL_BASE_CLOCKS_VIOLATION" Some(247), Counter Gpu "ns" Reading::Field { id: 81, max: ANY }
        => "Time below the base clocks (in ns)."
    "DCGM_FI_DEV_C2C_LINK_COUNT" Some(285), Gauge Gpu "" Reading::Field { id: 170, max: ANY }
        => "Chip-to-chip links."
    "DCGM_FI_DEV_C2C_LINK_STATUS" Some(286), Gauge Gpu "" Reading::Field { id: 171, max: ANY }
        => "1 if the chip-to-chip link is up."
    "DCGM_FI_DEV_C2C_MAX_BANDWIDTH" Some(287), Gauge Gpu "MB/s" Reading::Field { id: 172, max: ANY }
        => "Highest bandwidth of the chip-to-chip link (in MB/s)."
    "DCGM_FI_DEV_ECC_CURRENT" Some(300), Gauge Gpu "" Reading::Field { id: 1, max: 1 }
        => "1 if ECC is on."
    "DCGM_FI_DEV_ECC_PENDING" Some(301), Gauge Gpu "" Reading::Field { id: 2, max: 1 }
        => "1 if ECC will be on after a reboot."
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL" Some(310), Counter Gpu "" Reading::EccTotal(3)
        => "Single-bit ECC errors since the driver was loaded."
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL" Some(311), Counter Gpu "" Reading::EccTotal(4)
        => "Double-bit ECC errors since the driver was loaded."
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL" Some(312), Counter Gpu "" Reading::EccTotal(5)
        => "Single-bit ECC errors in the GPU's life."
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL" Some(313), Counter Gpu "" Reading::EccTotal(6)
        => "Double-bit ECC errors in the GPU's life."
    "DCGM_FI_DEV_THRESHOLD_SRM" Some(346), Gauge Gpu "" Reading::SramThreshold
        => "1 if more SRAM errors happened than the board may have."
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_MAX" Some(385), Gauge Gpu "" Reading::RemapBanks(RemapBanks::Max)
        => "Memory banks with all their spare rows."
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_HIGH" Some(386), Gauge Gpu "" Reading::RemapBanks(RemapBanks::High)
        => "Memory banks with most of their spare rows."
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_PARTIAL" Some(387), Gauge Gpu "" Reading::RemapBanks(RemapBanks::Partial)
        => "Memory banks with some of their spare rows."
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_LOW" Some(388), Gauge Gpu "" Reading::RemapBanks(RemapBanks::Low)
        => "Memory banks with few of their spare rows."
    "DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_NONE" Some(389), Gauge Gpu "" Reading::RemapBanks(RemapBanks::None)
        => "Memory banks without a spare row left."
    "DCGM_FI_DEV_RETIRED_SBE" Some(390), Counter Gpu "" Reading::RetiredPages
        => "Memory pages retired because of single-bit errors."
    "DCGM_FI_DEV_RETIRED_DBE" Some(391), Counter Gpu "" Reading::Field { id: 30, max: ANY }
        => "Memory pages retired because of double-bit errors."
    "DCGM_FI_DEV_RETIRED_PENDING" Some(392), Gauge Gpu "" Reading::Field { id: 31, max: ANY }
        => "Memory pages that will be retired at the next reboot."
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS" Some(393), Counter Gpu "" Reading::Field { id: 143, max: ANY }
        => "Memory rows remapped because of uncorrectable errors."
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS" Some(394), Counter Gpu "" Reading::Field { id: 142, max: ANY }
        => "Memory rows remapped because of correctable errors."
    "DCGM_FI_DEV_ROW_REMAP_FAILURE" Some(395), Gauge Gpu "" Reading::Field { id: 145, max: ANY }
        => "1 if remapping a memory row has failed."
    "DCGM_FI_DEV_ROW_REMAP_PENDING" Some(396), Gauge Gpu "" Reading::Field { id: 144, max: ANY }
        => "1 if a memory row will be remapped at the next reset."
    "DCGM_FI_DEV_C2C_LINK_ERROR_INTR" Some(1400), Counter Gpu "" Reading::Field { id: 231, max: ANY }
        => "Errors of the chip-to-chip link that raised an interrupt."
    "DCGM_FI_DEV_C2C_LINK_ERROR_REPLAY" Some(1401), Counter Gpu "" Reading::Field { id: 232, max: ANY }
        => "Replays on the chip-to-chip link."
    "DCGM_FI_DEV_C2C_LINK_ERROR_REPLAY_B2B" Some(1402), Counter Gpu "" Reading::Field { id: 233, max: ANY }
        => "Replays on the chip-to-chip link that followed each other."
    "DCGM_FI_DEV_C2C_LINK_POWER_STATE" Some(1403), Gauge Gpu "" Reading::Field { id: 234, max: ANY }
        => "0 if the chip-to-chip link has full power, 1 if it saves."
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS" Some(1420), Counter Gpu "ns" Reading::Field { id: 74, max: ANY }
        => "Time with clocks lowered by the power cap (in ns)."
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST_NS" Some(1421), Counter Gpu "ns" Reading::Field { id: 76, max: ANY }
        => "Time with clocks lowered by sync boost (in ns)."
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS" Some(1422), Counter Gpu "ns" Reading::SlowdownTime { id: 269, before: 251 }
        => "Time with clocks lowered by the driver because of temperature (in ns)."
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS" Some(1423), Counter Gpu "ns" Reading::SlowdownTime { id: 270, before: 252 }
        => "Time with clocks lowered by the hardware because of temperature (in ns)."
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS" Some(1424), Counter Gpu "ns" Reading::SlowdownTime { id: 271, before: 253 }
        => "Time with clocks lowered by the power brake (in ns)."
    "DCGM_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS" Some(1501), Counter Gpu "" Reading::Field { id: 173, max: ANY }
        => "PCIe errors that were corrected."
    "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION" Some(1523), Gauge Gpu "" Reading::Field { id: 230, max: ANY }
        => "Action that the GPU needs: 0 none, 1 reset, 2 node reboot, 3 drain peers, 4 drain and reset, 5 IMEX recovery, 6 bus reset, 7 system reboot."
};

pub(super) const EVENTS: &[Metric] = metrics! {
    "DCGM_FI_DEV_XID_ERRORS" Some(230), Gauge Instance "" Reading::Xid
        => "Last XID error since the exporter started, 0 if none."
    "DCGM_EXP_XID_ERRORS_COUNT" None, Counter Gpu "" Reading::XidsInWindow
        => "XID errors within the window, by number."
    "DCGM_EXP_XID_ERRORS_TOTAL" None, Counter Gpu "" Reading::XidsTotal
        => "XID errors since the exporter started, by number."
    "DCGM_EXP_CLOCK_EVENTS_COUNT" None, Counter Gpu "" Reading::ClockEventsInWindow
        => "Readings within the window that showed the clock event."
    "DCGM_EXP_CLOCK_EVENTS_TOTAL" None, Counter Gpu "" Reading::ClockEventsTotal
        => "How often the clock event began since the exporter started."
};

//! How a value is read from NVML, and in which unit it comes.

use super::Scale;

/// How a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// A text that does not change while the driver is loaded.
    Text(Text),
    /// `nvmlDeviceGetCount_v2`.
    DeviceCount,
    /// `nvmlSystemGetCudaDriverVersion`: 1000 × major + 10 × minor.
    CudaVersion,
    Index,
    MinorNumber,
    /// `nvmlDeviceGetPciInfo_v3`: device and vendor, or subsystem.
    PciId {
        subsystem: bool,
    },
    /// `nvmlDeviceGetCudaComputeCapability`: major × 65536 + minor.
    ComputeCapability,
    /// As DCGM numbers them: 0 shared, 1 prohibited, 2 one process.
    ComputeMode,
    PersistenceMode,
    MigMode,
    MigMaxInstances,
    /// `nvmlDeviceGetVirtualizationMode`, NVML's numbers.
    VirtualMode,
    GpmSupport,
    /// `nvmlDeviceGetInforomConfigurationChecksum`.
    InforomChecksum,
    /// `nvmlDeviceValidateInforom`.
    InforomValid,
    /// `nvmlDeviceGetClockInfo`, MHz.
    Clock(Clock),
    /// `nvmlDeviceGetMaxClockInfo`, MHz.
    MaxClock(Clock),
    /// `nvmlDeviceGetApplicationsClock`, MHz.
    ApplicationClock(Clock),
    /// `nvmlDeviceGetCurrentClocksEventReasons`, every bit of it.
    ClockEventReasons,
    AutoBoost,
    /// `nvmlDeviceGetTemperature` of the GPU, °C; above 200 is no measurement.
    GpuTemperature,
    /// `nvmlDeviceGetTemperatureThreshold`, °C.
    TemperatureThreshold(Threshold),
    /// `nvmlDeviceGetMarginTemperature`, °C left until the GPU slows down.
    TemperatureMargin,
    /// `nvmlDeviceGetPowerUsage`, mW ÷ 1000.
    PowerUsage,
    /// mW ÷ 1000, truncated: whole watts.
    PowerLimit(PowerLimit),
    /// `nvmlDeviceGetPerformanceState`; 32 is unknown, and left out.
    PerformanceState,
    /// `nvmlDeviceGetFanSpeed`, percent of the fastest.
    FanSpeed,
    /// `nvmlDeviceGetPcieReplayCounter`.
    PcieReplays,
    PcieLink(PcieLink),
    /// Difference of field 197 or 198 ÷ seconds ÷ 1024; GPM's own rate where the GPU has GPM.
    PcieRate(Direction),
    /// The mean of the drained sample rings over the utilization window, percent.
    Utilization(Engine),
    /// `nvmlDeviceGetEncoderUtilization` or `…Decoder…`, percent.
    Codec(Codec),
    /// Last XID that the event set delivered; 0 until the first.
    Xid,
    /// XIDs within `--xid-count-window-size`, by number.
    XidsInWindow,
    /// XIDs since the exporter started, by number.
    XidsTotal,
    /// Readings of the clock event reasons within `--clock-events-count-window-size`, by reason.
    ClockEventsInWindow,
    /// How often a clock event reason appeared since the exporter started.
    ClockEventsTotal,
    /// `nvmlDeviceGetMemoryInfo_v2`, bytes.
    Memory(Memory),
    /// `nvmlDeviceGetBAR1MemoryInfo`, bytes.
    Bar1(Memory),
    /// One field of `nvmlDeviceGetFieldValues`, printed as it is. Above `max` is no measurement.
    Field {
        id: u32,
        max: u64,
    },
    /// A field in mW, ÷ 1000.
    FieldWatts(u32),
    /// A field over all NVLinks together.
    LinksField(u32),
    /// A bit error rate over all NVLinks: mantissa in bits 8 to 11, negative exponent below.
    LinksErrorRate(u32),
    /// Nanoseconds; the field's id changed with driver 580.82.
    SlowdownTime {
        id: u32,
        before: u32,
    },
    /// An ECC total. NVML leaves it unset while ECC is off (field 1), and then there is no value.
    EccTotal(u32),
    /// `nvmlDeviceGetMemoryErrorCounter`.
    EccErrors {
        corrected: bool,
        volatile: bool,
        place: MemoryPlace,
    },
    /// `nvmlDeviceGetSramEccErrorStatus`: 1 if too many SRAM errors happened.
    SramThreshold,
    /// `nvmlDeviceGetRowRemapperHistogram`.
    RemapBanks(RemapBanks),
    /// `nvmlDeviceGetRetiredPages` for repeated single-bit errors.
    RetiredPages,
    /// Fields 138 and 139, KiB: difference ÷ seconds. No link: all of them. No direction: both.
    NvlinkRate {
        link: Option<u8>,
        direction: Option<Direction>,
    },
    /// `nvmlDeviceGetNvLinkErrorCounter`.
    NvlinkErrors {
        link: u8,
        error: LinkError,
    },
    /// `nvmlDeviceGetGridLicensableFeatures_v4`: 1 if a feature is licensed, 0 if none is or the
    /// GPU has no licensable features.
    VgpuLicense,
    /// A GPM metric, the mean between two samples `-c` apart.
    Gpm {
        metric: u32,
        unit: GpmUnit,
    },
}

/// How often a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Every `-c`.
    Interval,
    /// Every `-c`, but at most every 30 s: expensive, and hardly ever another value.
    Slow,
    /// Until it was read once: it does not change while the driver is loaded.
    Once,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    DriverVersion,
    NvmlVersion,
    Name,
    Brand,
    Serial,
    Uuid,
    PciBusId,
    OemInforom,
    EccInforom,
    PowerInforom,
    InforomImage,
    Vbios,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    Graphics,
    Sm,
    Memory,
    Video,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    Shutdown,
    Slowdown,
    MemoryMax,
    GpuMax,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLimit {
    /// As set by the administrator.
    Set,
    Least,
    Most,
    Default,
    /// In force, whoever set it.
    Enforced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PcieLink {
    Generation,
    Width,
    MaxGeneration,
    MaxWidth,
}

/// From the GPU's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Tx,
    Rx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Time with at least one kernel running.
    Gpu,
    /// Time in which device memory was read or written.
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Encoder,
    Decoder,
}

/// Part of a memory, in bytes but for the ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    Total,
    Free,
    Used,
    Reserved,
    /// Used ÷ (total − reserved), 0 to 1.
    UsedRatio,
}

/// Where a memory error happened, by NVML's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryPlace {
    L1,
    L2,
    Device,
    Registers,
    Texture,
    Shared,
    Cbu,
    Sram,
}

/// Memory banks by how many spare rows they have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemapBanks {
    Max,
    High,
    Partial,
    Low,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkError {
    CrcFlit,
    CrcData,
    Replay,
    Recovery,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpmUnit {
    /// Percent ÷ 100.
    Ratio,
    /// MiB/s × 1048576, truncated.
    Bytes,
    /// MiB/s × 1024, truncated.
    Kibibytes,
    /// As it is, truncated.
    Integer,
}

impl Reading {
    /// How often it is read.
    pub const fn pace(self) -> Pace {
        match self {
            Self::Text(_)
            | Self::CudaVersion
            | Self::Index
            | Self::MinorNumber
            | Self::PciId { .. }
            | Self::ComputeCapability
            | Self::MigMaxInstances
            | Self::VirtualMode
            | Self::GpmSupport
            | Self::MaxClock(_)
            | Self::TemperatureThreshold(_)
            | Self::PowerLimit(PowerLimit::Least | PowerLimit::Most | PowerLimit::Default)
            | Self::PcieLink(PcieLink::MaxGeneration | PcieLink::MaxWidth) => Pace::Once,
            Self::DeviceCount
            | Self::ComputeMode
            | Self::PersistenceMode
            | Self::MigMode
            | Self::InforomChecksum
            | Self::InforomValid
            | Self::ApplicationClock(_)
            | Self::AutoBoost
            | Self::PowerLimit(PowerLimit::Set)
            | Self::EccErrors { .. }
            | Self::SramThreshold
            | Self::RemapBanks(_)
            | Self::RetiredPages
            | Self::NvlinkErrors { .. }
            | Self::VgpuLicense => Pace::Slow,
            _ => Pace::Interval,
        }
    }

    /// From the unit in which it comes to the unit of DCGM's classic names.
    pub(super) const fn classic_scale(self) -> Scale {
        match self {
            Self::Memory(part) | Self::Bar1(part) if !matches!(part, Memory::UsedRatio) => {
                Scale::Over(1024 * 1024)
            }
            // DCGM calls KiB ÷ 1000 MB.
            Self::NvlinkRate { .. } => Scale::Over(1000),
            _ => Scale::One,
        }
    }

    /// Whether the events of the GPU tell it, not the GPU itself.
    pub const fn is_event(self) -> bool {
        matches!(
            self,
            Self::Xid
                | Self::XidsInWindow
                | Self::XidsTotal
                | Self::ClockEventsInWindow
                | Self::ClockEventsTotal
        )
    }
}

//! Owns the families that come in rows: NVLinks and their counters, ECC errors by place.

use super::names::field_of;
use super::served::metrics;
use super::{Direction, Kind, LinkError, MemoryPlace, Metric, Reading, Scope};

/// Classic DCGM names links up to this one.
const LINKS: u8 = 18;

/// Sums over all links.
const SUMS: &[Metric] = metrics! {
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL" Some(409), Counter Gpu "" Reading::Field { id: 38, max: u64::MAX }
        => "NVLink flow-control CRC errors of all links."
    "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL" Some(419), Counter Gpu "" Reading::Field { id: 45, max: u64::MAX }
        => "NVLink data CRC errors of all links."
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL" Some(429), Counter Gpu "" Reading::Field { id: 52, max: u64::MAX }
        => "NVLink replays of all links."
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL" Some(439), Counter Gpu "" Reading::Field { id: 59, max: u64::MAX }
        => "NVLink recoveries of all links."
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL" Some(449), Gauge Gpu "MB/s" Reading::NvlinkRate { link: None, direction: None }
        => "Data over all NVLinks, both directions (in MB/s)."
    "DCGM_FI_DEV_NVLINK_ERROR_DL_CRC" Some(497), Counter Gpu "" Reading::LinksField(163)
        => "NVLink CRC errors of all links."
    "DCGM_FI_DEV_NVLINK_ERROR_DL_RECOVERY" Some(498), Counter Gpu "" Reading::LinksField(162)
        => "NVLink recoveries of all links."
    "DCGM_FI_DEV_NVLINK_ERROR_DL_REPLAY" Some(499), Counter Gpu "" Reading::LinksField(161)
        => "NVLink replays of all links."
    "DCGM_FI_DEV_NVLINK_TX_BANDWIDTH_TOTAL" Some(843), Gauge Gpu "MB/s" Reading::NvlinkRate { link: None, direction: Some(Direction::Tx) }
        => "Data sent over all NVLinks (in MB/s)."
    "DCGM_FI_DEV_NVLINK_RX_BANDWIDTH_TOTAL" Some(897), Gauge Gpu "MB/s" Reading::NvlinkRate { link: None, direction: Some(Direction::Rx) }
        => "Data received over all NVLinks (in MB/s)."
    "DCGM_FI_DEV_NVLINK_COUNT_TX_PACKETS" Some(1200), Counter Gpu "" Reading::LinksField(201)
        => "Packets sent over all NVLinks."
    "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES" Some(1201), Counter Gpu "B" Reading::LinksField(202)
        => "Bytes sent over all NVLinks."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_PACKETS" Some(1202), Counter Gpu "" Reading::LinksField(203)
        => "Packets received over all NVLinks."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES" Some(1203), Counter Gpu "B" Reading::LinksField(204)
        => "Bytes received over all NVLinks."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS" Some(1204), Counter Gpu "" Reading::LinksField(206)
        => "Malformed packets received over NVLink."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_BUFFER_OVERRUN_ERRORS" Some(1205), Counter Gpu "" Reading::LinksField(207)
        => "Packets dropped because an NVLink buffer was full."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_ERRORS" Some(1206), Counter Gpu "" Reading::LinksField(208)
        => "Errors on packets received over NVLink."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_REMOTE_ERRORS" Some(1207), Counter Gpu "" Reading::LinksField(209)
        => "NVLink packets that the other end marked as bad."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_GENERAL_ERRORS" Some(1208), Counter Gpu "" Reading::LinksField(210)
        => "NVLink packets with a bad header."
    "DCGM_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS" Some(1209), Counter Gpu "" Reading::LinksField(211)
        => "Times that an NVLink exceeded its threshold of errors."
    "DCGM_FI_DEV_NVLINK_COUNT_TX_DISCARDS" Some(1210), Counter Gpu "" Reading::LinksField(212)
        => "NVLink packets discarded before they were sent."
    "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS" Some(1211), Counter Gpu "" Reading::LinksField(213)
        => "NVLink recoveries that succeeded."
    "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS" Some(1212), Counter Gpu "" Reading::LinksField(214)
        => "NVLink recoveries that failed."
    "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS" Some(1213), Counter Gpu "" Reading::LinksField(215)
        => "NVLink recoveries."
    "DCGM_FI_DEV_NVLINK_COUNT_RX_SYMBOL_ERRORS" Some(1214), Counter Gpu "" Reading::LinksField(221)
        => "Symbol errors received over NVLink."
    "DCGM_FI_DEV_NVLINK_COUNT_SYMBOL_BER" Some(1215), Gauge Gpu "" Reading::LinksField(222)
        => "Symbol error rate of NVLink as the driver encodes it."
    "DCGM_FI_DEV_NVLINK_COUNT_SYMBOL_BER_FLOAT" Some(1216), Gauge Gpu "" Reading::LinksErrorRate(222)
        => "Symbol error rate of NVLink."
    "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER" Some(1217), Gauge Gpu "" Reading::LinksField(220)
        => "Error rate of NVLink after correction as the driver encodes it."
    "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER_FLOAT" Some(1218), Gauge Gpu "" Reading::LinksErrorRate(220)
        => "Error rate of NVLink after correction."
    "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS" Some(1219), Counter Gpu "" Reading::LinksField(219)
        => "Errors on NVLink after correction."
    "DCGM_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL" Some(1220), Counter Gpu "" Reading::Field { id: 160, max: u64::MAX }
        => "NVLink ECC data errors of all links."
};

const ERRORS: [(&str, LinkError, &str); 4] = [
    ("CRC_FLIT", LinkError::CrcFlit, "flow-control CRC errors"),
    ("CRC_DATA", LinkError::CrcData, "data CRC errors"),
    ("REPLAY", LinkError::Replay, "replays"),
    ("RECOVERY", LinkError::Recovery, "recoveries"),
];

const RATES: [(&str, Option<Direction>, &str); 3] = [
    ("", None, "Data over NVLink {link}, both directions"),
    ("TX_", Some(Direction::Tx), "Data sent over NVLink {link}"),
    ("RX_", Some(Direction::Rx), "Data received over NVLink {link}"),
];

const PLACES: [(&str, MemoryPlace, &str); 8] = [
    ("L1", MemoryPlace::L1, "the L1 cache"),
    ("L2", MemoryPlace::L2, "the L2 cache"),
    ("DEV", MemoryPlace::Device, "device memory"),
    ("REG", MemoryPlace::Registers, "register files"),
    ("TEX", MemoryPlace::Texture, "texture memory"),
    ("SHM", MemoryPlace::Shared, "shared memory"),
    ("CBU", MemoryPlace::Cbu, "the convergence barrier unit"),
    ("SRM", MemoryPlace::Sram, "SRAM"),
];

/// Every family of this module.
pub(super) fn metrics() -> impl Iterator<Item = Metric> {
    SUMS.iter().copied().chain((0..LINKS).flat_map(of_link)).chain(PLACES.into_iter().flat_map(of_place))
}

fn of_link(link: u8) -> impl Iterator<Item = Metric> {
    let errors = ERRORS.into_iter().map(move |(word, error, help)| {
        let name = format!("DCGM_FI_DEV_NVLINK_{word}_ERROR_COUNT_L{link}");
        row(
            &name,
            Kind::Counter,
            "",
            format!("NVLink {help} of link {link}."),
            Reading::NvlinkErrors { link, error },
        )
    });
    let rates = RATES.into_iter().map(move |(word, direction, help)| {
        let name = format!("DCGM_FI_DEV_NVLINK_{word}BANDWIDTH_L{link}");
        let help = format!("{} (in MB/s).", help.replace("{link}", &link.to_string()));
        row(&name, Kind::Gauge, "MB/s", help, Reading::NvlinkRate { link: Some(link), direction })
    });
    errors.chain(rates)
}

fn of_place((word, place, words): (&str, MemoryPlace, &'static str)) -> Vec<Metric> {
    let mut cells = Vec::new();
    for (kind, corrected, bits) in [("SBE", true, "Single"), ("DBE", false, "Double")] {
        for (span, volatile, since) in
            [("VOL", true, "since the driver was loaded"), ("AGG", false, "in the GPU's life")]
        {
            let name = format!("DCGM_FI_DEV_ECC_{kind}_{span}_{word}");
            let help = format!("{bits}-bit ECC errors in {words} {since}.");
            cells.push(row(
                &name,
                Kind::Counter,
                "",
                help,
                Reading::EccErrors { corrected, volatile, place },
            ));
        }
    }
    cells
}

/// A row whose texts are made once for the life of the program.
pub(super) fn row(name: &str, kind: Kind, unit: &'static str, help: String, reading: Reading) -> Metric {
    let field = field_of(name);
    debug_assert!(field.is_some(), "{name} is not a name of DCGM's");
    Metric {
        name: String::leak(name.to_owned()),
        field,
        kind,
        scope: Scope::Gpu,
        unit,
        reading,
        scale: reading.classic_scale(),
        help: String::leak(help),
    }
}

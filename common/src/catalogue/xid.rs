//! Owns the texts of XIDs: the driver's error numbers, in our words.

/// What an XID means. The list is not complete: drivers bring new numbers.
pub const fn message(xid: u64) -> &'static str {
    match xid {
        0 => "No Error",
        8 | 43 => "GPU stopped processing",
        13 => "Graphics Engine Exception",
        31 => "GPU memory page fault",
        32 => "Invalid or corrupted push buffer stream",
        38 => "Driver firmware error",
        44 => "Graphics Engine fault during context switch",
        45 => "Preemptive cleanup, due to previous errors",
        48 => "Double Bit ECC Error",
        56 => "Display Engine error",
        57 => "Error programming video memory interface",
        61 => "Internal micro-controller breakpoint/warning",
        62 => "Internal micro-controller halt",
        63 => "ECC page retirement or row remapping recording event",
        64 => "ECC page retirement or row remapper recording failure",
        68 => "Video processor exception",
        69 => "Graphics Engine class error",
        74 => "NVLINK Error",
        79 => "GPU has fallen off the bus",
        92 => "High single-bit ECC error rate",
        94 => "Contained ECC error",
        95 => "Uncontained ECC error",
        109 => "Context switch timeout",
        119 => "GSP RPC timeout",
        120 => "GSP error",
        121 => "C2C link corrected error",
        140 => "Unrecovered ECC error",
        143 => "GPU initialization failure",
        _ => "Unknown Error",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn none_and_unknown() {
        assert_eq!(super::message(0), "No Error");
        assert_eq!(super::message(9999), "Unknown Error");
    }
}

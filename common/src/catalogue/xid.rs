//! Owns the texts of XIDs: the driver's error numbers, in our words.

/// What an XID means. Drivers bring numbers beyond the list.
pub fn message(xid: u64) -> &'static str {
    usize::try_from(xid).ok().and_then(|xid| MESSAGES.get(xid)).copied().unwrap_or("Unknown Error")
}

/// By number.
const MESSAGES: [&str; 173] = [
    "No Error", // 0
    "Bad command stream",
    "Bad command stream",
    "Bad command stream",
    "Bad command stream or graphics interface",
    "Unused",
    "Bad command stream",
    "Bad address in the command stream",
    "GPU stopped processing",
    "Driver programmed the GPU wrongly",
    "Unused", // 10
    "Broken command stream",
    "Driver handled a GPU exception wrongly",
    "Graphics engine exception",
    "Unused",
    "Unused",
    "Display engine hung",
    "Unused",
    "Bus mastering is disabled",
    "Display engine error",
    "MPEG engine: bad command stream", // 20
    "MPEG engine: motion compensation error",
    "MPEG engine: DMA error",
    "GPU memory unavailable or misused",
    "GPU semaphore timeout",
    "Illegal command in the command stream",
    "Framebuffer timeout",
    "Video processor exception",
    "Video processor exception",
    "Video processor exception",
    "GPU semaphore access error", // 30
    "GPU memory page fault",
    "Broken push buffer stream",
    "Internal micro-controller error",
    "Video processor exception",
    "Video processor exception",
    "Video processor exception",
    "Driver firmware error",
    "Driver firmware error",
    "Copy engine exception",
    "Copy engine exception", // 40
    "Copy engine exception",
    "Video processor exception",
    "GPU stopped processing",
    "Graphics engine fault during a context switch",
    "Preemptive cleanup after earlier errors",
    "GPU stopped processing",
    "Video processor exception",
    "Double-bit ECC error",
    "Unused",
    "Unused", // 50
    "Unused",
    "Unused",
    "Unused",
    "Auxiliary power is not connected to the board",
    "Unused",
    "Display engine error",
    "Video memory interface could not be programmed",
    "Video memory interface is unstable, or an ECC error was read",
    "Internal micro-controller error",
    "Video processor exception", // 60
    "Internal micro-controller breakpoint or warning",
    "Internal micro-controller halted",
    "Memory page retirement or row remapping was recorded",
    "Memory page retirement or row remapping could not be recorded",
    "Video processor exception",
    "Illegal access by the driver",
    "Illegal access by the driver",
    "Video processor exception",
    "Graphics engine class error",
    "Copy engine exception", // 70
    "Copy engine exception",
    "Copy engine exception",
    "Video encoder exception",
    "NVLink error",
    "Copy engine exception",
    "Copy engine exception",
    "Copy engine exception",
    "vGPU could not start",
    "GPU has fallen off the bus",
    "Broken data sent to the GPU", // 80
    "VGA subsystem error",
    "Image decoder error",
    "Video decoder error",
    "Video decoder error",
    "Video decoder error",
    "Optical flow engine exception",
    "Unused",
    "Video decoder error",
    "Video decoder error",
    "Video decoder error", // 90
    "Unused",
    "Many single-bit ECC errors",
    "InfoROM is worn more than it may be",
    "Contained ECC error",
    "Uncontained ECC error",
    "Video decoder error",
    "Video decoder error",
    "Video decoder error",
    "Image decoder error",
    "Image decoder error", // 100
    "Image decoder error",
    "Image decoder error",
    "Image decoder error",
    "Image decoder error",
    "Image decoder error",
    "Unknown Error",
    "Unknown Error",
    "Unused",
    "Context switch timeout",
    "Security fault", // 110
    "Display error bundle",
    "Display supervisor error",
    "DisplayPort link training error",
    "Display pipeline underflow",
    "Display core channel error",
    "Display window channel error",
    "Display cursor channel error",
    "Display error",
    "GSP did not answer a call",
    "GSP error", // 120
    "Chip-to-chip link error was corrected",
    "Read through the power management unit failed",
    "Write through the power management unit failed",
    "Erase through the power management unit failed",
    "InfoROM file system error",
    "Unknown Error",
    "Unknown Error",
    "Unknown Error",
    "Unknown Error",
    "Unknown Error", // 130
    "Unknown Error",
    "Unknown Error",
    "Unknown Error",
    "Unknown Error",
    "Unknown Error",
    "Link training failed",
    "NVLink privilege error",
    "Unknown Error",
    "Optical flow engine error",
    "Unrecovered ECC error", // 140
    "Unknown Error",
    "NVENC error",
    "GPU did not initialise",
    "NVLink error (SAW)",
    "NVLink error (RLW)",
    "NVLink error (TLW)",
    "NVLink error (TREX)",
    "NVLink error (link control)",
    "NVLink error (NETIR)",
    "NVLink error (MSE)", // 150
    "Key rotation failed",
    "DLA memory management error",
    "DLA timeout",
    "GPU recovery action changed",
    "NVLink error defined by software",
    "Resource was retired",
    "Resource could not be retired",
    "GPU timeout, fatal",
    "Chip interconnect error without data",
    "Channel was retired", // 160
    "Channel could not be retired",
    "Power smoothing works again",
    "Power smoothing stopped working",
    "Power smoothing hardware is nearly worn out",
    "Power smoothing hardware is worn out",
    "Traffic before the link was set up for encryption",
    "PCIe fatal timeout",
    "Errors in the write-protected memory region",
    "Internal micro-controller halted",
    "Interrupt in confidential computing mode", // 170
    "Details of a double-bit ECC error in device memory",
    "Details of a double-bit ECC error in SRAM",
];

#[cfg(test)]
mod tests {
    #[test]
    fn none_some_and_unknown() {
        assert_eq!(super::message(0), "No Error");
        for (xid, word) in [(31, "page fault"), (79, "fallen off the bus"), (119, "GSP"), (172, "SRAM")] {
            assert!(super::message(xid).contains(word), "{xid}");
        }
        assert_eq!(super::message(173), "Unknown Error");
        assert_eq!(super::message(u64::MAX), "Unknown Error");
    }
}

//! The NVIDIA kernel driver's trace of context switches without a GPU. Preloaded into a program, this library
//! answers the ioctls that the program sends to files named `nvidiactl` and `nvidia<minor>`, and leaves all
//! others to the kernel. The scenario file named in `PODGAUGE_SIM_SCENARIO` says which processes take turns,
//! and what is wrong with the trace.
//!
//! ```text
//! ioctl ─► driver (clients and their objects) ─► ring ◄─ the scenario's switches
//! ```
#![allow(unsafe_code)]

mod driver;
mod fields;
mod ring;
mod scene;
mod shared;

use std::ffi::{c_int, c_ulong, c_void};
use std::os::fd::RawFd;

use fields::Fields;

const MAGIC: c_ulong = b'F' as c_ulong;

/// A file of the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceFile {
    Control,
    Gpu { minor: u32 },
}

impl DeviceFile {
    /// `None` for any other file, and for one that has been closed.
    pub(crate) fn of(fd: RawFd) -> Option<Self> {
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let name = path.file_name()?.to_str()?.strip_prefix("nvidia")?;
        match name {
            "ctl" => Some(Self::Control),
            minor => minor.parse().ok().map(|minor| Self::Gpu { minor }),
        }
    }
}

/// The program's ioctl.
///
/// # Safety
/// As the kernel's: `argument` points to what the request says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let file = if request >> 8 & 0xff == MAGIC { DeviceFile::of(fd) } else { None };
    let Some(file) = file else {
        // SAFETY: the caller's call, as it came.
        return unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) } as c_int;
    };
    let bytes = (request >> 16 & 0x3fff) as usize;
    // SAFETY: the request says that the argument is so long, for reading and writing.
    let structure = unsafe { std::slice::from_raw_parts_mut(argument.cast::<u8>(), bytes) };
    match driver::call(file, fd, (request & 0xff) as u32, &mut Fields(structure)) {
        Ok(()) => 0,
        Err(errno) => {
            // SAFETY: the thread's own number.
            unsafe { *libc::__errno_location() = errno };
            -1
        }
    }
}

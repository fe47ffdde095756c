//! Owns memory that the driver writes and a program maps.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Whole pages of memory in a file without a name.
#[derive(Debug)]
pub(crate) struct Shared {
    file: OwnedFd,
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is written through atomics alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: a name that ends with 0, and no pointer is kept.
        let fd = checked(unsafe { libc::memfd_create(c"nvidia-memory".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: a new file that nobody else has.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a file of our own.
        checked(unsafe { libc::ftruncate(fd, bytes as libc::off_t) })?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { file, at, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts it behind a file of the program, which maps that.
    pub(crate) fn put_behind(&self, fd: RawFd) -> io::Result<()> {
        // SAFETY: both are open files; the program's is replaced, as it asked for.
        checked(unsafe { libc::dup2(self.file.as_raw_fd(), fd) }).map(|_| ())
    }

    pub(crate) fn write_u64(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes, "because the ring stays within");
        // SAFETY: inside the mapping, which lives as long as this.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().add(offset).cast()) }.store(value, Ordering::Relaxed);
    }

    /// After everything that was written before.
    pub(crate) fn release_u32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes, "because the ring stays within");
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(offset).cast()) }.store(value, Ordering::Release);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing of this library refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

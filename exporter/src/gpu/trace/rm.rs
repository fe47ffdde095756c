//! Calls to the kernel driver's resource manager (RM), through its device files: what NVML does not
//! offer. NVIDIA publishes the structures with its kernel modules and promises nothing about them; they
//! are the same from branch 535 on.
//!
//! Every structure here is a buffer of zeros, longer than the driver's in any branch, into which the
//! fields are written by their offsets: a branch that appended a field reads a zero. Every status is
//! checked. Only the ioctls and the mapping are unsafe; what comes out of the mapping is believed by
//! nobody here, and checked by [`super::records`].
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

/// An object of the driver: a client, a device, memory, a buffer.
pub(super) type Handle = u32;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RmError {
    #[error("{path}: {cause}")]
    Open { path: String, cause: String },
    /// The kernel refused the call before the driver's resource manager saw it.
    #[error("{call}: {cause}")]
    Call { call: &'static str, cause: String },
    #[error("{call}: the driver answers {} ({status:#x})", status_text(*.status))]
    Status { call: &'static str, status: u32 },
}

const MAGIC: u32 = b'F' as u32;
const RM_CONTROL: u32 = 0x2a;
const RM_ALLOC: u32 = 0x2b;
const RM_MAP_MEMORY: u32 = 0x4e;
const REGISTER_FD: u32 = 201;

/// The class of a client, the root of what it allocates.
const ROOT: u32 = 0;
/// Longer than any structure that is allocated with, in any branch.
const ALLOC_BYTES: usize = 512;

/// A client of the resource manager. Closing its file frees everything that it allocated, also when the
/// process is killed.
#[derive(Debug)]
pub(super) struct Client {
    control: File,
    /// The GPUs' files, which keep them initialised.
    gpus: Vec<File>,
    folder: PathBuf,
    handle: Handle,
    next: Handle,
}

/// Memory of the driver, mapped for reading.
#[derive(Debug)]
pub(super) struct Mapping {
    at: NonNull<u8>,
    bytes: usize,
    /// Each mapping has a file of its own; it goes when the mapping does.
    _file: File,
}

/// A structure that a call takes, filled by offsets.
#[derive(Debug, Clone)]
#[repr(C, align(8))]
pub(super) struct Fields<const N: usize>([u8; N]);

impl<const N: usize> Fields<N> {
    pub(super) fn new() -> Self {
        Self([0; N])
    }

    #[must_use]
    pub(super) fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    #[must_use]
    pub(super) fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn get_u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_ne_bytes(bytes)
    }

    pub(super) fn get_u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.0[at], self.0[at + 1]])
    }
}

// === impl Client ===

impl Client {
    /// `folder`: of the device files, `/dev`.
    pub(super) fn open(folder: &Path) -> Result<Self, RmError> {
        let control = open(&folder.join("nvidiactl"))?;
        let folder = folder.to_owned();
        let mut client = Self { control, gpus: Vec::new(), folder, handle: 0, next: 0x0c7a_0001 };
        let mut call = Fields::<32>::new().u32(12, ROOT);
        client.ioctl("allocating a client", RM_ALLOC, &mut call)?;
        status("allocating a client", call.get_u32(28))?;
        client.handle = call.get_u32(8);
        Ok(client)
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// Opens `nvidia<minor>`, so that the GPU can be spoken of.
    pub(super) fn use_gpu(&mut self, minor: u32) -> Result<(), RmError> {
        let gpu = open(&self.folder.join(format!("nvidia{minor}")))?;
        let mut call = Fields::<4>::new().u32(0, self.control.as_raw_fd().cast_unsigned());
        ioctl(&gpu, "registering the GPU's file", REGISTER_FD, &mut call)?;
        self.gpus.push(gpu);
        Ok(())
    }

    /// Allocates an object of a class under `parent`.
    pub(super) fn alloc<const N: usize>(
        &mut self,
        what: &'static str,
        parent: Handle,
        class: u32,
        parameters: &Fields<N>,
    ) -> Result<Handle, RmError> {
        // The driver copies as many bytes as its own structure has, whatever size is said.
        let mut padded = Fields::<ALLOC_BYTES>::new();
        padded.0[..N].copy_from_slice(&parameters.0);
        let handle = self.next;
        self.next += 1;
        let pointer = (&raw mut padded).expose_provenance() as u64;
        let mut call = Fields::<32>::new()
            .u32(0, self.handle)
            .u32(4, parent)
            .u32(8, handle)
            .u32(12, class)
            .u64(16, pointer);
        self.ioctl(what, RM_ALLOC, &mut call)?;
        status(what, call.get_u32(28))?;
        Ok(call.get_u32(8))
    }

    /// Sends a control command to an object; the driver compares the size with its own.
    pub(super) fn control<const N: usize>(
        &self,
        what: &'static str,
        object: Handle,
        command: u32,
        parameters: &mut Fields<N>,
    ) -> Result<(), RmError> {
        let pointer = (&raw mut *parameters).expose_provenance() as u64;
        let mut call = Fields::<32>::new()
            .u32(0, self.handle)
            .u32(4, object)
            .u32(8, command)
            .u64(16, pointer)
            .u32(24, N as u32);
        self.ioctl(what, RM_CONTROL, &mut call)?;
        status(what, call.get_u32(28))
    }

    /// Maps memory that was allocated under the client.
    pub(super) fn map(&self, what: &'static str, memory: Handle, bytes: usize) -> Result<Mapping, RmError> {
        const READ_ONLY: u32 = 1;
        // A file can be mapped once.
        let file = open(&self.folder.join("nvidiactl"))?;
        let mut call = Fields::<56>::new()
            .u32(0, self.handle)
            .u32(4, self.handle)
            .u32(8, memory)
            .u64(24, bytes as u64)
            .u32(44, READ_ONLY)
            .u32(48, file.as_raw_fd().cast_unsigned());
        self.ioctl(what, RM_MAP_MEMORY, &mut call)?;
        status(what, call.get_u32(40))?;
        // SAFETY: a new mapping at an address that the kernel chooses, which nothing else refers to.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        let failed = || RmError::Call { call: what, cause: io::Error::last_os_error().to_string() };
        if at == libc::MAP_FAILED {
            return Err(failed());
        }
        NonNull::new(at.cast()).map(|at| Mapping { at, bytes, _file: file }).ok_or_else(failed)
    }

    fn ioctl<const N: usize>(
        &self,
        what: &'static str,
        number: u32,
        call: &mut Fields<N>,
    ) -> Result<(), RmError> {
        ioctl(&self.control, what, number, call)
    }
}

/// `call` may hold a pointer to what [`Client::alloc`] and [`Client::control`] lend for the call's time.
fn ioctl<const N: usize>(
    file: &File,
    what: &'static str,
    number: u32,
    call: &mut Fields<N>,
) -> Result<(), RmError> {
    const READ_AND_WRITE: u32 = 3;
    let request = READ_AND_WRITE << 30 | (N as u32) << 16 | MAGIC << 8 | number;
    loop {
        // SAFETY: the number says how long `call` is, and the driver reads and writes no more of it. A
        // pointer in it is to a buffer that outlives the call and is longer than what the driver copies.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, &raw mut *call) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(RmError::Call { call: what, cause: error.to_string() });
        }
    }
}

fn open(path: &Path) -> Result<File, RmError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| RmError::Open { path: path.display().to_string(), cause: error.to_string() })
}

fn status(call: &'static str, status: u32) -> Result<(), RmError> {
    if status == 0 { Ok(()) } else { Err(RmError::Status { call, status }) }
}

/// The driver's words for the statuses that are to be expected.
fn status_text(status: u32) -> &'static str {
    match status {
        0x03 => "busy",
        0x1b => "insufficient permissions",
        0x1f => "invalid argument",
        0x22 => "invalid class",
        0x3a => "invalid structure",
        0x51 => "out of memory",
        0x56 => "not supported",
        0x63 => "in use",
        _ => "an error",
    }
}

// === impl Mapping ===

impl Mapping {
    /// The number at an offset, which the driver may be writing; what it wrote before it is seen as well.
    ///
    /// # Panics
    /// If the offset is outside, or not a multiple of 4.
    pub(super) fn u32_acquired(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes, "because callers stay within");
        // SAFETY: inside the mapping, which begins at a page and lives as long as `self`. The driver
        // writes it while it is read: one volatile read of an aligned word, therefore.
        let value = unsafe { self.at.as_ptr().add(offset).cast::<u32>().read_volatile() };
        fence(Ordering::Acquire);
        value
    }

    /// The number at an offset, as it is.
    ///
    /// # Panics
    /// If the offset is outside, or not a multiple of 8.
    pub(super) fn u64(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes, "because callers stay within");
        // SAFETY: as in `u32_acquired`.
        unsafe { self.at.as_ptr().add(offset).cast::<u64>().read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: the mapping is only read, from whichever thread has it.
unsafe impl Send for Mapping {}

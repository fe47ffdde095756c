//! Binds the context-switch trace of one GPU, and drains it.

use std::path::Path;

use super::records::{Kind, RECORD_BYTES, Record, RecordError, Sequence};
use super::rm::{Client, Fields, Handle, Mapping, RmError};

/// Records that the ring holds: 1 MiB, 17 s of the fastest switching that was seen.
const RECORDS: u32 = 32_768;
/// Bytes of the ring's header, a page.
const HEADER_BYTES: usize = 4096;
/// Where the driver puts the next record, in the header.
const PUT: usize = 4;

const DEVICE: u32 = 0x0080;
const SUBDEVICE: u32 = 0x2080;
const MEMORY_WITHOUT_DEVICE: u32 = 0x90ce;
const EVENT_BUFFER: u32 = 0x90cd;

const GET_ATTACHED_IDS: u32 = 0x201;
const GET_ID_INFO: u32 = 0x202;
const GET_PCI_INFO: u32 = 0x21b;
const ENABLE_EVENTS: u32 = 0x90cd_0101;
const UPDATE_GET: u32 = 0x90cd_0102;
const BIND_CONTEXT_SWITCHES: u32 = 0x2080_1238;

/// Most GPUs that the driver lists, and the id that ends the list.
const MOST_GPUS: usize = 32;
const NO_GPU: u32 = u32::MAX;

/// Where a GPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Of its device file.
    pub(super) minor: u32,
    pub(super) domain: u32,
    pub(super) bus: u16,
    pub(super) slot: u16,
}

/// Why the trace of a GPU cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BindError {
    #[error(transparent)]
    Rm(#[from] RmError),
    #[error("the driver lists no GPU at that PCI address")]
    NotListed,
    #[error("the driver refuses the trace: {reason} ({status})")]
    Refused { reason: &'static str, status: RmError },
    #[error("the ring's write position {put} is outside of it")]
    Put { put: u32 },
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A trace that is bound. It ends when this is dropped, or the process ends however it does.
#[derive(Debug)]
pub(super) struct Binding {
    // Unmapped before the client's file is closed.
    header: Mapping,
    ring: Mapping,
    client: Client,
    buffer: Handle,
    get: u32,
    sequence: Sequence,
}

impl Binding {
    /// `folder`: of the device files.
    pub(super) fn bind(folder: &Path, place: &Place) -> Result<Self, BindError> {
        let mut client = Client::open(folder)?;
        client.use_gpu(place.minor)?;
        let (device, subdevice) = instances(&client, place)?;
        let root = client.handle();
        let device =
            client.alloc("allocating the device", root, DEVICE, &Fields::<56>::new().u32(0, device))?;
        let subdevice = client.alloc(
            "allocating the subdevice",
            device,
            SUBDEVICE,
            &Fields::<4>::new().u32(0, subdevice),
        )?;
        let ring_bytes = RECORDS as usize * RECORD_BYTES;
        let header_memory = memory(&mut client, HEADER_BYTES)?;
        let ring_memory = memory(&mut client, ring_bytes)?;
        let buffer = Fields::<72>::new()
            .u32(16, RECORD_BYTES as u32)
            .u32(20, RECORDS)
            .u32(52, subdevice)
            .u32(60, header_memory)
            .u32(64, ring_memory);
        let buffer = client.alloc("allocating the ring", root, EVENT_BUFFER, &buffer)?;
        let header = client.map("mapping the ring's header", header_memory, HEADER_BYTES)?;
        let ring = client.map("mapping the ring", ring_memory, ring_bytes)?;
        // Enabled; the oldest records are kept, so that a loss shows in the numbers of those after it.
        let mut enable = Fields::<8>::new().u32(0, 1).u32(4, 1);
        client.control("enabling the ring", buffer, ENABLE_EVENTS, &mut enable)?;
        bind_switches(&client, subdevice, buffer)?;
        Ok(Self { header, ring, client, buffer, get: 0, sequence: Sequence::default() })
    }

    /// Adds the records since the last time. `now_ns`: this machine's clock, ns since 1970.
    ///
    /// # Errors
    /// The trace cannot be used any more.
    pub(super) fn drain(&mut self, now_ns: u64, records: &mut Vec<Record>) -> Result<(), BindError> {
        let put = self.header.u32_acquired(PUT);
        if put >= RECORDS {
            return Err(BindError::Put { put });
        }
        if put == self.get {
            return Ok(());
        }
        // What came since has had no room. The next record's number will tell how many that is.
        let is_full = (put + 1) % RECORDS == self.get;
        while self.get != put {
            let at = self.get as usize * RECORD_BYTES;
            let words = std::array::from_fn(|word| self.ring.u64(at + 8 * word));
            self.sequence.read(words, now_ns, records)?;
            self.get = (self.get + 1) % RECORDS;
        }
        if is_full && let Some(last) = records.last().copied() {
            records.push(Record { kind: Kind::Reset, ..last });
        }
        let mut get = Fields::<8>::new().u32(0, self.get);
        self.client.control("giving room in the ring", self.buffer, UPDATE_GET, &mut get)?;
        Ok(())
    }
}

/// The driver's numbers of a GPU's device and subdevice.
fn instances(client: &Client, place: &Place) -> Result<(u32, u32), BindError> {
    let root = client.handle();
    let mut attached = Fields::<{ MOST_GPUS * 4 }>::new();
    client.control("listing the GPUs", root, GET_ATTACHED_IDS, &mut attached)?;
    let ids = (0..MOST_GPUS).map(|at| attached.get_u32(4 * at)).take_while(|id| *id != NO_GPU);
    for id in ids {
        let mut pci = Fields::<12>::new().u32(0, id);
        client.control("asking where a GPU is", root, GET_PCI_INFO, &mut pci)?;
        if (pci.get_u32(4), pci.get_u16(8), pci.get_u16(10)) == (place.domain, place.bus, place.slot) {
            let mut info = Fields::<40>::new().u32(0, id);
            client.control("asking which GPU it is", root, GET_ID_INFO, &mut info)?;
            return Ok((info.get_u32(8), info.get_u32(12)));
        }
    }
    Err(BindError::NotListed)
}

/// Allocates memory that belongs to no device, for the driver to write and this process to read.
fn memory(client: &mut Client, bytes: usize) -> Result<Handle, RmError> {
    const WRITE_BACK: u32 = 5 << 29;
    const USERS_READ_ONLY: u32 = 1 << 22;
    let parameters = Fields::<128>::new().u32(24, WRITE_BACK).u32(28, USERS_READ_ONLY).u64(64, bytes as u64);
    let root = client.handle();
    client.alloc("allocating the ring's memory", root, MEMORY_WITHOUT_DEVICE, &parameters)
}

fn bind_switches(client: &Client, subdevice: Handle, buffer: Handle) -> Result<(), BindError> {
    const ALL_USERS: u32 = 1;
    let mut bind = Fields::<24>::new().u32(0, buffer).u32(4, RECORD_BYTES as u32).u32(16, ALL_USERS);
    client.control("binding the trace", subdevice, BIND_CONTEXT_SWITCHES, &mut bind).map_err(|status| {
        let reason = match bind.get_u32(20) {
            1 => "the GPU is older than Turing",
            2 | 3 => "tracing is not enabled on this GPU",
            4 => "only an administrator may trace",
            5 => "a capability is missing",
            _ => return BindError::Rm(status),
        };
        BindError::Refused { reason, status }
    })
}

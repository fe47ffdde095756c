//! Owns the clients of the resource manager, and answers their calls.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use podgauge_sim_nvml::scenario::{Scenario, SwitchCall};

use crate::DeviceFile;
use crate::fields::Fields;
use crate::ring::{self, RECORD_BYTES, Ring};
use crate::scene::Scene;
use crate::shared::Shared;

/// The manager's answer to a call.
type Status = Result<(), u32>;

// These numbers stand in the exporter as well: one table for both would share its mistakes.
const INSUFFICIENT_PERMISSIONS: u32 = 0x1b;
const INVALID_ARGUMENT: u32 = 0x1f;
const INVALID_CLASS: u32 = 0x22;
const INVALID_OBJECT: u32 = 0x31;
const INVALID_PARAMETERS: u32 = 0x3a;
const OUT_OF_MEMORY: u32 = 0x51;
const NOT_SUPPORTED: u32 = 0x56;

const CONTROL: u32 = 0x2a;
const ALLOC: u32 = 0x2b;
const MAP_MEMORY: u32 = 0x4e;
const REGISTER_FILE: u32 = 201;

const ROOT: u32 = 0;
const DEVICE: u32 = 0x0080;
const SUBDEVICE: u32 = 0x2080;
const MEMORY: u32 = 0x90ce;
const EVENT_BUFFER: u32 = 0x90cd;

const GET_ATTACHED_IDS: u32 = 0x201;
const GET_ID_INFO: u32 = 0x202;
const GET_PCI_INFO: u32 = 0x21b;
const ENABLE_EVENTS: u32 = 0x90cd_0101;
const UPDATE_GET: u32 = 0x90cd_0102;
const BIND_CONTEXT_SWITCHES: u32 = 0x2080_1238;

/// Most GPUs that are listed, and the id of none.
const MOST_GPUS: usize = 32;
const NO_GPU: u32 = u32::MAX;
/// The protection that a program may map a ring's memory with.
const USERS_READ_ONLY: u32 = 1 << 22;
/// Most memory of an object.
const MOST_BYTES: u64 = 64 << 20;

static DRIVER: Mutex<Driver> = Mutex::new(Driver { clients: BTreeMap::new(), scene: None });

#[derive(Debug)]
struct Driver {
    /// By the number of the file that the client opened.
    clients: BTreeMap<RawFd, Client>,
    scene: Option<Scene>,
}

#[derive(Debug)]
struct Client {
    handle: u32,
    /// Of the GPUs' files that the program opened.
    minors: BTreeSet<u32>,
    objects: BTreeMap<u32, Object>,
}

#[derive(Debug)]
enum Object {
    /// A GPU, by its place in the scenario.
    Device(usize),
    Subdevice(usize),
    Memory {
        shared: Arc<Shared>,
        read_only: bool,
    },
    Ring(Arc<Ring>),
}

/// Answers a call. The error is the kernel's number: the manager's own answers are in the structure.
pub(crate) fn call(file: DeviceFile, fd: RawFd, number: u32, fields: &mut Fields<'_>) -> Result<(), i32> {
    let mut driver = DRIVER.lock();
    match (file, number, fields.len()) {
        (DeviceFile::Gpu { minor }, REGISTER_FILE, 4) => {
            let control = fields.u32(0).cast_signed();
            let client = driver.clients.get_mut(&control).ok_or(libc::EINVAL)?;
            client.minors.insert(minor);
            Ok(())
        }
        (DeviceFile::Control, ALLOC, 32) => {
            let status = driver.alloc(fd, fields);
            fields.put_u32(28, status.err().unwrap_or(0));
            Ok(())
        }
        (DeviceFile::Control, CONTROL, 32) => {
            let status = driver.control(fd, fields);
            fields.put_u32(28, status.err().unwrap_or(0));
            Ok(())
        }
        (DeviceFile::Control, MAP_MEMORY, 56) => {
            let status = driver.map(fd, fields);
            fields.put_u32(40, status.err().unwrap_or(0));
            Ok(())
        }
        _ => Err(libc::EINVAL),
    }
}

/// The client's file was closed: everything that it allocated is freed, if it is still that client's.
pub(crate) fn closed(control: RawFd, ring: &Weak<Ring>) {
    let mut driver = DRIVER.lock();
    let has_it = |client: &Client| {
        client.objects.values().any(|object| match object {
            Object::Ring(known) => std::ptr::eq(Arc::as_ptr(known), ring.as_ptr()),
            Object::Device(_) | Object::Subdevice(_) | Object::Memory { .. } => false,
        })
    };
    if driver.clients.get(&control).is_some_and(has_it) {
        driver.clients.remove(&control);
    }
}

// === impl Driver ===

impl Driver {
    fn scene(&mut self) -> &mut Scene {
        self.scene.get_or_insert_default()
    }

    fn refused(&mut self, gpu: usize, call: SwitchCall) -> Status {
        self.scene().refused(gpu, call).map_or(Ok(()), Err)
    }

    fn alloc(&mut self, fd: RawFd, call: &mut Fields<'_>) -> Status {
        let (parent, handle, class) = (call.u32(4), call.u32(8), call.u32(12));
        if class == ROOT {
            self.refused(0, SwitchCall::Client)?;
            let handle = 0xc1d0_0000 | fd.cast_unsigned();
            let client = Client { handle, minors: BTreeSet::new(), objects: BTreeMap::new() };
            self.clients.insert(fd, client);
            call.put_u32(8, handle);
            return Ok(());
        }
        let client = self.clients.get(&fd).ok_or(INVALID_OBJECT)?;
        if call.u32(0) != client.handle || client.objects.contains_key(&handle) {
            return Err(INVALID_OBJECT);
        }
        let of_root = parent == client.handle;
        let object = match class {
            DEVICE if of_root => {
                let index = call.behind(16, 56).ok_or(INVALID_ARGUMENT)?.u32(0) as usize;
                let minors = client.minors.clone();
                self.refused(index, SwitchCall::Device)?;
                let minor = self.scene().gpu(index).map(|gpu| gpu.minor(index)).ok_or(INVALID_ARGUMENT)?;
                // The program has to have the GPU's file.
                if !minors.contains(&minor) {
                    return Err(INSUFFICIENT_PERMISSIONS);
                }
                Object::Device(index)
            }
            SUBDEVICE => match client.objects.get(&parent) {
                Some(Object::Device(index)) => {
                    let index = *index;
                    self.refused(index, SwitchCall::Subdevice)?;
                    Object::Subdevice(index)
                }
                _ => return Err(INVALID_OBJECT),
            },
            MEMORY if of_root => {
                let parameters = call.behind(16, 128).ok_or(INVALID_ARGUMENT)?;
                let (bytes, read_only) = (parameters.u64(64), parameters.u32(28) & USERS_READ_ONLY != 0);
                self.refused(0, SwitchCall::Memory)?;
                if bytes == 0 || bytes > MOST_BYTES {
                    return Err(INVALID_ARGUMENT);
                }
                let shared = Shared::new(bytes as usize).map_err(|_| OUT_OF_MEMORY)?;
                Object::Memory { shared: Arc::new(shared), read_only }
            }
            EVENT_BUFFER if of_root => {
                let parameters = call.behind(16, 72).ok_or(INVALID_ARGUMENT)?;
                let ring = client.ring(&parameters)?;
                self.refused(ring.gpu, SwitchCall::Ring)?;
                Object::Ring(Arc::new(ring))
            }
            _ => return Err(INVALID_CLASS),
        };
        self.clients.get_mut(&fd).ok_or(INVALID_OBJECT)?.objects.insert(handle, object);
        Ok(())
    }

    fn control(&mut self, fd: RawFd, call: &mut Fields<'_>) -> Status {
        let (object, command, bytes) = (call.u32(4), call.u32(8), call.u32(24) as usize);
        let wanted = match command {
            GET_ATTACHED_IDS => 4 * MOST_GPUS,
            GET_ID_INFO => 40,
            GET_PCI_INFO => 12,
            ENABLE_EVENTS | UPDATE_GET => 8,
            BIND_CONTEXT_SWITCHES => 24,
            _ => return Err(NOT_SUPPORTED),
        };
        if bytes != wanted {
            return Err(INVALID_PARAMETERS);
        }
        let mut parameters = call.behind(16, bytes).ok_or(INVALID_ARGUMENT)?;
        let client = self.clients.get(&fd).ok_or(INVALID_OBJECT)?;
        if object == client.handle {
            let scenario = self.scene().now().ok_or(INVALID_OBJECT)?;
            return about_gpus(command, scenario, &mut parameters);
        }
        match (command, client.objects.get(&object)) {
            (ENABLE_EVENTS, Some(Object::Ring(ring))) => {
                let gpu = ring.gpu;
                self.refused(gpu, SwitchCall::Enable)
            }
            (UPDATE_GET, Some(Object::Ring(ring))) => {
                ring.get.store(parameters.u32(0), Ordering::Release);
                let gpu = ring.gpu;
                self.refused(gpu, SwitchCall::Room)
            }
            (BIND_CONTEXT_SWITCHES, Some(Object::Subdevice(gpu))) => {
                let gpu = *gpu;
                let ring = match client.objects.get(&parameters.u32(0)) {
                    Some(Object::Ring(ring)) if ring.gpu == gpu => Arc::clone(ring),
                    _ => return Err(INVALID_OBJECT),
                };
                if parameters.u32(4) as usize != RECORD_BYTES {
                    return Err(INVALID_ARGUMENT);
                }
                if let Some(status) = self.scene().refused(gpu, SwitchCall::Bind) {
                    let reason = self.scene().gpu(gpu).map_or(0, |gpu| gpu.switch_trace.reason);
                    parameters.put_u32(20, reason);
                    return Err(status);
                }
                ring::follow(&ring, fd);
                Ok(())
            }
            _ => Err(INVALID_OBJECT),
        }
    }

    fn map(&mut self, fd: RawFd, call: &Fields<'_>) -> Status {
        let client = self.clients.get(&fd).ok_or(INVALID_OBJECT)?;
        let (memory, bytes, file) = (call.u32(8), call.u64(24), call.u32(48).cast_signed());
        let Some(Object::Memory { shared, .. }) = client.objects.get(&memory) else {
            return Err(INVALID_OBJECT);
        };
        let is_fresh = file != fd && DeviceFile::of(file) == Some(DeviceFile::Control);
        if bytes != shared.bytes() as u64 || !is_fresh {
            return Err(INVALID_ARGUMENT);
        }
        let shared = Arc::clone(shared);
        self.refused(0, SwitchCall::Map)?;
        shared.put_behind(file).map_err(|_| INVALID_ARGUMENT)
    }
}

/// Which GPUs there are, and where.
fn about_gpus(command: u32, scenario: &Scenario, parameters: &mut Fields<'_>) -> Status {
    let id_of = |index: usize| 0x100 * (index as u32 + 1);
    let asked = parameters.u32(0);
    match command {
        GET_ATTACHED_IDS => {
            for place in 0..MOST_GPUS {
                let id = if place < scenario.gpus.len() { id_of(place) } else { NO_GPU };
                parameters.put_u32(4 * place, id);
            }
            Ok(())
        }
        GET_ID_INFO | GET_PCI_INFO => {
            let index =
                (0..scenario.gpus.len()).find(|index| id_of(*index) == asked).ok_or(INVALID_ARGUMENT)?;
            if command == GET_ID_INFO {
                parameters.put_u32(8, index as u32);
                parameters.put_u32(12, 0);
                return Ok(());
            }
            let (domain, bus, slot) = scenario.gpus[index].place(index).ok_or(INVALID_ARGUMENT)?;
            parameters.put_u32(4, domain);
            parameters.put_u16(8, bus);
            parameters.put_u16(10, slot);
            Ok(())
        }
        _ => Err(INVALID_OBJECT),
    }
}

// === impl Client ===

impl Client {
    /// The ring that an event buffer's parameters describe.
    fn ring(&self, parameters: &Fields<'_>) -> Result<Ring, u32> {
        let memory = |at: usize| match self.objects.get(&parameters.u32(at)) {
            Some(Object::Memory { shared, read_only: true }) => Ok(Arc::clone(shared)),
            _ => Err(INVALID_OBJECT),
        };
        let Some(Object::Subdevice(gpu)) = self.objects.get(&parameters.u32(52)) else {
            return Err(INVALID_OBJECT);
        };
        let (record_bytes, count) = (parameters.u32(16) as usize, parameters.u32(20));
        let (header, records) = (memory(60)?, memory(64)?);
        if record_bytes != RECORD_BYTES || count < 2 || records.bytes() < count as usize * RECORD_BYTES {
            return Err(INVALID_ARGUMENT);
        }
        Ok(Ring { gpu: *gpu, count, header, records, get: AtomicU32::new(0) })
    }
}

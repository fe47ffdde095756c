//! Owns what every exported call has in common: the lock, the scenario's blocks and errors, the
//! clock, and that no panic leaves the library.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};
use parking_lot::{Mutex, MutexGuard};

use crate::model::{Node, Reading};
use crate::status::{Answer, Failure};

static NODE: Mutex<Node> = Mutex::new(Node::new());

/// Exports calls under NVML's names. A `gpu` call has a device as its first argument and gets
/// that GPU's [`Reading`]; a `device` call has one too, but gets the whole [`Node`], the device's
/// handle and the time, and asks for the reading itself; a `node` call has none and gets the
/// node. All first meet what the scenario has in store for them. `CALLS` names them.
macro_rules! calls {
    ($($kind:ident fn $name:ident($($arg:ident: $ty:ty),* $(,)?) |$it:ident $(, $more:ident)*| $body:block)*) => {
        pub(super) const CALLS: &[&str] = &[$(stringify!($name)),*];
        $($crate::abi::call::export!($kind $name [$($arg: $ty),*] $it [$($more)*] $body);)*
    };
}

macro_rules! export {
    (gpu $name:ident [$($arg:ident: $ty:ty),*] $gpu:ident [] $body:block) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            device: nvml_wrapper_sys::bindings::nvmlDevice_t,
            $($arg: $ty),*
        ) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            $crate::abi::call::on_gpu(stringify!($name), device, |$gpu| $body)
        }
    };
    (device $name:ident [$($arg:ident: $ty:ty),*] $node:ident [$gpu:ident $now:ident] $body:block) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            device: nvml_wrapper_sys::bindings::nvmlDevice_t,
            $($arg: $ty),*
        ) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            $crate::abi::call::on_device(stringify!($name), device, |$node, $gpu, $now| $body)
        }
    };
    (node $name:ident [$($arg:ident: $ty:ty),*] $node:ident [] $body:block) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $ty),*) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            $crate::abi::call::on_node(stringify!($name), |$node| $body)
        }
    };
}

pub(crate) use {calls, export};

/// The pointer that stands for a place in one of the model's tables, which start at 1.
pub(super) fn pointer<T>(id: usize) -> *mut T {
    std::ptr::without_provenance_mut(id)
}

/// Microseconds since the epoch.
pub(super) fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

/// Runs a call on one GPU.
pub(super) fn on_gpu(
    call: &str,
    device: nvmlDevice_t,
    body: impl FnOnce(&Reading<'_>) -> Answer,
) -> nvmlReturn_t {
    answer(|| {
        let mut node = enter(call, device.addr());
        body(&node.reading(call, device.addr(), now_us())?)
    })
}

/// Runs a call on one GPU that needs more than its state. The body asks for the reading.
pub(super) fn on_device(
    call: &str,
    device: nvmlDevice_t,
    body: impl FnOnce(&mut Node, usize, i64) -> Answer,
) -> nvmlReturn_t {
    answer(|| body(&mut enter(call, device.addr()), device.addr(), now_us()))
}

/// Runs a call that concerns no GPU.
pub(super) fn on_node(call: &str, body: impl FnOnce(&mut Node) -> Answer) -> nvmlReturn_t {
    answer(|| {
        let mut node = enter(call, 0);
        node.scenario()?;
        node.check(call)?;
        body(&mut node)
    })
}

/// Takes the lock with the scenario up to date, after the call has blocked as long as it should.
/// The lock is not held meanwhile: a call that hangs on one GPU leaves the others alone.
pub(super) fn enter(call: &str, device: usize) -> MutexGuard<'static, Node> {
    let node = current();
    let block = node.block(call, device);
    if block.is_zero() {
        return node;
    }
    drop(node);
    std::thread::sleep(block);
    current()
}

/// Takes the lock with the scenario up to date.
pub(super) fn current() -> MutexGuard<'static, Node> {
    let mut node = NODE.lock();
    node.refresh(now_us());
    node
}

/// The number that a call answers. A panic is our mistake and the caller's UNKNOWN: it must not
/// unwind into C.
pub(super) fn answer(body: impl FnOnce() -> Answer) -> nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => failure.0,
        Err(_) => Failure::UNKNOWN.0,
    }
}

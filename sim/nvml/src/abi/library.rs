//! Calls on the library and the driver: initialise, shut down, versions, names of errors.
#![allow(unsafe_code, non_snake_case)]

use std::ffi::c_char;
use std::path::PathBuf;

use nvml_wrapper_sys::bindings::nvmlReturn_t;
use parking_lot::Mutex;

use super::arguments::{Out, Text};
use super::call::{answer, calls, enter, now_us};
use crate::model::SCENARIO_VARIABLE;
use crate::status::{self, Answer, Failure};

/// The last complaint of an initialisation that failed: a program that tries for ever is told
/// once.
static COMPLAINT: Mutex<String> = Mutex::new(String::new());

/// Calls that work uninitialised.
pub(super) const UNGUARDED: &[&str] =
    &["nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString"];

#[unsafe(no_mangle)]
extern "C" fn nvmlInit() -> nvmlReturn_t {
    answer(|| initialise("nvmlInit"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    answer(|| initialise("nvmlInit_v2"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: u32) -> nvmlReturn_t {
    answer(|| initialise("nvmlInitWithFlags"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    answer(|| {
        let mut node = enter("nvmlShutdown", 0);
        node.check("nvmlShutdown")?;
        node.shut_down()
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: nvmlReturn_t) -> *const c_char {
    status::text(code).as_ptr()
}

/// The first user reads the scenario; those after it share it.
fn initialise(call: &str) -> Answer {
    let mut node = enter(call, 0);
    if !node.is_initialised() {
        let Some(path) = std::env::var_os(SCENARIO_VARIABLE).map(PathBuf::from) else {
            complain(format!("{SCENARIO_VARIABLE} is not set: no GPUs to simulate"));
            return Err(Failure::DRIVER_NOT_LOADED);
        };
        if let Err(error) = node.open(path, now_us()) {
            complain(error.to_string());
            return Err(Failure::DRIVER_NOT_LOADED);
        }
        COMPLAINT.lock().clear();
    }
    node.check(call)?;
    node.initialise();
    Ok(())
}

fn complain(complaint: String) {
    let mut last = COMPLAINT.lock();
    if *last != complaint {
        eprintln!("podgauge-sim-nvml: {complaint}");
        *last = complaint;
    }
}

calls! {
    node fn nvmlSystemGetDriverVersion(version: Text, length: u32) |node| {
        version.put(length, &node.scenario()?.driver.version)
    }
    node fn nvmlSystemGetNVMLVersion(version: Text, length: u32) |node| {
        version.put(length, &node.scenario()?.driver.nvml_version)
    }
    node fn nvmlSystemGetCudaDriverVersion(version: Out<i32>) |node| {
        version.put(node.scenario()?.driver.cuda_version)
    }
    node fn nvmlSystemGetCudaDriverVersion_v2(version: Out<i32>) |node| {
        version.put(node.scenario()?.driver.cuda_version)
    }
    node fn nvmlSystemGetProcessName(pid: u32, name: Text, length: u32) |node| {
        let mut all = node.scenario()?.all_processes();
        let (_, process) = all.find(|(_, process)| process.pid == pid).ok_or(Failure::NOT_FOUND)?;
        name.put(length, &process.comm)
    }
}

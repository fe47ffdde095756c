//! Finds and loads libnvidia-ml.

use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError as Cause;

use super::account::timed;
use super::driver::{Driver, NvmlError};

/// Where the driver's library is besides the loader's own path, in the order tried: plain hosts,
/// the GPU operator's driver container, GKE.
const PLACES: [&str; 8] = [
    "libnvidia-ml.so.1",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.1",
];

/// Why NVML is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    /// No file: a driver may still be installed.
    #[error("{0}: no such file; is the NVIDIA driver installed on this node and mounted into the container?")]
    Missing(PathBuf),
    #[error(
        "no libnvidia-ml.so.1 found; is the NVIDIA driver installed, and does the container run with the NVIDIA \
         runtime (NVIDIA_DRIVER_CAPABILITIES=utility)?"
    )]
    NotFound,
    /// The file is there and cannot be NVML: no waiting helps.
    #[error("{path}: not an NVML library: {cause}")]
    NotNvml { path: PathBuf, cause: String },
    #[error("{path}: NVML does not start: {source}")]
    Init { path: String, source: NvmlError },
}

/// Loads NVML from `path`, or from the first place that has it.
pub(super) fn load(path: Option<&Path>) -> Result<Driver, LibraryError> {
    if let Some(path) = path {
        return load_from(path);
    }
    let mut failure = LibraryError::NotFound;
    for place in PLACES {
        match load_from(Path::new(place)) {
            Ok(driver) => return Ok(driver),
            Err(LibraryError::Missing(_)) => {}
            // The first library that is there says what is wrong; a later one may still work.
            Err(error) if matches!(failure, LibraryError::NotFound) => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Refuses a library that was named and cannot be NVML, whatever is done to the node.
pub(crate) fn check(path: &Path) -> Result<(), LibraryError> {
    match load_from(path) {
        Err(error @ LibraryError::NotNvml { .. }) => Err(error),
        Ok(driver) => {
            driver.shut_down();
            Ok(())
        }
        Err(_) => Ok(()),
    }
}

fn load_from(path: &Path) -> Result<Driver, LibraryError> {
    let absent = path.is_absolute() && !path.exists();
    if absent {
        return Err(LibraryError::Missing(path.to_owned()));
    }
    const CALL: &str = "nvmlInit_v2";
    let init = timed(CALL, || Nvml::builder().lib_path(path.as_os_str()).init());
    init.map(Driver::new).map_err(|error| match error {
        // A bare name is looked up by the loader: not finding it there is no verdict on a file.
        Cause::LibloadingError(_) if path.is_relative() && path.components().count() == 1 => {
            LibraryError::Missing(path.to_owned())
        }
        Cause::LibloadingError(cause) => not_nvml(path, &cause.to_string()),
        Cause::FailedToLoadSymbol(cause) => not_nvml(path, &cause),
        cause => LibraryError::Init { path: path.display().to_string(), source: NvmlError::new(CALL, cause) },
    })
}

/// The loader begins its messages with the path, which the error names already.
fn not_nvml(path: &Path, cause: &str) -> LibraryError {
    let named = format!("{}: ", path.display());
    LibraryError::NotNvml {
        path: path.to_owned(),
        cause: cause.strip_prefix(&named).unwrap_or(cause).to_owned(),
    }
}

//! Owns the account of driver calls: how often, how long, with which errors, and the one under way.
//!
//! NVML is one per process, and so is its account: a call is timed where it is made, without
//! handing an account down to every reading.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;
use parking_lot::Mutex;

static ACCOUNT: Mutex<Account> = Mutex::new(Account { calls: BTreeMap::new(), errors: BTreeMap::new() });
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When the NVML thread was last seen between two calls, ms after [`STARTED`]; 0 is never.
static SEEN_MS: AtomicU64 = AtomicU64::new(0);

/// Sums by call, and errors by call and NVML's name of the code.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    pub(crate) calls: BTreeMap<&'static str, Calls>,
    pub(crate) errors: BTreeMap<(&'static str, &'static str), u64>,
}

/// What one call has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

/// Makes a driver call and books it under NVML's name for it.
pub(super) fn timed<T>(
    call: &'static str,
    run: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    let started = Instant::now();
    let result = run();
    let time = started.elapsed();
    let mut account = ACCOUNT.lock();
    let calls = account.calls.entry(call).or_default();
    calls.count += 1;
    calls.time += time;
    // NOT_FOUND is how a ring says that there is nothing newer.
    if let Err(error) = &result {
        *account.errors.entry((call, code(error))).or_default() += 1;
    }
    result
}

/// The sums so far.
pub(crate) fn account() -> Account {
    ACCOUNT.lock().clone()
}

/// The NVML thread lives: it is between two calls.
pub(super) fn seen() {
    let ms = u64::try_from(STARTED.elapsed().as_millis()).unwrap_or(u64::MAX);
    SEEN_MS.store(ms.max(1), Ordering::Relaxed);
}

/// For how long the NVML thread has not been seen: a call that does not return holds it.
pub(crate) fn unseen() -> Duration {
    let seen = Duration::from_millis(SEEN_MS.load(Ordering::Relaxed));
    STARTED.elapsed().saturating_sub(seen)
}

/// NVML's name of a return code, without its prefix.
fn code(error: &NvmlError) -> &'static str {
    match error {
        NvmlError::Uninitialized => "UNINITIALIZED",
        NvmlError::InvalidArg => "INVALID_ARGUMENT",
        NvmlError::NotSupported => "NOT_SUPPORTED",
        NvmlError::NoPermission => "NO_PERMISSION",
        NvmlError::NotFound => "NOT_FOUND",
        NvmlError::InsufficientSize(_) => "INSUFFICIENT_SIZE",
        NvmlError::InsufficientPower => "INSUFFICIENT_POWER",
        NvmlError::DriverNotLoaded => "DRIVER_NOT_LOADED",
        NvmlError::Timeout => "TIMEOUT",
        NvmlError::IrqIssue => "IRQ_ISSUE",
        NvmlError::LibraryNotFound => "LIBRARY_NOT_FOUND",
        NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => "FUNCTION_NOT_FOUND",
        NvmlError::CorruptedInfoROM => "CORRUPTED_INFOROM",
        NvmlError::GpuLost => "GPU_IS_LOST",
        NvmlError::ResetRequired => "RESET_REQUIRED",
        NvmlError::OperatingSystem => "OPERATING_SYSTEM",
        NvmlError::LibRmVersionMismatch => "LIB_RM_VERSION_MISMATCH",
        NvmlError::InUse => "IN_USE",
        NvmlError::InsufficientMemory => "MEMORY",
        NvmlError::NoData => "NO_DATA",
        NvmlError::Unknown => "UNKNOWN",
        NvmlError::UnexpectedVariant(21) => "VGPU_ECC_NOT_SUPPORTED",
        NvmlError::UnexpectedVariant(23) => "FREQ_NOT_SUPPORTED",
        NvmlError::UnexpectedVariant(25) => "ARGUMENT_VERSION_MISMATCH",
        NvmlError::UnexpectedVariant(26) => "DEPRECATED",
        NvmlError::UnexpectedVariant(27) => "NOT_READY",
        NvmlError::UnexpectedVariant(28) => "GPU_NOT_FOUND",
        NvmlError::UnexpectedVariant(29) => "INVALID_STATE",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_errors_add_up() {
        timed("nvmlTestCall", || Ok(1)).unwrap();
        timed::<u32>("nvmlTestCall", || Err(NvmlError::from(15))).unwrap_err();
        timed::<u32>("nvmlTestCall", || Err(NvmlError::from(28))).unwrap_err();
        let account = account();
        assert_eq!(account.calls["nvmlTestCall"].count, 3);
        assert_eq!(account.errors[&("nvmlTestCall", "GPU_IS_LOST")], 1);
        assert_eq!(account.errors[&("nvmlTestCall", "GPU_NOT_FOUND")], 1);
    }
}

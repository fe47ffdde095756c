//! The account of driver calls: how often, how long, with which errors, and those under way.
//!
//! NVML is one per process, and so is its account: a call is booked where it is made, without
//! handing an account down to every reading. [`driver`](super::driver) makes every call, and makes
//! it through [`timed`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError as Cause;
use parking_lot::Mutex;

/// The call that waits for events: the time in it is spent on nothing.
pub(super) const EVENT_WAIT: &str = "nvmlEventSetWait_v2";

static ACCOUNT: Mutex<Account> =
    Mutex::new(Account { calls: BTreeMap::new(), errors: BTreeMap::new(), under_way: Vec::new(), begun: 0 });

/// Sums by call, and errors by call and NVML's name of the code.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    pub(crate) calls: BTreeMap<&'static str, Calls>,
    pub(crate) errors: BTreeMap<(&'static str, Cow<'static, str>), u64>,
    under_way: Vec<UnderWay>,
    /// Number of the last call that began.
    begun: u64,
}

/// What one call has cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

/// A call that has not returned.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    number: u64,
    call: &'static str,
    since: Instant,
    /// Time that it may take by what was asked of it.
    may_take: Duration,
}

/// A call that has not returned for some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreturned {
    pub(crate) call: &'static str,
    /// Time over what it may take.
    pub(crate) time: Duration,
}

/// Makes a driver call and books it under NVML's name for it.
pub(super) fn timed<T>(call: &'static str, run: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
    timed_wait(call, Duration::ZERO, run)
}

/// As [`timed`], of a call that was asked to take up to `may_take`.
pub(super) fn timed_wait<T>(
    call: &'static str,
    may_take: Duration,
    run: impl FnOnce() -> Result<T, Cause>,
) -> Result<T, Cause> {
    let since = Instant::now();
    let number = ACCOUNT.lock().begin(call, since, may_take);
    let result = run();
    ACCOUNT.lock().end(number, call, since.elapsed(), result.as_ref().err());
    result
}

/// The sums so far.
pub(crate) fn account() -> Account {
    ACCOUNT.lock().clone()
}

/// Time spent in driver calls so far, waits for events excluded.
pub(crate) fn spent() -> Duration {
    ACCOUNT.lock().time()
}

/// The call that has been under way for the longest time over what it may take.
pub(crate) fn unreturned() -> Option<Unreturned> {
    let account = ACCOUNT.lock();
    let over = |way: &UnderWay| Unreturned {
        call: way.call,
        time: way.since.elapsed().saturating_sub(way.may_take),
    };
    account.under_way.iter().map(over).max_by_key(|call| call.time)
}

// === impl Account ===

impl Account {
    /// Time spent in driver calls, waits for events excluded.
    pub(crate) fn time(&self) -> Duration {
        self.calls.iter().filter(|(call, _)| **call != EVENT_WAIT).map(|(_, calls)| calls.time).sum()
    }

    fn begin(&mut self, call: &'static str, since: Instant, may_take: Duration) -> u64 {
        self.begun += 1;
        self.under_way.push(UnderWay { number: self.begun, call, since, may_take });
        self.begun
    }

    fn end(&mut self, number: u64, call: &'static str, time: Duration, error: Option<&Cause>) {
        self.under_way.retain(|way| way.number != number);
        // A call that the library does not have was not made.
        if !matches!(error, Some(Cause::FailedToLoadSymbol(_))) {
            let calls = self.calls.entry(call).or_default();
            calls.count += 1;
            calls.time += time;
        }
        // NOT_FOUND is how a ring says that there is nothing newer. A wait without an event is not an error.
        let no_event = call == EVENT_WAIT && matches!(error, Some(Cause::Timeout));
        if let Some(error) = error.filter(|_| !no_event) {
            *self.errors.entry((call, code(error))).or_default() += 1;
        }
    }
}

/// NVML's name of a return code, without its prefix; the number of a code that has no name here.
pub(super) fn code(error: &Cause) -> Cow<'static, str> {
    Cow::Borrowed(match error {
        Cause::Uninitialized => "UNINITIALIZED",
        Cause::InvalidArg => "INVALID_ARGUMENT",
        Cause::NotSupported => "NOT_SUPPORTED",
        Cause::NoPermission => "NO_PERMISSION",
        Cause::NotFound => "NOT_FOUND",
        Cause::InsufficientSize(_) => "INSUFFICIENT_SIZE",
        Cause::InsufficientPower => "INSUFFICIENT_POWER",
        Cause::DriverNotLoaded => "DRIVER_NOT_LOADED",
        Cause::Timeout => "TIMEOUT",
        Cause::IrqIssue => "IRQ_ISSUE",
        Cause::LibraryNotFound => "LIBRARY_NOT_FOUND",
        Cause::FunctionNotFound | Cause::FailedToLoadSymbol(_) => "FUNCTION_NOT_FOUND",
        Cause::CorruptedInfoROM => "CORRUPTED_INFOROM",
        Cause::GpuLost => "GPU_IS_LOST",
        Cause::ResetRequired => "RESET_REQUIRED",
        Cause::OperatingSystem => "OPERATING_SYSTEM",
        Cause::LibRmVersionMismatch => "LIB_RM_VERSION_MISMATCH",
        Cause::InUse => "IN_USE",
        Cause::InsufficientMemory => "MEMORY",
        Cause::NoData => "NO_DATA",
        Cause::VgpuEccNotSupported => "VGPU_ECC_NOT_SUPPORTED",
        Cause::Unknown => "UNKNOWN",
        Cause::UnexpectedVariant(23) => "INSUFFICIENT_RESOURCES",
        Cause::UnexpectedVariant(24) => "FREQ_NOT_SUPPORTED",
        Cause::UnexpectedVariant(25) => "ARGUMENT_VERSION_MISMATCH",
        Cause::UnexpectedVariant(26) => "DEPRECATED",
        Cause::UnexpectedVariant(27) => "NOT_READY",
        Cause::UnexpectedVariant(28) => "GPU_NOT_FOUND",
        Cause::UnexpectedVariant(29) => "INVALID_STATE",
        Cause::UnexpectedVariant(30) => "RESET_TYPE_NOT_SUPPORTED",
        Cause::UnexpectedVariant(code) => return Cow::Owned(code.to_string()),
        _ => "OTHER",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_errors_add_up() {
        timed("nvmlTestCall", || Ok(1)).unwrap();
        for code in [15, 28, 77] {
            timed::<u32>("nvmlTestCall", || Err(Cause::from(code))).unwrap_err();
        }
        timed::<u32>("nvmlTestCall", || Err(Cause::FailedToLoadSymbol(String::new()))).unwrap_err();
        let account = account();
        assert_eq!(account.calls["nvmlTestCall"].count, 4);
        for code in ["GPU_IS_LOST", "GPU_NOT_FOUND", "77", "FUNCTION_NOT_FOUND"] {
            assert_eq!(account.errors[&("nvmlTestCall", Cow::Borrowed(code))], 1, "{code}");
        }
    }

    #[test]
    fn a_call_under_way_is_seen_from_outside_and_a_wait_within_its_time_is_not() {
        timed_wait("nvmlTestWait", Duration::from_secs(60), || {
            timed("nvmlTestHang", || {
                std::thread::sleep(Duration::from_millis(2));
                let seen =
                    ACCOUNT.lock().under_way.iter().filter(|way| way.call.starts_with("nvmlTest")).count();
                assert!(seen >= 2, "{seen}");
                assert!(unreturned().is_some_and(|call| call.call != "nvmlTestWait"));
                Ok(())
            })
        })
        .unwrap();
        assert!(!ACCOUNT.lock().under_way.iter().any(|way| way.call == "nvmlTestHang"));
    }
}

//! Errors of driver calls, and their meaning for the readings.

use nvml_wrapper::error::NvmlError as Cause;

use super::account::code;

/// A driver call that gave no value.
#[derive(Debug)]
pub(crate) struct NvmlError {
    pub(super) call: &'static str,
    pub(super) cause: Cause,
    pub(super) fault: Fault,
}

/// The meaning of an NVML error for the readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This driver or GPU does not have it.
    Unsupported,
    /// Not now, or not for us: no value.
    NoValue,
    /// The GPU does not answer.
    Lost,
    /// The library must be loaded again.
    Reload,
}

// === impl Fault ===

impl Fault {
    pub(super) fn of(error: &NvmlError) -> Self {
        error.fault
    }

    pub(super) fn of_code(cause: &Cause) -> Self {
        match cause {
            Cause::NotSupported
            | Cause::FunctionNotFound
            | Cause::FailedToLoadSymbol(_)
            // 25 argument version mismatch, 26 deprecated: codes the wrapper does not know.
            | Cause::UnexpectedVariant(25 | 26) => Self::Unsupported,
            Cause::GpuLost | Cause::ResetRequired => Self::Lost,
            // 28 GPU not found.
            Cause::Uninitialized
            | Cause::DriverNotLoaded
            | Cause::LibRmVersionMismatch
            | Cause::UnexpectedVariant(28) => Self::Reload,
            _ => Self::NoValue,
        }
    }
}

// === impl NvmlError ===

impl NvmlError {
    /// Of a call that concerns no GPU.
    pub(super) fn new(call: &'static str, cause: Cause) -> Self {
        Self { call, fault: Fault::of_code(&cause), cause }
    }

    /// Whether the driver gave no reason at all (999).
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.cause, Cause::Unknown)
    }

    /// Whether the library and the driver are of different versions.
    pub(super) fn is_mismatch(&self) -> bool {
        matches!(self.cause, Cause::LibRmVersionMismatch)
    }

    /// Whether the library does not have the call.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.cause, Cause::FailedToLoadSymbol(_) | Cause::FunctionNotFound)
    }
}

impl std::fmt::Display for NvmlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let meaning = match &self.cause {
            Cause::DriverNotLoaded => "the NVIDIA driver is not loaded on this node",
            Cause::LibRmVersionMismatch => "the library is not of the version of the driver that is loaded",
            Cause::GpuLost => "the GPU has fallen off the bus or cannot be reached",
            Cause::ResetRequired => "the GPU needs a reset",
            Cause::NoPermission => "this process may not do that",
            Cause::Utf8Error(_) | Cause::FailedToLoadSymbol(_) | Cause::LibloadingError(_) => {
                return write!(f, "{}: {}", self.call, self.cause);
            }
            _ => return write!(f, "{}: {}", self.call, code(&self.cause)),
        };
        write!(f, "{}: {}: {meaning}", self.call, code(&self.cause))
    }
}

impl std::error::Error for NvmlError {}

/// `None` for what has no value; an error is one that speaks of the whole GPU or library.
pub(super) fn known<T>(read: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) => match Fault::of(&error) {
            Fault::Lost | Fault::Reload => Err(error),
            Fault::Unsupported | Fault::NoValue => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_codes_are_classified_too() {
        let fault = |code: u32| Fault::of_code(&Cause::from(code));
        assert_eq!(fault(15), Fault::Lost);
        assert_eq!(fault(18), Fault::Reload);
        assert_eq!(fault(28), Fault::Reload);
        assert_eq!(fault(3), Fault::Unsupported);
        assert_eq!(fault(26), Fault::Unsupported);
        assert_eq!(fault(999), Fault::NoValue);
    }

    #[test]
    fn an_error_names_its_call_and_nvmls_name_of_the_cause() {
        let text = |code: u32| NvmlError::new("nvmlX", Cause::from(code)).to_string();
        assert_eq!(text(999), "nvmlX: UNKNOWN");
        assert_eq!(text(15), "nvmlX: GPU_IS_LOST: the GPU has fallen off the bus or cannot be reached");
        assert_eq!(text(77), "nvmlX: 77");
    }
}

//! Owns NVML's return codes: their numbers, their names as a scenario spells them, their texts.

use std::ffi::CStr;

/// A code other than success that an NVML call answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) u32);

/// What an NVML call comes to.
pub(crate) type Answer = Result<(), Failure>;

macro_rules! failures {
    ($($code:literal $name:ident $text:literal)*) => {
        impl Failure {
            $(#[doc = concat!("`NVML_ERROR_", stringify!($name), "`.")]
            pub(crate) const $name: Self = Self($code);)*

            /// The code of a name without its `NVML_ERROR_` prefix.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name without the `NVML_ERROR_` prefix; `None` for a number NVML does not use.
            pub(crate) fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// Every name, for messages.
            pub(crate) const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
        }

        /// What `nvmlErrorString` says of a return code, success included.
        pub(crate) fn text(code: u32) -> &'static CStr {
            match code {
                0 => c"Success",
                $($code => $text,)*
                _ => c"Unknown error code",
            }
        }
    };
}

failures! {
    1 UNINITIALIZED c"Uninitialized"
    2 INVALID_ARGUMENT c"Invalid Argument"
    3 NOT_SUPPORTED c"Not Supported"
    4 NO_PERMISSION c"Insufficient Permissions"
    5 ALREADY_INITIALIZED c"Already Initialized"
    6 NOT_FOUND c"Not Found"
    7 INSUFFICIENT_SIZE c"Insufficient Size"
    8 INSUFFICIENT_POWER c"Insufficient External Power"
    9 DRIVER_NOT_LOADED c"Driver Not Loaded"
    10 TIMEOUT c"Timeout"
    11 IRQ_ISSUE c"Interrupt Request Issue"
    12 LIBRARY_NOT_FOUND c"NVML Shared Library Not Found"
    13 FUNCTION_NOT_FOUND c"Function Not Found"
    14 CORRUPTED_INFOROM c"Corrupted infoROM"
    15 GPU_IS_LOST c"GPU is lost"
    16 RESET_REQUIRED c"GPU requires restart"
    17 OPERATING_SYSTEM c"The operating system has blocked the request"
    18 LIB_RM_VERSION_MISMATCH c"Driver/library version mismatch"
    19 IN_USE c"In use by another client"
    20 MEMORY c"Insufficient Memory"
    21 NO_DATA c"No data"
    22 VGPU_ECC_NOT_SUPPORTED c"vGPU with ECC not supported"
    23 INSUFFICIENT_RESOURCES c"Insufficient resources"
    24 FREQ_NOT_SUPPORTED c"Frequency not supported"
    25 ARGUMENT_VERSION_MISMATCH c"Argument version mismatch"
    26 DEPRECATED c"Deprecated"
    27 NOT_READY c"Not ready"
    28 GPU_NOT_FOUND c"GPU not found"
    29 INVALID_STATE c"Invalid state"
    30 RESET_TYPE_NOT_SUPPORTED c"Reset type not supported"
    999 UNKNOWN c"Unknown Error"
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({})", self.name().unwrap_or("?"), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_from_1_to_30_and_999_has_a_name_that_leads_back_to_it() {
        for code in (1..=30).chain([999]) {
            let name = Failure(code).name().unwrap_or_else(|| panic!("{code} has no name"));
            assert_eq!(Failure::named(name), Some(Failure(code)));
            assert_ne!(text(code), text(31));
        }
    }
}

//! The ends of a session with the library, and their texts.

use std::time::Duration;

use super::driver::NvmlError;
use super::library::LibraryError;

/// A trouble of this length ends the process, if a new container can end it: only then are library
/// and device nodes mounted again.
pub(super) const GIVE_UP: Duration = Duration::from_secs(60);
/// The known causes of a driver that answers UNKNOWN to everything.
pub(super) const UNKNOWN_ADVICE: &str = "the driver gives no cause. Known ones: this container has lost access to \
    /dev/nvidia* (as after systemctl daemon-reload), or the driver is being replaced. Ending, so that a new \
    container gets the devices and the library of now";
const MISMATCH_ADVICE: &str = "ending, so that a new container gets the library of the driver that is loaded";

/// Why a session ended.
pub(super) enum End {
    /// The receiver of messages is gone: the program ends.
    Done,
    Reload(String),
    /// A new container can end it, should it last: the observation, and its possible causes.
    Stuck(String, &'static str),
    /// Only a new container helps.
    GiveUp(String),
    /// The devices that were asked for cannot be served here.
    Refused(String),
}

pub(super) fn end_of_loading(error: &LibraryError) -> End {
    match error {
        LibraryError::Init { source, .. } if source.is_mismatch() => {
            End::Stuck(error.to_string(), MISMATCH_ADVICE)
        }
        LibraryError::Init { source, .. } if source.is_unknown() => {
            End::Stuck(error.to_string(), UNKNOWN_ADVICE)
        }
        _ => End::Reload(error.to_string()),
    }
}

/// The end of a session by an error of the whole library; `uuid`: the GPU on which it was met.
pub(super) fn end_of(uuid: Option<&str>, error: &NvmlError) -> End {
    let of = uuid.map(|uuid| format!("{uuid}: ")).unwrap_or_default();
    let reason = format!("{of}{error}; loading the library again");
    if error.is_mismatch() {
        End::Stuck(reason, MISMATCH_ADVICE)
    } else if error.is_unknown() {
        End::Stuck(reason, UNKNOWN_ADVICE)
    } else {
        End::Reload(reason)
    }
}

//! What is known of the cluster: its pods ([`PodIndex`]) and where the exporters are.
//!
//! ```text
//! watch of pods ─► slim ─► pods (PodIndex) ─► evaluate
//! watch of EndpointSlices ─► endpoints ─► source
//! ```

pub mod endpoints;
pub mod pods;
pub mod selector;
pub mod slim;
pub mod watch;

pub use podgauge_common::cluster as client;
pub use pods::{PodIndex, PodRecord};
pub use selector::Selector;

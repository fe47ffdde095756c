//! What is known of the cluster: its pods ([`PodIndex`]), nodes and namespaces, and where the
//! exporters are.
//!
//! ```text
//! watch of pods ─► slim ─► pods (PodIndex), with the GpuGrant of each ─► evaluate
//! watches of nodes' and namespaces' metadata ─► objects (ObjectIndex) ─► apiserver
//! watch of EndpointSlices ─► endpoints ─► source
//! ```

pub mod endpoints;
pub mod gpu_grant;
pub mod objects;
pub mod pods;
pub mod selector;
pub mod slim;
pub mod watch;

pub use gpu_grant::GpuGrant;
pub use objects::ObjectIndex;
pub use podgauge_common::cluster as client;
pub use pods::{PodIndex, PodRecord};
pub use selector::Selector;

//! What is known of the cluster: its pods ([`PodIndex`]), nodes and namespaces, and where the
//! exporters are.
//!
//! ```text
//! watch of pods ─► slim ─► pods (PodRecord, with its GpuGrant) ─► pod_index ─► evaluate
//! watches of nodes' and namespaces' metadata ─► objects (ObjectIndex) ─► apiserver
//! watch of EndpointSlices ─► endpoints ─► source
//! ```

pub mod endpoints;
pub mod gpu_grant;
pub mod objects;
mod pod_index;
pub mod pods;
pub mod selector;
pub mod slim;
pub mod watch;

pub use gpu_grant::GpuGrant;
pub use objects::ObjectIndex;
pub use pod_index::PodIndex;
pub use podgauge_common::cluster as client;
pub use pods::PodRecord;
pub use selector::Selector;

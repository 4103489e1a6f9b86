//! A cluster as users install it, and the program in it.
//!
//! The control plane is real, the manifests are those of `manifests/overlays/local`, and the
//! program runs with the token of the shipped `ServiceAccount`, never as admin.

mod balancer;
pub mod canary;
pub mod cluster;
mod load;
mod manifests;
mod memory_limit;
pub mod metrics;
mod proxy;
mod replicas;
pub mod rights;
mod serving;
mod tap;
mod tool;
pub mod wait;

pub use balancer::Balancer;
pub use cluster::{Cluster, Setup};
pub use control_plane;
pub use load::Load;
pub use manifests::{Manifests, documents, fixture, repository};
pub use memory_limit::MemoryLimit;
pub use proxy::{Fault, Proxy};
pub use replicas::{Replica, Replicas};
pub use serving::{ServingCertificate, client_pair};
pub use tap::{Call, Fate, Passage, Tap, TapProxy};
pub use tool::{Tool, ToolBuilder};

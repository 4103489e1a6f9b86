//! A cluster as users install it, and the program in it.
//!
//! The control plane is real, the manifests are those of `manifests/overlays/local`, and the
//! program runs with the token of the shipped `ServiceAccount`, never as admin.

pub mod cluster;
mod manifests;
mod proxy;
mod serving;
mod tool;
pub mod wait;

pub use cluster::{Cluster, Setup};
pub use control_plane;
pub use manifests::{Manifests, fixture};
pub use proxy::{Fault, Proxy};
pub use serving::ServingCertificate;
pub use tool::{Tool, ToolBuilder};

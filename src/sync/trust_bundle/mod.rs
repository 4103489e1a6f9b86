//! The subject *trust bundle*: what is stored, what is to be done with it, its one writer, and
//! which content pods may be given.

mod plan;
mod shown;
mod state;
mod write;

pub use plan::{CertsView, plan};
pub use shown::Shown;
pub use state::BundleState;
pub use write::BundleWriter;

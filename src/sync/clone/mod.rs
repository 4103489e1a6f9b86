//! The subject *clone*: what is stored, what is to be done with it, and its one writer.

mod plan;
mod state;
mod write;

pub use plan::{SourceView, plan};
pub use state::{SecretState, SourceSecret, names_another_source, same_content};
pub use write::{Both, CloneWriter};

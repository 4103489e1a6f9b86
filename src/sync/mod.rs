//! Sync: keeps each clone equal to its source.
//!
//! There are two subjects, `clone` and `trust_bundle`, each with the same three files: `state` is what is kept of the
//! stored object, `plan` decides what is to be done with it, `write` does it. A trust bundle also has `shown`: which content
//! pods may be given.
//!
//! Watches fill the stores (`observe`); every event only says "look at this object again". A look compares what the stores
//! hold (`plan`); a write (`write`) happens after a quorum read of the source that began later than the event, at most one
//! at a time for each object (`driver`).

mod action;
mod clone;
mod deletion_check;
mod driver;
mod filtered;
#[cfg(test)]
mod model;
mod observe;
mod permits;
mod plan;
mod queue;
mod reread;
mod restart;
mod selection;
mod source_reads;
mod states;
#[cfg(test)]
mod testing;
mod trust_bundle;
mod view;
mod watches;

pub use clone::{SecretState, names_another_source, same_content};
pub use driver::Driver;
pub use trust_bundle::BundleState;

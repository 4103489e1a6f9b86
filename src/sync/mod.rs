//! Sync: keeps each clone equal to its source.
//!
//! Watches fill the stores (`observe`); every event only says "look at this clone again". A look
//! compares what the stores hold (`plan`); a write (`write`) happens after a quorum read of the
//! source that began later than the event, at most one at a time for each clone (`driver`).

mod action;
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
mod secret;
mod selection;
mod source_reads;
mod states;
mod view;
mod watches;
mod write;

pub use driver::Driver;
pub use secret::{SecretState, names_another_source, same_content};

//! The way to the API server: clients, watches, and what their errors mean.

mod authorship;
mod change;
mod client;
mod error;
mod events;
mod lines;
mod query;
mod raw;
mod request;
mod revision;
mod store;
mod watch;
mod watch_client;
mod watch_health;

pub use authorship::Authorship;
pub use change::Change;
pub use client::{Clients, ConnectError, connect, connect_as_caller};
pub use error::{Problem, Reason};
pub use events::{EventQueue, EventRecord, EventWriter, Regarding, Uid};
pub use query::Query;
pub use raw::Raw;
pub use request::{Object, Requests, Version, in_time};
pub use revision::{RevisionWatch, Standing, Standings};
pub use store::ObjectStore;
pub use watch::watch;
pub use watch_client::WatchClient;
pub use watch_health::WatchHealth;

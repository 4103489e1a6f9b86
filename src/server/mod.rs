//! The HTTPS server for webhooks, and the plain one for probes and metrics.

mod body;
mod budget;
mod client_ca;
mod connection;
mod connections;
mod limits;
mod listener;
mod peer;
mod resolver;
mod routes;
mod stream;
mod traffic;

pub use client_ca::{ClientCa, ClientCaError};
pub use limits::Limits;
pub use listener::{BindError, Server, bind};
pub use resolver::{Certificate, Served};
pub use routes::{AppState, probe_router, webhook_router, webhook_router_within};
pub use traffic::Traffic;

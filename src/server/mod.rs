//! The HTTPS server for webhooks, and the plain one for probes and metrics.

mod listener;
mod resolver;
mod routes;
#[cfg(test)]
mod testing;

pub use listener::{BindError, Server, bind};
pub use resolver::{Certificate, CertificateError, CertificateFiles};
pub use routes::{AppState, probe_router, webhook_router};

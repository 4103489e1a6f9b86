//! The HTTPS server for webhooks, and the plain one for probes and metrics.

mod listener;
mod resolver;
mod routes;

pub use listener::{BindError, Server, bind};
pub use resolver::{Certificate, CertificateError, CertificateFiles};
pub use routes::{AppState, probe_router, webhook_router};

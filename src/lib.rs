//! Keeps GitLab Runner's token Secret and CA certificates where its pods need them.
pub mod admission;
mod backoff;
pub mod cluster;
pub mod config;
pub mod names;
pub mod run;
pub mod server;
pub mod shutdown;
pub mod snapshot;
pub mod sync;
pub mod telemetry;
pub mod trust;

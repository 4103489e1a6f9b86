//! What needs no API server: routers, manifests, documentation, sources, scripts. `cargo test --test offline docs::` runs
//! one module.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

mod admission_router;
mod ca_variables;
mod certs_script;
mod cli;
mod docs;
mod fuzz_seeds;
mod manifests;
mod manifests_command;
mod monitoring;
mod structure;

/// The program.
const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");

//! What a real API server has to say. Each test starts what it needs; `cargo test --test api_server gate::` runs one module,
//! `cargo test --test api_server gate::NAME` one test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

mod check;
mod gate;
mod gitops;
mod guards;
mod install;
mod manifests_live;
mod migrate;
mod mission;
mod namespace;
mod pki;
mod pki_time;
mod replicas;
mod restart;
mod rights;
mod rollout;
mod secrets_in_memory;
mod server_limits;
mod stolen_token;
mod sync_choices;
mod sync_faults;
mod sync_rest;
mod sync_rows;
mod telemetry;
mod terminating;
mod trust;
mod watches;
mod webhook;

/// The program.
const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");

//! Two configurations side by side, as in every rollout that changes one: of two revisions of the Deployment one writes,
//! and where there is no Deployment to tell, the brakes bound what a disagreement costs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

mod binaries;
mod contention;
mod history;
mod leftovers;
mod revisions;
mod transitions;

const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");
const APP: &str = "gitlab-runner-webhook";
const TRUST: &str = "gitlab-runner-webhook-trust";
const CERTS: &str = "gitlab-runner-certs";

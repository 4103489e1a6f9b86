//! Holds the documentation to the code: generated tables, links, and every target, path, flag and variable that it names.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` writes the generated tables anew.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

mod commands;
mod fields;
mod flags;
mod links;
mod metrics;
mod page;
mod reference;
mod rights;
mod walk;

/// Pages that are being written, by their paths, and commands that are being built. Empty when all of them are there.
const PENDING: [&str; 2] = ["docs/check.md", "check"];

/// Is it one of those that are not there yet?
fn is_pending(what: &str) -> bool {
    PENDING.contains(&what)
}

#[test]
fn what_is_there_is_pending_no_more() {
    let commands = flags::commands();
    for pending in PENDING {
        let is_there = test_support::repository().join(pending).is_file() || commands.contains_key(pending);
        assert!(!is_there, "{pending} is there: take it from PENDING in tests/docs/main.rs");
    }
}

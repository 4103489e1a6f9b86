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

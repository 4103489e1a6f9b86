//! Holds the documentation to the code: generated tables, links, and every target, path, flag and variable that it names.
//!
//! `UPDATE_DOCS=1 cargo test --test offline docs::` writes the generated tables anew.

mod commands;
mod contract;
mod fields;
mod flags;
mod links;
mod metrics;
mod page;
mod reference;
mod rights;
mod walk;

//! Our own TLS: the serving CA, the leaf, and who is told to trust them.
//!
//! One CA, in a Secret that all replicas share; each replica issues its leaf by it and keeps that in memory. What the
//! API server trusts, `caBundle`, is kept equal to the CAs in the Secret. A CA is replaced in steps, each of them safe
//! to be interrupted, repeated, or taken by another replica (compare-and-swap decides whose write counts):
//!
//! 1. a third of its life is left: the *next* CA is made, and so becomes trusted beside it;
//! 2. the next CA was in every `caBundle` for as long as API servers may take to notice, and a leaf by it is accepted
//!    with each of them as stored: it becomes the *current* one, by which leaves are issued;
//! 3. the last leaf of the *previous* one has expired: it is no longer trusted.
//!
//! | file | what it is |
//! |---|---|
//! | `authority` | a CA, and the leaves it issues. PURE |
//! | `keyring` | what the Secret holds. PURE |
//! | `plan` | what is to be done, from what is known. PURE |
//! | `options` | what the loop is told. PURE |
//! | `pause` | when something may be done again. PURE |
//! | `state` | what the loop knows, and what it does next. PURE |
//! | `leaf_issuer` | issues leaves, in the loop or in a handshake |
//! | `clock` | the time as the API server has it |
//! | `watch_object` | a watch of one object |
//! | `store` | the one reader and writer of the CA Secret |
//! | `registration` | what is known of the webhook configurations. PURE |
//! | `publish` | the one writer of `caBundle` |
//! | `rotate` | the loop that does it |
//! | `files` | the other way: files that somebody else writes |
//! | `conditions` | what is wrong, as an Event |

mod authority;
mod clock;
mod conditions;
mod files;
mod keyring;
mod leaf_issuer;
#[cfg(test)]
mod model;
mod options;
mod pause;
mod plan;
mod publish;
mod registration;
mod rotate;
mod state;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod watch_object;

pub use authority::{AuthorityError, AuthorityId, Leaf, Validity, is_accepted};
pub use clock::Clock;
pub use conditions::ConditionReporter;
pub use files::{CertificateError, CertificateFiles, FileCertificate};
pub use keyring::{
    KEY_CURRENT_CERT, KEY_CURRENT_KEY, KEY_NEXT_CERT, KEY_NEXT_KEY, KEY_PREVIOUS_CERTS, KEY_PREVIOUS_UNTIL,
};
pub use options::{Options, OptionsError};
pub use plan::Lifetimes;
pub use rotate::Rotation;

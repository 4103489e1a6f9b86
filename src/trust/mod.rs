//! What is known of the certificates in `certsSecretName`.

mod certs;

pub use certs::{Ca, Certs};

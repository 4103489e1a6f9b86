//! What is known of the certificates in `certsSecretName`, and the trust bundle that follows from them.

pub mod bundle;
mod certs;
mod client_pair;
mod der;
mod reading;
mod state;
mod strict;
mod subject_hash;

pub use crate::pem::PemError;
pub use certs::{Cas, Certs, LeftOut, ca_keys};
pub use client_pair::{ClientPair, PairFlaw};
pub use reading::{Reading, read};
pub(crate) use state::DIGEST_TAG;
pub use state::{CertsState, ExpectedBundle};

/// Which files the trust bundle of a namespace has, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleFiles {
    /// Whether there is `bundle.crt`: public roots and private CAs.
    pub has_bundle: bool,
    /// Whether the private CAs are there under hashed names, too, for `SSL_CERT_DIR`.
    pub has_hashes: bool,
}

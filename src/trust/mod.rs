//! What is known of the certificates in `certsSecretName`, and the trust bundle that follows from them.

pub mod bundle;
mod certs;
mod client_pair;
mod der;
mod java;
mod reading;
mod state;
mod strict;
mod subject_hash;

use crate::names::{KEY_BUNDLE, KEY_CA, KEY_JAVA};
pub use crate::pem::PemError;
pub use certs::{Cas, Certs, LeftOut, ca_keys};
pub use client_pair::{ClientPair, PairFlaw};
pub use reading::{Reading, read};
pub(crate) use state::digest;
pub use state::{CertsState, ExpectedBundle, REMARKS};

/// Which files the trust bundle of a namespace has, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind of file")]
pub struct BundleFiles {
    /// Whether there is `ca.crt`, the private CAs alone. With very many of them there is `bundle.crt` only.
    pub has_ca: bool,
    /// Whether there is `bundle.crt`: public roots and private CAs.
    pub has_bundle: bool,
    /// Whether the private CAs are there under hashed names, too, for `SSL_CERT_DIR`.
    pub has_hashes: bool,
    /// Whether there is `truststore.jks`, with the same certificates as `bundle.crt`.
    pub has_java: bool,
}

impl BundleFiles {
    /// What keys of these names tell.
    pub(crate) fn of<'a>(keys: impl IntoIterator<Item = &'a String>) -> Self {
        let mut files = Self { has_ca: false, has_bundle: false, has_hashes: false, has_java: false };
        for key in keys {
            match key.as_str() {
                KEY_CA => files.has_ca = true,
                KEY_BUNDLE => files.has_bundle = true,
                KEY_JAVA => files.has_java = true,
                _ => files.has_hashes = true,
            }
        }
        files
    }

    /// The file with the private CAs and the least beside them.
    pub fn least(self) -> &'static str {
        if self.has_ca { KEY_CA } else { KEY_BUNDLE }
    }
}

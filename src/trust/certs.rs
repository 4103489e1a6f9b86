//! A look at `certsSecretName`: which keys are usable. PURE.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::names::{KEY_CA, KEY_TLS_CERT, KEY_TLS_KEY};

/// What `certsSecretName` holds in one namespace. No certificate or key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certs {
    /// State of key `ca.crt`.
    pub ca: Ca,
    /// Whether both `tls.crt` and `tls.key` are there and not empty.
    pub client_pair: bool,
}

/// State of key `ca.crt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ca {
    /// No such key, or empty.
    Missing,
    /// Something else than PEM certificates.
    Invalid,
    /// At least one certificate, and all of them parse.
    Valid,
}

impl Certs {
    /// Looks at the data of a Secret.
    pub fn inspect(data: Option<&BTreeMap<String, ByteString>>) -> Self {
        let filled = |key: &str| data?.get(key).map(|value| value.0.as_slice()).filter(|value| !value.is_empty());
        Self {
            ca: filled(KEY_CA).map_or(Ca::Missing, inspect_ca),
            client_pair: filled(KEY_TLS_CERT).is_some() && filled(KEY_TLS_KEY).is_some(),
        }
    }
}

fn inspect_ca(pem: &[u8]) -> Ca {
    let mut roots = rustls::RootCertStore::empty();
    let mut seen = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if certificate.is_err() || certificate.is_ok_and(|certificate| roots.add(certificate).is_err()) {
            return Ca::Invalid;
        }
        seen += 1;
    }
    if seen == 0 { Ca::Invalid } else { Ca::Valid }
}

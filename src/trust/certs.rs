//! A look at `certsSecretName`: which keys are usable. PURE.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;

use super::bundle::ca_keys;
use crate::{
    names::{KEY_CA, KEY_TLS_CERT, KEY_TLS_KEY},
    pem,
};

/// What `certsSecretName` holds in one namespace. Names of keys only; no certificate or key is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certs {
    /// State of key `ca.crt`.
    pub ca: Ca,
    /// Other keys that hold CAs and could be read: `<host>.crt`, `company.pem`. Never `tls.crt` or a key's.
    pub other_cas: BTreeSet<String>,
    /// The first key that should hold CAs and cannot be read.
    pub unreadable: Option<String>,
    /// Whether both `tls.crt` and `tls.key` are there and not empty.
    pub client_pair: bool,
}

/// State of key `ca.crt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ca {
    /// No such key, or empty.
    #[default]
    Missing,
    /// Something else than PEM certificates.
    Invalid,
    /// At least one certificate, and all of them parse.
    Valid,
}

impl Certs {
    /// Looks at the data of a Secret.
    pub fn inspect(data: Option<&BTreeMap<String, ByteString>>) -> Self {
        let is_filled = |key: &str| data.and_then(|data| data.get(key)).is_some_and(|value| !value.0.is_empty());
        let mut certs = Self { client_pair: is_filled(KEY_TLS_CERT) && is_filled(KEY_TLS_KEY), ..Self::default() };
        for (key, value) in ca_keys(data) {
            let found = pem::certificates(value);
            if key == KEY_CA {
                certs.ca = match &found {
                    Ok(found) if !found.is_empty() => Ca::Valid,
                    _ if value.is_empty() => Ca::Missing,
                    _ => Ca::Invalid,
                };
            }
            match found {
                Ok(found) if found.is_empty() || key == KEY_CA => {}
                Ok(_) => _ = certs.other_cas.insert(key.to_owned()),
                Err(_) => _ = certs.unreadable.get_or_insert_with(|| key.to_owned()),
            }
        }
        certs
    }

    /// Whether there is a CA in any key.
    pub fn has_ca(&self) -> bool {
        self.ca == Ca::Valid || !self.other_cas.is_empty()
    }
}

//! A look at `certsSecretName`: what in it can be used. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use k8s_openapi::ByteString;

use super::{
    ClientPair,
    reading::{self, is_of_client},
};
use crate::{
    names::{KEY_CA, KEY_TLS_CERT, KEY_TLS_KEY},
    pem::PemError,
};

/// What `certsSecretName` holds in one namespace. Names of keys only; no certificate or key is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certs {
    /// Whether there is a CA in any key.
    pub has_ca: bool,
    /// The first key that should hold CAs and cannot be read.
    pub unreadable: Option<String>,
    /// Whether there are more CAs than a trust bundle holds.
    pub too_large: bool,
    /// The certificate and key with which the runner shows who it is.
    pub client_pair: ClientPair,
}

/// The CAs of a Secret.
#[derive(Debug, Default)]
pub struct Cas {
    /// As DER, each once, `ca.crt` first, in the order of each file: some programs read the first certificate only.
    pub certificates: Vec<Vec<u8>>,
    /// Those that are left out.
    pub left_out: Vec<LeftOut>,
    /// The keys that should hold CAs and cannot be read.
    pub unreadable: Vec<(String, PemError)>,
    /// The keys with a private key beside the CAs.
    pub with_key: Vec<String>,
}

/// A certificate that would keep a program from reading the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The key that it is in.
    pub key: String,
    /// Which of the key's certificates, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate {} in key {:?} is left out: {}", self.number, self.key, self.why)
    }
}

impl Certs {
    /// Looks at the data of a Secret.
    pub fn inspect(data: Option<&BTreeMap<String, ByteString>>) -> Self {
        let cas = Cas::of(data);
        Self {
            has_ca: !cas.certificates.is_empty(),
            unreadable: cas.unreadable.into_iter().next().map(|(key, _)| key),
            too_large: false,
            client_pair: ClientPair::of(data),
        }
    }
}

impl Cas {
    /// Reads each key of a Secret that may hold a CA.
    pub fn of(data: Option<&BTreeMap<String, ByteString>>) -> Self {
        let mut cas = Self::default();
        let mut seen = BTreeSet::new();
        for (key, value) in ca_keys(data) {
            let reading = match reading::read(value) {
                Ok(reading) => reading,
                Err(problem) => {
                    cas.unreadable.push((key.to_owned(), problem));
                    continue;
                }
            };
            if reading.holds_key {
                cas.with_key.push(key.to_owned());
            }
            let left_out = reading.left_out.into_iter();
            cas.left_out.extend(left_out.map(|(number, why)| LeftOut { key: key.to_owned(), number, why }));
            let found = reading.certificates.into_iter().filter(|der| !is_of_client(der) && seen.insert(der.clone()));
            cas.certificates.extend(found);
        }
        cas
    }
}

/// The keys of a Secret that may hold CAs, `ca.crt` first, with what they hold.
pub fn ca_keys(data: Option<&BTreeMap<String, ByteString>>) -> impl Iterator<Item = (&str, &[u8])> {
    let first = move || data.and_then(|data| data.get_key_value(KEY_CA)).into_iter();
    let others = data.into_iter().flatten().filter(|(key, _)| *key != KEY_CA);
    // With its key, it is a client's certificate; without it, what GitLab Runner's operator calls the CA.
    let has_key = data.and_then(|data| data.get(KEY_TLS_KEY)).is_some_and(|key| !key.0.is_empty());
    let all = first().chain(others).filter(move |(key, _)| may_hold_ca(key) && (*key != KEY_TLS_CERT || !has_key));
    all.map(|(key, value)| (key.as_str(), value.0.as_slice()))
}

/// By name: `<host>.auth.crt` is the runner's own certificate, and `*.key` its key.
fn may_hold_ca(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    !key.ends_with(".auth.crt") && [".crt", ".pem", ".cer", ".der", ".p7b"].iter().any(|end| key.ends_with(end))
}

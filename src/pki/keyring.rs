//! What the CA Secret holds: the CA that issues, its successor, and those that are still trusted. PURE.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    str,
    sync::Arc,
};

use k8s_openapi::{ByteString, jiff::Timestamp};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authority::{Authority, AuthorityError, AuthorityId, validity};
use crate::pem;

/// Key of the Secret: certificate of the CA that issues.
pub const KEY_CURRENT_CERT: &str = "ca.crt";
/// Key of the Secret: private key of the CA that issues.
pub const KEY_CURRENT_KEY: &str = "ca.key";
/// Key of the Secret: certificate of the CA that will issue once it is trusted everywhere.
pub const KEY_NEXT_CERT: &str = "next-ca.crt";
/// Key of the Secret: private key of the next CA.
pub const KEY_NEXT_KEY: &str = "next-ca.key";
/// Key of the Secret: certificates of CAs that no longer issue, but whose leaves may still be served.
pub const KEY_PREVIOUS_CERTS: &str = "previous-ca.crt";
/// Key of the Secret: until when each of the previous is trusted, one RFC 3339 time a line, in the same order.
pub const KEY_PREVIOUS_UNTIL: &str = "previous-ca.until";

/// Former CAs that are trusted at most: one in a rotation; more only where something else writes the Secret.
const MAX_PREVIOUS: usize = 4;

/// The serving CAs, as all replicas share them.
#[derive(Clone)]
pub struct Keyring {
    /// Issues leaves.
    pub current: Arc<Authority>,
    /// Trusted already; will issue.
    pub next: Option<Arc<Authority>>,
    /// Trusted still, the latest last.
    pub previous: Vec<RetiredCa>,
}

/// A CA that issues no more.
#[derive(Clone, PartialEq, Eq)]
pub struct RetiredCa {
    /// Its certificate in DER.
    pub certificate: Vec<u8>,
    /// When its last leaf has expired.
    pub until: Timestamp,
}

/// What was found in the Secret.
#[derive(Debug)]
pub struct KeyringFound {
    /// What can be used.
    pub keyring: Keyring,
    /// Keys of the Secret with something that cannot be used, and that can be done without.
    pub useless: Vec<&'static str>,
}

impl Keyring {
    /// Reads the data of the Secret; `names` are what leaves are issued for.
    ///
    /// # Errors
    /// When there is no CA in it that could issue.
    pub fn read(data: &BTreeMap<String, ByteString>, names: &[String]) -> Result<KeyringFound, AuthorityError> {
        let pair = |certificate: &str, key: &str| match (data.get(certificate), data.get(key)) {
            (Some(certificate), Some(key)) => Authority::from_pem(&certificate.0, &key.0, names),
            _ => Err(AuthorityError::Missing),
        };
        let current = pair(KEY_CURRENT_CERT, KEY_CURRENT_KEY)?;
        let mut useless = Vec::new();
        let next = pair(KEY_NEXT_CERT, KEY_NEXT_KEY).ok();
        if next.is_none() {
            useless.extend([KEY_NEXT_CERT, KEY_NEXT_KEY].into_iter().filter(|key| data.contains_key(*key)));
        }
        let previous = match data.get(KEY_PREVIOUS_CERTS) {
            None => Vec::new(),
            Some(certificates) => formers(&certificates.0, data.get(KEY_PREVIOUS_UNTIL)).unwrap_or_else(|| {
                useless.push(KEY_PREVIOUS_CERTS);
                Vec::new()
            }),
        };
        Ok(KeyringFound { keyring: Self { current, next, previous }, useless })
    }

    /// The data of the Secret, beside what others keep in it.
    pub fn data(&self) -> BTreeMap<&'static str, Option<String>> {
        let next = self.next.as_ref();
        let previous = pem::written(self.previous.iter().map(|former| former.certificate.as_slice()));
        let mut until = String::new();
        for former in &self.previous {
            let _ = writeln!(until, "{:.0}", former.until);
        }
        let filled = |text: String| (!text.is_empty()).then_some(text);
        BTreeMap::from([
            (KEY_CURRENT_CERT, Some(pem::written([self.current.certificate().as_ref()]))),
            (KEY_CURRENT_KEY, Some(self.current.key_pem())),
            (KEY_NEXT_CERT, next.map(|next| pem::written([next.certificate().as_ref()]))),
            (KEY_NEXT_KEY, next.map(|next| next.key_pem())),
            (KEY_PREVIOUS_CERTS, filled(previous)),
            (KEY_PREVIOUS_UNTIL, filled(until)),
        ])
    }

    /// What the API server is to trust: the same bytes on every replica.
    pub fn ca_bundle(&self) -> String {
        pem::written(self.certificates())
    }

    /// The CAs with a key.
    pub fn issuers(&self) -> impl Iterator<Item = &Arc<Authority>> {
        [&self.current].into_iter().chain(&self.next)
    }

    /// Whether this CA is among those that are trusted.
    pub fn trusts(&self, id: &AuthorityId) -> bool {
        self.certificates().any(|certificate| AuthorityId::of(certificate) == *id)
    }

    /// Goes on trusting a CA until its last leaf has expired.
    pub fn retire(&mut self, certificate: &[u8], until: Timestamp) {
        self.previous.retain(|former| former.certificate != certificate);
        self.previous.push(RetiredCa { certificate: certificate.to_vec(), until });
        let surplus = self.previous.len().saturating_sub(MAX_PREVIOUS);
        self.previous.drain(..surplus);
    }

    fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        let current = [self.current.certificate().as_ref()].into_iter();
        let next = self.next.iter().map(|next| next.certificate().as_ref());
        current.chain(next).chain(self.previous.iter().map(|former| former.certificate.as_slice()))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("current", &self.current)
            .field("next", &self.next)
            .field("previous", &self.previous)
            .finish()
    }
}

impl fmt::Debug for RetiredCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetiredCa")
            .field("id", &AuthorityId::of(&self.certificate))
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Certificates with their times; one without a time is trusted until it expires.
fn formers(certificates: &[u8], until: Option<&ByteString>) -> Option<Vec<RetiredCa>> {
    let certificates = pem::certificates(certificates).ok()?;
    let until = until.and_then(|until| str::from_utf8(&until.0).ok()).unwrap_or_default();
    let mut until = until.lines();
    let formers = certificates.into_iter().map(|certificate| {
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        let not_after = validity(&parsed).ok()?.not_after;
        let until = until.next().and_then(|until| until.parse().ok()).unwrap_or(not_after);
        Some(RetiredCa { until: until.min(not_after), certificate })
    });
    formers.collect()
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;

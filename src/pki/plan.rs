//! What is to be done about CA and leaf, from what is known. PURE.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;

use super::{
    authority::{Authority, AuthorityError, AuthorityId, Leaf, plus},
    keyring::Keyring,
};

/// How long certificates live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a CA.
    pub ca: Duration,
    /// Of a leaf.
    pub leaf: Duration,
    /// How long a new CA is in `caBundle` before a leaf by it is served: every API server must have seen it.
    pub propagation: Duration,
}

/// What the CA Secret holds, as far as it is known.
#[derive(Debug)]
pub enum Stored {
    /// The watch has not told yet. Never looks like "absent".
    Unknown,
    /// There is none.
    Absent,
    /// It is there, with nothing in it that could issue.
    Useless(AuthorityError),
    /// It is there and can be used. `tidy`: all of it.
    Keyring {
        /// What can be used.
        keyring: Keyring,
        /// Whether there is nothing else in our keys.
        tidy: bool,
    },
}

/// All that decides.
pub struct CertificatesView<'a> {
    /// Now, as the API server has it.
    pub now: Timestamp,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// The CA Secret.
    pub stored: &'a Stored,
    /// What this replica serves.
    pub leaf: Option<&'a Leaf>,
    /// Whether every API server trusts this CA by now, as far as can be known.
    pub is_trusted: &'a dyn Fn(&AuthorityId) -> bool,
}

/// Why the CA Secret is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyringChange {
    /// There was none.
    Absent,
    /// Nothing in it could issue.
    Useless(AuthorityError),
    /// Its CA is expired, or not valid yet.
    Invalid,
    /// Its CA has a third of its life left: the next one is made, to be trusted first.
    Due,
    /// The next CA is trusted everywhere: it issues from now on.
    Trusted,
    /// Nobody serves a leaf of a former CA any more.
    Retired,
    /// This replica serves a leaf of a CA that the Secret no longer has.
    Missing,
    /// Something in it was of no use.
    Untidy,
}

impl KeyringChange {
    /// The word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Useless(_) => "useless",
            Self::Invalid => "invalid",
            Self::Due => "due",
            Self::Trusted => "next-is-trusted",
            Self::Retired => "former-retired",
            Self::Missing => "served-missing",
            Self::Untidy => "untidy",
        }
    }
}

/// By which CA a new leaf is to be issued, if one is.
pub fn issuer(view: &CertificatesView<'_>) -> Option<Arc<Authority>> {
    let CertificatesView { now, leaf, .. } = *view;
    let leaf = leaf.filter(|leaf| leaf.validity.holds(now));
    let current = match view.stored {
        Stored::Keyring { keyring, .. } => Some(&keyring.current).filter(|ca| ca.validity().holds(now)),
        _ => None,
    };
    match (leaf, current) {
        (None, current) => current.map(Arc::clone),
        (Some(leaf), Some(current)) if *current.id() != *leaf.issuer.id() && (view.is_trusted)(current.id()) => {
            Some(Arc::clone(current))
        }
        // Whether the Secret still knows it or not, it is trusted as long as its leaf is.
        (Some(leaf), _) => {
            let gains = leaf.validity.not_after < leaf.issuer.validity().not_after;
            (leaf.due <= now && gains && leaf.issuer.validity().holds(now)).then(|| Arc::clone(&leaf.issuer))
        }
    }
}

/// What the CA Secret is to hold instead, if it is to be written, and why.
///
/// | current | next | |
/// |---|---|---|
/// | holds | none, and current is not due | stays |
/// | holds | none, and current is due | a next one is made |
/// | holds | does not hold | next is dropped |
/// | holds | holds, and is not trusted everywhere yet | stays |
/// | holds | holds, and is trusted everywhere | next becomes current |
/// | does not hold | holds | next becomes current |
/// | does not hold | none, or does not hold | a new one becomes current |
///
/// What this replica serves, and what a trusted next one replaces, goes on being trusted until its last leaf has expired.
///
/// # Errors
/// When a CA is wanted and cannot be made.
pub fn keyring(view: &CertificatesView<'_>) -> Result<Option<(Keyring, KeyringChange)>, AuthorityError> {
    let CertificatesView { now, lifetimes, leaf, .. } = *view;
    let (mut keyring, mut cause) = match view.stored {
        Stored::Unknown => return Ok(None),
        Stored::Absent => (fresh(view)?, Some(KeyringChange::Absent)),
        Stored::Useless(error) => (fresh(view)?, Some(KeyringChange::Useless(*error))),
        Stored::Keyring { keyring, tidy } => (keyring.clone(), (!tidy).then_some(KeyringChange::Untidy)),
    };

    // Until a new CA is trusted everywhere, any replica may renew its leaf by the one that it serves by.
    let last_leaf = plus(plus(now, lifetimes.leaf), lifetimes.propagation);
    let before = keyring.previous.len();
    keyring.previous.retain(|former| now < former.until);
    if keyring.previous.len() < before {
        cause = cause.or(Some(KeyringChange::Retired));
    }
    match (keyring.current.validity().holds(now), keyring.next.take()) {
        (true, None) if keyring.current.is_due(lifetimes.ca, now) => {
            keyring.next = Some(Authority::new(lifetimes.ca, now)?);
            cause = Some(KeyringChange::Due);
        }
        (true, None) => {}
        (true, Some(next)) if !next.validity().holds(now) => cause = cause.or(Some(KeyringChange::Untidy)),
        (true, Some(next)) if (view.is_trusted)(next.id()) => {
            let former = std::mem::replace(&mut keyring.current, next);
            keyring.retire(former.certificate(), last_leaf.min(former.validity().not_after));
            cause = Some(KeyringChange::Trusted);
        }
        (true, Some(next)) => keyring.next = Some(next),
        (false, next) => {
            let next = match next.filter(|next| next.validity().holds(now)) {
                Some(next) => next,
                None => Authority::new(lifetimes.ca, now)?,
            };
            let former = std::mem::replace(&mut keyring.current, next);
            // Set back clocks may come right again.
            if now < former.validity().not_before {
                keyring.retire(former.certificate(), plus(now, lifetimes.leaf));
            }
            cause = Some(KeyringChange::Invalid);
        }
    }
    if let Some(leaf) = leaf.filter(|leaf| leaf.validity.holds(now) && !keyring.trusts(leaf.issuer.id())) {
        keyring.retire(leaf.issuer.certificate(), last_leaf.min(leaf.issuer.validity().not_after));
        cause = cause.or(Some(KeyringChange::Missing));
    }
    Ok(cause.map(|cause| (keyring, cause)))
}

/// A new CA. What this replica serves is trusted on: the last step of [`keyring`] sees to that.
fn fresh(view: &CertificatesView<'_>) -> Result<Keyring, AuthorityError> {
    Ok(Keyring { current: Authority::new(view.lifetimes.ca, view.now)?, next: None, previous: Vec::new() })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! What is kept of `certsSecretName`: enough to compare the trust bundle that follows with what is stored, no content. PURE.

use k8s_openapi::api::core::v1::Secret;

use super::{
    Certs,
    bundle::{self, BundleError, TrustBundle},
};
use crate::{
    config::PublicRoots,
    digest::{Digest, Shape},
};

/// What the digest of a bundle of text begins with.
pub(crate) const DIGEST_TAG: &str = "text";

/// `certsSecretName` in one namespace.
#[derive(Clone, Debug)]
pub struct CertsState {
    /// What admission needs to know.
    pub certs: Certs,
    /// The trust bundle that follows from it.
    pub bundle: ExpectedBundle,
    /// Whether it is there, and nobody has looked into it: its namespace was no runner namespace.
    pub is_unread: bool,
}

/// The trust bundle that is to be in a namespace.
#[derive(Clone, Debug)]
pub struct ExpectedBundle(Result<Option<Digest>, String>);

impl CertsState {
    /// Looks at the Secret, and works out the trust bundle once to know what it is to be.
    pub fn new(secret: &Secret, roots: PublicRoots) -> Self {
        let data = secret.data.as_ref();
        Self { certs: Certs::inspect(data), bundle: ExpectedBundle::of(bundle::build(data, roots)), is_unread: false }
    }

    /// Of a Secret that nobody looks into.
    pub fn unread() -> Self {
        Self { certs: Certs::default(), bundle: ExpectedBundle(Ok(None)), is_unread: true }
    }
}

impl ExpectedBundle {
    fn of(built: Result<TrustBundle, BundleError>) -> Self {
        Self(match built {
            Ok(bundle) => Ok(Some(digest(bundle.data()))),
            Err(BundleError::NoCa) => Ok(None),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Whether there is a CA to be trusted.
    pub fn is_some(&self) -> bool {
        matches!(self.0, Ok(Some(_)))
    }

    /// Stands for its data, if there is to be one.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.0.as_ref().ok()?.as_ref()
    }

    /// Why there can be no bundle although there are certificates.
    pub fn problem(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }
}

fn digest(data: &std::collections::BTreeMap<String, String>) -> Digest {
    data.iter().map(|(key, value)| (key.as_str(), value)).collect::<Shape>().digest(DIGEST_TAG)
}

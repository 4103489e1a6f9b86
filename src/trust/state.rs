//! What is kept of `certsSecretName`: enough to compare the trust bundle that follows with what is stored, no content. PURE.

use k8s_openapi::api::core::v1::Secret;

use super::{
    BundleFiles, Certs, LeftOut,
    bundle::{self, BundleError, TrustBundle},
};
use crate::{
    config::{Inject, PublicRoots},
    digest::{Digest, Shape},
};

/// State of a trust bundle without some certificate of its Secret.
const CERTS_LEFT_OUT: &str = "certs-left-out";
/// State of a trust bundle beside a client's certificate that the runner is not given.
const CLIENT_PAIR_UNUSABLE: &str = "client-pair-unusable";

/// State of a trust bundle without hashed names, for which there was no room.
const CERTS_REDUCED: &str = "certs-reduced";

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
pub struct ExpectedBundle {
    content: Result<Option<Digest>, String>,
    /// What it has, if it is there.
    files: Option<BundleFiles>,
    /// What is not in it.
    left_out: Vec<LeftOut>,
}

/// The states that say what is wrong with the Secret although there is a bundle.
pub const REMARKS: [&str; 3] = [CERTS_LEFT_OUT, CLIENT_PAIR_UNUSABLE, CERTS_REDUCED];

impl CertsState {
    /// What the owner of the Secret should know although there is a bundle: a state, and its detail.
    pub fn remark(&self, inject: &Inject) -> Option<(&'static str, String)> {
        let wants_pair = inject.manager && inject.client_certificate;
        let flaw = self.certs.client_pair.flaw().filter(|_| wants_pair);
        let flaw = flaw.map(|flaw| format!("no client certificate for the runner: {flaw}"));
        let left_out: Vec<String> = self.bundle.left_out().iter().take(3).map(ToString::to_string).collect();
        let is_reduced = |files: &BundleFiles| !files.has_hashes || files.has_bundle && !files.has_java;
        let reduced = self.bundle.files.filter(is_reduced).map(|_| {
            "too many CAs for every form of the trust bundle: some programs in jobs do not get them; remove some"
                .to_owned()
        });
        let state = match (left_out.is_empty(), &flaw) {
            (false, _) => CERTS_LEFT_OUT,
            (true, Some(_)) => CLIENT_PAIR_UNUSABLE,
            (true, None) => CERTS_REDUCED,
        };
        let remarks: Vec<String> = left_out.into_iter().chain(flaw).chain(reduced).collect();
        (!remarks.is_empty()).then(|| (state, remarks.join("; ")))
    }

    /// Looks at the Secret, and works out the trust bundle once to know what it is to be.
    pub fn new(secret: &Secret, roots: PublicRoots) -> Self {
        let data = secret.data.as_ref();
        let built = bundle::build(data, roots);
        let too_large = matches!(built, Err(BundleError::TooLarge { .. }));
        Self { certs: Certs { too_large, ..Certs::inspect(data) }, bundle: ExpectedBundle::of(built), is_unread: false }
    }

    /// Of a Secret that nobody looks into.
    pub fn unread() -> Self {
        Self { certs: Certs::default(), bundle: ExpectedBundle::none(), is_unread: true }
    }
}

impl ExpectedBundle {
    fn of(built: Result<TrustBundle, BundleError>) -> Self {
        match built {
            Ok(bundle) => Self {
                content: Ok(Some(of(&bundle))),
                files: Some(bundle.files()),
                left_out: bundle.left_out().to_vec(),
            },
            Err(BundleError::NoCa) => Self::none(),
            Err(error) => Self { content: Err(error.to_string()), ..Self::none() },
        }
    }

    fn none() -> Self {
        Self { content: Ok(None), files: None, left_out: Vec::new() }
    }

    /// Whether there is a CA to be trusted.
    pub fn is_some(&self) -> bool {
        matches!(self.content, Ok(Some(_)))
    }

    /// Stands for its data, if there is to be one.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.content.as_ref().ok()?.as_ref()
    }

    /// Certificates of the Secret that are not in it.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Why there can be no bundle although there are certificates.
    pub fn problem(&self) -> Option<&str> {
        self.content.as_ref().err().map(String::as_str)
    }
}

fn of(bundle: &TrustBundle) -> Digest {
    let text = bundle.data().iter().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = bundle.binary().iter().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    digest(&text.collect(), &binary.collect())
}

/// Stands for the data of a trust bundle.
pub(crate) fn digest(text: &Shape, binary: &Shape) -> Digest {
    text.with(binary).digest("bundle")
}

//! The trust bundle: certificates in, the data of a `ConfigMap` out. PURE.
//!
//! Nothing but X.509 certificates can come out, for each is decoded and written anew. Nothing is kept between calls:
//! the public roots are DER in the program itself, and the 200 KiB of PEM made of them go to whoever asked.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::{BundleFiles, Cas, LeftOut, java, strict::is_for_java, subject_hash};
use crate::{
    config::PublicRoots,
    names::{KEY_BUNDLE, KEY_CA, KEY_JAVA},
    pem::{self, PemError},
};

/// The most that the API server takes as the data of one `ConfigMap`, in bytes. It counts the values only; here the
/// keys count, too.
///
/// Source: `ValidateConfigMap` and `MaxSecretSize` in Kubernetes' `pkg/apis/core/validation`.
const LIMIT: usize = 1024 * 1024;

/// The data of a trust bundle: public certificates, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundle {
    data: BTreeMap<String, String>,
    binary: BTreeMap<String, ByteString>,
    left_out: Vec<LeftOut>,
}

/// Why there can be no trust bundle. Names a key of the Secret, never what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// There is no Secret, or no certificate in any key that could hold a CA.
    #[error("there is no CA certificate: put one into key ca.crt, as PEM")]
    NoCa,
    /// There are certificates, and each of them would keep a program from reading the others.
    #[error("no CA is left: {0}")]
    LeftOut(LeftOut),
    /// A key that should hold CAs holds something else.
    #[error("key {key:?} is of no use: {problem}; fix it or remove it")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: PemError,
    },
    /// A `ConfigMap` cannot hold that much.
    #[error(
        "{certificates} CA certificates make a trust bundle of {size} bytes, and a ConfigMap holds {LIMIT}: remove some"
    )]
    TooLarge {
        /// How many CAs there are in the Secret.
        certificates: usize,
        /// What keys and values add up to, in bytes.
        size: usize,
    },
}

/// Makes the trust bundle of the data of `certsSecretName`. The same Secret gives the same data.
///
/// # Errors
/// When there is no CA, a key cannot be read, or the result would be too large.
pub fn build(secret: Option<&BTreeMap<String, ByteString>>, roots: PublicRoots) -> Result<TrustBundle, BundleError> {
    let cas = Cas::of(secret);
    if let Some((key, problem)) = cas.unreadable.into_iter().next() {
        return Err(BundleError::Key { key, problem });
    }
    if cas.certificates.is_empty() {
        return Err(cas.left_out.into_iter().next().map_or(BundleError::NoCa, BundleError::LeftOut));
    }
    let private: Vec<&[u8]> = cas.certificates.iter().map(Vec::as_slice).collect();
    let known: BTreeSet<&[u8]> = private.iter().copied().collect();
    let public = TLS_SERVER_ROOT_CERTS.iter().map(AsRef::as_ref).filter(|der| !known.contains(der));
    let public: Vec<&[u8]> = public.filter(|_| roots == PublicRoots::Builtin).collect();
    let all = [private.as_slice(), &public].concat();

    let ca = BTreeMap::from([(KEY_CA.to_owned(), pem::written(private.iter().copied()))]);
    // Where they take the place of what a program trusts, private CAs alone would be too little.
    let mut bundle = TrustBundle { left_out: cas.left_out, ..TrustBundle::default() };
    let mut java = BTreeMap::new();
    if !public.is_empty() {
        bundle.data.insert(KEY_BUNDLE.to_owned(), pem::written(all.iter().copied()));
        java.insert(
            KEY_JAVA.to_owned(),
            ByteString(java::trust_store(all.iter().copied().filter(|der| is_for_java(der)))),
        );
    }
    let with = |text: [BTreeMap<String, String>; 2], binary: &BTreeMap<String, ByteString>| {
        let mut bundle = bundle.clone();
        bundle.data.extend(text.into_iter().flatten());
        bundle.binary.extend(binary.clone());
        bundle
    };
    // The most that fits. Public roots have hashed names for images without any; private CAs, for OpenSSL to find them.
    let none = BTreeMap::new();
    let choices: [&dyn Fn() -> TrustBundle; 5] = [
        &|| with([ca.clone(), hashed(&all)], &java),
        &|| with([ca.clone(), hashed(&private)], &java),
        &|| with([ca.clone(), hashed(&private)], &none),
        &|| with([ca.clone(), BTreeMap::new()], &none),
        &|| bundle.clone(),
    ];
    let size = with([ca.clone(), BTreeMap::new()], &none).size();
    let fits = |bundle: &TrustBundle| !bundle.data.is_empty() && bundle.size() <= LIMIT;
    let too_large = BundleError::TooLarge { certificates: private.len(), size };
    choices.into_iter().map(|choice| choice()).find(fits).ok_or(too_large)
}

impl TrustBundle {
    /// The data of the `ConfigMap`: [`KEY_CA`], with public roots [`KEY_BUNDLE`], and one key for each CA under the name
    /// that OpenSSL looks for in a directory; less where that would be too much.
    pub fn data(&self) -> &BTreeMap<String, String> {
        &self.data
    }

    /// What there is.
    pub fn files(&self) -> BundleFiles {
        BundleFiles::of(self.data.keys().chain(self.binary.keys()))
    }

    /// Its binary data: with public roots, [`KEY_JAVA`].
    pub fn binary(&self) -> &BTreeMap<String, ByteString> {
        &self.binary
    }

    /// What keys and values add up to, in bytes.
    fn size(&self) -> usize {
        let text = self.data.iter().map(|(key, value)| key.len() + value.len());
        text.chain(self.binary.iter().map(|(key, value)| key.len() + value.0.len())).sum()
    }

    /// Certificates of the Secret that are not in it.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
}

impl BundleError {
    /// The reason as metric label, event reason and log field.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCa => "no-ca",
            Self::LeftOut(_) => "left-out",
            Self::Key { problem: PemError::NotPem | PemError::NoCertificate, .. } => "not-pem",
            Self::Key { problem: PemError::Certificate { .. }, .. } => "bad-certificate",
            Self::TooLarge { .. } => "too-large",
        }
    }
}

/// Each certificate under `<hash>.<n>`: where subjects share a hash, OpenSSL counts up until there is no such file.
fn hashed(certificates: &[&[u8]]) -> BTreeMap<String, String> {
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    let mut files = BTreeMap::new();
    for der in certificates {
        if let Some(hash) = subject_hash::of_certificate(der) {
            let number = next.entry(hash.clone()).or_default();
            files.insert(format!("{hash}.{number}"), pem::written([*der]));
            *number += 1;
        }
    }
    files
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;

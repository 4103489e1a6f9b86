//! From bytes in `certsSecretName` to what is said of them and what is published: only certificates come out.

use std::collections::BTreeMap;

use gitlab_runner_webhook::{
    config::PublicRoots,
    names::KEY_CA,
    trust::{Certs, bundle},
};
use k8s_openapi::ByteString;

/// Reads these bytes as key `ca.crt`.
pub fn check(bytes: &[u8]) {
    let secret = |value: &[u8]| BTreeMap::from([(KEY_CA.to_owned(), ByteString(value.to_vec()))]);
    let data = secret(bytes);
    let (certs, built) = (Certs::inspect(Some(&data)), bundle::build(Some(&data), PublicRoots::None));
    assert_eq!(certs.has_ca, matches!(&built, Ok(_) | Err(bundle::BundleError::TooLarge { .. })));
    let Ok(built) = built else { return };
    for (key, value) in built.data() {
        let begins = value.lines().filter(|line| line.starts_with("-----BEGIN "));
        assert!(begins.clone().all(|line| line == "-----BEGIN CERTIFICATE-----") && begins.count() > 0);
        assert!(key == KEY_CA || key.len() == 10, "not the name of a CA: {key:?}");
    }
    // What was written is read as what it is.
    let again = bundle::build(Some(&secret(built.data()[KEY_CA].as_bytes())), PublicRoots::None);
    assert_eq!(again.as_ref().map(bundle::TrustBundle::data), Ok(built.data()));
}

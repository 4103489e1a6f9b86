//! From DER to a subject's hash: the certificate in an armour that is as it should be.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gitlab_runner_webhook::{config::PublicRoots, names::KEY_CA, trust::bundle};
use k8s_openapi::ByteString;

/// Reads these bytes as one certificate.
pub fn check(der: &[u8]) {
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der));
    let data = BTreeMap::from([(KEY_CA.to_owned(), ByteString(pem.into_bytes()))]);
    let Ok(built) = bundle::build(Some(&data), PublicRoots::None) else { return };
    // The certificate is passed on as it was; beside it there is at most its hashed name, which points to the same.
    let written = &built.data()[KEY_CA];
    let body: String = written.lines().filter(|line| !line.starts_with("-----")).collect();
    assert_eq!(STANDARD.decode(body).as_deref(), Ok(der));
    assert!(built.data().len() <= 2 && built.data().values().all(|value| value == written));
}

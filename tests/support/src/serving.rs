//! A CA and a serving certificate for the program on loopback.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Files `ca.crt`, `tls.crt` and `tls.key` in one folder.
#[derive(Clone, Debug)]
pub struct ServingCertificate {
    folder: PathBuf,
    /// The CA certificate in PEM: what the API server is told to trust.
    pub ca_pem: String,
}

impl ServingCertificate {
    /// Issues a new CA and a leaf for 127.0.0.1, over whatever the folder held.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    pub fn issue(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("the folder can be made");
        let mut ca = params(Vec::new());
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, key()).expect("a CA certificate");

        let mut leaf = params(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf_key = key();
        let leaf = leaf.signed_by(&leaf_key, &ca).expect("a leaf certificate");

        let this = Self { folder: folder.to_owned(), ca_pem: ca.pem() };
        fs::write(folder.join("ca.crt"), ca.pem()).expect("ca.crt can be written");
        fs::write(this.key_path(), leaf_key.serialize_pem()).expect("tls.key can be written");
        fs::write(this.cert_path(), leaf.pem()).expect("tls.crt can be written");
        this
    }

    /// The leaf in PEM.
    pub fn cert_path(&self) -> PathBuf {
        self.folder.join("tls.crt")
    }

    /// The leaf's key in PEM.
    pub fn key_path(&self) -> PathBuf {
        self.folder.join("tls.key")
    }
}

/// A client's certificate and its key, in PEM.
///
/// # Panics
/// When none can be made.
pub fn client_pair() -> (String, String) {
    let mut client = params(Vec::new());
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = key();
    (client.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

fn params(names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("valid names");
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

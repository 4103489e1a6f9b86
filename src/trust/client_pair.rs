//! Whether `tls.crt` and `tls.key` are a client's certificate and its key. PURE.
//!
//! GitLab Runner hands both files to every job. So the pair is given to it only when it is what it is for: with the key of
//! a CA, as in the Secret of a cert-manager CA, a job could sign whatever it likes; with a key that nobody can load, git
//! fails in every job.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::ByteString;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::Cas;
use crate::{
    crypto,
    names::{KEY_TLS_CERT, KEY_TLS_KEY},
    pem,
};

/// `tls.crt` and `tls.key` of a Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientPair {
    /// Neither, or one of them alone.
    #[default]
    Absent,
    /// A client's certificate, and its key.
    Usable,
    /// Both are there, and the runner is not given them.
    Unusable(PairFlaw),
}

/// Why a pair is not given to the runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairFlaw {
    /// `tls.crt` begins with no certificate that can be read.
    Certificate,
    /// A private key is in `tls.crt`.
    KeyInCertificate,
    /// The certificate is that of a CA.
    OfCa,
    /// Its extended key usage is not that of a client.
    NotForClients,
    /// The key has a passphrase.
    Encrypted,
    /// `tls.key` is not one private key that can be loaded.
    Key,
    /// The key is that of another certificate.
    Mismatch,
}

impl fmt::Display for PairFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "tls.crt does not begin with a certificate",
            Self::KeyInCertificate => "tls.crt holds a private key",
            Self::OfCa => "tls.crt is the certificate of a CA",
            Self::NotForClients => "tls.crt is not for clients (extended key usage)",
            Self::Encrypted => "tls.key has a passphrase",
            Self::Key => "tls.key is not one private key in PEM",
            Self::Mismatch => "tls.key does not belong to tls.crt",
        })
    }
}

impl ClientPair {
    /// Looks at the data of a Secret.
    pub fn of(data: Option<&BTreeMap<String, ByteString>>) -> Self {
        let filled = |key: &str| Some(data?.get(key)?.0.as_slice()).filter(|value| !value.is_empty());
        match (filled(KEY_TLS_CERT), filled(KEY_TLS_KEY)) {
            (Some(certificate), Some(key)) => {
                let is_trusted = |leaf: &Vec<u8>| Cas::of(data).certificates.contains(leaf);
                flaw(certificate, key, is_trusted).map_or(Self::Usable, Self::Unusable)
            }
            _ => Self::Absent,
        }
    }

    /// Why the runner is not given the pair that is there.
    pub fn flaw(self) -> Option<PairFlaw> {
        match self {
            Self::Unusable(flaw) => Some(flaw),
            Self::Absent | Self::Usable => None,
        }
    }
}

/// `is_trusted`: whether the Secret holds this certificate as a CA, too.
fn flaw(certificate: &[u8], key: &[u8], is_trusted: impl FnOnce(&Vec<u8>) -> bool) -> Option<PairFlaw> {
    let Ok(blocks) = pem::blocks(certificate) else { return Some(PairFlaw::Certificate) };
    if blocks.iter().any(|block| block.label.ends_with(b"PRIVATE KEY")) {
        return Some(PairFlaw::KeyInCertificate);
    }
    // The leaf comes first; what follows are CAs between it and its root.
    let leaf = blocks.first().filter(|block| block.label == b"CERTIFICATE").and_then(pem::Block::decode);
    let Some(leaf) = leaf else { return Some(PairFlaw::Certificate) };
    let Ok((_, parsed)) = X509Certificate::from_der(&leaf) else { return Some(PairFlaw::Certificate) };
    // One of version 1 does not say what it is.
    if parsed.is_ca() || is_trusted(&leaf) {
        return Some(PairFlaw::OfCa);
    }
    let usage = parsed.extended_key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.client_auth && !usage.value.any) {
        return Some(PairFlaw::NotForClients);
    }
    let Ok(blocks) = pem::blocks(key) else { return Some(PairFlaw::Key) };
    let mut keys = blocks.iter().filter(|block| block.label.ends_with(b"PRIVATE KEY"));
    let (Some(key), None) = (keys.next(), keys.next()) else { return Some(PairFlaw::Key) };
    if key.label == b"ENCRYPTED PRIVATE KEY" || key.headers() > 0 {
        return Some(PairFlaw::Encrypted);
    }
    let Some(der) = key.decode().map(Zeroizing::new) else { return Some(PairFlaw::Key) };
    let der = match key.label {
        b"PRIVATE KEY" => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice())),
        b"EC PRIVATE KEY" => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der.as_slice())),
        b"RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der.as_slice())),
        _ => return Some(PairFlaw::Key),
    };
    let Ok(key) = crypto::provider().key_provider.load_private_key(der.clone_key()) else { return Some(PairFlaw::Key) };
    let pair = CertifiedKey::new(vec![CertificateDer::from(leaf)], key);
    pair.keys_match().err().map(|_| PairFlaw::Mismatch)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    fn certificate(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn a_pair_is_given_when_it_is_a_clients_and_belongs_together() {
        use ClientPair::{Absent, Unusable, Usable};
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let of = |change: fn(&mut CertificateParams)| certificate(&key, change);
        let (client, private) = (of(|_| {}), key.serialize_pem());
        let ca = of(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        let server = of(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        let any = of(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]);
        let unsaid = of(|params| params.extended_key_usages.clear());
        let encrypted = private.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let headers = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
            -----END EC PRIVATE KEY-----\n";
        let parameters = "-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----\n";
        let table = [
            ("", "", Absent),
            (&*client, "", Absent),
            ("", &*private, Absent),
            (&*client, &*private, Usable),
            (&*any, &*private, Usable),
            (&*unsaid, &*private, Usable),
            (&*(client.clone() + &ca), &*(parameters.to_owned() + &private), Usable),
            ("hunter2", &*private, Unusable(PairFlaw::Certificate)),
            (&*(client.clone() + "-----BEGIN CERTIFICATE-----"), &*private, Unusable(PairFlaw::Certificate)),
            (&*(client.clone() + &private), &*private, Unusable(PairFlaw::KeyInCertificate)),
            (&*ca, &*private, Unusable(PairFlaw::OfCa)),
            (&*server, &*private, Unusable(PairFlaw::NotForClients)),
            (&*client, &*encrypted, Unusable(PairFlaw::Encrypted)),
            (&*client, headers, Unusable(PairFlaw::Encrypted)),
            (&*client, "hunter2", Unusable(PairFlaw::Key)),
            (&*client, &*private.replacen('M', "!", 1), Unusable(PairFlaw::Key)),
            (&*client, &*(private.clone() + &private), Unusable(PairFlaw::Key)),
            (&*client, &*private.replace("PRIVATE KEY", "DSA PRIVATE KEY"), Unusable(PairFlaw::Key)),
            (&*client, &*other.serialize_pem(), Unusable(PairFlaw::Mismatch)),
        ];
        for (certificate, key, expected) in table {
            let data = [(KEY_TLS_CERT, certificate), (KEY_TLS_KEY, key)];
            let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).into();
            let pair = ClientPair::of(Some(&data));
            assert_eq!(pair, expected, "{certificate}");
            assert!(pair.flaw().is_none_or(|flaw| !flaw.to_string().contains("hunter2")));
        }
        assert_eq!(ClientPair::of(None), Absent);
        // Whoever trusts it as a CA must not have jobs hold its key.
        let data = [(KEY_TLS_CERT, &unsaid), (KEY_TLS_KEY, &private), ("ca.crt", &unsaid)];
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).into();
        assert_eq!(ClientPair::of(Some(&data)), Unusable(PairFlaw::OfCa));
    }

    /// As `openssl ecparam -genkey` and `openssl genrsa -traditional` write them.
    #[test]
    fn keys_of_other_forms() {
        for (algorithm, arguments) in [
            ("EC", &["ecparam", "-name", "secp384r1", "-genkey", "-noout"][..]),
            ("RSA", &["genrsa", "-traditional", "2048"]),
        ] {
            let Ok(output) = std::process::Command::new("openssl").args(arguments).output() else {
                return eprintln!("SKIPPED: openssl is not on this machine");
            };
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains(&format!("BEGIN {algorithm} PRIVATE KEY")), "{text}");
            let key = KeyPair::from_pem(&text).unwrap();
            let of = |value: &str| flaw(certificate(&key, |_| {}).as_bytes(), value.as_bytes(), |_| false);
            assert_eq!(of(&text), None, "{algorithm}");
        }
    }
}

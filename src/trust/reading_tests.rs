use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use super::*;
use crate::trust::{Cas, ClientPair, PairFlaw};

fn ca() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn pem(der: &[u8], label: &str) -> String {
    pem::written([der]).replace("CERTIFICATE", label)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82, length[0], length[1]], content].concat()
}

/// Signed data that nobody signed, as a file of certificates is.
fn pkcs7(certificates: &[&[u8]]) -> Vec<u8> {
    let data = element(SEQUENCE, &element(OBJECT_IDENTIFIER, &SIGNED_DATA[..8]));
    let signed = [
        element(INTEGER, &[1]),
        element(SET, &[]),
        data,
        element(CERTIFICATES, &certificates.concat()),
        element(SET, &[]),
    ];
    let signed = element(0xa0, &element(SEQUENCE, &signed.concat()));
    element(SEQUENCE, &[element(OBJECT_IDENTIFIER, SIGNED_DATA), signed].concat())
}

fn utf16(text: &str, mark: [u8; 2], unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    mark.into_iter().chain(text.encode_utf16().flat_map(unit)).collect()
}

#[test]
fn every_form_gives_the_same_certificates() {
    let (a, b) = (ca(), ca());
    let both = pem(&a, "CERTIFICATE") + &pem(&b, "CERTIFICATE");
    let trusted = [a.as_slice(), &element(SEQUENCE, &element(SEQUENCE, b"aux"))].concat();
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("plain", both.clone().into()),
        ("comments", format!("# a company\n---- CAs ----\n{both}\n\0end").into()),
        ("indented", both.replace('\n', "\n    ").into()),
        ("CR only", both.replace('\n', "\r").into()),
        ("CR LF", both.replace('\n', "\r\n").into()),
        ("no newline at all", both.replace('\n', "").into()),
        ("joined", (pem(&a, "CERTIFICATE").trim_end().to_owned() + &pem(&b, "CERTIFICATE")).into()),
        ("a mark first", format!("\u{feff}{both}").into()),
        ("a mark within", (pem(&a, "CERTIFICATE") + "\u{feff}" + &pem(&b, "CERTIFICATE")).into()),
        ("old label", (pem(&a, "X509 CERTIFICATE") + &pem(&b, "X509 CERTIFICATE")).into()),
        ("trusted", (pem(&trusted, "TRUSTED CERTIFICATE") + &pem(&b, "CERTIFICATE")).into()),
        ("PKCS #7", pem(&pkcs7(&[&a, &b]), "PKCS7").into()),
        ("PKCS #7, DER", pkcs7(&[&a, &b])),
        ("DER", [a.as_slice(), &b].concat()),
        ("headers", both.replace("BEGIN CERTIFICATE-----\n", "BEGIN CERTIFICATE-----\nX-From: a-b\n\n").into()),
        ("base64 of it", STANDARD.encode(&both).into()),
        ("UTF-16", utf16(&both, [0xff, 0xfe], u16::to_le_bytes)),
        ("UTF-16, big-endian", utf16(&both, [0xfe, 0xff], u16::to_be_bytes)),
        ("a request beside them", (pem(&a, "CERTIFICATE REQUEST") + &both).into()),
    ];
    for (form, bytes) in forms {
        let reading = read(&bytes).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert!(reading.certificates == [a.clone(), b.clone()] && reading.left_out.is_empty(), "{form}");
        assert!(!reading.holds_key, "{form}");
    }
}

#[test]
fn a_key_is_noticed_and_never_decoded() {
    let key = KeyPair::generate().unwrap().serialize_pem();
    let a = ca();
    for text in [key.clone() + &pem(&a, "CERTIFICATE"), pem(&a, "CERTIFICATE") + &key.replace("\nM", "\n!")] {
        let reading = read(text.as_bytes()).unwrap();
        assert!(reading.holds_key && reading.certificates == [a.clone()]);
    }
    // Cut off, it takes no certificate with it.
    let cut = format!("{}{}", &key[..60], pem(&a, "CERTIFICATE"));
    assert_eq!(read(cut.as_bytes()).unwrap().certificates, [a]);
}

#[test]
fn what_is_damaged_is_an_error_that_counts() {
    let (a, b) = (pem(&ca(), "CERTIFICATE"), pem(&ca(), "CERTIFICATE"));
    let second = |damaged: &str| a.clone() + damaged;
    for (text, number) in [
        (a[..a.len() / 2].to_owned(), 1),
        (second(&b[..b.len() / 2]), 2),
        (second(&b.replacen("-----BEGIN", "----BEGIN", 1)), 2),
        (second(&b.replacen("-----BEGIN", "\u{2014}\u{2014}-BEGIN", 1)), 2),
        (second(&b.replacen("-----BEGIN CERTIFICATE-----\n", "", 1)), 2),
        (second(&b.replace("END CERTIFICATE", "END X509 CRL")), 2),
        (second(&b.replacen('M', "!", 1)), 2),
        (second(&pem(b"no certificate", "CERTIFICATE")), 2),
        (second(&pem(&pkcs7(&[])[..20], "PKCS7")), 2),
    ] {
        assert_eq!(read(text.as_bytes()).unwrap_err(), PemError::Certificate { number }, "{text}");
    }
    for bytes in ["hunter2".as_bytes(), b"0\x03\x02\x01", b"LS0tLS1CRUdJTi!", &ca()[..99], b"-----", b"\xff\xfe-\0"] {
        assert_eq!(read(bytes).unwrap_err(), PemError::NoCertificate, "{bytes:?}");
    }
    for nothing in ["", " \n", "\u{feff}", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----"] {
        assert!(read(nothing.as_bytes()).is_ok_and(|reading| reading.certificates.is_empty()), "{nothing:?}");
    }
}

/// Secrets out of public bug reports, with what is read of each.
#[test]
fn secrets_as_users_have_them() {
    let table: BTreeMap<&str, (usize, ClientPair)> = BTreeMap::from([
        ("byte-order-mark-within", (2, ClientPair::Absent)),
        ("ca-as-tls-crt-alone", (1, ClientPair::Absent)),
        ("ca-of-gitlab-by-host-beside-another", (2, ClientPair::Absent)),
        ("ca-with-its-private-key", (1, ClientPair::Absent)),
        ("carriage-returns-only", (1, ClientPair::Absent)),
        ("cas-of-two-hosts", (2, ClientPair::Absent)),
        ("certificate-of-a-host-with-its-private-key", (1, ClientPair::Absent)),
        // The client's certificate is no CA.
        ("client-certificate-under-another-key", (1, ClientPair::Absent)),
        ("client-key-with-a-passphrase", (1, ClientPair::Unusable(PairFlaw::Encrypted))),
        ("current-ca-before-an-old-one", (2, ClientPair::Absent)),
        ("der-beside-pem", (2, ClientPair::Absent)),
        ("indented", (1, ClientPair::Absent)),
        ("joined-without-a-newline", (2, ClientPair::Absent)),
        ("label-x509-certificate", (2, ClientPair::Absent)),
        ("pkcs7-beside-pem", (2, ClientPair::Absent)),
        ("secret-of-a-cert-manager-ca", (1, ClientPair::Unusable(PairFlaw::OfCa))),
        // OpenSSL refuses the other.
        ("subject-that-is-not-utf8", (1, ClientPair::Absent)),
        ("trusted-certificate", (1, ClientPair::Absent)),
    ]);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/certs");
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let secret: Secret = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let data: BTreeMap<String, ByteString> = secret.data.unwrap();
        let (number, pair) = table.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the table"));
        let cas = Cas::of(Some(&data));
        assert_eq!(cas.certificates.len(), *number, "{name}");
        assert_eq!(cas.left_out.len(), usize::from(name == "subject-that-is-not-utf8"), "{name}");
        assert_eq!(ClientPair::of(Some(&data)), *pair, "{name}");
        assert!(cas.unreadable.is_empty(), "{name}");
        assert_eq!(cas.with_key.is_empty(), !name.ends_with("its-private-key"), "{name}");
        found.push(name);
    }
    assert_eq!(found.len(), table.len());
}

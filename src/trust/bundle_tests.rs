use std::{io::Write as _, process::Command};

use proptest::{collection::vec, prelude::*, sample::select};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use super::*;
use crate::{
    names::KEY_TLS_KEY,
    trust::{Certs, ClientPair, PairFlaw},
};

fn ca(name: &str) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn key() -> String {
    KeyPair::generate().unwrap().serialize_pem()
}

fn secret<'a>(data: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, ByteString> {
    data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec()))).collect()
}

fn built<'a>(data: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<TrustBundle, BundleError> {
    build(Some(&secret(data)), PublicRoots::None)
}

fn count(pem: &str) -> usize {
    pem::certificates(pem.as_bytes()).unwrap().len()
}

#[test]
fn each_key_that_may_hold_a_ca_is_read_and_no_other() {
    let of = |name: &str, key: &str| (key.to_owned(), ca(name));
    let read = [of("a", "ca.crt"), of("b", "gitlab.example.com.crt"), of("c", "x.pem"), of("d", "Y.CER")];
    let others = [
        of("e", "tls.crt"),
        of("f", "gitlab.example.com.auth.crt"),
        of("g", "tls.key"),
        of("h", "notes"),
        of("i", ".key"),
    ];
    let all = read.iter().chain(&others).map(|(key, pem)| (key.as_str(), pem.as_str()));
    let bundle = built(all).unwrap();
    assert_eq!(bundle, built(read.iter().map(|(key, pem)| (key.as_str(), pem.as_str()))).unwrap());
    assert_eq!(count(&bundle.data()[KEY_CA]), 4);
    assert_eq!(bundle.data().len(), 5);
    assert!(built(others.iter().map(|(key, pem)| (key.as_str(), pem.as_str()))) == Err(BundleError::NoCa));
}

#[test]
fn the_same_certificates_give_the_same_data() {
    let (a, b) = (ca("a"), ca("b"));
    let crlf = format!("\u{feff}{}", a.replace('\n', "\r\n"));
    let both = a.clone() + &key() + &b;
    let expected = built([("ca.crt", both.as_str())]).unwrap();
    for data in [
        vec![("a.crt", a.as_str()), ("b.crt", b.as_str())],
        vec![("ca.crt", a.as_str()), ("a.crt", b.as_str())],
        vec![("a.crt", both.as_str()), ("ca.crt", crlf.as_str()), ("z.pem", "")],
    ] {
        assert_eq!(built(data).unwrap(), expected);
    }
    let data = expected.data();
    assert!(data.values().all(|pem| !pem.contains("PRIVATE") && pem.lines().all(|line| line.len() <= 64)));
    assert!(!data.contains_key(KEY_BUNDLE));
    let hashed: String = data.iter().filter(|(key, _)| *key != KEY_CA).map(|(_, pem)| pem.as_str()).collect();
    assert_eq!(count(&hashed), 2);
}

#[test]
fn public_roots_come_after_the_private_cas_and_none_twice() {
    let mut public = String::new();
    pem::append(&mut public, &TLS_SERVER_ROOT_CERTS[7]);
    let company = ca("company");
    let data = secret([("ca.crt", company.as_str()), ("public.crt", public.as_str())]);
    let bundle = build(Some(&data), PublicRoots::Builtin).unwrap();
    let all = &bundle.data()[KEY_BUNDLE];
    assert!(all.starts_with(bundle.data()[KEY_CA].as_str()));
    assert_eq!(count(&bundle.data()[KEY_CA]), 2);
    assert_eq!(count(all), TLS_SERVER_ROOT_CERTS.len() + 1);
    assert!(TLS_SERVER_ROOT_CERTS.len() > 100 && all.len() < LIMIT / 4, "{} bytes", all.len());
    // Under its hashed name, each of them, too.
    let hashed: String = bundle
        .data()
        .iter()
        .filter(|(key, _)| key.len() == 10 && *key != KEY_BUNDLE)
        .map(|(_, pem)| pem.as_str())
        .collect();
    assert_eq!(count(&hashed), count(all));
    assert_eq!(bundle.files(), BundleFiles { has_ca: true, has_bundle: true, has_hashes: true, has_java: true });
}

#[test]
fn cas_with_the_same_subject_are_numbered() {
    let (a, b, other) = (ca("Company  CA"), ca("company ca"), ca("other"));
    let bundle = built([("a.crt", a.as_str()), ("b.crt", b.as_str()), ("c.crt", other.as_str())]).unwrap();
    let names: Vec<&str> = bundle.data().keys().map(String::as_str).filter(|key| *key != KEY_CA).collect();
    let numbers: Vec<&str> = names.iter().map(|name| name.rsplit('.').next().unwrap()).collect();
    assert_eq!(numbers.iter().filter(|number| **number == "1").count(), 1, "{names:?}");
    assert!(names.iter().all(|name| name.len() == 10));
}

#[test]
fn an_error_names_the_key_and_what_to_do() {
    let (good, key) = (ca("a"), key());
    let cut = &good[..good.len() / 2];
    let not_x509 = "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n";
    let wrong_end = good.replace("-----END CERTIFICATE", "-----END X509 CRL");
    let two = good.clone() + cut;
    let bad = |number| PemError::Certificate { number };
    for (value, expected) in [
        ("hunter2", PemError::NoCertificate),
        ("0\u{3}\u{2}hunter2", PemError::NoCertificate),
        (cut, bad(1)),
        (not_x509, bad(1)),
        (wrong_end.as_str(), bad(1)),
        (two.as_str(), bad(2)),
        ("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----", bad(1)),
        ("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----", bad(1)),
    ] {
        let error = built([("ca.crt", good.as_str()), ("company.pem", value)]).unwrap_err();
        assert_eq!(error, BundleError::Key { key: "company.pem".into(), problem: expected }, "{value}");
        let text = error.to_string();
        assert!(text.contains("\"company.pem\"") && !text.contains("hunter2"), "{text}");
    }
    for data in [vec![], vec![("ca.crt", "")], vec![("ca.crt", " \n")], vec![("ca.crt", key.as_str())]] {
        assert_eq!(built(data), Err(BundleError::NoCa));
    }
    assert_eq!(build(None, PublicRoots::Builtin), Err(BundleError::NoCa));
}

#[test]
fn what_fits_is_published_and_what_does_not_is_an_error_with_the_numbers() {
    let long = "long name ".repeat(2000);
    // Each takes some 54 kB, and what they are signed with does not count.
    let many: Vec<(String, String)> =
        (0..20).map(|index| (format!("{index}.crt"), ca(&format!("{index} {long}")))).collect();
    let of = |number: usize, roots| {
        build(Some(&secret(many.iter().take(number).map(|(key, pem)| (key.as_str(), pem.as_str())))), roots)
    };
    let files = |[has_ca, has_bundle, has_hashes, has_java]: [bool; 4]| BundleFiles {
        has_ca,
        has_bundle,
        has_hashes,
        has_java,
    };
    let table = [
        (PublicRoots::Builtin, 1, Some([true; 4])),
        // Without public roots under hashed names.
        (PublicRoots::Builtin, 3, Some([true; 4])),
        (PublicRoots::Builtin, 5, Some([true, true, true, false])),
        (PublicRoots::Builtin, 7, Some([true, true, false, false])),
        (PublicRoots::Builtin, 12, Some([false, true, false, false])),
        (PublicRoots::Builtin, 20, None),
        (PublicRoots::None, 7, Some([true, false, true, false])),
        (PublicRoots::None, 12, Some([true, false, false, false])),
        (PublicRoots::None, 20, None),
    ];
    for (roots, number, expected) in table {
        let (built, expected) = (of(number, roots), expected.map(files));
        assert_eq!(built.as_ref().ok().map(TrustBundle::files), expected, "{number}");
        let Err(error) = built else { continue };
        let BundleError::TooLarge { certificates, size } = error else { panic!("{error}") };
        assert!(certificates == number && size > LIMIT && error.to_string().contains(&size.to_string()));
        assert_eq!(error.reason(), "too-large");
    }
    assert!(of(1, PublicRoots::Builtin).unwrap().data().len() > 100);
    assert_eq!(of(3, PublicRoots::Builtin).unwrap().data().len(), 5);
}

#[test]
fn openssl_finds_a_ca_in_a_directory_of_hashed_names() {
    let (a, b) = (ca("Straße  Ä"), ca("b"));
    let bundle = built([("a.crt", a.as_str()), ("b.crt", b.as_str())]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (name, pem) in bundle.data().iter().filter(|(name, _)| *name != KEY_CA) {
        let file = std::fs::File::create(directory.path().join(name));
        file.and_then(|mut file| file.write_all(pem.as_bytes())).unwrap();
    }
    let mut leaf = tempfile::NamedTempFile::new().unwrap();
    leaf.write_all(a.as_bytes()).unwrap();
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-no-CAfile", "-no-CAstore", "-CApath"]).arg(directory.path()).arg(leaf.path());
    if let Ok(output) = verify.output() {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn what_the_manager_needs_to_know() {
    let (a, key) = (ca("a"), key());
    let combined = a.clone() + &key;
    let all = [
        ("ca.crt", a.as_str()),
        ("tls.crt", a.as_str()),
        (KEY_TLS_KEY, key.as_str()),
        ("gitlab.example.com.crt", combined.as_str()),
        ("gitlab.example.com.key", key.as_str()),
        ("key.pem", key.as_str()),
        ("y.crt", "hunter2"),
        ("z.crt", "hunter2"),
    ];
    let certs = Certs::inspect(Some(&secret(all)));
    let pair = ClientPair::Unusable(PairFlaw::OfCa);
    let unreadable = Some("y.crt".to_owned());
    assert_eq!(certs, Certs { has_ca: true, unreadable, client_pair: pair, ..Certs::default() });
    assert_eq!(Certs::inspect(None), Certs::default());
    for (value, has_ca) in [("", false), ("hunter2", false), (key.as_str(), false), (&a, true)] {
        assert_eq!(Certs::inspect(Some(&secret([("ca.crt", value)]))).has_ca, has_ca, "{value}");
    }
}

fn pieces() -> impl Strategy<Value = String> {
    let pem = ca("piece");
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    prop_oneof![
        4 => Just(pem),
        4 => Just(key()),
        1 => Just(base64),
        2 => select(vec![
            "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\n",
            "-----END PRIVATE KEY-----\n", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n", "\n", "\r", "-----",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn nothing_but_certificates_comes_out(
        files in vec(("[a-z]{1,8}\\.(crt|pem|cer|key)", vec(pieces(), 0..6), 0_usize..400), 0..4),
    ) {
        let data: BTreeMap<String, ByteString> = files
            .into_iter()
            .map(|(key, pieces, cut)| {
                let mut value = pieces.concat().into_bytes();
                // Now and then, what an editor or a copy would do.
                value.truncate(if cut > 300 { value.len() - value.len().min(cut) } else { value.len() });
                (key, ByteString(value))
            })
            .collect();
        if let Ok(bundle) = build(Some(&data), PublicRoots::None) {
            for (key, value) in bundle.data() {
                let certificates = pem::certificates(value.as_bytes()).unwrap();
                prop_assert!(!certificates.is_empty(), "{}", key);
                let mut again = String::new();
                for der in &certificates {
                    pem::append(&mut again, der);
                }
                // Nothing else is in it, not even between the blocks.
                prop_assert_eq!(&again, value);
            }
        }
        _ = Certs::inspect(Some(&data));
    }

    #[test]
    fn any_bytes_will_do(value: Vec<u8>) {
        _ = build(Some(&BTreeMap::from([("ca.crt".to_owned(), ByteString(value))])), PublicRoots::None);
    }
}

/// bun and keytool read the first certificate of a file only.
#[test]
fn the_order_is_that_of_the_file_and_ca_crt_comes_first() {
    let all: Vec<String> = (0..8).map(|index| ca(&format!("{}", index % 3))).collect();
    let (first, rest) = all.split_at(5);
    let (first, rest) = (first.concat(), rest.concat() + &all[0]);
    let bundle = built([("a.crt", rest.as_str()), ("ca.crt", first.as_str())]).unwrap();
    assert_eq!(bundle.data()[KEY_CA], all.concat().replace("\r\n", "\n"));
}

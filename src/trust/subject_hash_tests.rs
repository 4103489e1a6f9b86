use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::pem;

const COUNTRY: &[u8] = &[0x55, 4, 6];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
const UNIT: &[u8] = &[0x55, 4, 11];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SERIAL_NUMBER: &[u8] = &[0x55, 4, 5];
const UNIQUE_ID: &[u8] = &[0x55, 4, 45];
const BIT_STRING: u8 = 3;
const NUMERIC_STRING: u8 = 18;

type Attribute<'a, V = &'a [u8]> = (&'a [u8], u8, V);

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = Vec::new();
    write(&mut der, tag, content);
    der
}

/// A Name of these relative names; the attributes of one in the order given, as sloppy issuers write them.
fn name(relative: &[&[Attribute]]) -> Vec<u8> {
    let attribute =
        |(kind, tag, value): &Attribute| element(SEQUENCE, &[element(6, kind), element(*tag, value)].concat());
    let sets = relative.iter().map(|set| element(SET, &set.iter().flat_map(attribute).collect::<Vec<_>>()));
    element(SEQUENCE, &sets.flatten().collect::<Vec<_>>())
}

/// What parses as a certificate with this subject.
fn certificate(subject: &[u8]) -> Vec<u8> {
    let algorithm = element(SEQUENCE, &element(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]));
    let curve =
        [element(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]), element(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7])];
    let key = [element(SEQUENCE, &curve.concat()), element(BIT_STRING, &[[0, 4].as_slice(), &[7; 64]].concat())];
    let validity = [element(23, b"250101000000Z"), element(23, b"350101000000Z")];
    let signature = element(SEQUENCE, &[element(2, &[1]), element(2, &[1])].concat());
    let fields = [
        element(0xa0, &element(2, &[2])),
        element(2, &[1]),
        algorithm.clone(),
        subject.to_vec(),
        element(SEQUENCE, &validity.concat()),
        subject.to_vec(),
        element(SEQUENCE, &key.concat()),
    ];
    let signed = element(SEQUENCE, &fields.concat());
    element(SEQUENCE, &[signed, algorithm, element(BIT_STRING, &[[0].as_slice(), &signature].concat())].concat())
}

/// What `openssl x509 -hash` says; `None` when it cannot read the certificate, an error when it is not there.
fn of_openssl(der: &[u8]) -> io::Result<Option<String>> {
    let mut openssl = Command::new("openssl")
        .args(["x509", "-hash", "-noout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut text = String::new();
    pem::append(&mut text, der);
    openssl.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()))?;
    let output = openssl.wait_with_output()?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

fn names() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
    let utf32 = |text: &str| text.chars().flat_map(|point| u32::from(point).to_be_bytes()).collect::<Vec<_>>();
    let long = "Long ".repeat(60);
    let plain = |tag, value: &[u8]| name(&[&[(COMMON_NAME, tag, value)]]);
    vec![
        ("empty", name(&[]), Some("eea339da")),
        ("plain", plain(UTF8_STRING, b"company root ca"), Some("d9ca3caa")),
        ("mixed case", plain(UTF8_STRING, b"Company Root CA"), Some("d9ca3caa")),
        ("printable", plain(PRINTABLE_STRING, b"Company Root CA"), Some("d9ca3caa")),
        ("white space", plain(UTF8_STRING, b" \t Company \n  Root\x0b\x0c\rCA  "), Some("d9ca3caa")),
        ("only white space", plain(UTF8_STRING, b"   "), Some("5da78770")),
        ("UTF-8", plain(UTF8_STRING, "Ärger  GmbH Ünïcode \u{2003} Ω".as_bytes()), Some("0668e89e")),
        ("BMP", plain(BMP_STRING, &utf16("Ärger  GmbH Ünïcode \u{2003} Ω")), Some("0668e89e")),
        ("universal", plain(UNIVERSAL_STRING, &utf32("Ärger  GmbH Ünïcode \u{2003} Ω")), Some("0668e89e")),
        ("T61", plain(T61_STRING, b"\xc4rger GmbH"), Some("76b78534")),
        ("IA5", plain(IA5_STRING, b"ca@Example.COM"), Some("17f82210")),
        ("numeric", plain(NUMERIC_STRING, b"1  2"), Some("da88b640")),
        ("a bit string", name(&[&[(UNIQUE_ID, BIT_STRING, &[4, 0xa0])]]), Some("f1df0d57")),
        ("long", plain(UTF8_STRING, long.as_bytes()), Some("4b73966d")),
        (
            "several",
            name(&[
                &[(COUNTRY, PRINTABLE_STRING, b"US")],
                &[(ORGANIZATION, UTF8_STRING, b"U.S. Government")],
                &[(UNIT, UTF8_STRING, b"DoD")],
                &[(COMMON_NAME, UTF8_STRING, b"DoD Root CA 3")],
            ]),
            Some("becdec1f"),
        ),
        (
            "multi-valued, unsorted",
            name(&[
                &[
                    (UNIT, UTF8_STRING, b"zz"),
                    (COMMON_NAME, PRINTABLE_STRING, b"Root"),
                    (SERIAL_NUMBER, PRINTABLE_STRING, b"1"),
                ],
                &[(ORGANIZATION, UTF8_STRING, b"O")],
            ]),
            Some("fe8aff2e"),
        ),
        ("half a UTF-16 unit", plain(BMP_STRING, b"abc"), None),
        ("a lone surrogate", plain(BMP_STRING, &[0xd8, 0]), None),
        ("not UTF-8", plain(UTF8_STRING, b"\xff"), None),
    ]
}

#[test]
fn golden_hashes() {
    for (what, name, expected) in names() {
        assert_eq!(of_name(&name).as_deref(), expected, "{what}");
        assert_eq!(of_certificate(&certificate(&name)).as_deref(), expected, "{what}");
    }
}

#[test]
fn openssl_agrees() {
    for (what, name, expected) in names() {
        if let Ok(openssl) = of_openssl(&certificate(&name)) {
            assert_eq!(openssl.as_deref(), expected, "{what}");
        }
    }
}

#[test]
fn what_is_no_name_has_no_hash() {
    let whole = name(&[&[(COMMON_NAME, UTF8_STRING, b"ca")]]);
    for end in 0..whole.len() {
        assert_eq!(of_name(&whole[..end]), None, "{end}");
    }
    for der in [&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff][..], &[0x30, 0x80], &[0x30, 0x89], &[0x1f, 0], &[0x31, 0]] {
        assert_eq!(of_name(der), None);
    }
    assert_eq!(of_name(&[whole, vec![0]].concat()), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn openssl_agrees_on_any_text(
        attributes in vec(
            vec(
                (
                    select(vec![COUNTRY, ORGANIZATION, UNIT, COMMON_NAME]),
                    select(vec![UTF8_STRING, PRINTABLE_STRING, T61_STRING, IA5_STRING, BMP_STRING, NUMERIC_STRING]),
                    "[ \ta-zA-Z0-9äßÉ\u{a0}.'-]{1,12}",
                ),
                1..4,
            ),
            0..4,
        ),
    ) {
        let encode = |tag: u8, text: &str| match tag {
            BMP_STRING => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            _ => text.as_bytes().to_vec(),
        };
        let sets: Vec<Vec<Attribute<Vec<u8>>>> = attributes
            .iter()
            .map(|set| set.iter().map(|(kind, tag, text)| (*kind, *tag, encode(*tag, text))).collect())
            .collect();
        let sets: Vec<Vec<Attribute>> = sets
            .iter()
            .map(|set| set.iter().map(|(kind, tag, value)| (*kind, *tag, value.as_slice())).collect())
            .collect();
        let der = certificate(&name(&sets.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        if let Ok(openssl) = of_openssl(&der) {
            prop_assert_eq!(of_certificate(&der), openssl);
        }
    }

    #[test]
    fn any_bytes_will_do(der: Vec<u8>) {
        _ = of_name(&der);
        _ = of_certificate(&der);
    }
}

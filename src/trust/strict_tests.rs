use std::{collections::BTreeSet, fs, process::Command};

use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::*;
use crate::{
    pem,
    trust::{der::SEQUENCE, java},
};

const SET: u8 = 0x31;
const PRINTABLE: u8 = 19;
const SHA256_WITH_ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const SUBJECT_KEY: &[u8] = &[0x55, 0x1d, 0x0e];
const UNKNOWN: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x87, 0x67, 0x01];
/// What git and wget over `GnuTLS` do with a file of CAs.
const GNUTLS: &str = "
import ctypes, ctypes.util, sys
name = ctypes.util.find_library('gnutls')
if name:
    library = ctypes.CDLL(name)
    credentials = ctypes.c_void_p()
    library.gnutls_certificate_allocate_credentials(ctypes.byref(credentials))
    wanted = open(sys.argv[1]).read().count('BEGIN CERTIFICATE')
    found = library.gnutls_certificate_set_x509_trust_file(credentials, sys.argv[1].encode(), 1)
    sys.exit(f'{found} of {wanted}' if found < 2 else 0)
";
/// A point on P-256.
const POINT: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce\
    33576b315ececbb6406837bf51f5";

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    match u8::try_from(content.len()) {
        Ok(length) if length < 0x80 => [&[tag, length], content].concat(),
        Ok(length) => [&[tag, 0x81, length], content].concat(),
        Err(_) => [&[tag, 0x82], u16::try_from(content.len()).unwrap().to_be_bytes().as_slice(), content].concat(),
    }
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(SEQUENCE, &parts.concat())
}

fn identifier(content: &[u8]) -> Vec<u8> {
    element(OBJECT_IDENTIFIER, content)
}

fn attribute(kind: Vec<u8>, value: Vec<u8>) -> Vec<u8> {
    element(SET, &sequence(&[kind, value]))
}

fn common_name(tag: u8, content: &[u8]) -> Vec<u8> {
    sequence(&[attribute(identifier(COMMON_NAME), element(tag, content))])
}

fn algorithm(kind: &[u8]) -> Vec<u8> {
    sequence(&[identifier(kind)])
}

fn extension(kind: &[u8], is_critical: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[identifier(kind), is_critical.to_vec(), element(4, value)])
}

/// The parts of a certificate, each as it is to be encoded.
struct Parts {
    version: Vec<u8>,
    serial: Vec<u8>,
    inner: Vec<u8>,
    issuer: Vec<u8>,
    validity: Vec<u8>,
    subject: Vec<u8>,
    key: Vec<u8>,
    extensions: Vec<Vec<u8>>,
    outer: Vec<u8>,
    signature: Vec<u8>,
    /// Behind the certificate.
    rest: Vec<u8>,
}

impl Parts {
    /// A CA as it should be.
    fn sane() -> Self {
        let point: Vec<u8> =
            (0..POINT.len() / 2).map(|at| u8::from_str_radix(&POINT[2 * at..2 * at + 2], 16).unwrap()).collect();
        let key = sequence(&[
            identifier(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01]),
            identifier(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]),
        ]);
        Self {
            version: element(0xa0, &element(INTEGER, &[2])),
            serial: element(INTEGER, &[7]),
            inner: algorithm(SHA256_WITH_ECDSA),
            issuer: common_name(UTF8_STRING, b"Odd CA"),
            validity: sequence(&[element(UTC_TIME, b"240101000000Z"), element(UTC_TIME, b"490101000000Z")]),
            subject: common_name(UTF8_STRING, b"Odd CA"),
            key: sequence(&[key, element(BIT_STRING, &[&[0], point.as_slice()].concat())]),
            extensions: vec![
                extension(BASIC_CONSTRAINTS, &element(BOOLEAN, &[0xff]), &sequence(&[element(BOOLEAN, &[0xff])])),
                extension(KEY_USAGE, &element(BOOLEAN, &[0xff]), &element(BIT_STRING, &[1, 6])),
            ],
            outer: algorithm(SHA256_WITH_ECDSA),
            signature: element(
                BIT_STRING,
                &[&[0][..], &sequence(&[element(INTEGER, &[1]), element(INTEGER, &[1])])].concat(),
            ),
            rest: Vec::new(),
        }
    }

    fn encoded(self) -> Vec<u8> {
        let extensions = element(0xa3, &sequence(&self.extensions));
        let tbs = sequence(&[
            self.version,
            self.serial,
            self.inner,
            self.issuer,
            self.validity,
            self.subject,
            self.key,
            extensions,
        ]);
        [sequence(&[tbs, self.outer, self.signature]), self.rest].concat()
    }
}

/// Certificates with one oddity each, and whether they are left out.
#[expect(clippy::too_many_lines, reason = "a table")]
fn corpus() -> Vec<(&'static str, bool, Vec<u8>)> {
    const OUT: bool = true;
    const IN: bool = false;
    let mut all = Vec::new();
    let mut add = |name, is_out, change: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::sane();
        change(&mut parts);
        all.push((name, is_out, parts.encoded()));
    };
    add("sane", IN, &|_| {});
    for (name, is_out, tag, text) in [
        ("UTF-8 that is Latin-1", OUT, UTF8_STRING, &b"Stra\xdfe"[..]),
        ("UTF-8 that ends early", OUT, UTF8_STRING, b"x\xc3"),
        ("UTF-8 surrogate", OUT, UTF8_STRING, b"\xed\xa0\x80"),
        ("BMP of odd length", OUT, BMP_STRING, b"\0a\0"),
        ("BMP surrogate", OUT, BMP_STRING, b"\xd8\0\0a"),
        ("universal of another length", OUT, UNIVERSAL_STRING, b"\0\0\0a\0"),
        ("universal beyond Unicode", OUT, UNIVERSAL_STRING, b"\0\x11\0\0"),
        ("BMP", IN, BMP_STRING, b"\0O\0d\0d"),
        ("universal", IN, UNIVERSAL_STRING, b"\0\0\0O"),
        ("printable with an at sign", IN, PRINTABLE, b"pki@example.com"),
        ("printable with an asterisk", IN, PRINTABLE, b"*.example.com"),
        ("printable with Latin-1", IN, PRINTABLE, b"Stra\xdfe"),
        ("T61 with Latin-1", IN, 20, b"Stra\xdfe"),
        ("IA5 with Latin-1", IN, 22, b"Stra\xdfe"),
        ("numeric with letters", IN, 18, b"abc"),
        ("visible", OUT, 26, b"Odd"),
        ("nothing in it", IN, UTF8_STRING, b""),
        ("a zero in it", IN, UTF8_STRING, b"a\0b"),
        ("a very long one", IN, UTF8_STRING, &[b'x'; 300]),
        ("a number for a name", OUT, INTEGER, &[7]),
    ] {
        add(name, is_out, &|parts| parts.subject = common_name(tag, text));
    }
    add("an empty subject", OUT, &|parts| parts.subject = sequence(&[]));
    add("an empty part of the subject", OUT, &|parts| parts.subject = sequence(&[element(SET, &[])]));
    add("an unknown attribute", IN, &|parts| {
        parts.subject = sequence(&[attribute(identifier(UNKNOWN), element(UTF8_STRING, b"x"))]);
    });
    add("an attribute of three", OUT, &|parts| {
        let three = [identifier(COMMON_NAME), element(UTF8_STRING, b"x"), element(UTF8_STRING, b"y")];
        parts.subject = sequence(&[element(SET, &sequence(&three))]);
    });
    add("an attribute without a value", OUT, &|parts| {
        parts.subject = sequence(&[element(SET, &sequence(&[identifier(COMMON_NAME)]))]);
    });
    add("an issuer that is not UTF-8", OUT, &|parts| parts.issuer = common_name(UTF8_STRING, b"\xff"));
    for (name, is_out, serial) in [
        ("a negative serial", IN, &[0x80][..]),
        ("a serial of zero", IN, &[0]),
        ("a serial of 21 bytes", IN, &[7; 21]),
        ("a padded serial", OUT, &[0, 7]),
        ("a padded negative serial", OUT, &[0xff, 0x80]),
        ("an empty serial", OUT, &[]),
    ] {
        add(name, is_out, &|parts| parts.serial = element(INTEGER, serial));
    }
    for (name, is_out, time) in [
        ("a time without seconds", OUT, element(UTC_TIME, b"2401010000Z")),
        ("a time with an offset", OUT, element(UTC_TIME, b"240101000000+0100")),
        ("an empty time", OUT, element(UTC_TIME, b"")),
        ("a month 13", OUT, element(UTC_TIME, b"241301000000Z")),
        ("a generalized time before 2050", IN, element(GENERALIZED_TIME, b"20240101000000Z")),
        ("a time with fractions", OUT, element(GENERALIZED_TIME, b"20240101000000.5Z")),
    ] {
        add(name, is_out, &|parts| {
            parts.validity = sequence(&[time.clone(), element(UTC_TIME, b"490101000000Z")]);
        });
    }
    add("an end before the beginning", IN, &|parts| {
        parts.validity = sequence(&[element(UTC_TIME, b"490101000000Z"), element(UTC_TIME, b"240101000000Z")]);
    });
    add("the year 9999", IN, &|parts| {
        parts.validity =
            sequence(&[element(UTC_TIME, b"240101000000Z"), element(GENERALIZED_TIME, b"99991231235959Z")]);
    });
    for (name, is_out, kind) in [
        ("an identifier that does not end", OUT, &[0x2a, 0x86][..]),
        ("a padded identifier", OUT, &[0x2a, 0x80, 0x01]),
        ("an empty identifier", OUT, &[]),
        ("an unknown algorithm", IN, UNKNOWN),
    ] {
        add(name, is_out, &|parts| (parts.inner, parts.outer) = (algorithm(kind), algorithm(kind)));
    }
    add("two signature algorithms", OUT, &|parts| parts.outer = algorithm(UNKNOWN));
    add("a parameter that is null", IN, &|parts| {
        let with = sequence(&[identifier(SHA256_WITH_ECDSA), element(NULL, &[])]);
        (parts.inner, parts.outer) = (with.clone(), with);
    });
    add("a null with content", OUT, &|parts| {
        let with = sequence(&[identifier(SHA256_WITH_ECDSA), element(NULL, &[0])]);
        (parts.inner, parts.outer) = (with.clone(), with);
    });
    for (name, is_out, version) in [("version 2", OUT, 1), ("version 4", OUT, 3), ("version 1 with extensions", OUT, 0)]
    {
        add(name, is_out, &|parts| parts.version = element(0xa0, &element(INTEGER, &[version])));
    }
    add("no version, with extensions", OUT, &|parts| parts.version.clear());
    for (name, is_out, signature) in [
        ("a signature of no bits", OUT, &[][..]),
        ("a signature with nine unused bits", OUT, &[9, 1]),
        ("a signature with unused bits", IN, &[3, 8]),
    ] {
        add(name, is_out, &|parts| parts.signature = element(BIT_STRING, signature));
    }
    let sane = |kind: &[u8]| extension(kind, &element(BOOLEAN, &[0xff]), &sequence(&[element(BOOLEAN, &[0xff])]));
    for (name, is_out, added) in [
        ("critical of one", IN, extension(UNKNOWN, &element(BOOLEAN, &[1]), &[5, 0])),
        ("critical of nothing", OUT, extension(UNKNOWN, &element(BOOLEAN, &[]), &[5, 0])),
        ("critical that says no", IN, extension(UNKNOWN, &element(BOOLEAN, &[0]), &[5, 0])),
        ("an extension twice", OUT, sane(BASIC_CONSTRAINTS)),
        ("an unknown critical extension", IN, extension(UNKNOWN, &element(BOOLEAN, &[0xff]), &[5, 0])),
        ("an empty extension", IN, extension(UNKNOWN, &[], &[])),
        ("a malformed alternative name", OUT, extension(ALTERNATIVE_NAME, &[], &[0x30, 5, 0x82])),
        (
            "an alternative name that is not ASCII",
            IN,
            extension(ALTERNATIVE_NAME, &[], &sequence(&[element(0x82, b"\xdf")])),
        ),
        ("a malformed subject key", IN, extension(SUBJECT_KEY, &[], &[0x30, 0])),
    ] {
        add(name, is_out, &|parts| parts.extensions.push(added.clone()));
    }
    for (name, is_out, value) in [
        ("malformed basic constraints", IN, vec![0x30, 3, 1]),
        ("a negative path length", IN, sequence(&[element(BOOLEAN, &[0xff]), element(INTEGER, &[0xff])])),
        ("basic constraints in a number", IN, element(INTEGER, &[1])),
    ] {
        add(name, is_out, &|parts| parts.extensions[0] = extension(BASIC_CONSTRAINTS, &[], &value));
    }
    add("no extensions", IN, &|parts| parts.extensions.clear());
    add("a malformed key usage", IN, &|parts| parts.extensions[1] = extension(KEY_USAGE, &[], &[3, 1]));
    add("an unknown kind of key", IN, &|parts| {
        parts.key = sequence(&[algorithm(UNKNOWN), element(BIT_STRING, &[0, 1, 2, 3])]);
    });
    add("a point that is not on the curve", IN, &|parts| {
        let last = parts.key.len() - 1;
        parts.key[last] ^= 1;
    });
    add("a key that is cut off", OUT, &|parts| {
        let length = parts.key.len() - 8;
        parts.key.truncate(length);
    });
    add("a signature with bits that should be zero", OUT, &|parts| parts.signature = element(BIT_STRING, &[3, 9]));
    add("a string in pieces", OUT, &|parts| {
        parts.subject = sequence(&[attribute(identifier(COMMON_NAME), element(0x2c, &element(UTF8_STRING, b"x")))]);
    });
    add("an identifier of 70 bits", OUT, &|parts| {
        let long = [&[0x2b][..], &[0xff; 9], &[0x7f]].concat();
        parts.subject = sequence(&[attribute(identifier(&long), element(UTF8_STRING, b"x"))]);
    });
    add("two versions", OUT, &|parts| {
        parts.version = element(0xa0, &[element(INTEGER, &[2]), element(NULL, &[])].concat());
    });
    add("parameters that are a number", OUT, &|parts| {
        let with = sequence(&[identifier(SHA256_WITH_ECDSA), element(INTEGER, &[1])]);
        (parts.inner, parts.outer) = (with.clone(), with);
    });
    add("something behind it", OUT, &|parts| parts.rest = vec![0; 4]);
    let sane = Parts::sane().encoded();
    let mut padded = vec![SEQUENCE, 0x83, 0];
    padded.extend(&sane[2..]);
    all.push(("a padded length", OUT, padded));
    all.push(("an indefinite length", OUT, [&[SEQUENCE, 0x80], &sane[4..], &[0, 0]].concat()));
    all
}

#[test]
fn what_is_left_out() {
    let mut names = BTreeSet::new();
    let wrong: Vec<_> = corpus()
        .iter()
        .filter(|(name, is_out, der)| {
            assert!(names.insert(*name), "{name} is there twice");
            flaw(der).is_some() != *is_out
        })
        .map(|(name, is_out, der)| format!("{name}: left out should be {is_out}, {:?}", flaw(der)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn public_cas_are_accepted_each() {
    assert!(TLS_SERVER_ROOT_CERTS.iter().all(|der| flaw(der).is_none() && is_for_java(der)));
}

/// One file with all that is not left out, between two sane certificates: each program reads the last one.
#[test]
fn what_is_published_is_read_by_every_program() {
    let folder = tempfile::tempdir().unwrap();
    let kept = corpus().into_iter().filter(|(.., der)| flaw(der).is_none());
    let kept: Vec<(&str, Vec<u8>)> = kept.map(|(name, _, der)| (name, der)).collect();
    let (file, store) = (folder.path().join("bundle.crt"), folder.path().join("truststore.jks"));
    let (first, last) = (TLS_SERVER_ROOT_CERTS[0].to_vec(), TLS_SERVER_ROOT_CERTS[1].to_vec());
    let anchor = folder.path().join("last.crt");
    fs::write(&anchor, pem::written([last.as_slice()])).unwrap();
    let tries: [(&str, &[&str]); 5] = [
        ("openssl", &["verify", "-no_check_time", "-no-CApath", "-no-CAstore", "-CAfile", "FILE", "ANCHOR"]),
        ("python3", &["-c", "import ssl, sys; ssl.create_default_context(cafile=sys.argv[1])", "FILE"]),
        ("python3", &["-c", GNUTLS, "FILE"]),
        (
            "node",
            &["-e", "require('tls').createSecureContext({ca: require('fs').readFileSync(process.argv[1])})", "FILE"],
        ),
        ("keytool", &["-list", "-storepass", "changeit", "-keystore", "STORE"]),
    ];
    let says_yes = |ders: &[&[u8]], (program, arguments): (&str, &[&str])| {
        let all = || [first.as_slice()].into_iter().chain(ders.iter().copied()).chain([last.as_slice()]);
        fs::write(&file, pem::written(all())).unwrap();
        fs::write(&store, java::trust_store(all().filter(|der| is_for_java(der)))).unwrap();
        let mut command = Command::new(program);
        for argument in arguments {
            match *argument {
                "FILE" => command.arg(&file),
                "ANCHOR" => command.arg(&anchor),
                "STORE" => command.arg(&store),
                word => command.arg(word),
            };
        }
        command.output().ok().map(|output| output.status.success())
    };
    for attempt in tries {
        let all: Vec<&[u8]> = kept.iter().map(|(_, der)| der.as_slice()).collect();
        match says_yes(&all, attempt) {
            None => eprintln!("SKIPPED: {} is not on this machine", attempt.0),
            Some(true) => {}
            Some(false) => {
                let guilty = kept.iter().filter(|(_, der)| says_yes(&[der], attempt) == Some(false));
                let guilty: Vec<&str> = guilty.map(|(name, _)| *name).collect();
                panic!("{attempt:?} refuses a file with one of these: {guilty:#?}");
            }
        }
    }
}

//! What in a certificate keeps a program from reading a file with others. PURE.
//!
//! OpenSSL, and with it curl and Python, refuses a whole file for one of them; `GnuTLS` does, and Java refuses the whole
//! store. What each of them accepts is accepted here, be it odd: a negative serial number, a '@' in a `PrintableString`,
//! constraints that nobody can read. The test asks the programs themselves.

use std::collections::BTreeSet;

use x509_parser::{
    asn1_rs::{Any, Tag},
    prelude::{FromDer as _, ParsedExtension, X509Certificate, X509Version},
};

use super::{
    der::{
        BIT_STRING, BMP_STRING, BOOLEAN, Element, GENERALIZED_TIME, IA5_STRING, INTEGER, NULL, NUMERIC_STRING,
        OBJECT_IDENTIFIER, OCTET_STRING, PRINTABLE_STRING, SEQUENCE, SET, T61_STRING, UNIVERSAL_STRING, UTC_TIME,
        UTF8_STRING,
    },
    subject_hash,
};

const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const X25519: &str = "1.3.101.110";
const X448: &str = "1.3.101.111";
const ED25519: &str = "1.3.101.112";
const ED448: &str = "1.3.101.113";
/// P-256, P-384 and P-521, with the bytes of a coordinate.
const CURVES: [(&str, usize); 3] = [("1.2.840.10045.3.1.7", 32), ("1.3.132.0.34", 48), ("1.3.132.0.35", 66)];
const ALTERNATIVE_NAME: &str = "2.5.29.17";
const ISSUERS_ALTERNATIVE_NAME: &str = "2.5.29.18";
/// Tags of what a certificate may have or not.
const VERSION: u8 = 0xa0;
const ISSUER_ID: u8 = 0x81;
const SUBJECT_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
/// Deeper than any certificate is.
const MAX_DEPTH: usize = 24;
/// Of a tag: it holds elements.
const CONSTRUCTED: u8 = 0x20;
/// Of a tag: its class, which is none for the types that everybody knows.
const CLASS: u8 = 0xc0;

/// Why a certificate is left out, if it is.
pub(super) fn flaw(der: &[u8]) -> Option<&'static str> {
    let Some(whole) = Element::whole(der) else { return Some("it is not DER") };
    if let Some(flaw) = flaw_within(&whole, MAX_DEPTH) {
        return Some(flaw);
    }
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Some("it is no X.509 certificate") };
    for name in [certificate.subject(), certificate.issuer()] {
        let values = name.iter_attributes().map(|attribute| attribute.attr_value().tag().0);
        if subject_hash::of_name(name.as_raw()).is_none() || !values.into_iter().all(may_be_in_name) {
            return Some("its subject or issuer is malformed");
        }
    }
    if [certificate.subject(), certificate.issuer()].iter().any(|name| name.iter().next().is_none()) {
        return Some("its subject or issuer is empty");
    }
    let mut seen = BTreeSet::new();
    if !certificate.extensions().iter().all(|extension| seen.insert(extension.oid.as_bytes())) {
        return Some("it has an extension twice");
    }
    if !seen.is_empty() && certificate.version() != X509Version::V3 {
        return Some("it has extensions, and says that it is of a version without them");
    }
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Some("it names two signature algorithms");
    }
    let parameters = certificate.signature_algorithm.parameters.as_ref().map(Any::tag);
    if !matches!(parameters, None | Some(Tag::Null | Tag::Oid | Tag::Sequence)) {
        return Some("its signature algorithm has odd parameters");
    }
    if !has_right_shape(&whole) {
        return Some("it has more parts than a certificate, or others");
    }
    let mut alternative_names = certificate.extensions().iter().filter(|extension| {
        [ALTERNATIVE_NAME, ISSUERS_ALTERNATIVE_NAME].contains(&extension.oid.to_id_string().as_str())
    });
    if !alternative_names.all(|extension| are_names(extension.value)) {
        return Some("its alternative name is malformed");
    }
    None
}

/// Whether it has the parts of a certificate, and none more (RFC 5280, section 4.1).
fn has_right_shape(whole: &Element<'_>) -> bool {
    let parts =
        |element: &Element<'_>| element.children().map(|part| part.map_or(0, |part| part.tag)).collect::<Vec<_>>();
    let is_algorithm =
        |element: &Element<'_>| matches!(parts(element).as_slice(), [OBJECT_IDENTIFIER] | [OBJECT_IDENTIFIER, _]);
    let is_extension = |element: Option<Element<'_>>| {
        element.is_some_and(|one| {
            matches!(
                parts(&one).as_slice(),
                [OBJECT_IDENTIFIER, OCTET_STRING] | [OBJECT_IDENTIFIER, BOOLEAN, OCTET_STRING]
            )
        })
    };
    let Some([tbs, outer, _]) = <[_; 3]>::try_from(whole.children().flatten().collect::<Vec<_>>()).ok() else {
        return false;
    };
    let mut fields = tbs.children().flatten().peekable();
    let version = fields.next_if(|field| field.tag == VERSION);
    let is_first = version.as_ref().is_none_or(|version| version.content == [INTEGER, 1, 0]);
    let Some([serial, inner, _, validity, _, key]) =
        <[_; 6]>::try_from(fields.by_ref().take(6).collect::<Vec<_>>()).ok()
    else {
        return false;
    };
    let ids = std::iter::from_fn(|| fields.next_if(|field| [ISSUER_ID, SUBJECT_ID].contains(&field.tag)));
    let has_right_ids = ids.into_iter().all(|id| !is_first && is_bit_string(id.content));
    let extensions = fields.next().is_none_or(|field| {
        let list = Element::whole(field.content).filter(|_| field.tag == EXTENSIONS);
        list.is_some_and(|list| list.children().all(is_extension))
    });
    version.is_none_or(|version| Element::whole(version.content).is_some_and(|number| number.tag == INTEGER))
        && serial.tag == INTEGER
        && is_algorithm(&inner)
        && is_algorithm(&outer)
        && parts(&validity).len() == 2
        && parts(&key) == [SEQUENCE, BIT_STRING]
        && key.children().next().flatten().is_some_and(|algorithm| is_algorithm(&algorithm))
        && has_right_ids
        && extensions
        && fields.next().is_none()
}

/// Whether this is a list of names as `GnuTLS` has them, none of them empty.
fn are_names(value: &[u8]) -> bool {
    let Some(list) = Element::whole(value).filter(|list| list.tag == SEQUENCE) else { return false };
    list.children().all(|name| {
        name.filter(|name| !name.content.is_empty()).is_some_and(|name| match name.tag {
            0x81 | 0x82 | 0x86 | 0x87 => true,
            0x88 => is_identifier(name.content),
            0xa0 | 0xa3 | 0xa4 | 0xa5 => flaw_within(&name, MAX_DEPTH).is_none(),
            _ => false,
        })
    })
}

/// Whether a JVM reads it: one that it cannot read costs it the whole store. It looks into keys and critical extensions.
pub(super) fn is_for_java(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let mut critical = certificate.extensions().iter().filter(|extension| extension.critical);
    let extensions = critical.all(|extension| {
        let value = Element::whole(extension.value);
        let is_malformed = value.is_none_or(|value| flaw_within(&value, MAX_DEPTH).is_some());
        !is_malformed && !matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. })
    });
    let key = certificate.public_key();
    let bits = key.subject_public_key.data.as_ref();
    let algorithm = key.algorithm.algorithm.to_id_string();
    let key = match algorithm.as_str() {
        RSA => Element::whole(bits).is_some_and(|key| {
            let sizes: Vec<_> = key.children().map(|number| number.map_or(0, |number| number.content.len())).collect();
            // A modulus of 512 to 16384 bits, and an exponent of 64 at most.
            matches!(sizes.as_slice(), [64..=2049, 1..=8])
        }),
        // Of the curves that a JVM has had since 16, a point that is not compressed.
        EC => {
            let curve = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
            let curve = curve.map(|curve| curve.to_id_string()).unwrap_or_default();
            let size = CURVES.iter().find(|(known, _)| *known == curve).map(|(_, size)| 2 * size + 1);
            bits.first() == Some(&4) && size == Some(bits.len())
        }
        ED25519 | X25519 => bits.len() == 32,
        ED448 => bits.len() == 57,
        X448 => bits.len() == 56,
        _ => false,
    };
    extensions && key
}

/// The types of text that every program knows for a part of a name, by number.
fn may_be_in_name(tag: u32) -> bool {
    [UTF8_STRING, NUMERIC_STRING, PRINTABLE_STRING, T61_STRING, IA5_STRING, UNIVERSAL_STRING, BMP_STRING]
        .iter()
        .any(|known| u32::from(*known) == tag)
}

fn flaw_within(element: &Element<'_>, depth: usize) -> Option<&'static str> {
    if !element.has_shortest_length() {
        return Some("a length in it is padded");
    }
    if element.tag & CONSTRUCTED != 0 {
        if element.tag & CLASS == 0 && element.tag != SEQUENCE && element.tag != SET {
            return Some("a value in it is in pieces");
        }
        let Some(depth) = depth.checked_sub(1) else { return Some("it is nested too deep") };
        return element
            .children()
            .find_map(|child| child.map_or(Some("it is not DER"), |child| flaw_within(&child, depth)));
    }
    let content = element.content;
    let is_right = match element.tag {
        BOOLEAN => content.len() == 1,
        INTEGER => is_minimal(content),
        BIT_STRING => is_bit_string(content),
        NULL => content.is_empty(),
        OBJECT_IDENTIFIER => is_identifier(content),
        UTF8_STRING => str::from_utf8(content).is_ok(),
        UTC_TIME => is_time(content, 12),
        GENERALIZED_TIME => is_time(content, 14),
        UNIVERSAL_STRING => content.len().is_multiple_of(4),
        BMP_STRING => content.len().is_multiple_of(2),
        _ => true,
    };
    if is_right {
        return None;
    }
    Some(match element.tag {
        BOOLEAN => "a boolean in it is malformed",
        INTEGER => "a number in it is malformed",
        BIT_STRING => "a bit string in it is malformed",
        NULL => "a null in it is not empty",
        OBJECT_IDENTIFIER => "an object identifier in it is malformed",
        UTC_TIME | GENERALIZED_TIME => "a time in it is malformed",
        _ => "a text in it is not what its type says",
    })
}

/// The first byte says how many bits of the last one do not count, and these are zero.
fn is_bit_string(content: &[u8]) -> bool {
    match content {
        [0] => true,
        [unused, .., last] => *unused < 8 && last.trailing_zeros() >= u32::from(*unused),
        _ => false,
    }
}

/// No more bytes than its value takes.
fn is_minimal(content: &[u8]) -> bool {
    match content {
        [] => false,
        [first, second, ..] => !matches!((first, second & 0x80), (0, 0) | (0xff, 0x80)),
        [_] => true,
    }
}

/// So many digits, and the letter for UTC.
fn is_time(content: &[u8], digits: usize) -> bool {
    content.len() == digits + 1 && content.strip_suffix(b"Z").is_some_and(|time| time.iter().all(u8::is_ascii_digit))
}

/// Each part ends, and begins with a digit.
fn is_identifier(content: &[u8]) -> bool {
    let ends = |byte: &u8| byte & 0x80 == 0;
    // Nine bytes hold 63 bits; `GnuTLS` takes no more.
    let is_right = |part: &[u8]| part.first() != Some(&0x80) && part.len() <= 9;
    content.last().is_some_and(ends) && content.split_inclusive(ends).all(is_right)
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;

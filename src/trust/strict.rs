//! What in a certificate keeps a program from reading a file with others. PURE.
//!
//! OpenSSL, and with it curl and Python, refuses a whole file for one of them; `GnuTLS` does, and Java refuses the whole
//! store. What each of them accepts is accepted here, be it odd: a negative serial number, a '@' in a `PrintableString`,
//! constraints that nobody can read. The test asks the programs themselves.

use std::collections::BTreeSet;

use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

use super::{
    der::{
        BIT_STRING, BMP_STRING, BOOLEAN, Element, GENERALIZED_TIME, IA5_STRING, INTEGER, NULL, NUMERIC_STRING,
        OBJECT_IDENTIFIER, PRINTABLE_STRING, T61_STRING, UNIVERSAL_STRING, UTC_TIME, UTF8_STRING,
    },
    subject_hash,
};

/// Deeper than any certificate is.
const MAX_DEPTH: usize = 24;
/// Of a tag: it holds elements.
const CONSTRUCTED: u8 = 0x20;

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
    if certificate.subject().iter().next().is_none() {
        return Some("its subject is empty");
    }
    let mut seen = BTreeSet::new();
    if !certificate.extensions().iter().all(|extension| seen.insert(extension.oid.as_bytes())) {
        return Some("it has an extension twice");
    }
    if certificate.subject_alternative_name().is_err() {
        return Some("its alternative name is malformed");
    }
    if !seen.is_empty() && certificate.version() != X509Version::V3 {
        return Some("it has extensions, and says that it is of a version without them");
    }
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Some("it names two signature algorithms");
    }
    None
}

/// The types that OpenSSL knows for a part of a name (`B_ASN1_PRINTABLE`), by number.
fn may_be_in_name(tag: u32) -> bool {
    [BIT_STRING, UTF8_STRING, NUMERIC_STRING, PRINTABLE_STRING, T61_STRING, IA5_STRING, UNIVERSAL_STRING, BMP_STRING]
        .iter()
        .any(|known| u32::from(*known) == tag)
}

fn flaw_within(element: &Element<'_>, depth: usize) -> Option<&'static str> {
    if element.tag & CONSTRUCTED != 0 {
        let Some(depth) = depth.checked_sub(1) else { return Some("it is nested too deep") };
        return element
            .children()
            .find_map(|child| child.map_or(Some("it is not DER"), |child| flaw_within(&child, depth)));
    }
    let content = element.content;
    let is_right = match element.tag {
        BOOLEAN => content.len() == 1,
        INTEGER => is_minimal(content),
        BIT_STRING => content.first().is_some_and(|unused| *unused == 0 || *unused < 8 && content.len() > 1),
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
    content.last().is_some_and(ends) && content.split_inclusive(ends).all(|part| part.first() != Some(&0x80))
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;

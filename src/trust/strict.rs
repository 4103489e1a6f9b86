//! What in a certificate keeps a program from reading a file with others. PURE.
//!
//! OpenSSL, and with it curl and Python, refuses a whole file for one of them; `GnuTLS` does, and Java refuses the whole
//! store. What each of them accepts is accepted here, be it odd: a negative serial number, a '@' in a `PrintableString`.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    der::{
        BIT_STRING, BMP_STRING, BOOLEAN, Element, GENERALIZED_TIME, INTEGER, NULL, OBJECT_IDENTIFIER, UNIVERSAL_STRING,
        UTC_TIME, UTF8_STRING,
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
        if subject_hash::of_name(name.as_raw()).is_none() {
            return Some("its subject or issuer is malformed");
        }
    }
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Some("it names two signature algorithms");
    }
    None
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
        UTC_TIME => content.len() >= 13,
        GENERALIZED_TIME => content.len() >= 15,
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

/// Each part ends, and begins with a digit.
fn is_identifier(content: &[u8]) -> bool {
    let ends = |byte: &u8| byte & 0x80 == 0;
    content.last().is_some_and(ends) && content.split_inclusive(ends).all(|part| part.first() != Some(&0x80))
}

#[cfg(test)]
mod tests {
    use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

    use super::*;

    #[test]
    fn public_cas_are_accepted_each() {
        assert!(TLS_SERVER_ROOT_CERTS.iter().all(|der| flaw(der).is_none()));
    }
}

//! The name under which OpenSSL looks for a CA in a directory: a hash of its subject. PURE.
//!
//! Since OpenSSL 1.0.0 it is the first four bytes, little endian, of SHA-1 over the *canonical* subject, so that
//! spelling does not matter: each attribute value of a string type becomes UTF-8, ASCII letters in lower case, white
//! space trimmed and collapsed; the relative names are sorted as DER wants it and written one after the other, without
//! the header around all of them. Source: `X509_NAME_hash_ex` and `x509_name_canon` in OpenSSL's `crypto/x509`.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::der::{
    BMP_STRING, Element, IA5_STRING, PRINTABLE_STRING, SEQUENCE, SET, T61_STRING, UNIVERSAL_STRING, UTF8_STRING,
    VISIBLE_STRING,
};

/// The hash of a certificate's subject as eight hexadecimal digits; `None` where OpenSSL could not read the subject.
pub(super) fn of_certificate(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    of_name(certificate.subject().as_raw())
}

/// The hash of a Name in DER.
pub(super) fn of_name(der: &[u8]) -> Option<String> {
    let name = Element::whole(der).filter(|name| name.tag == SEQUENCE)?;
    let mut canonical = Vec::new();
    for set in name.children() {
        let set = set.filter(|set| set.tag == SET)?;
        let mut attributes =
            set.children().map(|attribute| canonical_attribute(&attribute?)).collect::<Option<Vec<_>>>()?;
        if !attributes.is_empty() {
            attributes.sort_unstable();
            write(&mut canonical, SET, &attributes.concat());
        }
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    let first: [u8; 4] = hash.as_ref().first_chunk().copied()?;
    Some(format!("{:08x}", u32::from_le_bytes(first)))
}

fn canonical_attribute(attribute: &Element) -> Option<Vec<u8>> {
    let mut parts = attribute.children();
    let (kind, value, end) = (parts.next()??, parts.next()??, parts.next());
    if attribute.tag != SEQUENCE || end.is_some() {
        return None;
    }
    let mut whole = Vec::new();
    write(&mut whole, SEQUENCE, &[kind.encoding, &canonical_value(&value)?].concat());
    Some(whole)
}

fn canonical_value(value: &Element) -> Option<Vec<u8>> {
    let text = match value.tag {
        UTF8_STRING => str::from_utf8(value.content).ok()?.to_owned(),
        // OpenSSL takes each of these for Latin-1.
        PRINTABLE_STRING | T61_STRING | IA5_STRING | VISIBLE_STRING => {
            value.content.iter().copied().map(char::from).collect()
        }
        BMP_STRING => code_points::<2>(value.content)?,
        UNIVERSAL_STRING => code_points::<4>(value.content)?,
        // Numbers and what is no text at all stay as they are.
        _ => return Some(value.encoding.to_vec()),
    };
    let mut canonical = Vec::new();
    write(&mut canonical, UTF8_STRING, &canonical_text(&text));
    Some(canonical)
}

fn code_points<const WIDTH: usize>(content: &[u8]) -> Option<String> {
    let (units, rest) = content.as_chunks::<WIDTH>();
    let units = units.iter().map(|unit| unit.iter().fold(0, |point, byte| point << 8 | u32::from(*byte)));
    let text = units.map(char::from_u32).collect::<Option<String>>();
    text.filter(|_| rest.is_empty())
}

fn canonical_text(text: &str) -> Vec<u8> {
    // The C locale's white space; what is not ASCII is left alone.
    let words = text.split([' ', '\t', '\n', '\x0b', '\x0c', '\r']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").to_ascii_lowercase().into_bytes()
}

/// Appends an element with its header.
fn write(der: &mut Vec<u8>, tag: u8, content: &[u8]) {
    der.push(tag);
    let size = content.len().to_be_bytes();
    let digits = size.iter().skip_while(|digit| **digit == 0).count();
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            // At most eight digits.
            der.push(0x80 | u8::try_from(digits).unwrap_or_default());
            der.extend(size.iter().skip(size.len() - digits));
        }
    }
    der.extend(content);
}

#[cfg(test)]
#[path = "subject_hash_tests.rs"]
mod tests;

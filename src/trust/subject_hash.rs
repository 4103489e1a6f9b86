//! The name under which OpenSSL looks for a CA in a directory: a hash of its subject. PURE.
//!
//! Since OpenSSL 1.0.0 it is the first four bytes, little endian, of SHA-1 over the *canonical* subject, so that
//! spelling does not matter: each attribute value of a string type becomes UTF-8, ASCII letters in lower case, white
//! space trimmed and collapsed; the relative names are sorted as DER wants it and written one after the other, without
//! the header around all of them. Source: `X509_NAME_hash_ex` and `x509_name_canon` in OpenSSL's `crypto/x509`.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 12;
const PRINTABLE_STRING: u8 = 19;
const T61_STRING: u8 = 20;
const IA5_STRING: u8 = 22;
const VISIBLE_STRING: u8 = 26;
const UNIVERSAL_STRING: u8 = 28;
const BMP_STRING: u8 = 30;

/// The hash of a certificate's subject as eight hexadecimal digits; `None` where OpenSSL could not read the subject.
pub(super) fn of_certificate(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    of_name(certificate.subject().as_raw())
}

/// The hash of a Name in DER.
fn of_name(der: &[u8]) -> Option<String> {
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

/// One element of DER.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    /// With its header.
    encoding: &'a [u8],
}

impl<'a> Element<'a> {
    /// The only element of the input.
    fn whole(der: &'a [u8]) -> Option<Self> {
        Self::split(der).filter(|(_, rest)| rest.is_empty()).map(|(element, _)| element)
    }

    /// The first element of the input, and what follows.
    fn split(der: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[tag, length], mut rest) = der.split_first_chunk()?;
        // Tags of more than one byte are not among those of a Name.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let mut size = usize::from(length);
        if length & 0x80 != 0 {
            let (digits, after) = rest.split_at_checked(usize::from(length & 0x7f))?;
            if digits.is_empty() || digits.len() > 4 {
                return None;
            }
            size = digits.iter().fold(0, |size, digit| size << 8 | usize::from(*digit));
            rest = after;
        }
        let (content, rest) = rest.split_at_checked(size)?;
        let encoding = der.get(..der.len() - rest.len())?;
        Some((Self { tag, content, encoding }, rest))
    }

    /// Its elements; `None` in place of the first that is malformed, and nothing after it.
    fn children(&self) -> impl Iterator<Item = Option<Self>> + use<'a> {
        let mut rest = self.content;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let split = Self::split(rest);
            rest = split.as_ref().map_or(&[], |(_, rest)| rest);
            Some(split.map(|(element, _)| element))
        })
    }
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

//! What one key of `certsSecretName` holds, in any of the forms that CAs are handed out in. PURE.
//!
//! | form | where it comes from |
//! |---|---|
//! | PEM, `CERTIFICATE` | most |
//! | PEM, `X509 CERTIFICATE` | old OpenSSL (RFC 7468, section 5.1) |
//! | PEM, `TRUSTED CERTIFICATE` | `openssl x509 -trustout`, Red Hat's `ca-bundle.trust.crt`: what follows the certificate is not read |
//! | PEM, `PKCS7`, or its DER | Windows' certificate services, "download CA chain": `certnew.p7b` |
//! | DER | what Windows and macOS export by default |
//! | PEM in base64, once more | a value of `data` pasted into `stringData` |
//! | PEM in UTF-16 | PowerShell's `>` |
//!
//! Whoever reads what is published reads the same certificates in one form. What is damaged is an error for the whole key:
//! half a file must not take trust away. What is whole, and would keep a program from reading the rest, is left out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    der::{Element, INTEGER, OBJECT_IDENTIFIER, SEQUENCE, SET, elements},
    strict,
};
use crate::pem::{self, PemError};

/// Of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How PEM begins, in base64.
const PEM_IN_BASE64: &[u8] = b"LS0tLS1CRUdJTi";
/// `signedData` of PKCS #7: 1.2.840.113549.1.7.2.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// The optional certificates of `SignedData`.
const CERTIFICATES: u8 = 0xa0;

/// The certificates of one key.
#[derive(Debug, Default)]
pub struct Reading {
    /// As DER, in their order.
    pub certificates: Vec<Vec<u8>>,
    /// Those that would keep a program from reading the others: which of the key's, from 1, and why.
    pub left_out: Vec<(usize, &'static str)>,
    /// Whether there is a private key beside them.
    pub holds_key: bool,
}

/// Reads the value of one key. Nothing is found in one that is empty or holds only other PEM blocks.
///
/// # Errors
/// It holds something else, or a certificate in it is damaged.
pub fn read(value: &[u8]) -> Result<Reading, PemError> {
    let mut reading = Reading::default();
    let value = value.strip_prefix(BYTE_ORDER_MARK).unwrap_or(value);
    if value.trim_ascii().is_empty() {
        return Ok(reading);
    }
    if let Some(text) = from_utf16(value) {
        return read(text.as_bytes());
    }
    if value.trim_ascii().starts_with(PEM_IN_BASE64) {
        let text = value.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>();
        return read_pem(&STANDARD.decode(text).map_err(|_| PemError::NoCertificate)?, reading);
    }
    if value.first() == Some(&SEQUENCE) {
        for element in elements(value) {
            let one = element.ok_or(PemError::NoCertificate)?;
            let found = signed(one.encoding).unwrap_or_else(|| vec![one.encoding]);
            found.into_iter().try_for_each(|der| reading.take(der)).map_err(|_| PemError::NoCertificate)?;
        }
        return Ok(reading);
    }
    read_pem(value, reading)
}

fn read_pem(text: &[u8], mut reading: Reading) -> Result<Reading, PemError> {
    let broken = |before: usize| PemError::Certificate { number: before + 1 };
    let blocks = pem::blocks(text).map_err(broken)?;
    if !pem::is_pem(text) {
        return Err(PemError::NoCertificate);
    }
    for block in blocks {
        let before = reading.number();
        let decoded = || block.decode().ok_or_else(|| broken(before));
        match block.label {
            b"CERTIFICATE" | b"X509 CERTIFICATE" => reading.take(&decoded()?)?,
            b"TRUSTED CERTIFICATE" => {
                let der = decoded()?;
                let (certificate, _) = Element::split(&der).ok_or_else(|| broken(before))?;
                reading.take(certificate.encoding)?;
            }
            b"PKCS7" | b"PKCS #7 SIGNED DATA" => {
                let der = decoded()?;
                let found = signed(&der).ok_or_else(|| broken(before))?;
                found.into_iter().try_for_each(|der| reading.take(der))?;
            }
            label => reading.holds_key |= label.ends_with(b"PRIVATE KEY"),
        }
    }
    Ok(reading)
}

impl Reading {
    /// How many certificates were met.
    fn number(&self) -> usize {
        self.certificates.len() + self.left_out.len()
    }

    /// Takes one certificate, or notes why not.
    fn take(&mut self, der: &[u8]) -> Result<(), PemError> {
        let number = self.number() + 1;
        let broken = PemError::Certificate { number };
        // Its three parts, and nothing behind them: it is whole.
        let parts = Element::whole(der).ok_or(broken)?;
        if parts.tag != SEQUENCE || parts.children().flatten().count() != 3 {
            return Err(broken);
        }
        match strict::flaw(der) {
            Some(flaw) => self.left_out.push((number, flaw)),
            None => self.certificates.push(der.to_vec()),
        }
        Ok(())
    }
}

/// The certificates of PKCS #7 signed data, if it is that.
fn signed(der: &[u8]) -> Option<Vec<&[u8]>> {
    let content_info = Element::whole(der).filter(|element| element.tag == SEQUENCE)?;
    let mut parts = elements(content_info.content);
    let kind = parts.next()??;
    if kind.tag != OBJECT_IDENTIFIER || kind.content != SIGNED_DATA {
        return None;
    }
    let explicit = parts.next()??;
    let signed_data = Element::whole(explicit.content).filter(|element| element.tag == SEQUENCE)?;
    let mut parts = elements(signed_data.content);
    for tag in [INTEGER, SET, SEQUENCE] {
        parts.next()?.filter(|part| part.tag == tag)?;
    }
    let certificates = parts.next()?.filter(|part| part.tag == CERTIFICATES)?;
    elements(certificates.content).map(|one| Some(one?.encoding)).collect()
}

/// Text with a byte order mark of UTF-16.
fn from_utf16(value: &[u8]) -> Option<String> {
    let (mark, rest) = value.split_first_chunk::<2>()?;
    let unit = match mark {
        [0xff, 0xfe] => u16::from_le_bytes,
        [0xfe, 0xff] => u16::from_be_bytes,
        _ => return None,
    };
    let (units, rest) = rest.as_chunks::<2>();
    let text = char::decode_utf16(units.iter().map(|bytes| unit(*bytes))).collect::<Result<String, _>>().ok();
    text.filter(|_| rest.is_empty())
}

/// Whether a certificate is that of a client, and of nobody else: no server is trusted by it.
pub(super) fn is_of_client(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let usage = certificate.extended_key_usage().ok().flatten();
    !certificate.is_ca() && usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any)
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;

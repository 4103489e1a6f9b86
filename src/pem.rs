//! PEM, strictly: only CERTIFICATE blocks are decoded, whatever else is in the file. PURE.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is wrong with a file. Nothing of its content is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Bytes, and no PEM block among them: DER, perhaps.
    #[error("it is not PEM")]
    NotPem,
    /// A block that is cut off, not base64, or no X.509 certificate.
    #[error("certificate {number} in it cannot be read")]
    Certificate {
        /// Which of the CERTIFICATE blocks, from 1.
        number: usize,
    },
}

/// The certificates in a PEM file, as DER, in their order. None, if the file is empty or holds only other blocks, such
/// as a private key: those are not even decoded.
pub fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, PemError> {
    // Some editors put a byte order mark first.
    let pem = pem.strip_prefix(b"\xef\xbb\xbf").unwrap_or(pem);
    let mut found = Vec::new();
    let mut body: Option<Vec<u8>> = None;
    let mut has_blocks = false;
    for line in pem.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii) {
        let broken = PemError::Certificate { number: found.len() + 1 };
        if line.starts_with(b"-----BEGIN ") {
            // Within a certificate, the line that should have come is missing.
            if body.is_some() {
                return Err(broken);
            }
            has_blocks = true;
            if line == b"-----BEGIN CERTIFICATE-----" {
                body = Some(Vec::new());
            } else if line.starts_with(b"-----BEGIN CERTIFICATE-----") {
                // All in one line: neither Go nor OpenSSL reads that.
                return Err(broken);
            }
        } else if line.starts_with(b"-----END ") {
            if let Some(body) = body.take() {
                let der = STANDARD.decode(body).ok().filter(|der| is_certificate(der));
                match der {
                    Some(der) if line == b"-----END CERTIFICATE-----" => found.push(der),
                    _ => return Err(broken),
                }
            }
        } else if let Some(body) = &mut body {
            body.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace()));
        }
    }
    match body {
        Some(_) => Err(PemError::Certificate { number: found.len() + 1 }),
        None if has_blocks || pem.trim_ascii().is_empty() => Ok(found),
        None => Err(PemError::NotPem),
    }
}

/// Certificates in PEM, in their order.
pub fn written<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut pem = String::new();
    for der in certificates {
        append(&mut pem, der);
    }
    pem
}

/// Appends one certificate: 64 columns, `\n`.
pub fn append(pem: &mut String, der: &[u8]) {
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes are 64 characters.
    for line in der.chunks(48) {
        STANDARD.encode_string(line, pem);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
}

fn is_certificate(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

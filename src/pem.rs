//! PEM: what its blocks hold, however its lines are broken. PURE.
//!
//! Files are joined by `cat`, pasted out of YAML and saved by editors of every kind. A block begins and ends where its
//! marks are: at the start of a line or not, after a byte order mark or not. Whatever else is in the file is skipped,
//! a private key without being decoded.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use memchr::memmem;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// What is wrong with a file. Nothing of its content is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Bytes, and no PEM block among them.
    #[error("it is not PEM")]
    NotPem,
    /// The same, where DER would do, too.
    #[error("it holds no certificate, as PEM or DER")]
    NoCertificate,
    /// A block that is cut off, not base64, or no X.509 certificate.
    #[error("certificate {number} in it cannot be read")]
    Certificate {
        /// Which of the certificates, from 1.
        number: usize,
    },
}

/// One block of a PEM file.
pub(crate) struct Block<'a> {
    /// What it says it is: `CERTIFICATE`.
    pub(crate) label: &'a [u8],
    body: &'a [u8],
}

impl Block<'_> {
    /// What is in it; `None`: it is not base64.
    pub(crate) fn decode(&self) -> Option<Vec<u8>> {
        let text = self.body.get(self.headers()..).unwrap_or_default().iter().copied();
        // It may be a private key.
        let text: Zeroizing<Vec<u8>> = Zeroizing::new(text.filter(|byte| !byte.is_ascii_whitespace()).collect());
        STANDARD.decode(text.as_slice()).ok()
    }

    /// Where the headers of RFC 1421 end, which come first: a key with a passphrase has them.
    pub(crate) fn headers(&self) -> usize {
        // No base64 has a colon.
        memchr::memrchr(b':', self.body).map_or(0, |colon| {
            let after = self.body.get(colon..).unwrap_or_default();
            colon + after.iter().position(|byte| is_line_end(*byte)).unwrap_or(after.len())
        })
    }
}

/// The blocks of a file in their order.
///
/// # Errors
/// A block that holds certificates is cut off, or its marks are damaged: how many such blocks come before it.
pub(crate) fn blocks(text: &[u8]) -> Result<Vec<Block<'_>>, usize> {
    let mut found: Vec<Block<'_>> = Vec::new();
    let mut rest = text;
    loop {
        let begin = memmem::find(rest, BEGIN);
        let (before, after) = rest.split_at(begin.unwrap_or(rest.len()));
        let number = || found.iter().filter(|block| holds_certificates(block.label)).count();
        if before.split(|byte| is_line_end(*byte)).any(is_damaged_mark) {
            return Err(number());
        }
        let Some(after) = after.get(BEGIN.len()..).filter(|_| begin.is_some()) else { return Ok(found) };
        match split(after) {
            Some((block, after)) => {
                found.push(block);
                rest = after;
            }
            None if after.split(|byte| is_line_end(*byte)).next().is_some_and(holds_certificates) => {
                return Err(number());
            }
            None => rest = after,
        }
    }
}

/// Whether a block begins in it, of whatever kind.
pub(crate) fn is_pem(text: &[u8]) -> bool {
    memmem::find(text, BEGIN).is_some()
}

/// The block whose first mark has just been read, and what follows it.
fn split(text: &[u8]) -> Option<(Block<'_>, &[u8])> {
    let (label, body) = text.split_at(memmem::find(text, DASHES)?);
    let body = body.get(DASHES.len()..)?;
    let (body, end) = body.split_at(memmem::find(body, DASHES)?);
    let rest = end.strip_prefix(END)?.strip_prefix(label)?.strip_prefix(DASHES)?;
    Some((Block { label, body }, rest))
}

fn holds_certificates(label: &[u8]) -> bool {
    // Of a request or a list of revocations, nothing is wanted.
    [&b"CERTIFICATE"[..], b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE", b"PKCS7"]
        .iter()
        .any(|known| label.strip_prefix(*known).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-")))
}

/// A line that was a mark before somebody's editor took a dash, or made a longer one of two.
fn is_damaged_mark(line: &[u8]) -> bool {
    let is_dash = |byte: &u8| *byte == b'-' || byte.is_ascii_whitespace() || !byte.is_ascii();
    let words = line.get(line.iter().take_while(|byte| is_dash(byte)).count()..).unwrap_or_default();
    let label = words.strip_prefix(b"BEGIN ").or_else(|| words.strip_prefix(b"END "));
    let end = |label: &[u8]| label.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b' ').count();
    words.len() < line.len()
        && label.is_some_and(|label| holds_certificates(label.get(..end(label)).unwrap_or_default().trim_ascii()))
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// The certificates in a PEM file, as DER, in their order. None, if the file is empty or holds only other blocks.
///
/// # Errors
/// It is no PEM, or a certificate in it is damaged.
pub fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, PemError> {
    let broken = |before: usize| PemError::Certificate { number: before + 1 };
    let blocks = blocks(pem).map_err(broken)?;
    if !is_pem(pem) && !pem.trim_ascii().is_empty() {
        return Err(PemError::NotPem);
    }
    let certificates = blocks.iter().filter(|block| block.label == b"CERTIFICATE").enumerate();
    certificates
        .map(|(before, block)| block.decode().filter(|der| is_certificate(der)).ok_or_else(|| broken(before)))
        .collect()
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

/// Whether these bytes are one X.509 certificate.
pub(crate) fn is_certificate(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

//! Elements of DER, as far as names, PKCS #7 and the check of a certificate need them. PURE.

pub(super) const BOOLEAN: u8 = 1;
pub(super) const INTEGER: u8 = 2;
pub(super) const BIT_STRING: u8 = 3;
pub(super) const OCTET_STRING: u8 = 4;
pub(super) const NULL: u8 = 5;
pub(super) const OBJECT_IDENTIFIER: u8 = 6;
pub(super) const UTF8_STRING: u8 = 12;
pub(super) const NUMERIC_STRING: u8 = 18;
pub(super) const PRINTABLE_STRING: u8 = 19;
pub(super) const T61_STRING: u8 = 20;
pub(super) const IA5_STRING: u8 = 22;
pub(super) const UTC_TIME: u8 = 23;
pub(super) const GENERALIZED_TIME: u8 = 24;
pub(super) const VISIBLE_STRING: u8 = 26;
pub(super) const UNIVERSAL_STRING: u8 = 28;
pub(super) const BMP_STRING: u8 = 30;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// One element of DER.
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// With its header.
    pub(super) encoding: &'a [u8],
}

impl<'a> Element<'a> {
    /// The only element of the input.
    pub(super) fn whole(der: &'a [u8]) -> Option<Self> {
        Self::split(der).filter(|(_, rest)| rest.is_empty()).map(|(element, _)| element)
    }

    /// The first element of the input, and what follows. Neither tags of more than one byte nor indefinite lengths: no
    /// certificate has them.
    pub(super) fn split(der: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[tag, length], mut rest) = der.split_first_chunk()?;
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

    /// Whether its length is written with as few bytes as it takes.
    pub(super) fn has_shortest_length(&self) -> bool {
        let header = self.encoding.len() - self.content.len();
        let digits = (usize::BITS - self.content.len().leading_zeros()).div_ceil(8);
        header == if self.content.len() < 0x80 { 2 } else { 2 + digits as usize }
    }

    /// Its elements; `None` in place of the first that is malformed, and nothing after it.
    pub(super) fn children(&self) -> impl Iterator<Item = Option<Self>> + use<'a> {
        elements(self.content)
    }
}

/// The elements that follow one another; `None` in place of the first that is malformed, and nothing after it.
pub(super) fn elements(mut rest: &[u8]) -> impl Iterator<Item = Option<Element<'_>>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = Element::split(rest);
        rest = split.as_ref().map_or(&[], |(_, rest)| rest);
        Some(split.map(|(element, _)| element))
    })
}

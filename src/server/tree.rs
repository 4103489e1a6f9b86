//! How much memory a JSON document takes once it is parsed. PURE.
//!
//! Ten MiB of `{"":0},` become a gigabyte of `serde_json::Value`. This counts what makes memory while the bytes come
//! in, so that the price is known, and paid, before anything is parsed.

use memchr::memchr2;

/// One node of a `BTreeMap<String, Value>`, which a map has from its first entry on: 11 keys of 24 bytes, 11 values
/// of 32, and the allocator's share.
const NODE: usize = 656;
/// Entries that a node holds at least once a map has several.
const ENTRIES: usize = 6;
/// The least that a `Vec<Value>` allocates: 4 elements.
const ARRAY: usize = 4 * ELEMENT;
const ELEMENT: usize = 32;
/// Growing by doubling, a `Vec` holds up to two elements of room for one.
const GROWTH: usize = 2;
/// The allocator's share of a string.
const STRING: usize = 32;

/// Counts the parts of a document that comes in pieces. Of something that is not JSON it counts something.
#[derive(Debug, Default)]
pub(super) struct Tree {
    bytes: usize,
    strings: usize,
    maps: usize,
    arrays: usize,
    colons: usize,
    commas: usize,
    state: CostState,
}

#[derive(Clone, Copy, Debug, Default)]
enum CostState {
    #[default]
    Outside,
    String,
    Escape,
}

impl Tree {
    /// Counts the next piece.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        self.bytes += piece.len();
        let mut rest = piece;
        loop {
            match self.state {
                CostState::Outside => {
                    let Some(quote) = rest.iter().position(|byte| self.counts(*byte)) else { return };
                    rest = rest.get(quote + 1..).unwrap_or_default();
                    self.state = CostState::String;
                }
                // Most of a review is text, and most of its time would be spent here.
                CostState::String => {
                    let Some(end) = memchr2(b'"', b'\\', rest) else { return };
                    let escapes = rest.get(end) == Some(&b'\\');
                    rest = rest.get(end + 1..).unwrap_or_default();
                    self.state = if escapes { CostState::Escape } else { CostState::Outside };
                }
                CostState::Escape => {
                    let Some((_, after)) = rest.split_first() else { return };
                    rest = after;
                    self.state = CostState::String;
                }
            }
        }
    }

    /// Counts a byte outside of strings. Says whether a string begins.
    fn counts(&mut self, byte: u8) -> bool {
        match byte {
            b'"' => {
                self.strings += 1;
                return true;
            }
            b'{' => self.maps += 1,
            b'[' => self.arrays += 1,
            b':' => self.colons += 1,
            b',' => self.commas += 1,
            _ => {}
        }
        false
    }

    /// An upper bound of the memory that the document takes as `serde_json::Value`, in bytes.
    pub(super) fn memory(&self) -> usize {
        // An empty map has no node, and a map has no more nodes than entries.
        let maps = self.maps.min(self.colons);
        // A map of k entries has k - 1 commas.
        let of_arrays = self.commas.saturating_sub(self.colons.saturating_sub(self.maps));
        self.bytes
            + self.strings * STRING
            + maps * NODE
            + self.colons * NODE / ENTRIES
            + self.arrays * ARRAY
            + of_arrays * ELEMENT * GROWTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(json: &str) -> usize {
        let mut whole = Tree::default();
        whole.feed(json.as_bytes());
        let mut pieces = Tree::default();
        for byte in json.as_bytes() {
            pieces.feed(&[*byte]);
        }
        assert_eq!(whole.memory(), pieces.memory(), "{json}");
        whole.memory() - json.len()
    }

    #[test]
    fn counts_what_makes_memory() {
        let table = [
            ("", 0),
            ("17", 0),
            (r#""a""#, STRING),
            (r#""[{:,\"[{:,""#, STRING),
            (r#""\\",1"#, STRING + 2 * ELEMENT),
            ("{}", 0),
            ("[]", ARRAY),
            ("[1,2]", ARRAY + 2 * ELEMENT),
            (r#"{"a":1}"#, STRING + NODE + NODE / ENTRIES),
            (r#"{"a":1,"b":2}"#, 2 * STRING + NODE + 2 * NODE / ENTRIES),
            (r#"[{"a":1},{}]"#, STRING + NODE + NODE / ENTRIES + ARRAY + 2 * ELEMENT),
        ];
        for (json, expected) in table {
            assert_eq!(memory(json), expected, "{json}");
        }
    }
}

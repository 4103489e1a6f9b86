//! Text from elsewhere on its way to a terminal. PURE.
//!
//! Names, messages and subjects of certificates are written by others. What moves a cursor, changes colours or turns the
//! order of letters is printed as what it is.

/// On one line.
pub(super) fn printable(text: &str) -> String {
    escaped(text, |_| false)
}

/// The same, but lines stay lines.
pub(super) fn printable_lines(text: &str) -> String {
    escaped(text, |char| char == '\n')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        if is_kept(char) || !(char.is_control() || is_invisible(char)) {
            printable.push(char);
        } else {
            printable.extend(char.escape_default());
        }
    }
    printable
}

/// Marks of direction and order, separators of lines, and what has no width.
/// Source: <https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters>.
fn is_invisible(char: char) -> bool {
    matches!(
        char,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_the_rest_stays() {
        let table = [
            (
                "plain text, Müller GmbH, 株式会社",
                "plain text, Müller GmbH, 株式会社",
                "plain text, Müller GmbH, 株式会社",
            ),
            ("\u{1b}[31mred", r"\u{1b}[31mred", r"\u{1b}[31mred"),
            ("a\nb", r"a\nb", "a\nb"),
            ("a\r\tb\u{7f}\u{9b}c", r"a\r\tb\u{7f}\u{9b}c", r"a\r\tb\u{7f}\u{9b}c"),
            ("\u{202e}gpj\u{2069}\u{200b}", r"\u{202e}gpj\u{2069}\u{200b}", r"\u{202e}gpj\u{2069}\u{200b}"),
        ];
        for (text, line, lines) in table {
            assert_eq!((printable(text).as_str(), printable_lines(text).as_str()), (line, lines));
        }
    }
}

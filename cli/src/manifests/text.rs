//! Templates and scalars. PURE.

/// Puts each value in the place of its `${name}`.
pub(super) fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, tail) = after.split_once('}').unwrap_or((after, ""));
        let value = values.iter().find(|(known, _)| *known == name);
        debug_assert!(value.is_some(), "no value for ${{{name}}}");
        filled.push_str(before);
        filled.push_str(value.map_or("", |(_, value)| value));
        rest = tail;
    }
    filled + rest
}

/// A list in one line of YAML.
pub(super) fn flow<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let values: Vec<_> = values.into_iter().map(scalar).collect();
    format!("[{}]", values.join(", "))
}

/// A list of strings in CEL. Names and labels have no character that would need an escape.
pub(super) fn cel_list<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| format!("'{value}'")).collect();
    format!("[{}]", values.join(", "))
}

/// A string in YAML, in quotes where a reader could take it for something else.
pub(super) fn scalar(value: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = value.starts_with(|first: char| first.is_ascii_alphabetic())
        && !WORDS.contains(&value.to_ascii_lowercase().as_str());
    if plain { value.to_owned() } else { format!("\"{value}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_once() {
        assert_eq!(fill("a ${x} b ${y}${x}", &[("x", "${y}".into()), ("y", "2".into())]), "a ${y} b 2${y}");
    }

    #[test]
    fn what_looks_like_something_else_is_quoted() {
        for (value, expected) in
            [("a-b", "a-b"), ("1", "\"1\""), ("0x1", "\"0x1\""), ("Yes", "\"Yes\""), ("null", "\"null\""), ("", "\"\"")]
        {
            assert_eq!(scalar(value), expected);
            assert_eq!(serde_saphyr::from_str::<String>(&scalar(value)).unwrap(), value);
        }
        assert_eq!(flow(["a", "1.5"]), "[a, \"1.5\"]");
    }
}

//! Who wrote an object, by its `managedFields`. PURE.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

/// What `managedFields` say of one field manager, ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Authorship {
    /// Whether it still owns a field.
    pub has_part: bool,
    /// Whether nobody wrote later. Times are in seconds: of two in the same second, neither is the last.
    pub is_last: bool,
}

impl Authorship {
    /// Reads the entries for a field manager.
    pub fn of(entries: &[ManagedFieldsEntry], manager: &str) -> Self {
        let is_ours = |entry: &&ManagedFieldsEntry| entry.manager.as_deref() == Some(manager);
        let last = |ours: bool| entries.iter().filter(|entry| is_ours(entry) == ours).map(|entry| &entry.time).max();
        Self { has_part: entries.iter().any(|entry| is_ours(&entry)), is_last: last(true) > last(false) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_is_the_last_in_time() {
        let of = |entries: &[(&str, &str)]| {
            let entry = |(manager, time): &(&str, &str)| json!({"manager": manager, "time": format!("2026-01-01T00:00:{time}Z")});
            let entries: Vec<_> = entries.iter().map(|of| serde_json::from_value(entry(of)).unwrap()).collect();
            let Authorship { has_part, is_last } = Authorship::of(&entries, "us");
            (has_part, is_last)
        };
        assert_eq!(of(&[]), (false, false));
        assert_eq!(of(&[("them", "01")]), (false, false));
        assert_eq!(of(&[("us", "01")]), (true, true));
        assert_eq!(of(&[("us", "01"), ("them", "02")]), (true, false));
        assert_eq!(of(&[("us", "02"), ("them", "02")]), (true, false));
        assert_eq!(of(&[("us", "01"), ("us", "03"), ("them", "02")]), (true, true));
    }
}

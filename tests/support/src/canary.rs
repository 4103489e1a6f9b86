//! What the program must never repeat: every value that a test put into a Secret.

use std::{collections::BTreeSet, sync::Mutex};

use k8s_openapi::{ByteString, api::core::v1::Secret};

/// Shorter values are words that may stand anywhere.
const SHORTEST: usize = 8;

static VALUES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Remembers the values of a Secret, as they are and as the API carries them.
pub fn remember(secret: &Secret) {
    // Until when a former serving CA is trusted is no secret, and a time as the log has many.
    let data = secret.data.iter().flatten().filter(|(key, _)| !key.ends_with(".until"));
    let data = data.map(|(_, value)| value.clone());
    let written = secret.string_data.iter().flat_map(|data| data.values().map(|text| ByteString(text.clone().into())));
    let mut values = VALUES.lock().expect("the values");
    for value in data.chain(written).filter(|value| value.0.len() >= SHORTEST) {
        let base64 = serde_json::to_value(&value).expect("a string");
        values.insert(base64.as_str().expect("a string").to_owned());
        // Of a certificate or key, the lines are what could be quoted.
        let text = String::from_utf8_lossy(&value.0).into_owned();
        let lines = text.lines().filter(|line| line.len() >= SHORTEST && !line.starts_with("-----"));
        values.extend(lines.map(str::to_owned));
    }
}

/// Panics when a text holds one of them.
///
/// # Panics
/// Says where, and not what.
pub fn assert_absent(place: &str, text: &str) {
    let values = VALUES.lock().expect("the values").clone();
    for value in values {
        assert!(!text.contains(&value), "{place} holds data of a Secret ({} characters)", value.len());
    }
}

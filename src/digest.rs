//! Comparing content without keeping it. PURE.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::digest::{Context, SHA256};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, Visitor},
};

/// Characters of base64 that are decoded at once.
const CHUNK: usize = 4096;

/// A collision-free stand-in for content, for comparing in memory. It never leaves the process, for the digest of a
/// short secret can be guessed; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Digest(Box<[u8]>);

impl Digest {
    /// Of fields in this order; where one ends and the next begins counts.
    pub(crate) fn of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for field in fields {
            context.update(&field.len().to_be_bytes());
            context.update(field);
        }
        Self::finish(context)
    }

    fn finish(context: Context) -> Self {
        Self(context.finish().as_ref().into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

/// The keys of a `data` field, with a digest of each value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape(BTreeMap<String, Digest>);

impl Shape {
    /// The keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// This and another field of the same object. No key is in both: the API server sees to that.
    pub(crate) fn with(&self, other: &Self) -> Self {
        let other = other.0.iter().map(|(key, value)| (format!("{key}="), value));
        Self(
            self.0
                .iter()
                .map(|(key, value)| (key.clone(), value))
                .chain(other)
                .map(|(key, value)| (key, value.clone()))
                .collect(),
        )
    }

    /// Of all of it, and what else counts.
    pub(crate) fn digest(&self, kind: &str) -> Digest {
        let data = self.0.iter().flat_map(|(key, value)| [key.as_bytes(), &value.0]);
        Digest::of(std::iter::once(kind.as_bytes()).chain(data))
    }
}

impl<K: Into<String>, V: AsRef<[u8]>> FromIterator<(K, V)> for Shape {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(data: I) -> Self {
        let digest = |value: V| {
            let mut context = Context::new(&SHA256);
            context.update(value.as_ref());
            Digest::finish(context)
        };
        Self(data.into_iter().map(|(key, value)| (key.into(), digest(value))).collect())
    }
}

/// A `data` field whose values are text, as that of a `ConfigMap`, decoded without keeping one.
#[derive(Debug, Default)]
pub(crate) struct TextShape(pub(crate) Shape);

/// A `data` field whose values are base64, as that of a `Secret`, decoded without keeping one.
#[derive(Debug, Default)]
pub(crate) struct BytesShape(pub(crate) Shape);

impl<'de> Deserialize<'de> for TextShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields { is_base64: false }).map(Self)
    }
}

impl<'de> Deserialize<'de> for BytesShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields { is_base64: true }).map(Self)
    }
}

struct Fields {
    is_base64: bool,
}

impl<'de> Visitor<'de> for Fields {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of data")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut shape = BTreeMap::new();
        while let Some(key) = map.next_key()? {
            shape.insert(key, map.next_value_seed(Value { is_base64: self.is_base64 })?);
        }
        Ok(Shape(shape))
    }
}

struct Value {
    is_base64: bool,
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Digest;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Digest, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Value {
    type Value = Digest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of data")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Digest, E> {
        let mut context = Context::new(&SHA256);
        if !self.is_base64 {
            context.update(text.as_bytes());
            return Ok(Digest::finish(context));
        }
        let mut decoded = [0; CHUNK / 4 * 3];
        for chunk in text.as_bytes().chunks(CHUNK) {
            // Nothing of the value may be in the error.
            let length = STANDARD.decode_slice(chunk, &mut decoded).map_err(|_| E::custom("a value is not base64"))?;
            context.update(decoded.get(..length).unwrap_or_default());
        }
        Ok(Digest::finish(context))
    }

    /// An empty value, as some write it.
    fn visit_unit<E: Error>(self) -> Result<Digest, E> {
        Ok(Digest::finish(Context::new(&SHA256)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn what_is_decoded_has_the_shape_of_what_is_held(
            data in btree_map("[a-z.]{1,5}", proptest::collection::vec(any::<u8>(), 0..9000), 0..4),
            texts in btree_map("[a-z.]{1,5}", ".{0,40}", 0..4),
        ) {
            let encoded: BTreeMap<_, _> = data.iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
            let BytesShape(decoded) = serde_json::from_str(&json!(encoded).to_string()).unwrap();
            prop_assert_eq!(decoded, data.iter().map(|(key, value)| (key.as_str(), value)).collect());
            let TextShape(decoded) = serde_json::from_str(&json!(texts).to_string()).unwrap();
            prop_assert_eq!(decoded, texts.iter().map(|(key, value)| (key.as_str(), value)).collect());
        }
    }

    #[test]
    fn order_is_nothing_and_what_is_no_value_is_an_error_without_it() {
        let of = |json: &str| serde_json::from_str::<BytesShape>(json).map(|shape| shape.0);
        assert_eq!(of(r#"{"a": "eA==", "b": null}"#).unwrap(), of(r#"{"b": "", "a": "eA=="}"#).unwrap());
        assert_ne!(of(r#"{"a": "eA=="}"#).unwrap().digest("x"), of(r#"{"a": "eQ=="}"#).unwrap().digest("x"));
        for json in [r#"{"a": "canary!"}"#, r#"{"a": 7}"#, "[]"] {
            assert!(!of(json).unwrap_err().to_string().contains("canary"));
        }
    }
}

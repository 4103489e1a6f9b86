//! Reads of an object only what decisions are made from. PURE.
//!
//! Most of a pod (probes, resources, `managedFields`, the values of a hundred CI variables' siblings) decides nothing; to
//! skip it is several times faster than to build it, and takes no memory. What is kept is kept as it is, with its place
//! in its list, for patches name places. A part of another type than expected is kept whole.

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::{Map, Value};

use super::kind::ANNOTATION_JOB;

/// How much of a value is kept.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    /// Of an object, these fields.
    Fields(&'static [(&'static str, Part)]),
    /// Of a list, all elements, and this of each.
    Each(&'static Part),
}

use Part::{Each, Fields, Whole};

const NAME: &[(&str, Part)] = &[("name", Whole)];
const VARIABLE: Part =
    Fields(&[("name", Whole), ("value", Whole), ("valueFrom", Fields(&[("secretKeyRef", Fields(NAME))]))]);
const CONTAINER: Part = Fields(&[
    ("name", Whole),
    ("command", Whole),
    ("args", Whole),
    ("env", Each(&VARIABLE)),
    ("envFrom", Each(&Fields(&[("secretRef", Fields(NAME))]))),
    ("volumeMounts", Whole),
]);
/// A Pod or a Namespace.
const OBJECT: Part = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", Whole),
            ("generateName", Whole),
            ("labels", Whole),
            ("annotations", Fields(&[(ANNOTATION_JOB, Whole)])),
        ]),
    ),
    (
        "spec",
        Fields(&[
            ("volumes", Whole),
            ("containers", Each(&CONTAINER)),
            ("initContainers", Each(&CONTAINER)),
            ("imagePullSecrets", Each(&Fields(NAME))),
            ("os", Whole),
            ("nodeSelector", Whole),
            ("affinity", Fields(&[("nodeAffinity", Whole)])),
        ]),
    ),
]);

/// For `#[serde(deserialize_with)]`: a Pod or Namespace without what decides nothing.
pub(super) fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    OBJECT.deserialize(deserializer)
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Whole => Value::deserialize(deserializer),
            Fields(_) | Each(_) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Fields(fields) = self else { return Value::deserialize(MapAccessDeserializer::new(map)) };
        let mut kept = Map::new();
        while let Some(wanted) = map.next_key_seed(Key(fields))? {
            match wanted {
                Some((name, part)) => {
                    let value = map.next_value_seed(*part)?;
                    kept.insert((*name).to_owned(), value);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let Each(part) = self else { return Value::deserialize(SeqAccessDeserializer::new(list)) };
        let mut kept = Vec::new();
        while let Some(element) = list.next_element_seed(*part)? {
            kept.push(element);
        }
        Ok(Value::Array(kept))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

/// Looks a key up without making a string of it.
struct Key(&'static [(&'static str, Part)]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static (&'static str, Part)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static (&'static str, Part)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(name, _)| *name == key))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// What is kept of a document.
    pub(in crate::admission) fn lean(document: &Value) -> Value {
        object(&mut serde_json::Deserializer::from_str(&document.to_string())).unwrap()
    }

    #[test]
    fn what_decides_is_kept_in_its_place_and_the_rest_is_not() {
        let pod = json!({
            "kind": "Pod",
            "metadata": {
                "name": "p", "labels": {"a": "b"}, "managedFields": [{"manager": "m"}],
                "annotations": {"job.runner.gitlab.com/id": "1", "other": "x"},
            },
            "spec": {
                "containers": [null, {"name": "build", "image": "i", "env": [{"name": "A", "value": "1"}, 7]}],
                "initContainers": {"not": "a list"},
                "volumes": [{"name": "v", "emptyDir": {}}], "affinity": {"podAffinity": {}, "nodeAffinity": {"x": 1}},
                "nodeSelector": "odd", "restartPolicy": "Never",
            },
            "status": {"phase": "Pending"},
        });
        let kept = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {"job.runner.gitlab.com/id": "1"}},
            "spec": {
                "containers": [null, {"name": "build", "env": [{"name": "A", "value": "1"}, 7]}],
                "initContainers": {"not": "a list"},
                "volumes": [{"name": "v", "emptyDir": {}}], "affinity": {"nodeAffinity": {"x": 1}},
                "nodeSelector": "odd",
            },
        });
        assert_eq!(lean(&pod), kept);
        for odd in [json!(null), json!(1.5), json!(-1), json!("x"), json!([1, {"a": 2}]), json!(true)] {
            assert_eq!(lean(&odd), odd);
        }
    }
}

//! Reads of an object only what decisions are made from. PURE.
//!
//! Most of a pod (probes, resources, `managedFields`, the values of a hundred CI variables' siblings) decides nothing; to
//! skip it is several times faster than to build it, and takes no memory. What is kept is kept as it is, with its place
//! in its list, for patches name places. A part of another type than expected is kept whole. Of a hundred variables of a
//! CI job, those remain whose names matter here, or that take their value from elsewhere.

use std::collections::BTreeSet;

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::{Map, Value, value::RawValue};

use super::kind::ANNOTATION_JOB;

/// How much of a value is kept.
#[derive(Clone, Copy)]
enum Part {
    Whole,
    /// Of an object, these fields.
    Fields(&'static [(&'static str, Part)]),
    /// Of a list, all elements, and this of each.
    Each(&'static Part),
    /// Of a variable, all that counts, if its name matters; else nothing, which is null.
    Variable,
}

use Part::{Each, Fields, Variable, Whole};

const NAME: &[(&str, Part)] = &[("name", Whole)];
const VARIABLE: &[(&str, Part)] = &[("name", Whole), ("value", Whole), ("valueFrom", Whole)];
const CONTAINER: Part = Fields(&[
    ("name", Whole),
    ("command", Whole),
    ("args", Whole),
    ("env", Each(&Variable)),
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

/// A Pod or Namespace without what decides nothing. `names` are those of the variables that matter.
pub(super) fn object(json: &str, names: &BTreeSet<String>) -> serde_json::Result<Value> {
    Seed { part: OBJECT, names }.deserialize(&mut serde_json::Deserializer::from_str(json))
}

#[derive(Clone, Copy)]
struct Seed<'n> {
    part: Part,
    names: &'n BTreeSet<String>,
}

impl Seed<'_> {
    fn of(self, part: Part) -> Self {
        Self { part, ..self }
    }

    fn matters(self, name: &RawValue) -> bool {
        let quoted = name.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        // An escape may spell any name, and what is no string is kept as it is.
        quoted.is_none_or(|name| name.contains('\\') || self.names.contains(name))
    }

    fn variable<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut parts: [Option<&RawValue>; 3] = [None; 3];
        while let Some(wanted) = map.next_key_seed(Key(VARIABLE))? {
            let at = wanted.and_then(|(wanted, _)| VARIABLE.iter().position(|(name, _)| name == wanted));
            match at.and_then(|at| parts.get_mut(at)) {
                Some(part) => *part = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let [name, _, value_from] = parts;
        if value_from.is_none() && !name.is_some_and(|name| self.matters(name)) {
            return Ok(Value::Null);
        }
        let mut kept = Map::new();
        for ((name, _), part) in VARIABLE.iter().zip(parts) {
            if let Some(part) = part {
                let value = serde_json::from_str(part.get()).map_err(A::Error::custom)?;
                kept.insert((*name).to_owned(), value);
            }
        }
        Ok(Value::Object(kept))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.part {
            Whole => Value::deserialize(deserializer),
            Fields(_) | Each(_) | Variable => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let fields = match self.part {
            Fields(fields) => fields,
            Variable => return self.variable(map),
            Whole | Each(_) => return Value::deserialize(MapAccessDeserializer::new(map)),
        };
        let mut kept = Map::new();
        while let Some(wanted) = map.next_key_seed(Key(fields))? {
            match wanted {
                Some((name, part)) => {
                    let value = map.next_value_seed(self.of(*part))?;
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
        let Each(part) = self.part else { return Value::deserialize(SeqAccessDeserializer::new(list)) };
        let mut kept = Vec::new();
        while let Some(element) = list.next_element_seed(self.of(*part))? {
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
    pub(in crate::admission) fn lean(document: &Value, names: &BTreeSet<String>) -> Value {
        object(&document.to_string(), names).unwrap()
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
                "containers": [null, {"name": "build", "image": "i", "env": [
                    {"name": "A", "value": "1"}, 7, {"name": "B", "value": "2"}, {"name": "B", "valueFrom": {"x": 1}},
                    {"name": 8}, {"value": "3"}, {"name": "back\\slash", "more": 1},
                ]}],
                "initContainers": {"not": "a list"},
                "volumes": [{"name": "v", "emptyDir": {}}], "affinity": {"podAffinity": {}, "nodeAffinity": {"x": 1}},
                "nodeSelector": "odd", "restartPolicy": "Never",
            },
            "status": {"phase": "Pending"},
        });
        let kept = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {"job.runner.gitlab.com/id": "1"}},
            "spec": {
                "containers": [null, {"name": "build", "env": [
                    {"name": "A", "value": "1"}, 7, null, {"name": "B", "valueFrom": {"x": 1}}, {"name": 8}, null,
                    {"name": "back\\slash"},
                ]}],
                "initContainers": {"not": "a list"},
                "volumes": [{"name": "v", "emptyDir": {}}], "affinity": {"nodeAffinity": {"x": 1}},
                "nodeSelector": "odd",
            },
        });
        let names = BTreeSet::from(["A".to_owned()]);
        assert_eq!(lean(&pod, &names), kept);
        for odd in [json!(null), json!(1.5), json!(-1), json!("x"), json!([1, {"a": 2}]), json!(true)] {
            assert_eq!(lean(&odd, &names), odd);
        }
    }
}

//! A pod as an API server sends it, as far as decisions are made from it. PURE.
//!
//! An API server decodes an object into its type before it calls a webhook. So each field is absent, null, or of its type;
//! what is of another type comes from somebody else, and is refused. Unknown fields are skipped as they are read, and text is
//! borrowed where nothing in it is escaped: probes, resources and `managedFields` cost no memory. How many elements of lists
//! and maps are kept is bounded, because `{},` makes three bytes into a hundred, and a container into a kilobyte of answer.

use std::{borrow::Cow, cell::Cell, fmt, marker::PhantomData, ops::Deref, slice};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

/// What one object may cost: most elements of its lists and maps cost 1. A CI job with 450 variables in 23 containers costs
/// some 12,000; 300 containers is the most.
pub(super) const MAX_COST: usize = 20_000;

/// What an element of a list costs.
pub(super) trait Element {
    const COST: usize = 1;
}

impl Element for ContainerView<'_> {
    /// Each may get a dozen additions.
    const COST: usize = 60;
}

impl Element for VolumeView<'_> {
    const COST: usize = 2;
}

impl Element for VariableView<'_> {}
impl Element for EnvFromView<'_> {}
impl Element for MountView<'_> {}
impl Element for NameView<'_> {}
impl Element for ProjectedSourceView<'_> {}
impl Element for KeyView<'_> {}
impl Element for NodeSelectorTermView<'_> {}
impl Element for ExpressionView<'_> {}

thread_local! {
    /// What may still be spent on the object that this thread reads; nothing: it cost too much.
    static LEFT: Cell<Option<usize>> = const { Cell::new(Some(MAX_COST)) };
}

/// A Pod; of a Namespace, its metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) metadata: MetadataView<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) spec: PodSpecView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MetadataView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) generate_name: Text<'a>,
    #[serde(borrow)]
    pub(super) labels: Labels<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) annotations: AnnotationsView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AnnotationsView<'a> {
    /// On each job pod since GitLab Runner 15.9.
    #[serde(borrow, rename = "job.runner.gitlab.com/id")]
    pub(super) job: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpecView<'a> {
    #[serde(borrow)]
    pub(super) volumes: ObjectList<VolumeView<'a>>,
    #[serde(borrow)]
    pub(super) containers: ObjectList<ContainerView<'a>>,
    #[serde(borrow)]
    pub(super) init_containers: ObjectList<ContainerView<'a>>,
    #[serde(borrow)]
    pub(super) image_pull_secrets: ObjectList<NameView<'a>>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) os: NameView<'a>,
    #[serde(borrow)]
    pub(super) node_selector: Labels<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) affinity: AffinityView<'a>,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) command: Words<'a>,
    #[serde(borrow)]
    pub(super) args: Words<'a>,
    #[serde(borrow)]
    pub(super) env: ObjectList<VariableView<'a>>,
    #[serde(borrow)]
    pub(super) env_from: ObjectList<EnvFromView<'a>>,
    #[serde(borrow)]
    pub(super) volume_mounts: ObjectList<MountView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VariableView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) value: Text<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) value_from: ValueFromView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ValueFromView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) secret_key_ref: NameView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EnvFromView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) secret_ref: NameView<'a>,
}

/// Something of which only the name counts; empty where it is not there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NameView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
}

/// Where a container has a volume.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct MountView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) mount_path: Text<'a>,
    #[serde(deserialize_with = "nullable")]
    pub(super) read_only: bool,
    #[serde(borrow)]
    pub(super) sub_path: Text<'a>,
    #[serde(borrow)]
    pub(super) sub_path_expr: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) secret: Option<FilesView<'a>>,
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) config_map: Option<FilesView<'a>>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) projected: ProjectedView<'a>,
    #[serde(deserialize_with = "optional")]
    pub(super) empty_dir: Option<IgnoredFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ProjectedView<'a> {
    #[serde(borrow)]
    pub(super) sources: ObjectList<ProjectedSourceView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ProjectedSourceView<'a> {
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) secret: Option<FilesView<'a>>,
}

/// A Secret or ConfigMap of which keys are shown as files.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FilesView<'a> {
    /// A volume of a Secret has it in `secretName`.
    #[serde(borrow, alias = "secretName")]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) items: ObjectList<KeyView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyView<'a> {
    #[serde(borrow)]
    pub(super) key: Text<'a>,
    #[serde(borrow)]
    pub(super) path: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AffinityView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) node_affinity: NodeAffinityView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeAffinityView<'a> {
    #[serde(borrow, rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "object")]
    pub(super) required: NodeSelectorView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeSelectorView<'a> {
    #[serde(borrow)]
    pub(super) node_selector_terms: ObjectList<NodeSelectorTermView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeSelectorTermView<'a> {
    #[serde(borrow)]
    pub(super) match_expressions: ObjectList<ExpressionView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExpressionView<'a> {
    #[serde(borrow)]
    pub(super) key: Text<'a>,
    #[serde(borrow)]
    pub(super) operator: Text<'a>,
    #[serde(borrow)]
    pub(super) values: Words<'a>,
}

impl<'a> PodView<'a> {
    /// Reads an object that the API server stores.
    ///
    /// # Errors
    /// It is no pod, or has too many elements.
    pub fn of(object: &'a serde_json::Value) -> serde_json::Result<Self> {
        allow_elements();
        optional(object).map(Option::unwrap_or_default)
    }

    /// Its ordinary containers.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerView<'a>> {
        self.spec.containers.iter()
    }
}

impl<'a> ContainerView<'a> {
    /// Where it has volumes.
    pub fn mounts(&self) -> impl Iterator<Item = &MountView<'a>> {
        self.volume_mounts.iter()
    }
}

/// Before an object is read: it may cost as much as any.
pub(super) fn allow_elements() {
    LEFT.set(Some(MAX_COST));
}

/// After an object could not be read: whether it cost too much.
pub(super) fn has_too_many_elements() -> bool {
    LEFT.get().is_none()
}

fn spend<E: Error>(cost: usize) -> Result<(), E> {
    LEFT.set(LEFT.get().and_then(|left| left.checked_sub(cost)));
    LEFT.get().map(drop).ok_or_else(|| E::custom("too many elements"))
}

/// An object, or nothing: absent or null. A derived reader would take a list, too.
pub(super) fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct OfObject<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OfObject<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Option<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(fields)).map(Some)
        }

        fn visit_unit<E>(self) -> Result<Option<T>, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(OfObject(PhantomData))
}

/// The same, where nothing is as good as an empty one.
fn object<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    optional(deserializer).map(Option::unwrap_or_default)
}

/// A scalar, or null.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A string; empty where it is absent or null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfText;
        impl<'de> Visitor<'de> for OfText {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
        }
        deserializer.deserialize_any(OfText)
    }
}

/// An element of a list: an object.
struct ObjectSeed<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for ObjectSeed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        optional(deserializer)?.ok_or_else(|| D::Error::custom("null in a list"))
    }
}

/// An object of which nothing counts but that it is there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct IgnoredFields {}

/// A list of strings.
#[derive(Debug, Default)]
pub(super) struct Words<'a>(Vec<Text<'a>>);

impl<'a> Words<'a> {
    pub(super) fn iter(&self) -> slice::Iter<'_, Text<'a>> {
        self.0.iter()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Words<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfWords;
        impl<'de> Visitor<'de> for OfWords {
            type Value = Words<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Words<'de>, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = elements.next_element()? {
                    spend(1)?;
                    words.push(word);
                }
                Ok(Words(words))
            }

            fn visit_unit<E>(self) -> Result<Words<'de>, E> {
                Ok(Words::default())
            }
        }
        deserializer.deserialize_any(OfWords)
    }
}

/// A list of objects, or none: absent or null.
#[derive(Debug)]
pub(super) struct ObjectList<T>(Option<Vec<T>>);

impl<T> Default for ObjectList<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> ObjectList<T> {
    /// Whether there is one to append to.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn iter(&self) -> slice::Iter<'_, T> {
        self.0.as_deref().unwrap_or_default().iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(Vec::is_empty)
    }
}

impl<'l, T> IntoIterator for &'l ObjectList<T> {
    type Item = &'l T;
    type IntoIter = slice::Iter<'l, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de, T: Deserialize<'de> + Element> Deserialize<'de> for ObjectList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfList<T>(Vec<T>);
        impl<'de, T: Deserialize<'de> + Element> Visitor<'de> for OfList<T> {
            type Value = ObjectList<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<ObjectList<T>, A::Error> {
                while let Some(element) = elements.next_element_seed(ObjectSeed(PhantomData))? {
                    spend(T::COST)?;
                    self.0.push(element);
                }
                Ok(ObjectList(Some(self.0)))
            }

            fn visit_unit<E>(self) -> Result<ObjectList<T>, E> {
                Ok(ObjectList(None))
            }
        }
        deserializer.deserialize_any(OfList(Vec::new()))
    }
}

/// A map of strings.
#[derive(Debug, Default)]
pub(super) struct Labels<'a>(Vec<(Text<'a>, Text<'a>)>);

impl Labels<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(key, _)| &**key == name).map(|(_, value)| &**value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Labels<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfLabels;
        impl<'de> Visitor<'de> for OfLabels {
            type Value = Labels<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Labels<'de>, A::Error> {
                let mut labels = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    spend(1)?;
                    labels.push(entry);
                }
                Ok(Labels(labels))
            }

            fn visit_unit<E>(self) -> Result<Labels<'de>, E> {
                Ok(Labels::default())
            }
        }
        deserializer.deserialize_any(OfLabels)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn containers(count: usize) -> Value {
        json!({"spec": {"containers": vec![json!({}); count]}})
    }

    #[test]
    fn what_costs_too_much_is_refused_and_told_from_another_type() {
        for (pod, is_read) in [
            (containers(MAX_COST / 60), true),
            (containers(MAX_COST / 60 + 1), false),
            (json!({"spec": {"containers": [{"env": vec![json!({}); MAX_COST - 60]}]}}), true),
            (json!({"spec": {"containers": [{"env": vec![json!({}); MAX_COST]}]}}), false),
            (json!({"spec": {"containers": [{"args": vec![""; MAX_COST]}]}}), false),
            (json!({"spec": {"containers": [{"ports": vec![json!({}); MAX_COST]}]}}), true),
            (json!({"spec": {"volumes": vec![json!({}); MAX_COST / 2 + 1]}}), false),
        ] {
            assert_eq!(PodView::of(&pod).is_ok(), is_read);
            assert_eq!(has_too_many_elements(), !is_read);
        }
        assert!(PodView::of(&json!({"spec": []})).is_err() && !has_too_many_elements());
    }
}

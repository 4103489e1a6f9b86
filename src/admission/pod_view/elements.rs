//! What a [view](super) is made of: text, lists and maps, of a bounded number. PURE.

use std::{borrow::Cow, cell::Cell, fmt, marker::PhantomData, ops::Deref, slice};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

/// What one object may cost: most elements of its lists and maps cost 1. A CI job with 450 variables in 23 containers costs
/// some 12,000; 300 containers is the most.
pub(in crate::admission) const MAX_COST: usize = 20_000;

/// An element of a list.
pub(in crate::admission) trait ListElement<'de>: Deserialize<'de> {
    /// What it costs.
    const COST: usize = 1;

    /// Reads one: an object.
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        optional(deserializer)?.ok_or_else(|| D::Error::custom("null in a list"))
    }
}

thread_local! {
    /// What may still be spent on the object that this thread reads; nothing: it cost too much.
    static LEFT: Cell<Option<usize>> = const { Cell::new(Some(MAX_COST)) };
}

/// Reads something in which an object may cost as much as any. Says, too, whether it cost too much, which is an error.
pub(in crate::admission) fn within_cost<T, E>(read: impl FnOnce() -> Result<T, E>) -> (Result<T, E>, bool) {
    LEFT.set(Some(MAX_COST));
    let result = read();
    (result, LEFT.get().is_none())
}

fn spend<E: Error>(cost: usize) -> Result<(), E> {
    LEFT.set(LEFT.get().and_then(|left| left.checked_sub(cost)));
    LEFT.get().map(drop).ok_or_else(|| E::custom("too many elements"))
}

/// An object, or nothing: absent or null. A derived reader would take a list, too.
pub(in crate::admission) fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
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
pub(super) fn object<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    optional(deserializer).map(Option::unwrap_or_default)
}

/// A scalar, or null.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A string; empty where it is absent or null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::admission) struct Text<'a>(Cow<'a, str>);

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

impl<'de: 'a, 'a> ListElement<'de> for Text<'a> {
    fn read<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

/// An object of which nothing counts but that it is there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::admission) struct IgnoredFields {}

/// A list, or none: absent or null.
#[derive(Debug)]
pub(in crate::admission) struct Elements<T>(Option<Vec<T>>);

impl<T> Default for Elements<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Elements<T> {
    /// Whether there is one to append to.
    pub(in crate::admission) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    pub(in crate::admission) fn iter(&self) -> slice::Iter<'_, T> {
        self.0.as_deref().unwrap_or_default().iter()
    }

    pub(in crate::admission) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(Vec::is_empty)
    }
}

impl<'l, T> IntoIterator for &'l Elements<T> {
    type Item = &'l T;
    type IntoIter = slice::Iter<'l, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

struct ElementSeed<T>(PhantomData<T>);

impl<'de, T: ListElement<'de>> DeserializeSeed<'de> for ElementSeed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::read(deserializer)
    }
}

impl<'de, T: ListElement<'de>> Deserialize<'de> for Elements<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfList<T>(Vec<T>);
        impl<'de, T: ListElement<'de>> Visitor<'de> for OfList<T> {
            type Value = Elements<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Elements<T>, A::Error> {
                while let Some(element) = elements.next_element_seed(ElementSeed(PhantomData))? {
                    spend(T::COST)?;
                    self.0.push(element);
                }
                Ok(Elements(Some(self.0)))
            }

            fn visit_unit<E>(self) -> Result<Elements<T>, E> {
                Ok(Elements(None))
            }
        }
        deserializer.deserialize_any(OfList(Vec::new()))
    }
}

/// A map of strings.
#[derive(Debug, Default)]
pub(in crate::admission) struct Labels<'a>(Vec<(Text<'a>, Text<'a>)>);

impl Labels<'_> {
    pub(in crate::admission) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(key, _)| &**key == name).map(|(_, value)| &**value)
    }

    pub(in crate::admission) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
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

//! Whether a run ended as the reference did, and came there without harm.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    arena::{Entries, History, Key, Slot, current},
    story::{ca_of, token_of},
    trace::{Object, Trace},
};

/// How many writes of one object more than in the reference a perturbation may cost: the one that it hits is made again,
/// and what follows from a stale list is refused, and tried again with growing pauses, until the watch has caught up.
const MORE_WRITES: usize = 8;

/// What a run left behind, and what it did on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Objects as they are in the end, without what differs from run to run.
    pub end: BTreeMap<String, Value>,
    /// Writes, by the count of the proxy.
    pub writes: BTreeMap<Object, usize>,
    /// How often an object was deleted, whoever did it.
    pub deletions: BTreeMap<String, usize>,
    /// The numbers that clone and trust bundle had, in order.
    pub numbers: BTreeMap<String, Vec<usize>>,
    /// Whether the point of the perturbation was reached.
    pub was_perturbed: bool,
    /// What was seen at the proxy.
    pub lines: Vec<String>,
}

impl Outcome {
    pub fn of(history: &History, slot: &Slot, trace: Trace, was_perturbed: bool) -> Self {
        let certs: Key = ("Secret", slot.run.clone(), crate::trace::CERTS.to_owned());
        let keys = [slot.clone_key(), slot.bundle_key(), slot.source_key(), certs];
        let mut outcome = Self {
            end: BTreeMap::new(),
            writes: trace.writes,
            deletions: BTreeMap::new(),
            numbers: BTreeMap::new(),
            was_perturbed,
            lines: trace.lines,
        };
        for key in keys {
            let entries = history.of(&key);
            let name = format!("{} {}/{}", key.0, of_no_slot(&key.1, slot), key.2);
            if let Some(object) = current(&entries) {
                outcome.end.insert(name.clone(), without_versions(object, slot));
            }
            outcome.deletions.insert(name.clone(), deletions(&entries));
            let numbers = entries.iter().filter_map(|entry| entry.object.as_ref());
            let numbers = numbers.filter_map(|object| token_of(object).or_else(|| ca_of(object)));
            outcome.numbers.insert(name, numbers.collect());
        }
        outcome
    }

    /// Everything in which this run is worse than the reference.
    pub fn divergences(&self, reference: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.end != reference.end {
            found.push(format!("the end differs: {:#?}, not {:#?}", self.end, reference.end));
        }
        for (object, writes) in &self.writes {
            let bound = reference.writes.get(object).copied().unwrap_or_default() + MORE_WRITES;
            if *writes > bound {
                found.push(format!("{writes} writes of the {object:?}, more than {bound}"));
            }
        }
        for (name, deletions) in &self.deletions {
            let bound = reference.deletions.get(name).copied().unwrap_or_default();
            if *deletions > bound {
                found.push(format!("{name} was deleted {deletions} times, not {bound}"));
            }
        }
        for (name, numbers) in &self.numbers {
            if let Some((from, to)) = numbers.iter().zip(numbers.iter().skip(1)).find(|(from, to)| to < from) {
                found.push(format!("{name} went back from {from} to {to}: {numbers:?}"));
            }
        }
        found
    }
}

fn deletions(entries: &Entries) -> usize {
    entries.iter().filter(|entry| entry.object.is_none()).count()
}

/// What is compared of an object.
fn without_versions(object: &Value, slot: &Slot) -> Value {
    let metadata = &object["metadata"];
    let fields = ["labels", "annotations", "finalizers", "ownerReferences", "deletionTimestamp"];
    let metadata: BTreeMap<_, _> = fields.into_iter().map(|field| (field, metadata[field].clone())).collect();
    let kept = json!({
        "metadata": metadata, "type": object["type"], "immutable": object["immutable"], "data": object["data"],
    });
    serde_json::from_str(&of_no_slot(&kept.to_string(), slot)).expect("JSON")
}

fn of_no_slot(text: &str, slot: &Slot) -> String {
    text.replace(&slot.run, "run").replace(&slot.source, "source")
}

#[test]
fn each_kind_of_harm_is_found() {
    let reference = Outcome {
        end: BTreeMap::from([("clone".to_owned(), json!("content"))]),
        writes: BTreeMap::from([(Object::Clone, 5)]),
        deletions: BTreeMap::from([("clone".to_owned(), 1)]),
        numbers: BTreeMap::from([("clone".to_owned(), vec![1, 2, 2, 3])]),
        was_perturbed: true,
        lines: Vec::new(),
    };
    assert!(reference.divergences(&reference).is_empty());
    let fewer = Outcome { deletions: BTreeMap::new(), writes: BTreeMap::new(), ..reference.clone() };
    assert!(fewer.divergences(&reference).is_empty());
    let name = || "clone".to_owned();
    let table = [
        (Outcome { end: BTreeMap::new(), ..reference.clone() }, "the end differs"),
        (Outcome { end: BTreeMap::from([(name(), json!("other"))]), ..reference.clone() }, "the end differs"),
        (Outcome { writes: BTreeMap::from([(Object::Clone, 14)]), ..reference.clone() }, "14 writes of the Clone"),
        (Outcome { writes: BTreeMap::from([(Object::Bundle, 9)]), ..reference.clone() }, "9 writes of the Bundle"),
        (Outcome { deletions: BTreeMap::from([(name(), 2)]), ..reference.clone() }, "clone was deleted 2 times"),
        (
            Outcome { numbers: BTreeMap::from([(name(), vec![1, 3, 2, 3])]), ..reference.clone() },
            "went back from 3 to 2",
        ),
    ];
    for (outcome, expected) in table {
        let found = outcome.divergences(&reference);
        assert!(matches!(&found[..], [one] if one.contains(expected)), "{expected}: {found:?}");
    }
}

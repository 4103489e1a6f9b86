//! Which namespaces are looked into: those that the watches of namespaces deliver. PURE.

use std::collections::BTreeSet;

use crate::{cluster::Change, config::NamespaceName};

/// What the watches of namespaces told so far.
#[derive(Debug, Default)]
pub struct Selection {
    watches: Vec<Announced>,
}

#[derive(Debug, Default)]
struct Announced {
    namespaces: BTreeSet<NamespaceName>,
    /// A list that has not ended.
    listed: BTreeSet<NamespaceName>,
    has_answered: bool,
}

impl Selection {
    /// Takes one more watch into account.
    pub fn add(&mut self) {
        self.watches.push(Announced::default());
    }

    /// Notes a change. Says whether the selection may be another now.
    pub fn note<T>(&mut self, watch: usize, change: &Change<(NamespaceName, T)>) -> bool {
        let Some(told) = self.watches.get_mut(watch) else { return false };
        let (before, has_answered) = (told.namespaces.len(), told.has_answered);
        match change {
            Change::ListBegins => told.listed.clear(),
            Change::Listed((namespace, _)) => _ = told.listed.insert(namespace.clone()),
            Change::ListEnds => {
                let listed = std::mem::take(&mut told.listed);
                told.has_answered = true;
                return std::mem::replace(&mut told.namespaces, listed) != told.namespaces || !has_answered;
            }
            Change::Applied((namespace, _)) => _ = told.namespaces.insert(namespace.clone()),
            Change::Deleted((namespace, _)) => _ = told.namespaces.remove(namespace),
            // What cannot be listed must not hold up the rest.
            Change::Failed(_) => told.has_answered = true,
        }
        told.namespaces.len() != before || told.has_answered != has_answered
    }

    /// The namespaces, once every watch has told, or cannot.
    pub fn namespaces(&self) -> Option<BTreeSet<NamespaceName>> {
        let all_answered = self.watches.iter().all(|told| told.has_answered);
        all_answered.then(|| self.watches.iter().flat_map(|told| told.namespaces.iter().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(selection: &Selection) -> Option<Vec<String>> {
        selection.namespaces().map(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn it_is_known_once_each_watch_has_answered_and_follows_them() {
        let name = |name: &str| (name.parse().unwrap(), ());
        let mut selection = Selection::default();
        selection.add();
        selection.add();
        assert!(
            !selection.note(0, &Change::<(NamespaceName, ())>::ListBegins)
                && !selection.note(0, &Change::Listed(name("a")))
        );
        assert!(selection.note(0, &Change::<(NamespaceName, ())>::ListEnds));
        assert_eq!(names(&selection), None);
        let problem = crate::cluster::Problem::timeout("list", std::time::Duration::ZERO);
        assert!(selection.note(1, &Change::<(NamespaceName, ())>::Failed(problem)));
        assert_eq!(names(&selection).unwrap(), ["a"]);
        assert!(selection.note(1, &Change::Applied(name("b"))) && !selection.note(1, &Change::Applied(name("b"))));
        assert_eq!(names(&selection).unwrap(), ["a", "b"]);
        assert!(selection.note(1, &Change::Deleted(name("b"))));
        for change in [Change::ListBegins, Change::Listed(name("c"))] {
            selection.note(0, &change);
        }
        assert!(selection.note(0, &Change::<(NamespaceName, ())>::ListEnds));
        assert_eq!(names(&selection).unwrap(), ["c"]);
    }
}

//! Clones of which a read showed something else than the watches: they are read anew, until a read has an answer. PURE:
//! the time is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::observe::Target;
use crate::backoff;

/// First and longest pause after a read that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The versions of source and clone in the stores.
pub type Versions = [Option<String>; 2];

/// Clones to be read, or being read. At most one entry for each clone that there is.
#[derive(Debug, Default)]
pub struct Rereads(HashMap<Target, Reread>);

#[derive(Debug)]
struct Reread {
    failures: u32,
    /// When the next read is due; none: one is under way.
    due: Option<Instant>,
    /// The versions that were in the stores when the read began.
    known: Versions,
}

impl Rereads {
    /// Has a clone read.
    pub fn want(&mut self, target: Target, now: Instant) {
        self.0.entry(target).or_insert(Reread { failures: 0, due: Some(now), known: [None, None] });
    }

    /// Whether a clone is to be read, so that the stores say nothing of it.
    pub fn has(&self, target: &Target) -> bool {
        self.0.contains_key(target)
    }

    /// A clone whose read is due.
    pub fn next(&self, now: Instant) -> Option<Target> {
        let mut due = self.0.iter().filter(|(_, reread)| reread.due.is_some_and(|due| due <= now));
        due.next().map(|(target, _)| target.clone())
    }

    /// Its read begins.
    pub fn begin(&mut self, target: &Target, known: Versions) {
        if let Some(reread) = self.0.get_mut(target) {
            (reread.due, reread.known) = (None, known);
        }
    }

    /// Its read has an answer. For source and clone: whether the answer is newer than the store for sure, which is so if
    /// the store holds what it held when the read began.
    pub fn succeed(&mut self, target: &Target, known: &Versions) -> [bool; 2] {
        let Some(reread) = self.0.remove(target) else { return [false, false] };
        let [source, clone] = &reread.known;
        [*source == known[0], *clone == known[1]]
    }

    /// Its read failed: again later.
    pub fn fail(&mut self, target: &Target, now: Instant) {
        if let Some(reread) = self.0.get_mut(target) {
            reread.due = Some(now + backoff::pause(reread.failures, RETRY.0, RETRY.1));
            reread.failures = reread.failures.saturating_add(1);
        }
    }

    /// When the next read is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.values().filter_map(|reread| reread.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::observe::Subject;

    #[test]
    fn a_clone_is_read_until_there_is_an_answer_and_the_watch_wins_if_it_spoke_meanwhile() {
        let (mut rereads, now) = (Rereads::default(), Instant::now());
        let target = Target { subject: Subject::Clone(0), namespace: "a".parse().unwrap() };
        let versions = |source: &str, clone: &str| [source, clone].map(|version| Some(version.to_owned()));
        rereads.want(target.clone(), now);
        rereads.want(target.clone(), now);
        assert_eq!(rereads.next(now), Some(target.clone()));
        rereads.begin(&target, versions("1", "2"));
        assert_eq!((rereads.next(now), rereads.next_due()), (None, None), "one at a time");
        rereads.fail(&target, now);
        let due = rereads.next_due().unwrap();
        assert!(rereads.next(now).is_none() && rereads.next(due).is_some());
        rereads.begin(&target, versions("1", "2"));
        assert_eq!(rereads.succeed(&target, &versions("1", "3")), [true, false]);
        assert_eq!((rereads.next(due), rereads.next_due()), (None, None));
    }
}

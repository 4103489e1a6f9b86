//! What the watches of a process share: the way to the API server, whose turn it is to try it when it is away, how many
//! large lists at a time, and how far the API server's history has come.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kube::Client;
use tokio::sync::{Mutex, Semaphore, watch};

/// Large lists at a time, so that memory is bounded by as many objects. Each waits up to 100 ms: so often, at most, an API
/// server asks etcd how far a resource has come, before it answers a list from its cache (`progressRequestPeriod` in
/// `k8s.io/apiserver/pkg/storage/cacher`). One after the other they would delay a start by that long each.
const LISTS: usize = 4;
/// Between two times that every watch is told to list anew.
const BETWEEN_REWINDS: Duration = Duration::from_mins(1);

/// A client for watches. Clones share all of it.
#[derive(Clone)]
pub struct WatchClient {
    pub(super) client: Client,
    pub(super) shared: Arc<WatchShared>,
}

pub(super) struct WatchShared {
    /// For lists that can be large.
    pub lists: Arc<Semaphore>,
    /// Whoever holds it may try an API server that is away, and knows how often that was in vain. So a process makes one
    /// attempt at a time, however many watches it has.
    pub turn: Mutex<u32>,
    /// How often the API server was reached again.
    pub recoveries: AtomicU64,
    pub history: RevisionHistory,
}

/// How far the history of the API server has come, as far as its answers have shown. One counter, for all that is watched
/// is stored in one etcd, as a rule. Where Secrets are kept in one of their own, it goes back time and again: then there is
/// a needless list, at most once in [`BETWEEN_REWINDS`].
pub(super) struct RevisionHistory {
    revision: AtomicU64,
    /// When every watch was last told to list anew.
    rewound: std::sync::Mutex<Option<Instant>>,
    /// How often it went back.
    pub rewinds: watch::Sender<u64>,
}

impl WatchClient {
    /// Of this client, which must not retry by itself.
    pub fn new(client: Client) -> Self {
        let history = RevisionHistory::new();
        let shared = WatchShared {
            lists: Arc::new(Semaphore::new(LISTS)),
            turn: Mutex::new(0),
            recoveries: AtomicU64::new(0),
            history,
        };
        Self { client, shared: Arc::new(shared) }
    }
}

impl RevisionHistory {
    fn new() -> Self {
        Self { revision: AtomicU64::new(0), rewound: std::sync::Mutex::default(), rewinds: watch::Sender::new(0) }
    }

    /// The latest revision that an answer has shown.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Notes the revision of something that a watch delivered.
    pub fn saw(&self, version: &str) {
        if let Ok(revision) = version.parse() {
            self.revision.fetch_max(revision, Ordering::AcqRel);
        }
    }

    /// Notes the revision that a read has shown which began when the latest one was `before`. An older one can only be
    /// that of a store that was restored from a backup: every watch learns that it must list anew. Says whether it was.
    pub fn read(&self, before: u64, version: &str) -> bool {
        let Ok(revision) = version.parse::<u64>() else { return false };
        if revision >= before {
            self.revision.fetch_max(revision, Ordering::AcqRel);
            return false;
        }
        self.revision.store(revision, Ordering::Release);
        let mut rewound = self.rewound.lock().unwrap_or_else(PoisonError::into_inner);
        if rewound.is_some_and(|last| last.elapsed() < BETWEEN_REWINDS) {
            return false;
        }
        *rewound = Some(Instant::now());
        self.rewinds.send_modify(|rewinds| *rewinds += 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_read_that_began_later_and_shows_less_is_a_step_back() {
        let history = RevisionHistory::new();
        assert!(!history.read(0, "100") && history.revision() == 100);
        // Two reads under way at once may end in either order.
        let before = history.revision();
        assert!(!history.read(before, "120") && !history.read(before, "110"));
        assert_eq!((history.revision(), *history.rewinds.borrow()), (120, 0));
        assert!(!history.read(history.revision(), "no number"));
        history.saw("130");
        assert!(history.read(history.revision(), "90"), "what a watch delivered counts, too");
        assert_eq!((history.revision(), *history.rewinds.borrow()), (90, 1));
        assert!(!history.read(history.revision(), "91"), "the new history goes on from there");
        assert!(!history.read(history.revision(), "50") && *history.rewinds.borrow() == 1, "two stores: not for ever");
    }
}

//! Sending reviews to another replica.
//!
//! An API server that is answered 503 with `Retry-After: 0` sends the same bytes again, on a connection of its own
//! choice, up to ten times within the webhook's `timeoutSeconds` (client-go `rest/with_retry.go`). Where all it knows
//! is this replica, because it learnt of no other yet, they come back here: then they are answered. So nothing is
//! lost by handing over, whatever the others do.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::shutdown::{Phase, Shutdown};

/// Reviews that are remembered, of 8 bytes each. Whoever comes when they are that many is answered.
const MEMORY: usize = 65_536;

/// Decides which reviews are sent to another replica, each at most once.
#[derive(Clone, Debug)]
pub struct HandOver {
    shutdown: Shutdown,
    shared: Arc<HandOverState>,
}

#[derive(Debug, Default)]
struct HandOverState {
    hasher: RandomState,
    sent_away: Mutex<HashSet<u64>>,
    came_back: AtomicU64,
}

impl HandOver {
    /// Sends reviews away while shutdown is in that phase.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, shared: Arc::default() }
    }

    /// Whether this review is to go elsewhere.
    pub(super) fn sends_away(&self, review: &[u8]) -> bool {
        if self.shutdown.phase() != Phase::HandOver {
            return false;
        }
        let digest = self.shared.hasher.hash_one(review);
        // Nothing in here panics halfway.
        let mut sent_away = self.shared.sent_away.lock().unwrap_or_else(PoisonError::into_inner);
        let sends = sent_away.len() < MEMORY && sent_away.insert(digest);
        if !sends {
            self.shared.came_back.fetch_add(1, Relaxed);
        }
        sends
    }

    /// How many reviews were sent away, and how many came back and were answered.
    pub fn counts(&self) -> (usize, u64) {
        let sent_away = self.shared.sent_away.lock().unwrap_or_else(PoisonError::into_inner).len();
        (sent_away, self.shared.came_back.load(Relaxed))
    }
}

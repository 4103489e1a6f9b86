//! Who is served, who waits, and who makes room.
//!
//! Anybody in the cluster can connect, and nobody can be told from an API server. So all callers are equal, and what is
//! shared among them is shared by address: one address is served on a part of the connections only. Who finds no place
//! waits for one, unread; of those who wait, the address that is served least comes first. Who makes room is idle or has
//! not said what it wants, and belongs to the same address, or to one that is served more. A connection that is busy
//! is asked to make room by the `Connection: close` of its next answer.
//!
//! A connection is closed by its own task alone, and never while a request that has come in whole is being answered.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{limits::Limits, peer::Peer};
use crate::telemetry::metrics::{Metrics, ShedLabels};

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionPhase {
    /// Accepted; nothing is read from it yet.
    Waiting,
    /// Handshake, and until the first byte of the first request.
    Opening,
    /// A part of a request's head has come.
    Head,
    /// A part of a request's body is to come.
    Body,
    /// The request has come in whole.
    Working,
    /// Between two requests.
    Idle,
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    state: Mutex<ConnectionsState>,
    metrics: Metrics,
}

/// One connection, as its parts see it. It is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    id: u64,
    peer: Peer,
    grace: Duration,
    signal: Arc<Notify>,
    connections: Arc<Connections>,
}

#[derive(Debug)]
struct ConnectionsState {
    limits: Limits,
    next: u64,
    /// By number, which is the order in which they came.
    all: BTreeMap<u64, ConnectionEntry>,
}

#[derive(Debug)]
struct ConnectionEntry {
    peer: Peer,
    phase: ConnectionPhase,
    /// When the phase began.
    since: Instant,
    accepted: Instant,
    /// A request was answered.
    established: bool,
    /// A request was answered before all of it was read.
    unread: bool,
    /// Another one has its place.
    evicted: bool,
    signal: Arc<Notify>,
}

impl Connections {
    pub(super) fn new(limits: Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(ConnectionsState { limits, next: 0, all: BTreeMap::new() }), metrics })
    }

    /// A slot for one who has just connected. `None`: too many wait already.
    pub(super) fn accept(self: &Arc<Self>, peer: Peer) -> Option<Arc<Slot>> {
        let mut state = self.state();
        let accepted = state.accept(peer, Instant::now());
        let grace = state.limits.grace;
        drop(state);
        let Some((id, signal)) = accepted else {
            self.shed("waiting");
            return None;
        };
        self.promote();
        Some(Arc::new(Slot { id, peer, grace, signal, connections: Arc::clone(self) }))
    }

    /// Serves those who wait and have a place now.
    fn promote(&self) {
        for _ in 0..self.state().promote(Instant::now()) {
            self.shed("connections");
        }
    }

    fn shed(&self, reason: &'static str) {
        self.metrics.shed.get_or_create(&ShedLabels { reason }).inc();
    }

    fn state(&self) -> MutexGuard<'_, ConnectionsState> {
        // Nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Waits for its place. `false`: too many wait, and it is not among them any more.
    pub(super) async fn is_served(&self) -> bool {
        loop {
            let (phase, is_first) = {
                let state = self.connections.state();
                let Some(entry) = state.all.get(&self.id) else { return false };
                (entry.phase, state.first_waiting(self.peer) == Some(self.id))
            };
            if phase != ConnectionPhase::Waiting {
                return true;
            }
            if timeout(self.grace, self.signal.notified()).await.is_err() && is_first {
                // Somebody may have had its time since.
                self.connections.promote();
            }
        }
    }

    /// Returns when the connection must be closed.
    pub(super) async fn must_leave(&self) {
        loop {
            self.signal.notified().await;
            if self.with(|entry| entry.evicted && entry.phase != ConnectionPhase::Working) {
                return;
            }
        }
    }

    pub(super) fn phase(&self) -> ConnectionPhase {
        self.with(|entry| entry.phase)
    }

    pub(super) fn enter(&self, phase: ConnectionPhase) {
        self.with(|entry| entry.enter(phase));
    }

    /// The answer is made. Says whether the connection may be kept for another request.
    pub(super) fn answered(&self) -> bool {
        let (kept, waited_for) = {
            let mut state = self.connections.state();
            let waited_for = state.is_waited_for(self.peer);
            let Some(entry) = state.all.get_mut(&self.id) else { return false };
            entry.established |= !entry.unread;
            entry.enter(ConnectionPhase::Idle);
            (!entry.unread && !entry.evicted, waited_for)
        };
        kept && !waited_for
    }

    /// A request is answered before all of it was read.
    pub(super) fn leave_unread(&self) {
        self.with(|entry| entry.unread = true);
    }

    pub(super) fn is_unread(&self) -> bool {
        self.with(|entry| entry.unread)
    }

    fn with<T: Default>(&self, act: impl FnOnce(&mut ConnectionEntry) -> T) -> T {
        self.connections.state().all.get_mut(&self.id).map(act).unwrap_or_default()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.state().all.remove(&self.id);
        self.connections.promote();
    }
}

impl Default for ConnectionPhase {
    /// Of a connection that is forgotten.
    fn default() -> Self {
        Self::Idle
    }
}

impl ConnectionsState {
    fn accept(&mut self, peer: Peer, now: Instant) -> Option<(u64, Arc<Notify>)> {
        let waiting = count(self.waiting());
        let mine = of(&waiting, peer);
        if mine >= self.limits.waiting_of_one {
            return None;
        }
        if waiting.values().sum::<usize>() >= self.limits.waiting {
            let (most, _) = waiting.iter().filter(|(_, count)| **count > mine + 1).max_by_key(|(_, count)| **count)?;
            let last = self.waiting().filter(|(_, entry)| entry.peer == *most).map(|(id, _)| *id).last()?;
            if let Some(entry) = self.all.remove(&last) {
                entry.signal.notify_one();
            }
        }
        let (id, signal) = (self.next, Arc::<Notify>::default());
        self.next += 1;
        let entry = ConnectionEntry {
            peer,
            phase: ConnectionPhase::Waiting,
            since: now,
            accepted: now,
            established: false,
            unread: false,
            evicted: false,
            signal: Arc::clone(&signal),
        };
        self.all.insert(id, entry);
        Some((id, signal))
    }

    fn waiting(&self) -> impl Iterator<Item = (&u64, &ConnectionEntry)> {
        self.all.iter().filter(|(_, entry)| entry.phase == ConnectionPhase::Waiting)
    }

    fn served(&self) -> impl Iterator<Item = (&u64, &ConnectionEntry)> {
        self.all.iter().filter(|(_, entry)| entry.phase != ConnectionPhase::Waiting && !entry.evicted)
    }

    fn first_waiting(&self, peer: Peer) -> Option<u64> {
        self.waiting().find(|(_, entry)| entry.peer == peer).map(|(id, _)| *id)
    }

    /// Serves all who have a place or can be made one; says how many had to leave for it.
    fn promote(&mut self, now: Instant) -> usize {
        let (mut evicted, mut hopeless) = (0, HashSet::new());
        while self.waiting().next().is_some() {
            let served = count(self.served());
            // The first of each address that waits, and of those the one of the address that is served least.
            let mut seen = hopeless.clone();
            let first = self.waiting().filter(|(_, entry)| seen.insert(entry.peer));
            let next = first.map(|(id, entry)| (of(&served, entry.peer), *id, entry.peer)).min_by_key(|next| next.0);
            let Some((_, id, peer)) = next else { break };
            if !self.has_place(&served, peer) {
                let victim = self.victim(&served, peer, now);
                let Some(victim) = victim.and_then(|victim| self.all.get_mut(&victim)) else {
                    hopeless.insert(peer);
                    continue;
                };
                victim.evicted = true;
                victim.signal.notify_one();
                evicted += 1;
            }
            if let Some(entry) = self.all.get_mut(&id) {
                entry.enter(ConnectionPhase::Opening);
                entry.signal.notify_one();
            }
        }
        evicted
    }

    fn has_place(&self, served: &Counts, peer: Peer) -> bool {
        served.values().sum::<usize>() < self.limits.connections && of(served, peer) < self.limits.connections_of_one
    }

    /// Who leaves so that this caller has a place.
    fn victim(&self, served: &Counts, peer: Peer, now: Instant) -> Option<u64> {
        let mine = of(served, peer);
        let own = mine >= self.limits.connections_of_one;
        let ranked = self.served().filter_map(|(id, entry)| {
            let theirs = of(served, entry.peer);
            // To take an established connection from one that would then have less than this one is no gain.
            let is_served_more = !own && theirs > mine + usize::from(entry.established);
            let makes_room = if entry.peer == peer {
                entry.makes_room(now, self.limits.grace_of_one)
            } else {
                is_served_more && entry.makes_room(now, self.limits.grace)
            };
            makes_room.then(|| (Reverse(theirs), entry.rank(), *id))
        });
        ranked.min().map(|(.., id)| id)
    }

    /// Whether somebody waits for a place that this caller has.
    fn is_waited_for(&self, peer: Peer) -> bool {
        if self.waiting().next().is_none() {
            return false;
        }
        let served = count(self.served());
        self.waiting().any(|(_, entry)| entry.peer == peer || of(&served, entry.peer) + 1 < of(&served, peer))
    }
}

/// How many connections each caller has.
type Counts = HashMap<Peer, usize>;

fn count<'a>(entries: impl Iterator<Item = (&'a u64, &'a ConnectionEntry)>) -> Counts {
    let mut counts = Counts::new();
    for (_, entry) in entries {
        *counts.entry(entry.peer).or_default() += 1;
    }
    counts
}

fn of(counts: &Counts, peer: Peer) -> usize {
    counts.get(&peer).copied().unwrap_or_default()
}

impl ConnectionEntry {
    fn enter(&mut self, phase: ConnectionPhase) {
        (self.phase, self.since) = (phase, Instant::now());
    }

    /// Whether it may be closed for another one. Who dribbles does not get younger by it, and who has just been answered
    /// may have sent its next request already.
    fn makes_room(&self, now: Instant, grace: Duration) -> bool {
        let since = if self.established { self.since } else { self.accepted };
        self.phase != ConnectionPhase::Working && now.duration_since(since) >= grace
    }

    /// Who goes first among those of one address: whoever was not answered yet, then the idle, the longest first.
    fn rank(&self) -> (bool, bool, Instant) {
        let since = if self.established { self.since } else { self.accepted };
        (self.established, self.phase != ConnectionPhase::Idle, since)
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;

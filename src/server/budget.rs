//! Memory that reviews take, shared among callers.
//!
//! One address takes a part of it at most, and large ones leave a part to the small. Who finds no room waits a moment;
//! of those who wait, the address that was served longest ago comes first. If that does not help, a body that is still
//! on its way makes room: one of the address that holds most. A review that has come in whole is never thrown away.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::peer::Peer;

/// So many times longer a body is safe from another one of its own address.
const OWN: u32 = 8;

/// Bytes that may be held together.
#[derive(Debug)]
pub(super) struct Budget {
    /// All of them.
    total: usize,
    /// Those of one address.
    share: usize,
    /// What large holders leave of both.
    reserve: usize,
    /// For how long who is too slow is safe from those who wait.
    grace: Duration,
    state: Mutex<BudgetState>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct BudgetState {
    next: u64,
    holders: BTreeMap<u64, Holder>,
    /// Counts what was given, and when each caller was last given something.
    given: u64,
    last: HashMap<Peer, u64>,
}

#[derive(Debug)]
struct Holder {
    peer: Peer,
    began: Instant,
    bytes: usize,
    /// What it waits for.
    wants: Option<usize>,
    is_large: bool,
    /// A body that is still on its way.
    is_arriving: bool,
    evicted: bool,
    signal: Arc<Notify>,
}

/// What one review holds. Given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    id: u64,
    signal: Arc<Notify>,
    budget: Arc<Budget>,
}

/// There is no room.
#[derive(Debug)]
pub(super) struct Full;

impl Budget {
    pub(super) fn new(total: usize, share: usize, reserve: usize, grace: Duration) -> Arc<Self> {
        Arc::new(Self { total, share, reserve, grace, state: Mutex::default(), freed: Notify::new() })
    }

    /// Holds nothing yet.
    pub(super) fn holder(self: &Arc<Self>, peer: Peer, is_large: bool) -> Held {
        let mut state = self.state();
        let (id, signal) = (state.next, Arc::<Notify>::default());
        state.next += 1;
        let holder = Holder {
            peer,
            began: Instant::now(),
            bytes: 0,
            wants: None,
            is_large,
            is_arriving: true,
            evicted: false,
            signal: Arc::clone(&signal),
        };
        state.holders.insert(id, holder);
        Held { id, signal, budget: Arc::clone(self) }
    }

    fn try_grow(&self, id: u64, to: usize) -> bool {
        let mut state = self.state();
        let fits = state.fits(self, id, to);
        let Some(holder) = state.holders.get_mut(&id) else { return false };
        holder.wants = (!fits).then_some(to);
        if fits {
            holder.bytes = to;
            let peer = holder.peer;
            state.given += 1;
            let given = state.given;
            state.last.insert(peer, given);
            if state.holders.values().any(|holder| holder.wants.is_some()) {
                self.freed.notify_waiters();
            }
        }
        fits
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        // Nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Holds that many bytes from now on, as soon as there is room.
    pub(super) async fn grow(&self, to: usize, patience: Duration) -> Result<(), Full> {
        let started = Instant::now();
        let (end, mut pressing) = (started + patience, started + self.budget.grace);
        loop {
            let freed = self.budget.freed.notified();
            if self.budget.try_grow(self.id, to) {
                return Ok(());
            }
            let now = Instant::now();
            if now >= end {
                self.with(|holder| holder.wants = None);
                self.budget.freed.notify_waiters();
                return Err(Full);
            }
            if now >= pressing {
                let mut state = self.budget.state();
                state.make_room(&self.budget, self.id, to, now);
                pressing = now + self.budget.grace;
            }
            drop(timeout_at(pressing.min(end), freed).await);
        }
    }

    /// Nothing more is to come.
    pub(super) fn is_whole(&self) {
        self.with(|holder| holder.is_arriving = false);
    }

    /// Returns when this must make room.
    pub(super) async fn must_leave(&self) {
        loop {
            self.signal.notified().await;
            let mut leaves = false;
            self.with(|holder| leaves = holder.evicted && holder.is_arriving);
            if leaves {
                return;
            }
        }
    }

    fn with(&self, act: impl FnOnce(&mut Holder)) {
        self.budget.state().holders.get_mut(&self.id).map(act);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        if let Some(Holder { peer, .. }) = state.holders.remove(&self.id)
            && state.holders.values().all(|holder| holder.peer != peer)
        {
            state.last.remove(&peer);
        }
        drop(state);
        self.budget.freed.notify_waiters();
    }
}

impl BudgetState {
    fn held(&self, is_counted: impl Fn(&Holder) -> bool) -> usize {
        self.holders.values().filter(|holder| is_counted(holder)).map(|holder| holder.bytes).sum()
    }

    fn of(&self, peer: Peer) -> usize {
        self.held(|holder| holder.peer == peer)
    }

    /// By how much this would exceed what one address may hold, and what all may.
    fn excess(&self, budget: &Budget, holder: &Holder, to: usize) -> (usize, usize) {
        let more = to.saturating_sub(holder.bytes);
        let over = |held: usize, limit: usize| (held + more).saturating_sub(limit);
        let (mut of_one, mut of_all) =
            (over(self.of(holder.peer), budget.share), over(self.held(|_| true), budget.total));
        if holder.is_large {
            let own = self.held(|other| other.is_large && other.peer == holder.peer);
            of_one = of_one.max(over(own, budget.share - budget.reserve));
            of_all = of_all.max(over(self.held(|other| other.is_large), budget.total - budget.reserve));
        }
        (of_one, of_all)
    }

    fn fits(&self, budget: &Budget, id: u64, to: usize) -> bool {
        let Some(holder) = self.holders.get(&id) else { return false };
        let turn = |id: u64, holder: &Holder| (self.last.get(&holder.peer).copied().unwrap_or_default(), id);
        let mine = turn(id, holder);
        // Another one's turn, unless that one waits for its own.
        let is_before = |(other, waiting): (&u64, &Holder)| {
            let Some(wants) = waiting.wants else { return false };
            waiting.is_large == holder.is_large
                && turn(*other, waiting) < mine
                && self.excess(budget, waiting, wants).0 == 0
        };
        self.excess(budget, holder, to) == (0, 0) && !self.holders.iter().any(is_before)
    }

    /// Who is still sending makes room, as far as that is fair.
    fn make_room(&mut self, budget: &Budget, id: u64, to: usize, now: Instant) {
        let Some(holder) = self.holders.get(&id) else { return };
        let (peer, is_large, (of_one, of_all)) = (holder.peer, holder.is_large, self.excess(budget, holder, to));
        // One at a time of those of an address: else each of them makes the others leave, and nobody is served.
        let is_another = |(other, waiting): (&u64, &Holder)| {
            *other < id
                && waiting.wants.is_some()
                && !waiting.evicted
                && (waiting.peer, waiting.is_large) == (peer, is_large)
        };
        if of_one > 0 && self.holders.iter().any(is_another) {
            return;
        }
        let mine = self.of(peer) + to.saturating_sub(holder.bytes);
        let mut needed = of_one.max(of_all);
        while needed > 0 {
            let eligible = self.holders.iter().filter(|(other, holder)| {
                // One of the same address that has its room is on its way; one that waits is not.
                let patience = if holder.peer == peer && holder.wants.is_none() { OWN } else { 1 };
                let is_slow = holder.is_arriving
                    && !holder.evicted
                    && now.duration_since(holder.began) >= budget.grace * patience;
                let is_fair = if of_one > 0 { holder.peer == peer } else { self.of(holder.peer) > mine };
                **other != id && holder.bytes > 0 && is_slow && is_fair && (holder.is_large || !is_large)
            });
            let Some((victim, _)) = eligible.max_by_key(|(_, holder)| (self.of(holder.peer), holder.bytes)) else {
                return;
            };
            let victim = *victim;
            let Some(holder) = self.holders.get_mut(&victim) else { return };
            holder.evicted = true;
            holder.signal.notify_one();
            needed = needed.saturating_sub(holder.bytes);
        }
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;

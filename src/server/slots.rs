//! Who may stay connected.
//!
//! Anybody in the cluster can connect, and most of what a connection does is wait. A client that waits in our
//! handshake, or in the middle of a request, costs a slot; so those of whom nothing is known may have only a part of
//! the slots, and the one that has waited longest makes room for the next. Whoever had a request answered, such as an
//! API server, is not touched by that. A request that has come in full is never cut off.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::limits::Limits;
use crate::telemetry::metrics::{Metrics, ShedLabels};

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Handshake, and until the first byte of the first request.
    Opening,
    /// A part of a request's head has come.
    Head,
    /// A part of a request's body is to come.
    Body,
    /// The request has come in full.
    Working,
    /// Between two requests.
    Idle,
}

/// One connection, as seen from its parts.
#[derive(Debug)]
pub(super) struct Slot {
    origin: Instant,
    phase: AtomicU8,
    /// When the phase began, in milliseconds since `origin`.
    since: AtomicU64,
    proven: AtomicBool,
    unread: AtomicBool,
    close: Notify,
    slots: Arc<Slots>,
}

/// All slots of a server.
#[derive(Debug)]
pub(super) struct Slots {
    taken: Mutex<Vec<Arc<Slot>>>,
    changed: Notify,
    connections: usize,
    strangers: usize,
    grace: Duration,
    metrics: Metrics,
}

/// A taken slot. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Held(pub(super) Arc<Slot>);

/// Why there is no slot, and when to look again if nothing changes.
struct Full(Option<Instant>);

impl Slot {
    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Opening,
            1 => Phase::Head,
            2 => Phase::Body,
            3 => Phase::Working,
            _ => Phase::Idle,
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        let elapsed = self.origin.elapsed().as_millis();
        self.since.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Relaxed);
        self.phase.store(phase as u8, Relaxed);
        // One stranger less who is waited for, or one more who can make room.
        if phase == Phase::Idle || phase == Phase::Working && !self.is_proven() {
            self.slots.changed.notify_one();
        }
    }

    /// A request was answered.
    pub(super) fn prove(&self) {
        self.proven.store(true, Relaxed);
    }

    /// A request was answered before all of it was read.
    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Relaxed);
    }

    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Returns when the connection must make room.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    fn is_proven(&self) -> bool {
        self.proven.load(Relaxed)
    }

    fn is_stranger_waited_for(&self) -> bool {
        !self.is_proven() && self.phase() != Phase::Working
    }

    fn since(&self) -> Instant {
        // A stranger that dribbles does not get younger by it.
        let since = if self.is_proven() { self.since.load(Relaxed) } else { 0 };
        self.origin + Duration::from_millis(since)
    }

    /// Who goes first when all slots are taken. `None`: this one stays.
    fn rank(&self) -> Option<u8> {
        match (self.phase(), self.is_proven()) {
            (Phase::Working, _) => None,
            (_, false) => Some(0),
            (Phase::Opening | Phase::Head | Phase::Body, true) => Some(1),
            (Phase::Idle, true) => Some(2),
        }
    }
}

impl Slots {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            taken: Mutex::default(),
            changed: Notify::new(),
            connections: limits.connections,
            strangers: limits.strangers,
            grace: limits.grace,
            metrics,
        })
    }

    /// A slot for one who has just connected, as soon as there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Held {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            match self.try_take() {
                Ok(held) => return held,
                Err(Full(None)) => changed.await,
                Err(Full(Some(again))) => drop(timeout_at(again, changed).await),
            }
        }
    }

    fn try_take(self: &Arc<Self>) -> Result<Held, Full> {
        let now = Instant::now();
        let mut taken = self.taken();
        if taken.iter().filter(|slot| slot.is_stranger_waited_for()).count() >= self.strangers {
            let waited_for = |slot: &Slot| slot.is_stranger_waited_for().then_some(0);
            self.make_room(&mut taken, now, "strangers", waited_for)?;
        }
        if taken.len() >= self.connections {
            self.make_room(&mut taken, now, "connections", Slot::rank)?;
        }
        let slot = Arc::new(Slot {
            origin: now,
            phase: AtomicU8::new(Phase::Opening as u8),
            since: AtomicU64::new(0),
            proven: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            close: Notify::new(),
            slots: Arc::clone(self),
        });
        taken.push(Arc::clone(&slot));
        Ok(Held(slot))
    }

    /// Closes the first by rank, the longest in its phase among equals, if it had its time.
    fn make_room(
        &self,
        taken: &mut Vec<Arc<Slot>>,
        now: Instant,
        reason: &'static str,
        rank: impl Fn(&Slot) -> Option<u8>,
    ) -> Result<(), Full> {
        let ends = |slot: &Slot| slot.since() + self.grace;
        let candidates = || taken.iter().enumerate().filter_map(|(at, slot)| Some((rank(slot)?, ends(slot), at)));
        let Some((_, _, at)) = candidates().filter(|(_, ends, _)| *ends <= now).min() else {
            return Err(Full(candidates().map(|(_, ends, _)| ends).min()));
        };
        taken.swap_remove(at).close.notify_one();
        self.metrics.shed.get_or_create(&ShedLabels { reason }).inc();
        Ok(())
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        // Nothing in here panics halfway.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let slots = &self.0.slots;
        slots.taken().retain(|slot| !Arc::ptr_eq(slot, &self.0));
        slots.changed.notify_one();
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;

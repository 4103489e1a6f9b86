//! Health: a list of named readiness gates, and the heartbeat of the sync loop.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The sync loop turns at least this often; see [`Health::beat`].
pub const BEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Without a beat for this long the process is stuck and wants to be restarted.
const BEAT_DEADLINE: Duration = Duration::from_mins(1);

/// Shared state behind `/healthz`, `/livez` and `/readyz`.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    last_beat_millis: AtomicU64,
    /// Why each gate is closed; nothing for an open one.
    gates: Mutex<BTreeMap<String, Option<String>>>,
}

/// One condition that must hold before the process is ready.
#[derive(Debug)]
pub struct ReadinessGate {
    health: Arc<Health>,
    name: String,
}

impl Health {
    /// Health without gates: alive and ready.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), last_beat_millis: AtomicU64::new(0), gates: Mutex::default() })
    }

    /// Adds a gate, not ready at first.
    pub fn gate(self: &Arc<Self>, name: impl Into<String>) -> ReadinessGate {
        let gate = ReadinessGate { health: Arc::clone(self), name: name.into() };
        gate.set(false);
        gate
    }

    /// Says that the sync loop has turned.
    pub fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_millis.store(millis, Ordering::Relaxed);
    }

    /// Whether the sync loop turned within the last minute.
    pub fn is_live(&self) -> bool {
        let last = Duration::from_millis(self.last_beat_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) < BEAT_DEADLINE
    }

    /// Whether every gate is ready.
    pub fn is_ready(&self) -> bool {
        self.gates().values().all(Option::is_none)
    }

    /// One line for each gate, in the format of the API server's `/readyz?verbose`.
    pub fn report(&self) -> String {
        let mut report = String::new();
        let _ = writeln!(report, "[{}]sync-loop", sign(self.is_live()));
        for (name, problem) in self.gates().iter() {
            let _ = match problem.as_deref() {
                None => writeln!(report, "[+]{name}"),
                Some("") => writeln!(report, "[-]{name}"),
                Some(problem) => writeln!(report, "[-]{name}: {problem}"),
            };
        }
        report
    }

    /// A panic while the lock was held leaves a map that is still whole.
    fn gates(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadinessGate {
    /// Opens or closes the gate.
    pub fn set(&self, ready: bool) {
        self.health.gates().insert(self.name.clone(), (!ready).then(String::new));
    }

    /// Closes the gate and says why.
    pub fn fail(&self, problem: &str) {
        self.health.gates().insert(self.name.clone(), Some(problem.to_owned()));
    }
}

fn sign(good: bool) -> char {
    if good { '+' } else { '-' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_gate_is() {
        let health = Health::new();
        assert!(health.is_ready());
        let (a, b) = (health.gate("a"), health.gate("b"));
        assert!(!health.is_ready());
        a.set(true);
        assert!(!health.is_ready());
        assert_eq!(health.report(), "[+]sync-loop\n[+]a\n[-]b\n");
        b.fail("no certificate");
        assert_eq!(health.report(), "[+]sync-loop\n[+]a\n[-]b: no certificate\n");
        b.set(true);
        assert!(health.is_ready());
    }
}

//! From serving to stopped: Serving, `LameDuck`, Stopped.
//!
//! A replica that is asked to end is still called for a while, because those who call it learn late: a pod that
//! terminates leaves the Endpoints, then the rules of each node. An API server tries no failed review again. So a replica
//! goes on as before, but for `Connection: close`, so that each API server reconnects, more and more of them to other
//! replicas. It ends when its time is over, or when it has not been called for so long that everybody must know.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// How often it is looked whether somebody still calls.
const LOOK: Duration = Duration::from_secs(1);
/// No drain ends sooner by itself. kube-proxy may take 10 s to apply a change under load, and until then it sends
/// connections here: a second in which nobody calls says nothing.
const LEARNT: Duration = Duration::from_secs(15);
/// For how long nobody must be connected for a drain to end before its time.
const QUIET: Duration = Duration::from_secs(5);

/// How far the process is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// As usual.
    Serving,
    /// As usual, but each answer is the last on its connection.
    LameDuck,
    /// Nothing new is taken on.
    Stopped,
}

/// Leads from phase to phase. Dropping it asks every task to end.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<Phase>);

/// Heard by every task.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Phase>);

/// A trigger and what it triggers.
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Goes through all phases to the end. `longest` is the time for it; none at all means to end at once.
    ///
    /// `quiet_for` says for how long nobody has been connected.
    pub async fn drain(&self, longest: Duration, quiet_for: impl Fn() -> Duration) {
        let started = Instant::now();
        let end = started + longest;
        if longest > Duration::ZERO {
            self.enter(Phase::LameDuck);
        }
        while Instant::now() < end && (started.elapsed() < LEARNT || quiet_for() < QUIET) {
            sleep_until((Instant::now() + LOOK).min(end)).await;
        }
        self.request();
    }

    /// Asks every task to end.
    pub fn request(&self) {
        self.enter(Phase::Stopped);
    }

    /// Enters a phase.
    pub fn enter(&self, next: Phase) {
        let changed = self.0.send_if_modified(|phase| std::mem::replace(phase, next) != next);
        if changed {
            tracing::info!(phase = ?next, "shutdown");
        }
    }
}

impl Shutdown {
    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns as soon as every task is asked to end; at once when it was.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which asks, too.
        let _ = self.0.wait_for(|phase| *phase == Phase::Stopped).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const NEVER: fn() -> Duration = || Duration::ZERO;

    /// The phases of a drain, each with the seconds at which it was first seen.
    async fn phases(longest: u64, quiet_for: impl Fn() -> Duration) -> String {
        let (trigger, shutdown) = channel();
        let started = Instant::now();
        let seen = RefCell::new(Vec::<(Phase, u64)>::new());
        let watch = async {
            let mut phases = shutdown.0.clone();
            while phases.changed().await.is_ok() {
                let phase = *phases.borrow_and_update();
                seen.borrow_mut().push((phase, started.elapsed().as_secs()));
                if phase == Phase::Stopped {
                    return;
                }
            }
        };
        tokio::join!(watch, trigger.drain(Duration::from_secs(longest), quiet_for));
        let seen: Vec<_> = seen.borrow().iter().map(|(phase, at)| format!("{phase:?} {at}")).collect();
        seen.join(", ")
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_called_serves_to_the_end_of_its_time() {
        assert_eq!(phases(20, NEVER).await, "LameDuck 0, Stopped 20");
        assert_eq!(phases(2, NEVER).await, "LameDuck 0, Stopped 2");
        assert_eq!(phases(0, NEVER).await, "Stopped 0");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_early_only_when_everybody_must_have_learnt() {
        assert_eq!(phases(40, || Duration::from_mins(1)).await, "LameDuck 0, Stopped 15");
        let started = Instant::now();
        let quiet_since_18 = || Duration::from_secs(started.elapsed().as_secs().saturating_sub(18));
        assert_eq!(phases(40, quiet_since_18).await, "LameDuck 0, Stopped 23");
    }

    #[tokio::test]
    async fn a_trigger_that_is_gone_asks_to_end() {
        let (trigger, mut shutdown) = channel();
        drop(trigger);
        shutdown.requested().await;
    }
}

//! When something may be done again.

use std::time::{Duration, Instant};

use crate::{
    backoff,
    brake::{Brake, Rival},
    cluster::{Problem, Reason},
};

/// So long may the watch take to bring what was written, before it is looked at anew.
const ECHO: Duration = Duration::from_secs(2);
/// Replicas that see the same thing at once wait for a part of this each, by chance; the first one settles it.
const SPREAD: Duration = Duration::from_millis(400);
/// Between two writes of the same object, whoever undoes them how fast.
const LEAST_GAP: Duration = Duration::from_millis(500);

/// When something may be tried again.
#[derive(Default)]
pub struct Pause {
    /// Not before.
    until: Option<Instant>,
    failures: u32,
    /// The last write.
    last: Option<Instant>,
    brake: Brake<()>,
}

impl Pause {
    /// Whether it may be done now.
    pub fn is_over(&self) -> bool {
        self.due().is_none()
    }

    /// When it may be done again; `None`: now.
    pub fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        self.until.max(self.brake.due(&(), Rival::Other, now)).filter(|due| *due > now)
    }

    /// At once, and as if nothing had failed.
    pub fn over(&mut self) {
        (self.until, self.failures) = (None, 0);
    }

    /// Whether it was done so often that it has to wait for that alone: something else keeps undoing it.
    pub fn is_braked(&self) -> bool {
        self.brake.due(&(), Rival::Other, Instant::now()).is_some()
    }

    /// After a write: until the watch has brought it.
    pub fn wrote(&mut self) {
        let now = Instant::now();
        self.brake.wrote((), Rival::Other, now);
        (self.until, self.failures, self.last) = (Some(now + ECHO), 0, Some(now));
    }

    /// After a request that failed. A conflict: another replica was first, and the watch brings what it wrote. Conflicts
    /// that do not end are a contention, too.
    pub fn after(&mut self, problem: &Problem) {
        match problem.reason {
            Reason::Conflict => self.wrote(),
            _ => self.after_failure(problem.retry_after),
        }
    }

    /// Later, the more failures the later, and not before the API server wants it.
    pub fn after_failure(&mut self, retry_after: Option<Duration>) {
        let pause = backoff::pause(self.failures, Duration::from_millis(200), Duration::from_secs(10));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + pause.max(retry_after.unwrap_or_default()));
    }

    /// There is news: soon, but not together with every other replica, and not faster than who fights us. At once, if
    /// it was this replica that made the news: the others wait for that.
    pub fn spread(&mut self, is_own: bool) {
        if self.failures == 0 {
            let spread = if is_own { Duration::ZERO } else { SPREAD.mul_f64(0.25 + 0.75 * fastrand::f64()) };
            let soon = Instant::now() + spread;
            self.until = Some(self.last.map_or(soon, |last| soon.max(last + LEAST_GAP)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_braked_is_due_later_and_news_do_not_cut_that_short() {
        let mut pause = Pause::default();
        for _ in 0..=20 {
            pause.over();
            assert!(pause.is_over() && pause.due().is_none());
            pause.wrote();
        }
        pause.over();
        assert!(pause.is_braked() && !pause.is_over());
        assert!(pause.due().is_some_and(|due| due > Instant::now()), "who sleeps until then sleeps");
        pause.wrote();
        assert!(pause.due().is_some());
    }
}

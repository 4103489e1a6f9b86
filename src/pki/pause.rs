//! When something may be done again. PURE: the time is an argument.

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
    pub fn is_over(&self, now: Instant) -> bool {
        self.due(now).is_none()
    }

    /// When it may be done again; `None`: now.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.until.max(self.brake.due(&(), Rival::Other, now)).filter(|due| *due > now)
    }

    /// At once, and as if nothing had failed.
    pub fn over(&mut self) {
        (self.until, self.failures) = (None, 0);
    }

    /// Whether it was done so often that it has to wait for that alone: something else keeps undoing it.
    pub fn is_braked(&self, now: Instant) -> bool {
        self.brake.due(&(), Rival::Other, now).is_some()
    }

    /// After a write: until the watch has brought it.
    pub fn wrote(&mut self, now: Instant) {
        self.brake.wrote((), Rival::Other, now);
        (self.until, self.failures, self.last) = (Some(now + ECHO), 0, Some(now));
    }

    /// After a request that failed. A conflict: another replica was first, and the watch brings what it wrote. Conflicts
    /// that do not end are a contention, too.
    pub fn after(&mut self, problem: &Problem, now: Instant) {
        match problem.reason {
            Reason::Conflict => self.wrote(now),
            _ => self.after_failure(problem.retry_after, now),
        }
    }

    /// Later, the more failures the later, and not before the API server wants it.
    pub fn after_failure(&mut self, retry_after: Option<Duration>, now: Instant) {
        let pause = backoff::pause(self.failures, Duration::from_millis(200), Duration::from_secs(10));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause.max(retry_after.unwrap_or_default()));
    }

    /// There is news: soon, but not together with every other replica, and not faster than who fights us. At once, if
    /// it was this replica that made the news: the others wait for that.
    pub fn spread(&mut self, is_own: bool, now: Instant) {
        if self.failures == 0 {
            let spread = if is_own { Duration::ZERO } else { SPREAD.mul_f64(0.25 + 0.75 * fastrand::f64()) };
            let soon = now + spread;
            self.until = Some(self.last.map_or(soon, |last| soon.max(last + LEAST_GAP)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_braked_is_due_later_and_news_do_not_cut_that_short() {
        let (mut pause, now) = (Pause::default(), Instant::now());
        for _ in 0..=20 {
            pause.over();
            assert!(pause.is_over(now) && pause.due(now).is_none());
            pause.wrote(now);
        }
        pause.over();
        assert!(pause.is_braked(now) && !pause.is_over(now));
        let due = pause.due(now).unwrap();
        assert!(due > now && pause.is_over(due), "who sleeps until then sleeps, and wakes up for something");
    }

    #[test]
    fn news_end_a_pause_soon_but_not_that_after_a_failure() {
        let (mut pause, now) = (Pause::default(), Instant::now());
        pause.wrote(now);
        assert_eq!(pause.due(now), Some(now + ECHO));
        pause.spread(true, now);
        assert_eq!(pause.due(now), Some(now + LEAST_GAP), "who undoes it at once has to wait, too");
        pause.after_failure(Some(Duration::from_mins(1)), now);
        pause.spread(false, now);
        assert!(pause.due(now).unwrap() >= now + Duration::from_mins(1));
        pause.over();
        assert!(pause.is_over(now));
    }
}

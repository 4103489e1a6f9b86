//! The time as the API server has it.
//!
//! It is the API server that judges our certificates, so its clock counts, not ours: a node whose clock is wrong by a
//! year must neither issue what nobody accepts nor replace a CA that is fine for everybody else.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// A difference up to this is the answer's way and the whole seconds of its `Date`.
const TOLERATED: SignedDuration = SignedDuration::from_secs(5);

/// A wall clock, corrected by what was last measured.
pub struct Clock {
    wall: Box<dyn Fn() -> SystemTime + Send + Sync>,
    /// What is added to the wall clock, in seconds.
    correction: AtomicI64,
    /// The two clocks of this machine at the same moment: one is stepped when somebody sets the time, the other is not.
    anchor: Mutex<Option<(Instant, SystemTime)>>,
}

impl Clock {
    /// This machine's.
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// Another wall clock.
    pub fn new(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { wall: Box::new(wall), correction: AtomicI64::new(0), anchor: Mutex::new(None) }
    }

    /// Now, in whole seconds, as certificates have it.
    pub fn now(&self) -> Timestamp {
        let corrected = self.seconds().saturating_add(self.correction.load(Ordering::Relaxed));
        Timestamp::from_second(corrected).unwrap_or(Timestamp::MAX)
    }

    /// Whether the time has to be asked for: it never was, or the wall clock was set since, or the machine slept.
    pub fn is_in_doubt(&self) -> bool {
        let Some((instant, wall)) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) else { return true };
        let passed = instant.elapsed();
        let expected = wall + passed;
        let now = (self.wall)();
        now.duration_since(expected).unwrap_or_else(|error| error.duration()) > Duration::from_secs(2)
    }

    /// Takes the API server's time for right. Returns how far this machine's is behind, where that matters.
    pub fn set(&self, now: Timestamp) -> Option<SignedDuration> {
        let difference = SignedDuration::from_secs(now.as_second().saturating_sub(self.seconds()));
        let matters = difference.abs() > TOLERATED;
        self.correction.store(if matters { difference.as_secs() } else { 0 }, Ordering::Relaxed);
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), (self.wall)()));
        matters.then_some(difference)
    }

    fn seconds(&self) -> i64 {
        Timestamp::try_from((self.wall)()).map_or(i64::MAX, Timestamp::as_second)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicU64};

    use super::*;

    /// A wall clock that can be set, in seconds since 1970.
    fn settable(start: u64) -> (Arc<AtomicU64>, Clock) {
        let seconds = Arc::new(AtomicU64::new(start));
        let clock = Clock::new({
            let seconds = Arc::clone(&seconds);
            move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.load(Ordering::Relaxed))
        });
        (seconds, clock)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_api_server_is_right() {
        let (_, clock) = settable(1_000_000);
        assert!(clock.is_in_doubt(), "it was never asked for");
        assert_eq!(clock.now(), at(1_000_000));
        assert_eq!(clock.set(at(1_000_005)), None);
        assert!(!clock.is_in_doubt());
        assert_eq!(clock.now(), at(1_000_000), "seconds do not matter");
        assert_eq!(clock.set(at(2_000_000)), Some(SignedDuration::from_secs(1_000_000)));
        assert_eq!(clock.now(), at(2_000_000));
        assert_eq!(clock.set(at(900_000)), Some(SignedDuration::from_secs(-100_000)));
        assert_eq!(clock.now(), at(900_000));
    }

    #[test]
    fn a_step_of_the_wall_clock_is_noticed_and_corrected() {
        for jump in [31_536_000_i64, -86_400] {
            let (wall, clock) = settable(1_000_000_000);
            clock.set(at(1_000_000_000));
            wall.store(1_000_000_000_u64.saturating_add_signed(jump), Ordering::Relaxed);
            assert!(clock.is_in_doubt(), "{jump}");
            assert_eq!(clock.set(at(1_000_000_000)), Some(SignedDuration::from_secs(-jump)));
            assert!(!clock.is_in_doubt());
            assert_eq!(clock.now(), at(1_000_000_000));
        }
    }
}

//! Limits how often one object is written over and over. PURE.
//!
//! Two programs that want different things of one object write it as fast as they can, until the store of the cluster is
//! full. So each object has a budget of repairs, which one write a minute refills. Following a source is no repair: a
//! write of something new is free, and begins a new budget.

use std::time::{Duration, Instant};

/// Repairs in a row that are not delayed.
const BUDGET: u32 = 20;
/// One repair is given back after each of these.
const REFILL: Duration = Duration::from_mins(1);
/// With fewer repairs left than these, the object is contended.
const CONTENDED: u32 = 4;

/// Who undid the last write, as far as it can be told from the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    /// Another instance of this program, which brakes, too: both together are to write no more than one.
    SameProgram,
    /// A user or another program, or unknown.
    Other,
}

/// The writes of one object. `W` stands for what is written.
#[derive(Debug)]
pub(crate) struct Brake<W> {
    /// What was written last, and when the budget is whole again.
    last: Option<(W, Instant)>,
}

impl<W> Default for Brake<W> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl Rival {
    /// By whether an instance of this program wrote last.
    pub(crate) fn of(was_last_written_by_us: bool) -> Self {
        if was_last_written_by_us { Self::SameProgram } else { Self::Other }
    }

    /// What one repair takes of the budget.
    fn cost(self) -> u32 {
        match self {
            Self::SameProgram => 3,
            Self::Other => 1,
        }
    }
}

impl<W: PartialEq> Brake<W> {
    /// From when on `wanted` may be written; `None`: now.
    pub(crate) fn due(&self, wanted: &W, rival: Rival, now: Instant) -> Option<Instant> {
        let (_, whole) = self.last.as_ref().filter(|(written, _)| written == wanted)?;
        // So much time must be left free, for the cost to fit into the budget.
        let due = (*whole + REFILL * rival.cost()).checked_sub(REFILL * BUDGET)?;
        (due > now).then_some(due)
    }

    /// Notes a write.
    pub(crate) fn wrote(&mut self, written: W, rival: Rival, now: Instant) {
        let whole = match &self.last {
            Some((last, whole)) if *last == written => (*whole).max(now) + REFILL * rival.cost(),
            _ => now,
        };
        self.last = Some((written, whole));
    }

    /// Until when the object is contended, if nothing changes it any more; `None`: it is not.
    pub(crate) fn contended_until(&self, now: Instant) -> Option<Instant> {
        let (_, whole) = self.last.as_ref()?;
        let until = whole.checked_sub(REFILL * (BUDGET - CONTENDED))?;
        (until > now).then_some(until)
    }

    /// Whether little is lost by forgetting it: its budget has been whole for a while.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|(_, whole)| *whole + REFILL <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Writes as early as may be for that long, `rivals` of them by turns, each undoing the other's. Returns when.
    fn contention(rivals: usize, rival: Rival, lasts: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let mut brakes: Vec<Brake<usize>> = (0..rivals).map(|_| Brake::default()).collect();
        let (mut now, mut writes) = (start, Vec::new());
        let mut last = usize::MAX;
        while now - start < lasts {
            let due =
                |at: usize| if at == last && rivals > 1 { None } else { brakes[at].due(&at, rival, now).or(Some(now)) };
            let (next, at) = (0..rivals).filter_map(|at| Some((due(at)?, at))).min().unwrap();
            now = next.max(now) + Duration::from_millis(10);
            brakes[at].wrote(at, rival, now);
            last = at;
            writes.push(now - start);
        }
        writes.retain(|at| *at < lasts);
        writes
    }

    fn before(writes: &[Duration], end: Duration) -> usize {
        writes.iter().filter(|at| **at < end).count()
    }

    #[test]
    fn twenty_repairs_are_made_at_once_and_one_a_minute_after_that() {
        let writes = contention(1, Rival::Other, 3600 * SECOND);
        assert_eq!(before(&writes, SECOND), 21, "the first write is no repair");
        assert_eq!(before(&writes, 59 * SECOND), 21);
        assert!((79..=81).contains(&writes.len()), "{} in an hour", writes.len());
    }

    #[test]
    fn two_instances_together_write_no_more_than_twenty_in_the_first_minute_and_one_a_minute_after_that() {
        let writes = contention(2, Rival::SameProgram, 3600 * SECOND);
        assert!(before(&writes, 60 * SECOND) <= 20, "{}", before(&writes, 60 * SECOND));
        let later = writes.len() - before(&writes, 60 * SECOND);
        assert!(later <= 59, "{later} in the 59 minutes after that");
    }

    #[test]
    fn what_is_new_is_written_at_once_however_often() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        for version in 0..1000 {
            assert_eq!(brake.due(&version, Rival::Other, now), None);
            brake.wrote(version, Rival::Other, now);
        }
        assert!(brake.is_idle(now + REFILL) && brake.contended_until(now).is_none());
    }

    #[test]
    fn what_changes_less_than_once_a_minute_is_never_delayed() {
        let (mut brake, mut now) = (Brake::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(brake.due(&(), Rival::Other, now), None);
            brake.wrote((), Rival::Other, now);
            assert_eq!(brake.contended_until(now), None);
            now += 61 * SECOND;
        }
    }

    #[test]
    fn contention_is_over_some_minutes_after_the_last_repair() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        for repair in 0..=BUDGET {
            assert_eq!(brake.contended_until(now).is_some(), repair > BUDGET - CONTENDED + 1, "{repair}");
            assert_eq!(brake.due(&(), Rival::Other, now), None);
            brake.wrote((), Rival::Other, now);
        }
        assert_eq!(brake.due(&(), Rival::Other, now), Some(now + REFILL));
        assert_eq!(brake.contended_until(now), Some(now + CONTENDED * REFILL));
        assert!(!brake.is_idle(now + BUDGET * REFILL) && brake.is_idle(now + (BUDGET + 1) * REFILL));
    }
}

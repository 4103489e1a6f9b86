//! Which objects wait to be looked at, and since when. PURE: the time is an argument.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::observe::Target;
use crate::backoff;

/// First and longest delay after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Longest wait for a write of ours to come back through the watch.
const ECHO: Duration = Duration::from_millis(100);
/// Failures after which an event during the write does not cut the pause short any more.
const EAGER_RETRIES: u32 = 3;

/// Clones to look at: each at most once in the queue, and at most once at work.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Target, Queued>,
    first: VecDeque<Target>,
    last: VecDeque<Target>,
    delayed: BTreeSet<(Instant, Target)>,
    marks: u64,
    /// How often the direction through the many changed. Odd: from their end.
    turns: u64,
}

#[derive(Debug)]
struct Queued {
    since: Instant,
    mark: u64,
    attempts: u32,
    order: Order,
    place: Place,
    /// [`Queue::turns`] when it was taken.
    turns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    Delayed(Instant),
    /// Taken out to be looked at, or waiting for a read of its source.
    Taken,
    /// A write is under way; `again` when something happened since.
    Writing {
        again: bool,
    },
}

/// Where a marked clone is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Before all others: something happened to this clone alone.
    First,
    /// Behind all others: it is one of many.
    Last,
}

impl Queue {
    /// Says that something happened to a clone.
    pub fn mark(&mut self, target: Target, order: Order, now: Instant) {
        self.marks += 1;
        let mark = self.marks;
        let entry = self.entries.entry(target.clone()).or_insert_with(|| Queued {
            since: now,
            mark,
            attempts: 0,
            order,
            place: Place::Taken,
            turns: 0,
        });
        entry.mark = mark;
        match entry.place {
            Place::Ready => return,
            Place::Writing { .. } => {
                entry.place = Place::Writing { again: true };
                return;
            }
            Place::Delayed(due) => {
                self.delayed.remove(&(due, target.clone()));
            }
            Place::Taken => {}
        }
        entry.place = Place::Ready;
        self.push(target, order);
    }

    /// The number of the latest mark: a read that begins now is later than every mark up to it.
    pub fn latest_mark(&self) -> u64 {
        self.marks
    }

    /// The next clone to look at, and the number of its latest mark.
    pub fn take(&mut self, now: Instant) -> Option<(Target, u64)> {
        while self.delayed.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, target)) = self.delayed.pop_first() else { break };
            if let Some(entry) = self.entries.get_mut(&target) {
                entry.place = Place::Ready;
                self.push(target, Order::Last);
            }
        }
        if self.last.is_empty() {
            self.turns = 0;
        }
        let is_backwards = self.turns % 2 == 1;
        let of_many = |many: &mut VecDeque<_>| if is_backwards { many.pop_back() } else { many.pop_front() };
        let target = self.first.pop_front().or_else(|| of_many(&mut self.last))?;
        let entry = self.entries.get_mut(&target)?;
        (entry.place, entry.turns) = (Place::Taken, self.turns);
        Some((target, entry.mark))
    }

    /// Puts back a clone that was taken and cannot be worked on yet.
    pub fn put_back(&mut self, target: Target, order: Order) {
        if let Some(entry) = self.entries.get_mut(&target)
            && entry.place == Place::Taken
        {
            entry.place = Place::Ready;
            self.push(target, order);
        }
    }

    /// Puts back a clone that was taken, to be looked at again when it is due or when something happens to it.
    pub fn defer(&mut self, target: Target, due: Instant) {
        if let Some(entry) = self.entries.get_mut(&target)
            && entry.place == Place::Taken
        {
            entry.place = Place::Delayed(due);
            self.delayed.insert((due, target));
        }
    }

    /// A taken clone needs nothing.
    pub fn done(&mut self, target: &Target) {
        self.entries.remove(target);
    }

    /// Another replica has written this one, or is about to. Replicas begin a fan-out at random places in the same order; one
    /// that meets another changes its direction and goes on from where it began. So two of them meet twice, instead of racing
    /// over the same objects.
    pub fn meet(&mut self, target: &Target) {
        let Some(entry) = self.entries.get_mut(target).filter(|entry| entry.order == Order::Last) else { return };
        // When it is looked at again, that is no further meeting.
        entry.order = Order::First;
        // Of all that were taken on this way, the first meeting counts.
        if entry.turns == self.turns {
            self.turns += 1;
        }
    }

    fn push(&mut self, target: Target, order: Order) {
        match order {
            Order::First => self.first.push_front(target),
            Order::Last => self.last.push_back(target),
        }
    }

    /// A write for a taken clone begins.
    pub fn begin(&mut self, target: &Target) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.place = Place::Writing { again: false };
        }
    }

    /// The write succeeded. Returns when the clone was first marked.
    pub fn succeed(&mut self, target: &Target, now: Instant) -> Option<Instant> {
        let entry = self.entries.remove(target)?;
        if entry.place == (Place::Writing { again: true }) {
            // Our own write comes back through the watch any moment, and is an event as good as any. A look before
            // that would see the state from before the write, and write again.
            self.marks += 1;
            let due = now + ECHO;
            let place = Place::Delayed(due);
            self.entries.insert(
                target.clone(),
                Queued { since: now, mark: self.marks, attempts: 0, order: Order::First, place, turns: 0 },
            );
            self.delayed.insert((due, target.clone()));
        }
        Some(entry.since)
    }

    /// The write failed: the clone is looked at again after a pause that doubles each time, or after
    /// `at_least` when that is longer. Returns the pause.
    pub fn fail(&mut self, target: &Target, at_least: Option<Duration>, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(target) else { return Duration::ZERO };
        // What happened during the write may be why it failed: that is worth another look at once, a few times.
        let happened = entry.place == (Place::Writing { again: true }) && entry.attempts < EAGER_RETRIES;
        let pause = if happened && at_least.is_none() { Duration::ZERO } else { pause(entry.attempts) };
        let pause = pause.max(at_least.unwrap_or_default());
        entry.attempts = entry.attempts.saturating_add(1);
        entry.place = Place::Delayed(now + pause);
        self.delayed.insert((now + pause, target.clone()));
        pause
    }

    /// Whether writes of this one fail so often in a row that what happened meanwhile does not explain it.
    pub fn keeps_failing(&self, target: &Target) -> bool {
        self.entries.get(target).is_some_and(|entry| entry.attempts > EAGER_RETRIES)
    }

    /// Whether something may be looked at now.
    pub fn has_ready(&self) -> bool {
        !(self.first.is_empty() && self.last.is_empty())
    }

    /// When the next delayed clone is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(due, _)| *due)
    }
}

/// The pause after `attempts` failures.
pub fn pause(attempts: u32) -> Duration {
    backoff::pause(attempts, RETRY.0, RETRY.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::observe::Subject;

    fn target(name: &str) -> Target {
        Target { subject: Subject::Clone(0), namespace: name.parse().unwrap() }
    }

    fn taken(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.take(now)).map(|(target, _)| target.namespace.to_string()).collect()
    }

    #[test]
    fn one_that_alone_changed_goes_before_one_of_many_and_each_is_there_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "a"] {
            queue.mark(target(name), Order::Last, now);
        }
        queue.mark(target("c"), Order::First, now);
        assert_eq!(taken(&mut queue, now), ["c", "a", "b"]);
    }

    /// Two replicas in turn, each with so many writes under way, on clones in a ring. Returns how many writes were in vain.
    fn in_vain(begin: [usize; 2], under_way: usize) -> usize {
        const CLONES: usize = 1000;
        let now = Instant::now();
        let mut replicas = begin.map(|begin| {
            let mut queue = Queue::default();
            for index in 0..CLONES {
                queue.mark(target(&format!("n{:03}", (begin + index) % CLONES)), Order::Last, now);
            }
            (queue, VecDeque::new())
        });
        let (mut done, mut in_vain) = (BTreeSet::new(), 0);
        for round in 0..4 * CLONES {
            let (queue, writes) = &mut replicas[round % 2];
            while writes.len() < under_way
                && let Some((next, _)) = queue.take(now)
            {
                if done.contains(&next) {
                    queue.meet(&next);
                    queue.done(&next);
                } else {
                    queue.begin(&next);
                    writes.push_back(next);
                }
            }
            let Some(written) = writes.pop_front() else { continue };
            if done.insert(written.clone()) {
                queue.succeed(&written, now);
            } else {
                in_vain += 1;
                queue.meet(&written);
                queue.done(&written);
            }
        }
        assert_eq!(done.len(), CLONES);
        in_vain
    }

    #[test]
    fn two_replicas_meet_once_wherever_they_began() {
        for under_way in [1, 16] {
            for begin in (0..1000).step_by(7) {
                let in_vain = in_vain([0, begin], under_way);
                // Those that are the same place are a meeting all the time, until one has turned round.
                assert!(in_vain <= 3 * under_way, "{under_way} under way, {begin} apart: {in_vain} in vain");
            }
        }
    }

    #[test]
    fn a_turn_overtakes_nobody_and_is_over_with_the_many() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for name in ["a", "b", "c", "d"] {
            queue.mark(target(name), Order::Last, now);
        }
        let ways = [queue.take(now).unwrap().0, queue.take(now).unwrap().0];
        for met in &ways {
            queue.meet(met);
            queue.done(met);
        }
        queue.mark(target("alone"), Order::First, now);
        assert_eq!(taken(&mut queue, now), ["alone", "d", "c"], "two that were under way are one meeting");
        for name in ["e", "f"] {
            queue.mark(target(name), Order::Last, now);
        }
        queue.mark(target("alone"), Order::First, now);
        let (alone, _) = queue.take(now).unwrap();
        queue.meet(&alone);
        assert_eq!(taken(&mut queue, now), ["e", "f"], "one that changed alone says nothing of the many");
    }

    #[test]
    fn what_happens_during_a_write_is_looked_at_after_it() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.mark(target("a"), Order::First, now);
        let (a, first) = queue.take(now).unwrap();
        queue.begin(&a);
        queue.mark(a.clone(), Order::First, now);
        assert!(queue.take(now).is_none(), "never two writes of one clone at once");
        assert_eq!(queue.succeed(&a, now), Some(now));
        assert!(queue.take(now).is_none(), "the write has not come back yet");
        let (_, second) = queue.take(now + ECHO).unwrap();
        assert!(second > first);
        queue.done(&a);
        assert!(queue.take(now).is_none());
    }

    #[test]
    fn failures_back_off_and_an_event_ends_the_pause() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.mark(target("a"), Order::First, now);
        let mut pauses = Vec::new();
        let mut time = now;
        for _ in 0..12 {
            let (a, _) = queue.take(time).unwrap();
            queue.begin(&a);
            pauses.push(queue.fail(&a, None, time));
            assert!(queue.take(time).is_none());
            time = queue.next_due().unwrap();
        }
        assert!(pauses[0] <= RETRY.0 && pauses[11] >= RETRY.1 / 2 && pauses[11] <= RETRY.1, "{pauses:?}");
        queue.take(time).unwrap();
        queue.begin(&target("a"));
        let pause = queue.fail(&target("a"), Some(Duration::from_mins(2)), time);
        assert_eq!(pause, Duration::from_mins(2), "the server's own wish wins");
        queue.mark(target("a"), Order::First, time);
        assert_eq!(taken(&mut queue, time), ["a"]);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn what_is_deferred_waits_until_it_is_due_or_something_happens() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let due = now + Duration::from_mins(1);
        for name in ["a", "b"] {
            queue.mark(target(name), Order::First, now);
            let (taken, _) = queue.take(now).unwrap();
            queue.defer(taken, due);
        }
        assert!(queue.take(now).is_none());
        assert_eq!(queue.next_due(), Some(due));
        queue.mark(target("a"), Order::First, now);
        assert_eq!(taken(&mut queue, now), ["a"]);
        assert_eq!(taken(&mut queue, due), ["b"]);
    }
}

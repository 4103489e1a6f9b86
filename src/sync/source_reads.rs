//! Quorum reads of one source: which answer is good enough for which write. PURE.
//!
//! A write rests on a read that began after the event that asked for it; each event has a number, its mark. One read
//! serves every object that waits for it. The content of the source is held only as long as something is to be written.

use std::time::Instant;

use super::{observe::Target, queue};
use crate::cluster::Problem;

/// The reads of one source; `S` is what a read gives.
#[derive(Debug)]
pub(super) struct SourceReads<S> {
    running: bool,
    /// The latest answer, and the latest mark when it was asked for.
    answer: Option<(u64, S)>,
    failures: u32,
    not_before: Option<Instant>,
    /// Objects that need a later read before they are written.
    waiting: Vec<Target>,
}

impl<S> Default for SourceReads<S> {
    fn default() -> Self {
        Self { running: false, answer: None, failures: 0, not_before: None, waiting: Vec::new() }
    }
}

impl<S> SourceReads<S> {
    /// The answer of a read that began no earlier than this mark was made.
    pub(super) fn answer(&self, mark: u64) -> Option<&S> {
        self.answer.as_ref().filter(|(at, _)| *at >= mark).map(|(_, source)| source)
    }

    /// An object needs a later read.
    pub(super) fn wait(&mut self, target: Target) {
        self.waiting.push(target);
    }

    /// Whether an object waits for a read.
    pub(super) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a read is to begin now. It counts as begun then.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.is_awaited() && !self.running && self.not_before.is_none_or(|due| due <= now);
        self.running |= begins;
        begins
    }

    /// When the next read may begin, if one waits for that alone.
    pub(super) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.is_awaited() && !self.running)
    }

    /// A read that began when `mark` was the latest has its answer. Returns the objects that waited.
    pub(super) fn succeed(&mut self, mark: u64, source: S) -> Vec<Target> {
        self.running = false;
        (self.failures, self.not_before, self.answer) = (0, None, Some((mark, source)));
        std::mem::take(&mut self.waiting)
    }

    /// A read failed; the next one waits, the more failures the longer. Returns the objects that waited.
    pub(super) fn fail(&mut self, problem: &Problem, now: Instant) -> Vec<Target> {
        self.running = false;
        let pause = queue::pause(self.failures).max(problem.retry_after.unwrap_or_default());
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
        std::mem::take(&mut self.waiting)
    }

    /// The API server is known to answer: the next read need not wait any longer.
    pub(super) fn retry(&mut self) {
        (self.failures, self.not_before) = (0, None);
    }

    /// Nothing is to be written now: the content need not be held.
    pub(super) fn forget(&mut self) {
        self.answer = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{cluster::Reason, sync::observe::Subject};

    fn target() -> Target {
        Target { subject: Subject::Clone(0), namespace: "n".parse().unwrap() }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The source changes, and an event says so.
        Change,
        /// A read begins, if one is wanted.
        Begin,
        /// The read that runs has its answer, of now or of when it began.
        Answer { is_late: bool },
        /// The read that runs fails.
        Fail,
        /// An object of the latest event wants to be written.
        Want,
        /// Nothing is to be written.
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Change),
            Just(Step::Begin),
            any::<bool>().prop_map(|is_late| Step::Answer { is_late }),
            Just(Step::Fail),
            Just(Step::Want),
            Just(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn no_write_rests_on_a_read_that_is_older_than_its_event(steps in vec(step(), 0..200)) {
            let mut reads = SourceReads::<u64>::default();
            // Each change of the source has one event: the version is the mark.
            let (mut version, mut running, mut now) = (0_u64, None, Instant::now());
            for step in steps {
                match step {
                    Step::Change => version += 1,
                    Step::Begin => {
                        now += Duration::from_mins(1);
                        if reads.begin(now) {
                            prop_assert!(running.is_none(), "two at once");
                            running = Some(version);
                        }
                    }
                    Step::Answer { is_late } => {
                        if let Some(mark) = running.take() {
                            reads.succeed(mark, if is_late { version } else { mark });
                        }
                    }
                    Step::Fail => {
                        if running.take().is_some() {
                            reads.fail(&Problem::timeout("read", Duration::ZERO), now);
                        }
                    }
                    Step::Want => match reads.answer(version) {
                        Some(read) => prop_assert_eq!(*read, version, "an old content would be written"),
                        None => reads.wait(target()),
                    },
                    Step::Forget => reads.forget(),
                }
            }
        }
    }

    #[test]
    fn a_read_serves_all_who_wait_and_a_failure_delays_the_next() {
        let (mut reads, now) = (SourceReads::default(), Instant::now());
        assert!(!reads.begin(now), "nobody waits");
        reads.wait(target());
        reads.wait(target());
        assert!(reads.begin(now) && !reads.begin(now), "one at a time");
        let problem = Problem { retry_after: Some(Duration::from_mins(1)), ..Problem::timeout("read", Duration::ZERO) };
        assert_eq!(problem.reason, Reason::Timeout);
        assert_eq!(reads.fail(&problem, now).len(), 2);
        reads.wait(target());
        assert!(!reads.begin(now));
        let due = reads.due().unwrap();
        assert!(due >= now + Duration::from_mins(1) && reads.begin(due));
        assert_eq!(reads.succeed(7, "content").len(), 1);
        assert_eq!((reads.answer(7), reads.answer(8), reads.due()), (Some(&"content"), None, None));
        reads.forget();
        assert_eq!(reads.answer(7), None);
    }
}

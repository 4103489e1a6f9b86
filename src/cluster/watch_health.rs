//! How one watch does: its readiness gate, its errors in metrics and log.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;

use super::{Change, Problem};
use crate::telemetry::{
    health::{Health, ReadinessGate},
    metrics::{Metrics, WatchKind, WatchLabels, WatchedLabels},
};

/// A watch that keeps failing for the same reason is logged again after this long.
const REMINDER: Duration = Duration::from_mins(5);

/// Notes what a watch tells: ready once it has listed, one log line for each change.
pub struct WatchHealth {
    gate: ReadinessGate,
    metrics: Metrics,
    kind: WatchKind,
    last_event: Gauge,
    loaded: bool,
    /// The reason of the problem that was last logged, and when.
    problem: Option<(&'static str, Instant)>,
}

impl WatchHealth {
    /// Of a watch that has told nothing yet; `what` names it in the list of readiness gates.
    pub fn new(health: &Arc<Health>, metrics: Metrics, kind: WatchKind, what: &str) -> Self {
        let gate = health.gate(format!("watch {what}"));
        let last_event = metrics.watch_last_event.get_or_create_owned(&WatchedLabels { watch: what.to_owned() });
        Self { gate, metrics, kind, last_event, loaded: false, problem: None }
    }

    /// Notes a change.
    pub fn note<T>(&mut self, change: &Change<T>) {
        if !matches!(change, Change::Failed(_)) {
            self.last_event.set(Timestamp::now().as_second());
        }
        match change {
            Change::ListBegins | Change::Listed(_) => {}
            Change::Failed(problem) => self.fail(problem),
            Change::ListEnds | Change::Applied(_) | Change::Deleted(_) => self.recover(),
        }
    }

    /// Whether it is failing at the moment.
    pub fn is_failing(&self) -> bool {
        self.problem.is_some()
    }

    fn fail(&mut self, problem: &Problem) {
        let reason = problem.reason.as_str();
        self.metrics.watch_errors.get_or_create(&WatchLabels { kind: self.kind, reason }).inc();
        let logged = self.problem.is_some_and(|(last, at)| last == reason && at.elapsed() < REMINDER);
        if !logged {
            self.problem = Some((reason, Instant::now()));
            tracing::warn!(reason, detail = %problem, "a watch failed; it is tried again, what is known stays");
        }
        // Once loaded, memory serves on: an API server that is away does not make us unready.
        if !self.loaded {
            self.gate.fail(&problem.to_string());
        }
    }

    fn recover(&mut self) {
        if !std::mem::replace(&mut self.loaded, true) {
            self.gate.set(true);
        }
        if self.problem.take().is_some() {
            tracing::info!("the watch works again");
        }
    }
}

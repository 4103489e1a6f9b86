//! Prometheus metrics: base units, bounded labels, one prefix.

use std::sync::{Arc, Mutex};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

use crate::names;

/// All metrics of the program. Clones share the values.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// Answers to admission reviews.
    pub admissions: Family<AdmissionLabels, Counter>,
    /// Time from a read review to its answer, in seconds.
    pub admission_duration: Family<WebhookLabels, Histogram, fn() -> Histogram>,
    /// Handlers that panicked; each was one HTTP 500.
    pub panics: Counter,
    /// Connections closed and reviews put off for want of room.
    pub shed: Family<ShedLabels, Counter>,
    /// Clones by their state.
    pub clones: Family<CloneLabels, Gauge>,
    /// Trust bundles by their state.
    pub trust_bundles: Family<StateLabels, Gauge>,
    /// Writes to clones and trust bundles, by what was done and how it ended.
    pub writes: Family<WriteLabels, Counter>,
    /// Time from the event that made a clone wrong to the write that made it right, in seconds.
    pub sync_lag: Histogram,
    /// How long pods waited for their clones at the gate, in seconds; those that found them current are not counted.
    pub gate_wait: Histogram,
    /// When each watch last brought an event, in seconds since the epoch. At rest there is none: its age is no fault.
    pub watch_last_event: Family<WatchedLabels, Gauge>,
    /// Errors of watches, by the kind of object and reason.
    pub watch_errors: Family<WatchLabels, Counter>,
    /// Reads that showed something else than a watch, by cloned Secret.
    pub watch_contradictions: Family<SecretLabels, Counter>,
    /// When the certificate that is served expires, in seconds since the epoch.
    pub certificate_not_after: Gauge,
    /// Certificate files that could not be used; the former certificate stays.
    pub certificate_reload_errors: Counter,
    /// When the CA that issues serving certificates expires, in seconds since the epoch.
    pub ca_not_after: Gauge,
}

/// Labels of an admission answer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct AdmissionLabels {
    /// `mutate-pods`, `mutate-namespaces` or `validate-pods`.
    pub webhook: &'static str,
    /// `allowed`, `patched`, `denied` or `error`.
    pub decision: &'static str,
    /// Why, from the closed set of the module that decided.
    pub reason: &'static str,
}

/// The webhook alone.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WebhookLabels {
    /// `mutate-pods`, `mutate-namespaces` or `validate-pods`.
    pub webhook: &'static str,
}

/// For want of what room.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ShedLabels {
    /// `connections`, `waiting` or `bodies`.
    pub reason: &'static str,
}

/// Labels of the clone gauge.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CloneLabels {
    /// Name of the cloned Secret.
    pub secret: String,
    /// State of the clone, from the closed set of `sync`.
    pub state: &'static str,
}

/// A cloned Secret alone.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SecretLabels {
    /// Name of the cloned Secret.
    pub secret: String,
}

/// A state alone.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabels {
    /// State, from the closed set of `sync`.
    pub state: &'static str,
}

/// Labels of a write.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WriteLabels {
    /// Name of the object.
    pub object: String,
    /// `create`, `update`, `replace` or `delete`.
    pub action: &'static str,
    /// `ok` or the reason of the failure.
    pub result: &'static str,
}

/// Labels of a watch.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WatchLabels {
    /// What is watched.
    pub kind: WatchKind,
    /// Reason of the error.
    pub reason: &'static str,
}

/// One watch.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WatchedLabels {
    /// What is watched, as `/readyz` has it: as many as the configuration has names and selectors.
    pub watch: String,
}

/// What a watch watches.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[allow(missing_docs, reason = "the names say it")]
pub enum WatchKind {
    Namespace,
    Secret,
    ConfigMap,
    WebhookConfiguration,
}

impl Metrics {
    /// All metrics, registered, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(names::METRIC_PREFIX);
        let metrics = Self {
            registry: Arc::default(),
            admissions: Family::default(),
            admission_duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_05, 2.0, 16))),
            panics: Counter::default(),
            shed: Family::default(),
            clones: Family::default(),
            trust_bundles: Family::default(),
            writes: Family::default(),
            sync_lag: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            gate_wait: Histogram::new(exponential_buckets(0.01, 2.0, 8)),
            watch_last_event: Family::default(),
            watch_errors: Family::default(),
            watch_contradictions: Family::default(),
            certificate_not_after: Gauge::default(),
            certificate_reload_errors: Counter::default(),
            ca_not_after: Gauge::default(),
        };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the running program", build);
        registry.register(
            "admissions",
            "Answers to admission reviews, by webhook, decision and reason",
            metrics.admissions.clone(),
        );
        registry.register(
            "admission_duration_seconds",
            "Time from a read review to its answer, by webhook",
            metrics.admission_duration.clone(),
        );
        registry.register("panics", "Handlers that panicked", metrics.panics.clone());
        registry.register(
            "shed",
            "Connections closed and reviews put off for want of room, by reason",
            metrics.shed.clone(),
        );
        registry.register("clones", "Clones, by secret and state", metrics.clones.clone());
        registry.register("trust_bundles", "Trust bundles, by state", metrics.trust_bundles.clone());
        registry.register("writes", "Writes to the API server, by object, action and result", metrics.writes.clone());
        registry.register(
            "sync_lag_seconds",
            "Time from the event that made a clone wrong to the write that made it right",
            metrics.sync_lag.clone(),
        );
        registry.register(
            "gate_wait_seconds",
            "Time that pods waited at the gate for a clone that was not current",
            metrics.gate_wait.clone(),
        );
        registry.register(
            "watch_last_event_timestamp_seconds",
            "When each watch last brought an event, by watch",
            metrics.watch_last_event.clone(),
        );
        registry.register("watch_errors", "Errors of watches, by kind and reason", metrics.watch_errors.clone());
        registry.register(
            "watch_contradictions",
            "Reads that showed something else than a watch had told, by cloned Secret",
            metrics.watch_contradictions.clone(),
        );
        registry.register(
            "certificate_not_after_timestamp_seconds",
            "When the certificate that is served expires",
            metrics.certificate_not_after.clone(),
        );
        registry.register(
            "certificate_reload_errors",
            "Certificate files that could not be used",
            metrics.certificate_reload_errors.clone(),
        );
        registry.register(
            "ca_not_after_timestamp_seconds",
            "When the CA that issues serving certificates expires",
            metrics.ca_not_after.clone(),
        );
        if let Ok(mut shared) = metrics.registry.lock() {
            *shared = registry;
        }
        metrics
    }

    /// The metrics in the `OpenMetrics` text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        if let Ok(registry) = self.registry.lock() {
            // Writing to a String cannot fail.
            let _ = text::encode(&mut page, &registry);
        }
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_the_prefix_and_the_page_ends_as_openmetrics_does() {
        let page = Metrics::new().encode();
        for line in page.lines().filter(|line| line.starts_with("# HELP")) {
            assert!(line.starts_with("# HELP gitlab_runner_webhook_"), "{line}");
        }
        assert!(page.ends_with("# EOF\n"));
    }
}

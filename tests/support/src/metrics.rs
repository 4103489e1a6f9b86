//! All metrics, each with a value: a family that is empty is not on the page.

use gitlab_runner_webhook::telemetry::metrics::{
    AdmissionLabels, CloneLabels, Metrics, SecretLabels, ShedLabels, StateLabels, WatchKind, WatchLabels,
    WatchedLabels, WebhookLabels, WriteLabels,
};

/// Metrics of a program to which everything has happened once.
pub fn after_everything() -> Metrics {
    let metrics = Metrics::new();
    let admission = AdmissionLabels { webhook: "validate-pods", decision: "denied", reason: "stale" };
    metrics.admissions.get_or_create(&admission).inc();
    metrics.admission_duration.get_or_create(&WebhookLabels { webhook: "validate-pods" }).observe(0.1);
    metrics.shed.get_or_create(&ShedLabels { reason: "bodies" }).inc();
    metrics.clones.get_or_create(&CloneLabels { secret: "s".to_owned(), state: "synced" }).set(1);
    metrics.trust_bundles.get_or_create(&StateLabels { state: "synced" }).set(1);
    let write = WriteLabels { object: "s".to_owned(), action: "create", result: "ok" };
    metrics.writes.get_or_create(&write).inc();
    metrics.watch_errors.get_or_create(&WatchLabels { kind: WatchKind::Secret, reason: "timeout" }).inc();
    metrics.watch_contradictions.get_or_create(&SecretLabels { secret: "s".to_owned() }).inc();
    metrics.watch_last_event.get_or_create(&WatchedLabels { watch: "w".to_owned() }).set(1);
    metrics
}

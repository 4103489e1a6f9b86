//! What several checks name as the way out. PURE.

use gitlab_runner_webhook::names::APP;

use super::facts::Facts;

/// Only the overlay that it was installed by knows its names, how it fails, and which form its rights have.
pub(super) const APPLY: &str =
    "kubectl apply -k my-overlay   # what you install with; where nothing was changed: manifests/overlays/default";

/// Rights, guard and webhooks that follow from a configuration.
pub(super) fn write_anew() -> String {
    format!("gitlab-runner-webhook manifests --config config.yaml --output my-overlay/generated\n{APPLY}")
}

/// The end of the program's log.
pub(super) fn logs(facts: &Facts) -> String {
    format!("kubectl logs -n {} -l app.kubernetes.io/name={APP} --tail=100", facts.program.namespace)
}

/// What the program writes itself, it did not write.
pub(super) fn look_at_the_program(facts: &Facts) -> String {
    format!(
        "The program writes it as soon as it runs and may: look at its state and at the check `rights`.\n\
         kubectl get pods -n {}\n{}",
        facts.program.namespace,
        logs(facts)
    )
}

/// The program's pods begin anew.
pub(super) fn restart(facts: &Facts) -> String {
    format!("kubectl rollout restart deployment/{APP} -n {}", facts.program.namespace)
}

//! The policy that this program replaces. PURE.

use gitlab_runner_webhook::names::KYVERNO_POLICY;

use super::{
    facts::Facts,
    report::{Check, Finding},
};

pub(super) fn judge(facts: &Facts) -> Finding {
    let subject = format!("ClusterPolicy {KYVERNO_POLICY}");
    match &facts.kyverno {
        Err(unseen) => Finding::unseen(Check::Kyverno, subject, unseen),
        Ok(false) => Finding::ok(Check::Kyverno, subject, "not there"),
        Ok(true) => Finding::fault(Check::Kyverno, subject, "is alive")
            .impact(
                "It writes the clone, too. While both agree nothing happens; but it deletes the clone when the source \
                 goes, and from Kyverno 1.19 on when the policy itself is deleted.",
            )
            .remediation(
                "gitlab-runner-webhook migrate --dry-run   # shows how to move without a moment without the clone",
            ),
    }
}

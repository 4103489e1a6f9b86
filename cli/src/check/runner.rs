//! Manager pods and the token that they read. PURE.

use gitlab_runner_webhook::config::Config;
use k8s_openapi::jiff::Timestamp;

use super::{
    facts::{Facts, Presence, RunnerNamespace, SecretFacts, Seen},
    manager::Manager,
    report::{Check, Finding},
    source::holds_tokens,
};

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let active = facts.namespaces.iter().filter(|namespace| namespace.presence == Ok(Presence::Active));
    active
        .flat_map(|namespace| match &namespace.managers {
            Err(unseen) => vec![Finding::unseen(Check::ManagerToken, namespace.name.as_str(), unseen)],
            Ok(managers) if managers.is_empty() => {
                vec![Finding::ok(Check::ManagerToken, namespace.name.as_str(), "no manager pod there")]
            }
            Ok(managers) => managers.iter().map(|manager| token(manager, namespace, facts, config)).collect(),
        })
        .collect()
}

fn token(manager: &Manager, namespace: &RunnerNamespace, facts: &Facts, config: &Config) -> Finding {
    let subject = manager.shown.as_str();
    let Some(started) = manager.started else {
        return Finding::ok(Check::ManagerToken, subject, "does not run yet: it reads the token when it starts");
    };
    for ((spec, source), clone) in config.clones.iter().zip(&facts.sources).zip(&namespace.clones) {
        if !manager.demands.contains_key(spec.secret.as_str()) {
            continue;
        }
        let Some(written) = token_written(seen(source), seen(clone)) else { continue };
        if started < written {
            let what = format!("runs since {started:.0}, and {} was written at {written:.0}", spec.source());
            return Finding::fault(Check::ManagerToken, subject, what)
                .impact(
                    "The runner reads its token once, when it starts, and the chart's checksum does not see the Secret: \
                     it works with the token of before until that is revoked.",
                )
                .remediation(&*manager.restart);
        }
    }
    if !config.restart.is_empty() && !manager.is_graceful {
        return Finding::warning(Check::ManagerToken, subject, "is restarted when its token changes, and its jobs end with it")
            .impact("With the chart's defaults, running jobs fail (\"aborted: terminated\") with each new token.")
            .remediation(
                "Set in the chart's values:\n\
                 unregisterRunners: false\n\
                 terminationGracePeriodSeconds: 3600\n\
                 deploymentLifecycle:\n  \
                   preStop:\n    \
                     exec:\n      \
                       command: [\"/bin/sh\", \"-c\", \"kill -QUIT 1; while pgrep -x gitlab-runner >/dev/null; do sleep 1; done\"]",
            );
    }
    Finding::ok(Check::ManagerToken, subject, "started after its token was written")
}

fn seen(secret: &Seen<Option<SecretFacts>>) -> Option<&SecretFacts> {
    secret.as_ref().ok()?.as_ref()
}

/// When the token became what it is, at the latest. A source is also written for its labels, and a clone to restore it:
/// where they are equal, the earlier of the two says that it was there already.
fn token_written(source: Option<&SecretFacts>, clone: Option<&SecretFacts>) -> Option<Timestamp> {
    let token = source.or(clone).filter(|secret| holds_tokens(secret))?;
    match (source, clone) {
        (Some(source), Some(clone)) if clone.state.has_content_of(&source.state) => {
            [source.written, clone.written].into_iter().flatten().min()
        }
        _ => token.written,
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;

//! Whether webhooks and guards are what follows from the configuration. PURE.

use gitlab_runner_webhook::config::Config;
use serde_json::Value;

use super::{
    facts::{Facts, Seen},
    remediation::{APPLY, write_anew},
    report::{Check, Finding},
};
use crate::drift::{Program, differences};

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let serving = &facts.serving;
    for (kind, found) in
        [("MutatingWebhookConfiguration", &serving.mutating), ("ValidatingWebhookConfiguration", &serving.validating)]
    {
        let subject = format!("{kind} {}", facts.program.webhook_configuration);
        match found {
            Err(unseen) => findings.push(Finding::unseen(Check::Webhooks, subject, unseen)),
            // The check of the registration says so.
            Ok(None) => {}
            Ok(Some(there)) => findings.push(webhooks(&subject, kind, there, &facts.program, config)),
        }
    }
    for (name, policy, binding) in &facts.guards {
        findings.push(guard(name, policy, binding, &facts.program, config));
    }
    findings
}

fn webhooks(subject: &str, kind: &str, there: &Value, program: &Program, config: &Config) -> Finding {
    let problems = differences::of_webhooks(kind, there, program, config);
    if problems.is_empty() {
        return Finding::ok(Check::Webhooks, subject, "selects what the configuration says");
    }
    Finding::fault(
        Check::Webhooks,
        subject,
        format!("differs from what the configuration says in {}", problems.join(", ")),
    )
    .impact(
        "A runner namespace that no webhook selects gets no certificates and no gate; one that is selected and no \
             runner namespace waits for the program for nothing.",
    )
    .remediation(write_anew())
}

fn guard(
    name: &str,
    policy: &Seen<Option<Value>>,
    binding: &Seen<Option<Value>>,
    program: &Program,
    config: &Config,
) -> Finding {
    let subject = format!("ValidatingAdmissionPolicy {name}");
    let fault = |what: String| {
        Finding::fault(Check::Guards, subject.clone(), what)
            .impact(
                "RBAC binds what the program may write to names, not to namespaces and fields: without its guard, a \
                 stolen token of it can do more than it needs; with one for another configuration, its writes are refused.",
            )
            .remediation(if name.ends_with("-objects") { write_anew() } else { APPLY.to_owned() })
    };
    for (object, what, kind) in [
        (policy, "", "ValidatingAdmissionPolicy"),
        (binding, "its ValidatingAdmissionPolicyBinding ", "ValidatingAdmissionPolicyBinding"),
    ] {
        match object {
            Err(unseen) => return Finding::unseen(Check::Guards, subject, unseen),
            Ok(None) => return fault(format!("{what}is not there")),
            Ok(Some(there)) => {
                let differing = differences::of_guard(kind, name, there, program, config);
                if let Some(condition) = differing.iter().find(|path| path.starts_with("matchConditions")) {
                    return fault(format!(
                        "does not bind ServiceAccount {}/{}: {condition} is for another one",
                        program.namespace, program.service_account
                    ));
                }
                if !differing.is_empty() {
                    return fault(format!(
                        "{what}differs from what the configuration says in {}",
                        differing.join(", ")
                    ));
                }
            }
        }
    }
    Finding::ok(Check::Guards, subject, "guards what the configuration says")
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;

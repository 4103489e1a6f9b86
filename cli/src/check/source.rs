//! Sources, runner namespaces and clones. PURE.

use std::collections::BTreeSet;

use gitlab_runner_webhook::{
    config::{CloneSpec, Config, OnForeignTarget},
    names::{LABEL_KYVERNO_POLICY, LABEL_KYVERNO_POLICY_NAMESPACE, LABEL_PREFIX_KYVERNO},
};

use super::{
    facts::{Facts, Presence, RunnerNamespace, SecretFacts, Seen, Unseen},
    remediation::look_at_the_program,
    report::{Check, Finding},
};

/// What the runner's chart mounts, whichever of the two is used.
const TOKEN: &str = "runner-token";
const REGISTRATION_TOKEN: &str = "runner-registration-token";
/// The Secret of the mission has both keys, manager pods or not.
const SECRET_OF_TOKENS: &str = "gitlab-gitlab-runner-secret";

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (spec, source) in config.clones.iter().zip(&facts.sources) {
        findings.extend(source_findings(spec, source, facts));
    }
    for unlisted in &facts.unlisted {
        findings.push(Finding::unseen(Check::RunnerNamespace, "by label", unlisted));
    }
    for namespace in &facts.namespaces {
        findings.push(namespace_finding(namespace));
        if !matches!(namespace.presence, Ok(Presence::Active)) {
            continue;
        }
        for ((spec, source), clone) in config.clones.iter().zip(&facts.sources).zip(&namespace.clones) {
            if spec.from != namespace.name {
                findings.extend(clone_finding(spec, source, clone, namespace, facts));
            }
        }
    }
    findings
}

fn source_findings(spec: &CloneSpec, source: &Seen<Option<SecretFacts>>, facts: &Facts) -> Vec<Finding> {
    let subject = spec.source();
    let source = match source {
        Err(unseen) => return vec![Finding::unseen(Check::Source, subject, unseen)],
        Ok(None) => {
            let remediation = if spec.holds_certs {
                format!(
                    "kubectl create secret generic {} -n {} --from-file=ca.crt=company-ca.pem",
                    spec.secret, spec.from
                )
            } else {
                "GitLab's chart makes it with its hook shared-secrets: run `helm upgrade` of GitLab, or let Flux do so.\n\
                 If your GitLab keeps it elsewhere, say so in clones[].secret and clones[].from."
                    .to_owned()
            };
            let fault = Finding::fault(Check::Source, subject, "is not there").impact(
                "There is nothing to clone, so a new runner namespace has no token and its runner does not start.",
            );
            return vec![fault.remediation(remediation)];
        }
        Ok(Some(source)) => source,
    };
    if source.state.has_side_effects() {
        let what = format!("has type {}, which is never cloned", source.state.secret_type);
        let fault = Finding::fault(Check::Source, subject, what).impact(
            "A controller acts on Secrets of this type: a copy would be overwritten, or grant what it must not.",
        );
        return vec![fault.remediation("Keep the token in a Secret of type Opaque, and name that in clones[].secret.")];
    }
    let demanded = demanded(spec, source, facts);
    let mut findings = vec![keys(spec, source, &demanded)];
    if demanded.iter().any(|key| key == TOKEN) {
        findings.extend(token(spec, source));
    }
    findings
}

/// Whether it holds what a runner authenticates or registers with.
pub(super) fn holds_tokens(secret: &SecretFacts) -> bool {
    [TOKEN, REGISTRATION_TOKEN].iter().any(|key| secret.shapes.contains_key(*key))
}

/// The keys without which kubelet starts no manager pod.
fn demanded(spec: &CloneSpec, source: &SecretFacts, facts: &Facts) -> BTreeSet<String> {
    let managers = facts.namespaces.iter().filter_map(|namespace| namespace.managers.as_ref().ok()).flatten();
    let mut demanded: BTreeSet<String> =
        managers.filter_map(|manager| manager.demands.get(spec.secret.as_str())).flatten().cloned().collect();
    let is_of_tokens = spec.secret.as_str() == SECRET_OF_TOKENS || holds_tokens(source);
    if demanded.is_empty() && is_of_tokens && !spec.holds_certs {
        demanded.extend([TOKEN, REGISTRATION_TOKEN].map(str::to_owned));
    }
    demanded
}

fn keys(spec: &CloneSpec, source: &SecretFacts, demanded: &BTreeSet<String>) -> Finding {
    let missing: Vec<_> = demanded.iter().filter(|key| !source.shapes.contains_key(*key)).map(String::as_str).collect();
    if !missing.is_empty() {
        let patch = missing.iter().map(|key| format!("\"{key}\":\"\"")).collect::<Vec<_>>().join(",");
        return Finding::fault(Check::Source, spec.source(), format!("has no key {}", missing.join(" and no key ")))
            .impact(
                "The runner's chart mounts runner-token and runner-registration-token, both or none: kubelet does not \
                 start the manager pod (\"references non-existent secret key\"). One of the two may be empty.",
            )
            .remediation(format!(
                "kubectl patch secret {} -n {} --type=merge -p '{{\"stringData\":{{{patch}}}}}'",
                spec.secret, spec.from
            ));
    }
    let there: Vec<_> = source.shapes.keys().map(String::as_str).collect();
    Finding::ok(Check::Source, spec.source(), format!("there, with {}", there.join(", ")))
}

fn token(spec: &CloneSpec, source: &SecretFacts) -> Vec<Finding> {
    let subject = spec.source();
    let is_empty = |key: &str| source.shapes.get(key).is_none_or(|shape| shape.is_empty);
    let blank = [TOKEN, REGISTRATION_TOKEN]
        .into_iter()
        .filter(|key| source.shapes.get(*key).is_some_and(|shape| shape.has_blank_edge && !shape.is_empty));
    let mut findings: Vec<_> = blank
        .map(|key| {
            Finding::fault(
                Check::Token,
                subject.clone(),
                format!("{key} begins or ends with white space, a newline mostly"),
            )
            .impact(
                "Whoever puts it into a header as it is gets \"invalid header field for Private-Token\". `echo` and \
                     editors add a newline; clones are equal to the last byte, so each of them has it.",
            )
            .remediation(without_white_space(spec, key))
        })
        .collect();
    match (is_empty(TOKEN), is_empty(REGISTRATION_TOKEN)) {
        (true, true) => findings.push(
            Finding::fault(Check::Token, subject, "runner-token and runner-registration-token are both empty")
                .impact("The runner has nothing to register or to authenticate with.")
                .remediation(authentication_token(spec)),
        ),
        (true, false) => findings.push(
            Finding::warning(Check::Token, subject, "holds a registration token, and no authentication token")
                .impact(
                    "GitLab has registration tokens switched off by default since 17.0: registration works only where an \
                     administrator allows them.",
                )
                .remediation(authentication_token(spec)),
        ),
        (false, _) if findings.is_empty() => {
            findings.push(Finding::ok(Check::Token, subject, "an authentication token, without white space around it"));
        }
        (false, _) => {}
    }
    findings
}

/// The token is on no command line, where others could see it.
fn without_white_space(spec: &CloneSpec, key: &str) -> String {
    format!(
        "kubectl get secret {secret} -n {from} -o jsonpath=\"{{.data['{key}']}}\" \\\n  \
         | base64 -d | tr -d '[:space:]' | base64 | tr -d '\\n' \\\n  \
         | sed 's/.*/{{\"data\":{{\"{key}\":\"&\"}}}}/' \\\n  \
         | kubectl patch secret {secret} -n {from} --type=merge --patch-file=/dev/stdin",
        secret = spec.secret,
        from = spec.from
    )
}

fn authentication_token(spec: &CloneSpec) -> String {
    format!(
        "Create a runner in GitLab (Admin, CI/CD, Runners), save its token in file token.txt without a newline, then\n\
         base64 < token.txt | tr -d '\\n' \\\n  \
         | sed 's/.*/{{\"data\":{{\"{TOKEN}\":\"&\",\"{REGISTRATION_TOKEN}\":\"\"}}}}/' \\\n  \
         | kubectl patch secret {} -n {} --type=merge --patch-file=/dev/stdin",
        spec.secret, spec.from
    )
}

fn namespace_finding(namespace: &RunnerNamespace) -> Finding {
    let subject = namespace.name.to_string();
    match &namespace.presence {
        Err(unseen) => Finding::unseen(Check::RunnerNamespace, subject, unseen),
        Ok(Presence::Active) => Finding::ok(Check::RunnerNamespace, subject, "there"),
        Ok(Presence::Terminating) => Finding::warning(Check::RunnerNamespace, subject, "is being deleted")
            .impact("Nothing is written there; the next namespace of that name gets its clones.")
            .remediation("Wait for it; `kubectl get namespace NAME -o yaml` says in its conditions what it waits for."),
        Ok(Presence::Absent) => Finding::warning(Check::RunnerNamespace, subject, "is not there")
            .impact("It gets its clones when it comes; until then there is no runner.")
            .remediation("Create it, or take it out of runnerNamespaces.names."),
    }
}

fn clone_finding(
    spec: &CloneSpec,
    source: &Seen<Option<SecretFacts>>,
    clone: &Seen<Option<SecretFacts>>,
    namespace: &RunnerNamespace,
    facts: &Facts,
) -> Option<Finding> {
    let subject = format!("{}/{}", namespace.name, spec.secret);
    let clone = match clone {
        Err(unseen) => return Some(Finding::unseen(Check::Clone, subject, unseen)),
        Ok(clone) => clone.as_ref(),
    };
    let source = match source {
        Err(Unseen(why)) => {
            let why = format!("its source {} to compare it with: {why}", spec.source());
            return Some(Finding::unseen(Check::Clone, subject, why));
        }
        Ok(source) => source.as_ref(),
    };
    match (source, clone) {
        (None, None) => None,
        (None, Some(clone)) => {
            let whose = Whose::of(spec, clone).told();
            Some(Finding::ok(Check::Clone, subject, format!("there; {whose}; there is no source to compare it with")))
        }
        (Some(source), _) if source.state.has_side_effects() => None,
        (Some(_), None) => Some(
            Finding::fault(Check::Clone, subject, "is not there, although its source is")
                .impact("The manager pod waits for it (\"Unable to mount volumes\"), and the runner does not start.")
                .remediation(look_at_the_program(facts)),
        ),
        (Some(source), Some(clone)) => Some(compare(spec, subject, source, clone, facts)),
    }
}

fn compare(spec: &CloneSpec, subject: String, source: &SecretFacts, clone: &SecretFacts, facts: &Facts) -> Finding {
    let whose = Whose::of(spec, clone);
    let (namespace, name) = subject.split_once('/').unwrap_or_default();
    let at = format!("{name} -n {namespace}");
    if !clone.state.has_content_of(&source.state) {
        let refused = whose == Whose::Foreign && spec.on_foreign_target == OnForeignTarget::Refuse;
        let what = format!("differs from its source; {}", whose.told());
        let fault = Finding::fault(Check::Clone, subject.clone(), what)
            .impact("A runner that reads it has another token than GitLab gave out.");
        let remediation = if refused {
            format!(
                "It is left alone because onForeignTarget is refuse. Delete it and the clone takes its place:\n\
                 kubectl delete secret {at}"
            )
        } else {
            look_at_the_program(facts)
        };
        return fault.remediation(remediation);
    }
    match whose {
        Whose::Ours => Finding::ok(Check::Clone, subject, "equals its source; ours"),
        // As long as the policy lives, or nobody can say, that is the finding.
        Whose::Kyvernos if facts.kyverno != Ok(false) => {
            Finding::ok(Check::Clone, subject, "equals its source; Kyverno's by its labels")
        }
        Whose::Kyvernos => Finding::warning(
            Check::Clone,
            subject.clone(),
            "equals its source; still has Kyverno's labels",
        )
        .impact(
            "A Kyverno that is installed later, or whose policy comes back, takes it for its own. We restore it when \
                 it differs, and otherwise leave it alone.",
        )
        .remediation(without_kyverno(clone, &at)),
        Whose::Foreign => Finding::warning(Check::Clone, subject, "equals its source; foreign: it lacks our marks")
            .impact("The program marks what it looks after: it did not get to this one.")
            .remediation(look_at_the_program(facts)),
    }
}

/// `migrate` knows what else Kyverno left there; without the name of the policy it does not know which clones are meant.
fn without_kyverno(clone: &SecretFacts, at: &str) -> String {
    let label = |name: &str| clone.state.metadata.labels.as_ref()?.get(name).filter(|value| !value.is_empty());
    if let (Some(policy), None) = (label(LABEL_KYVERNO_POLICY), label(LABEL_KYVERNO_POLICY_NAMESPACE)) {
        return format!(
            "gitlab-runner-webhook migrate --policy {policy}   # with --dry-run it only says what it would do"
        );
    }
    let labels: Vec<_> = kyverno_labels(clone).map(|label| format!("{label}-")).collect();
    format!("kubectl label secret {at} {}", labels.join(" "))
}

fn kyverno_labels(clone: &SecretFacts) -> impl Iterator<Item = &str> {
    let labels = clone.state.metadata.labels.iter().flatten().map(|(key, _)| key.as_str());
    labels.filter(|key| key.starts_with(LABEL_PREFIX_KYVERNO))
}

/// Whose a clone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    Kyvernos,
    Foreign,
}

impl Whose {
    fn of(spec: &CloneSpec, clone: &SecretFacts) -> Self {
        if clone.state.is_managed_by_kyverno() {
            Self::Kyvernos
        } else if clone.state.is_ours(spec) {
            Self::Ours
        } else {
            Self::Foreign
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Kyvernos => "Kyverno's by its labels",
            Self::Foreign => "foreign: it lacks our marks",
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;

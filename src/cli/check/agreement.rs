//! Whether webhooks and guards are what follows from the configuration. PURE.

use serde_json::Value;

use super::{
    expected,
    facts::{Facts, Program, Seen},
    report::{Check, Finding},
};
use crate::{
    admission::{at, items},
    config::Config,
    names::WEBHOOK_NAMESPACES,
};

const WRITE_ANEW: &str = "gitlab-runner-webhook manifests --config config.yaml | kubectl apply --server-side -f -";

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
    let expected = expected::webhooks(kind, program, config);
    let name = |webhook: &Value| at(webhook, &["name"]).as_str().unwrap_or_default().to_owned();
    let found = |wanted: &str| items(at(there, &["webhooks"])).find(|webhook| name(webhook) == wanted);
    let mut problems = Vec::new();
    for wanted in &expected {
        match found(&name(wanted)) {
            None => problems.push(format!("{} is missing", name(wanted))),
            Some(found) => {
                let differing = differences(&comparable(wanted, wanted), &comparable(found, wanted));
                problems.extend(differing.into_iter().map(|path| format!("{}: {path}", name(wanted))));
            }
        }
    }
    let known = |webhook: &&Value| expected.iter().any(|wanted| name(wanted) == name(webhook));
    let surplus = items(at(there, &["webhooks"])).filter(|webhook| !known(webhook));
    problems.extend(surplus.map(|webhook| format!("{} is one too many", name(webhook))));
    if problems.is_empty() {
        return Finding::ok(Check::Webhooks, subject, "selects what the configuration says");
    }
    Finding::fault(
        Check::Webhooks,
        subject,
        format!("differs from what the configuration says in {}", problems.join(", ")),
    )
    .because(
        "A runner namespace that no webhook selects gets no certificates and no gate; one that is selected and no \
             runner namespace waits for the program for nothing.",
    )
    .mend(WRITE_ANEW)
}

/// Without what may vary: `caBundle`, how it fails, and by which way it is called.
fn comparable(webhook: &Value, wanted: &Value) -> Value {
    let mut webhook = webhook.clone();
    if let Some(fields) = webhook.as_object_mut() {
        let path = at(wanted, &["clientConfig", "service", "path"]);
        // By URL, where the program runs outside of the cluster.
        let url = fields.get("clientConfig").and_then(|client| at(client, &["url"]).as_str());
        let is_there = |url: &str| path.as_str().is_some_and(|path| url.ends_with(path));
        let client = match url {
            Some(url) if is_there(url) => at(wanted, &["clientConfig"]).clone(),
            _ => fields.get("clientConfig").cloned().unwrap_or_default(),
        };
        fields.insert("clientConfig".to_owned(), without(client, "caBundle"));
        // The warning never fails closed; the others may fail open: component fail-open.
        if !at(wanted, &["name"]).as_str().is_some_and(|name| expected::is_entry_of(name, WEBHOOK_NAMESPACES)) {
            fields.remove("failurePolicy");
        }
    }
    webhook
}

fn without(mut value: Value, field: &str) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
    value
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
            .because(
                "RBAC binds what the program may write to names, not to namespaces and fields: without its guard, a \
                 stolen token of it can do more than it needs; with one for another configuration, its writes are refused.",
            )
            .mend(if name.ends_with("-objects") { WRITE_ANEW } else { "kubectl apply -f manifests/base/guard.yaml" })
    };
    for (object, what, expected) in [
        (policy, "", expected::guard("ValidatingAdmissionPolicy", name, program, config)),
        (
            binding,
            "its ValidatingAdmissionPolicyBinding ",
            expected::guard("ValidatingAdmissionPolicyBinding", name, program, config),
        ),
    ] {
        match object {
            Err(unseen) => return Finding::unseen(Check::Guards, subject, unseen),
            Ok(None) => return fault(format!("{what}is not there")),
            Ok(Some(there)) => {
                let differing = differences(at(&expected, &["spec"]), &enforced(at(there, &["spec"])));
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

/// A binding that denies may also audit or warn.
fn enforced(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if items(at(&spec, &["validationActions"])).any(|action| action == "Deny")
        && let Some(actions) = spec.get_mut("validationActions").and_then(Value::as_array_mut)
    {
        actions.retain(|action| action == "Deny");
    }
    spec
}

/// Paths at which what is there is not what is wanted. What the API server fills in by itself is no difference.
pub(super) fn differences(wanted: &Value, there: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    collect(wanted, there, &mut String::new(), &mut paths);
    paths
}

fn collect(wanted: &Value, there: &Value, path: &mut String, paths: &mut Vec<String>) {
    match (wanted, there) {
        (Value::Object(wanted), Value::Object(there)) => {
            for (key, value) in wanted {
                deeper(path, &format!(".{key}"), |path| {
                    collect(value, there.get(key).unwrap_or(&Value::Null), path, paths);
                });
            }
            for (key, _) in there.iter().filter(|(key, value)| !wanted.contains_key(*key) && !is_default(key, value)) {
                deeper(path, &format!(".{key}"), |path| paths.push(path.trim_start_matches('.').to_owned()));
            }
        }
        (Value::Array(wanted), Value::Array(there)) if wanted.len() == there.len() => {
            for (index, (wanted, there)) in wanted.iter().zip(there).enumerate() {
                deeper(path, &format!("[{index}]"), |path| collect(wanted, there, path, paths));
            }
        }
        // Whoever reads and writes YAML may fold long expressions elsewhere.
        (Value::String(wanted), Value::String(there)) if wanted.split_whitespace().eq(there.split_whitespace()) => {}
        _ if wanted == there || (is_empty(wanted) && is_empty(there)) => {}
        _ => paths.push(path.trim_start_matches('.').to_owned()),
    }
}

fn deeper(path: &mut String, step: &str, go: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(step);
    go(path);
    path.truncate(length);
}

fn is_default(key: &str, value: &Value) -> bool {
    let default = match key {
        "matchPolicy" => "Equivalent",
        "scope" => "*",
        "failurePolicy" => "Fail",
        "reinvocationPolicy" => "Never",
        _ => return is_empty(value) || (key == "port" && value == 443) || (key == "timeoutSeconds" && value == 10),
    };
    value == default
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "agreement_tests.rs"]
mod tests;

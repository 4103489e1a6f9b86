//! Webhooks and guards beside what the configuration wants. PURE.

use gitlab_runner_webhook::{config::Config, names::WEBHOOK_NAMESPACES};
use serde_json::Value;

use super::{Program, expected};
use crate::json::{at, items};

/// In what a webhook configuration of this kind differs from what the configuration wants.
pub fn of_webhooks(kind: &str, there: &Value, program: &Program, config: &Config) -> Vec<String> {
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
    problems
}

/// In what an admission policy, or a binding of one, differs from what the configuration wants.
pub fn of_guard(kind: &str, name: &str, there: &Value, program: &Program, config: &Config) -> Vec<String> {
    let expected = expected::guard(kind, name, program, config);
    differences(at(&expected, &["spec"]), &enforced(at(there, &["spec"])))
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
fn differences(wanted: &Value, there: &Value) -> Vec<String> {
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
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        let wanted = json!({"a": "x  y\n", "rules": [{"b": 1}], "none": []});
        let there =
            json!({"a": "x y", "rules": [{"b": 1, "scope": "*"}], "matchPolicy": "Equivalent", "objectSelector": {}});
        assert_eq!(differences(&wanted, &there), [""; 0]);
        assert_eq!(differences(&wanted, &json!({"a": "z", "rules": [], "extra": 1})), ["a", "rules", "extra"]);
    }
}

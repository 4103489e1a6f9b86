//! Mutations that keep a review JSON: bytes alone rarely get past the parser.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Map, Value, json};

/// Fields, and values that mean something in them.
const WORDS: [&str; 64] = [
    "apiVersion",
    "kind",
    "request",
    "uid",
    "operation",
    "object",
    "namespace",
    "name",
    "subResource",
    "dryRun",
    "metadata",
    "labels",
    "annotations",
    "generateName",
    "spec",
    "containers",
    "initContainers",
    "ephemeralContainers",
    "volumes",
    "volumeMounts",
    "env",
    "envFrom",
    "value",
    "valueFrom",
    "mountPath",
    "subPath",
    "subPathExpr",
    "items",
    "secret",
    "secretName",
    "configMap",
    "projected",
    "sources",
    "imagePullSecrets",
    "optional",
    "os",
    "nodeSelector",
    "kubernetes.io/os",
    "windows",
    "linux",
    "kubernetes.io/metadata.name",
    "job.runner.gitlab.com/pod",
    "job.runner.gitlab.com/id",
    "pod",
    "runner-a-project-1-concurrent-0",
    "build",
    "helper",
    "istio-proxy",
    "app",
    "gitlab-runner",
    "gitlab-runner-certs",
    "gitlab-gitlab-runner-secret",
    "gitlab-runner-webhook/inject",
    "false",
    "gitlab-runner-webhook-trust",
    "gitlab-runner-webhook-certs",
    "/etc/gitlab-runner-webhook/trust",
    "/etc/gitlab-runner/certs",
    "/home/gitlab-runner/.gitlab-runner/certs",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "CI_SERVER_URL",
    "CI_SERVER_TLS_CA_FILE",
];
/// Namespaces of the made-up cluster.
const NAMESPACES: [&str; 8] =
    ["gitlab-runner", "pending", "invalid", "none", "stale", "absent", "foreign", "Not A Namespace"];

/// Changes one to three places of a review; what is no JSON, and sometimes what is, is changed by the byte.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed.into());
    let parsed = if rng.u8(..) < 64 { None } else { serde_json::from_slice::<Value>(&data[..size]).ok() };
    let Some(mut review) = parsed else { return fuzzer_mutate(data, size, max_size) };
    for _ in 0..rng.usize(1..=3) {
        change(&mut review, &mut rng);
    }
    let text = review.to_string();
    if text.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..text.len()].copy_from_slice(text.as_bytes());
    text.len()
}

fn change(review: &mut Value, rng: &mut fastrand::Rng) {
    if rng.u8(..) < 16
        && let Some(request) = review.get_mut("request").and_then(Value::as_object_mut)
    {
        request.insert("namespace".to_owned(), word(&NAMESPACES, rng).into());
        return;
    }
    let whole = count(review);
    let other = nth(review, &mut rng.usize(..whole)).cloned().unwrap_or_default();
    let Some(place) = nth(review, &mut rng.usize(..whole)) else { return };
    match place {
        Value::Array(items) if rng.bool() => match rng.u8(..4) {
            0 if !items.is_empty() => _ = items.remove(rng.usize(..items.len())),
            1 if items.len() > 1 => rng.shuffle(items),
            2 if !items.is_empty() => items.push(items[rng.usize(..items.len())].clone()),
            _ => items.insert(rng.usize(..=items.len()), other),
        },
        Value::Object(fields) if rng.bool() => match rng.u8(..3) {
            0 if !fields.is_empty() => {
                let key = fields.keys().nth(rng.usize(..fields.len())).cloned().unwrap_or_default();
                fields.remove(&key);
            }
            1 => _ = fields.insert(word(&WORDS, rng).to_owned(), other),
            _ => _ = fields.insert(word(&WORDS, rng).to_owned(), leaf(rng)),
        },
        place if rng.bool() => *place = leaf(rng),
        place => *place = other,
    }
}

fn leaf(rng: &mut fastrand::Rng) -> Value {
    match rng.u8(..10) {
        0 => Value::Null,
        1 => Value::Bool(rng.bool()),
        2 => json!(rng.i64(..)),
        3 => Value::Array(Vec::new()),
        4 => Value::Object(Map::new()),
        5 => json!(""),
        6 => json!([null, {}, {"name": word(&WORDS, rng)}]),
        7 => json!({"name": word(&WORDS, rng), "value": word(&WORDS, rng), "mountPath": word(&WORDS, rng)}),
        _ => word(&WORDS, rng).into(),
    }
}

fn word<'a>(words: &[&'a str], rng: &mut fastrand::Rng) -> &'a str {
    words[rng.usize(..words.len())]
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, index)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, index)),
        _ => None,
    }
}

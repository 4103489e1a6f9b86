//! The fields of the configuration file. Their meaning is written here; names and defaults are the code's.

use std::{collections::BTreeSet, fs};

use gitlab_runner_webhook::config::Config;
use serde_json::Value;
use test_support::{documents, repository};

use crate::docs::{flags, page};

/// Each field, and what it means.
const FIELDS: [(&str, &str); 25] = [
    ("runnerNamespaces.names", "Runner namespaces by name. Neither `gitlab-runner-webhook` nor `kube-*`."),
    (
        "runnerNamespaces.selectors",
        "Runner namespaces by label: `matchLabels`, `matchExpressions`. An empty selector is refused. None finds \
         `gitlab-runner-webhook`, `kube-system`, `kube-public`, `kube-node-lease` or the namespace of a source.",
    ),
    (
        "trustNamespaces.names",
        "Further namespaces, of job pods alone, by name: they get the trust bundle, made of `certsSecretName` there, and \
         injection, but no clone and no gate.",
    ),
    ("trustNamespaces.selectors", "The same by label."),
    ("clones[].secret", "Name of the source and of its clones. Each name once. Needed."),
    ("clones[].from", "Namespace of the source. Not one of the runner namespaces that are named above. Needed."),
    (
        "clones[].onSourceDeleted",
        "`keep`: clones stay as they are. `delete`: clones that are ours are deleted when the source is.",
    ),
    (
        "clones[].onForeignTarget",
        "A Secret of the clone's name that is not ours and differs. `adopt` replaces its content, `refuse` leaves it and \
         reports a conflict.",
    ),
    ("clones[].labels", "Further labels on each clone."),
    (
        "certsSecretName",
        "Secret in each runner namespace with the CAs: `ca.crt`, or any other key that ends in `.crt`, `.pem`, `.cer`, `.der` or `.p7b`. \
         Optionally the runner's client certificate, `tls.crt` and `tls.key`.",
    ),
    (
        "certs.from",
        "Clone `certsSecretName` from this namespace into every runner namespace. These clones take the rights that \
         those of `clones` have.",
    ),
    (
        "certs.publicRoots",
        "Public roots in `bundle.crt`. `builtin`: Mozilla's, compiled in. `none`: no `bundle.crt` and no replacing \
         variables, and nothing for images without roots of their own.",
    ),
    ("certs.inject.manager", "Manager pods get the CAs."),
    (
        "certs.inject.clientCertificate",
        "Manager pods get `tls.crt` and `tls.key`, too, when they are a client's certificate and its key. GitLab Runner hands that key on to every job.",
    ),
    ("certs.inject.jobs", "Job pods get the trust bundle in containers `build` and `helper`."),
    ("certs.inject.services", "Service containers of job pods get it, too."),
    ("certs.variables.additive", "Variables of job pods that name `ca.crt`: they add to what a program trusts."),
    (
        "certs.variables.directory",
        "Variables of job pods that name the directory of the trust bundle: they add to what a program trusts. \
         `SSL_CERT_DIR` names the usual directories of images, too; the others are left out with `publicRoots: none`.",
    ),
    (
        "certs.variables.java",
        "Variables of job pods with options of a JVM that name the trust store, which replaces what it trusts. Not with \
         `publicRoots: none`.",
    ),
    (
        "certs.variables.replacing",
        "Variables of job pods that name `bundle.crt`: they replace what a program trusts, which is for programs that have no other way. `SSL_CERT_DIR` is none of them.",
    ),
    (
        "gate.giveUpAfter",
        "How long pods are turned away, counted from the moment when the clone fell out of step: a whole number with `ms`, \
         `s`, `m` or `h`. `0s`: no gate.",
    ),
    (
        "gate.then",
        "What happens after that. `admit`: the pod is let in with a warning; kubelet waits for the Secret. `deny`: it is \
         turned away as before.",
    ),
    (
        "restart.deployments",
        "Deployments in each runner namespace that are restarted, as `kubectl rollout restart` does it, when the content of \
         a clone there changes: once for each change, and never because this program restarts. Takes a right on them.",
    ),
    ("selectors[].matchLabels", "In a selector: labels that a namespace has."),
    (
        "selectors[].matchExpressions",
        "In a selector: `key`, `operator` (`In`, `NotIn`, `Exists`, `DoesNotExist`), `values`.",
    ),
];
/// Everything that has fields: where a wrong one is put, and how the fields in it are called.
const OBJECTS: [(&str, &str); 11] = [
    ("{wrong: 1}", ""),
    ("runnerNamespaces: {wrong: 1}", "runnerNamespaces."),
    ("runnerNamespaces: {selectors: [{wrong: 1}]}", "selectors[]."),
    ("trustNamespaces: {wrong: 1}", "trustNamespaces."),
    ("clones: [{wrong: 1}]", "clones[]."),
    ("certs: {wrong: 1}", "certs."),
    ("certs: {inject: {wrong: 1}}", "certs.inject."),
    ("certs: {variables: {wrong: 1}}", "certs.variables."),
    ("gate: {wrong: 1}", "gate."),
    ("restart: {wrong: 1}", "restart."),
    ("runnerNamespaces: {selectors: [{matchExpressions: [{wrong: 1}]}]}", "selectors[].matchExpressions[]."),
];

/// What the error for a field that does not exist says could be there.
fn accepted() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (yaml, prefix) in OBJECTS {
        let error = Config::from_yaml(yaml).unwrap_err().to_string();
        let line = error.lines().next().unwrap();
        // Where there is only one, it is named alone.
        let expected = line.split_once("expected one of ").or_else(|| line.split_once("expected "));
        let Some((_, names)) = expected else { panic!("{yaml}: {error}") };
        found.extend(names.split(", ").map(|name| format!("{prefix}{}", name.trim_matches('`'))));
    }
    // Those that only hold others, and the three of an expression, which its own row names.
    let holders: Vec<_> = OBJECTS.iter().map(|(_, prefix)| prefix.trim_end_matches('.')).collect();
    found.retain(|path| {
        let is_holder = holders.contains(&path.as_str()) || holders.contains(&format!("{path}[]").as_str());
        let is_row = path == "selectors[].matchExpressions"
            || path == "runnerNamespaces.selectors"
            || path == "trustNamespaces.selectors";
        (!is_holder || is_row) && !path.starts_with("selectors[].matchExpressions[]")
    });
    found
}

/// The default of a field, from the shipped file, which is held to the code by `tests/offline/manifests.rs`.
fn default(shipped: &Value, path: &str) -> String {
    let mut value = shipped;
    for part in path.split('.') {
        value = part.strip_suffix("[]").map_or_else(|| &value[part], |list| &value[list][0]);
    }
    let list = |items: &Vec<Value>| items.iter().map(|item| item.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    match value {
        // Of a selector, for which there is no default.
        Value::Null if path.starts_with("selectors") => String::new(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(items) => format!("`[{}]`", list(items).join(", ")),
        other => format!("`{other}`"),
    }
}

#[test]
fn the_configuration_page_is_what_the_code_accepts() {
    let listed: BTreeSet<_> = FIELDS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(accepted(), listed, "left: what the code accepts; right: FIELDS in tests/offline/docs/fields.rs");

    let text = fs::read_to_string(repository().join("manifests/generated/config.yaml")).unwrap();
    let shipped = documents(&text).remove(0);
    let rows: Vec<_> = FIELDS
        .iter()
        .map(|(path, meaning)| {
            vec![format!("`{path}`"), default(&shipped, path), meaning.split_whitespace().collect::<Vec<_>>().join(" ")]
        })
        .collect();
    let mut page = page::named("docs/configuration.md");
    page.hold("fields", &page::table(&["field", "default", "meaning"], &rows));
    flags::hold(&mut page);
}

//! The manifests that depend on the configuration: rights, guard, webhooks. PURE.
//!
//! [`render`] is what `gitlab-runner-webhook manifests` writes. `manifests/generated` is its output for the defaults, held
//! to it by a test. The text is in `templates/`, with the comments that users read; the code fills in what varies.

mod command;
mod guard;
mod rights;
mod selectors;
mod text;
mod webhooks;

pub use command::{Arguments, run};

use gitlab_runner_webhook::config::Config;
use text::{fill, flow};

/// First lines of every file that is written: who writes it, and what that means for its reader.
pub const HEADER: &str = "\
# Written by `gitlab-runner-webhook manifests`, from config.yaml: whoever edits this file by hand loses the change when it
# is written again.";

/// One file of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path in the folder.
    pub path: &'static str,
    /// What is in it.
    pub content: String,
}

/// Every path that [`render`] may give. One that it does not give this time must not be there: it would say what was.
pub const PATHS: [&str; 10] = [
    "kustomization.yaml",
    "config.yaml",
    "rbac.yaml",
    "guard.yaml",
    "webhooks.yaml",
    "fail-open/kustomization.yaml",
    "fail-open/webhooks.yaml",
    "namespaced-rbac/kustomization.yaml",
    "namespaced-rbac/cluster-role.yaml",
    "namespaced-rbac/roles.yaml",
];

/// The folder for a configuration; `config_file` is the text that it was read from.
pub fn render(config: &Config, config_file: &str) -> Vec<File> {
    let of = |path| Some(File { path, content: content(path, config, config_file)? });
    PATHS.into_iter().filter_map(of).collect()
}

/// What is in one file of the folder; `None`: it has no such file for this configuration.
pub fn content(path: &str, config: &Config, config_file: &str) -> Option<String> {
    // A namespace that is found by label may come after the Roles.
    if path.starts_with("namespaced-rbac/")
        && config.with_trust().iter().any(|selection| !selection.selectors.is_empty())
    {
        return None;
    }
    let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
    Some(match path {
        "kustomization.yaml" => fill(include_str!("templates/kustomization.yaml"), &[header(), version]),
        "config.yaml" => config_file.to_owned(),
        "rbac.yaml" => rights::cluster_role(config),
        "guard.yaml" => guard::policy(config),
        "webhooks.yaml" => webhooks::configurations(config),
        "fail-open/kustomization.yaml" => fill(include_str!("templates/fail-open-kustomization.yaml"), &[header()]),
        "fail-open/webhooks.yaml" => webhooks::fail_open(config),
        "namespaced-rbac/kustomization.yaml" => {
            fill(include_str!("templates/namespaced-kustomization.yaml"), &[header()])
        }
        "namespaced-rbac/cluster-role.yaml" => rights::reading_cluster_role(config),
        "namespaced-rbac/roles.yaml" => rights::roles(config),
        _ => return None,
    })
}

fn header() -> (&'static str, String) {
    ("header", HEADER.to_owned())
}

/// The names of the cloned Secrets, as a list in YAML.
fn clones(config: &Config) -> String {
    flow(config.clones.iter().map(|clone| clone.secret.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn documents(yaml: &str, path: &str) -> Vec<Value> {
        let files = render(&Config::from_yaml(yaml).expect(yaml), yaml);
        let file = files.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{yaml}: no {path}"));
        let documents = file.content.split("\n---\n");
        documents.map(|document| serde_saphyr::from_str(document).unwrap_or_else(|_| panic!("{document}"))).collect()
    }

    /// Names of the entries of both configurations.
    fn entries(yaml: &str, path: &str) -> Vec<Vec<String>> {
        let names = |document: &Value| {
            let webhooks = document["webhooks"].as_array().expect("a list, also when it is empty");
            webhooks.iter().map(|webhook| webhook["name"].as_str().expect("a name").to_owned()).collect()
        };
        documents(yaml, path).iter().map(names).collect()
    }

    #[test]
    fn every_file_has_a_path_that_is_known() {
        let files = render(&Config::default(), "");
        assert_eq!(files.iter().map(|file| file.path).collect::<Vec<_>>(), PATHS);
        assert!(files.iter().all(|file| !file.content.contains("${")));
    }

    #[test]
    fn each_selector_is_an_entry_of_each_webhook() {
        let selectors = "selectors: [{matchLabels: {a: 'true'}}, {matchExpressions: [{key: b, operator: Exists}]}]";
        let both = format!("runnerNamespaces: {{names: [n, '1'], {selectors}}}");
        let entry = |what: &str| format!("{what}-webhook");
        let three = |what: &str, of: &str| {
            ["", "-2", "-3"].map(|index| entry(&format!("{what}{index}.{of}.gitlab-runner"))).to_vec()
        };
        let mutating = [three("inject", "pods"), three("warn", "namespaces")].concat();
        assert_eq!(entries(&both, "webhooks.yaml"), [mutating, three("gate", "pods")]);
        assert_eq!(entries(&both, "fail-open/webhooks.yaml"), [three("inject", "pods"), three("gate", "pods")]);

        let webhooks = &documents(&both, "webhooks.yaml")[1]["webhooks"];
        let never = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn",
            "values": ["gitlab", "gitlab-runner-webhook", "kube-node-lease", "kube-public", "kube-system"]});
        for (index, expected) in [
            json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["1", "n"]}]),
            json!([{"key": "a", "operator": "In", "values": ["true"]}, never]),
            json!([{"key": "b", "operator": "Exists"}, never]),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(webhooks[index]["namespaceSelector"]["matchExpressions"], expected);
        }
        // Only by label: the first entry has the plain name.
        let only = format!("runnerNamespaces: {{names: [], {selectors}}}");
        assert_eq!(entries(&only, "webhooks.yaml")[1], three("gate", "pods")[..2]);
        assert!(render(&Config::from_yaml(&only).unwrap(), "").iter().all(|file| !file.path.starts_with("namespaced")));
    }

    #[test]
    fn what_is_switched_off_is_an_empty_list() {
        let off = "gate: {giveUpAfter: 0s}";
        assert_eq!(entries(off, "webhooks.yaml")[1], [""; 0]);
        assert_eq!(entries(off, "fail-open/webhooks.yaml")[1], [""; 0]);
        let off = "certs: {inject: {manager: false, jobs: false}}";
        assert_eq!(entries(off, "webhooks.yaml")[0], ["warn.namespaces.gitlab-runner-webhook"]);
        assert_eq!(entries(off, "fail-open/webhooks.yaml")[0], [""; 0]);
    }

    #[test]
    fn each_clone_is_in_rights_gate_and_guard() {
        let yaml = "clones: [{secret: a, from: x}, {secret: '2', from: y}]\ncertsSecretName: ca\ncerts: {from: z}";
        let rules = &documents(yaml, "rbac.yaml")[0]["rules"];
        let read = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "2", "ca"],
            "verbs": ["get", "list", "watch"]});
        let write = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "2", "ca"],
            "verbs": ["create", "patch", "update", "delete"]});
        assert_eq!((&rules[0], &rules[1]), (&read, &write), "and certsSecretName, which is a clone here, once");
        let events = json!([
            "gitlab-runner-webhook.2",
            "gitlab-runner-webhook.a",
            "gitlab-runner-webhook.ca",
            "gitlab-runner-webhook.gitlab-runner-webhook-trust"
        ]);
        assert_eq!(rules[3]["resourceNames"], events);
        assert_eq!(rules.as_array().unwrap().len(), 5);
        let gate = documents(yaml, "webhooks.yaml")[1]["webhooks"][0]["matchConditions"][1]["expression"].to_string();
        assert!(gate.contains("['a', '2', 'ca'].exists(clone,"), "{gate}");
        let guard = documents(yaml, "guard.yaml")[0]["spec"]["variables"].to_string();
        assert!(guard.contains("in ['x', 'y', 'z']"), "{guard}");
        let in_namespaces = documents(yaml, "namespaced-rbac/roles.yaml");
        let namespaces: Vec<_> = in_namespaces
            .iter()
            .filter(|role| role["kind"] == "Role")
            .map(|role| &role["metadata"]["namespace"])
            .collect();
        assert_eq!(namespaces, ["x", "y", "z", "gitlab-runner"]);
    }

    #[test]
    fn namespaces_that_are_found_by_label_are_seen_without_names() {
        let rule = |yaml: &str| documents(yaml, "rbac.yaml")[0]["rules"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(rule("")["resourceNames"], json!(["gitlab-runner"]));
        let by_label = rule("runnerNamespaces: {selectors: [{matchLabels: {a: b}}]}");
        assert_eq!((&by_label["resourceNames"], &by_label["verbs"]), (&Value::Null, &json!(["get", "list", "watch"])));
    }
}

//! The rights: every rule of the shipped roles, with its reason.

use std::fs;

use serde_json::{Value, json};
use test_support::{documents, repository};

use crate::docs::page::{self, cell, table};

/// The comment above each rule, in the order of the rules.
fn reasons(document: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut comment = Vec::new();
    for line in document.lines() {
        if let Some(text) = line.strip_prefix("  # ") {
            comment.push(text);
        } else {
            if line.starts_with("  - apiGroups:") {
                reasons.push(comment.join(" "));
            }
            comment.clear();
        }
    }
    reasons
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// A row for each rule of the roles in a file.
fn rows(path: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(repository().join(path)).unwrap();
    let mut rows = Vec::new();
    for document in text.split("\n---\n") {
        let role = documents(document).remove(0);
        let rules = role["rules"].as_array().cloned().unwrap_or_default();
        let reasons = reasons(document);
        assert_eq!(reasons.len(), rules.len(), "{path}: {}", role["metadata"]["name"]);
        let place =
            role["metadata"]["namespace"].as_str().map_or("all namespaces".to_owned(), |name| format!("`{name}`"));
        for (rule, reason) in rules.iter().zip(reasons) {
            assert!(reason.len() > 20, "{path}: a rule without its reason: {rule}");
            let objects = names(&rule["resourceNames"]);
            // Names that are generated cannot be known.
            let is_bound = !objects.is_empty() || rule["resources"] == json!(["replicasets"]);
            assert!(is_bound, "{path}: a rule that is bound to no name: {rule}");
            let objects: Vec<_> = objects.iter().map(|name| format!("`{name}`")).collect();
            let objects = if objects.is_empty() { vec!["any".to_owned()] } else { objects };
            rows.push(vec![
                names(&rule["resources"]).join(", "),
                objects.join(", "),
                place.clone(),
                names(&rule["verbs"]).join(", "),
                cell(&reason),
            ]);
        }
    }
    rows
}

#[test]
fn the_page_of_rights_is_what_the_manifests_grant() {
    let head = ["resource", "names", "in", "verbs", "why"];
    let mut page = page::named("docs/rights.md");
    page.hold("rights", &table(&head, &rows("manifests/generated/rbac.yaml")));
    page.hold("own-rights", &table(&head, &rows("manifests/base/rbac.yaml")));
}

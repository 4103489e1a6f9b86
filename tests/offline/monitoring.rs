//! Alerts and dashboard ask for metrics that there are, by labels that they have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use test_support::{Manifests, metrics::after_everything};

/// The names of all series on the page that Prometheus reads, each with its labels.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let page = after_everything().encode();
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap();
        let (name, rest) = line.split_at(end);
        let labels = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        series.entry(name.to_owned()).or_default().extend(labels);
    }
    series
}

/// Every expression of the alerts and of the dashboard.
fn expressions() -> Vec<String> {
    let objects = Manifests::combine(&["overlays/default"], &["components/monitoring"]).unwrap().objects;
    let of_kind = |kind: &str, name: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let dashboard = of_kind("ConfigMap", "gitlab-runner-webhook-dashboard");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard: Value =
        serde_json::from_str(dashboard["data"]["gitlab-runner-webhook.json"].as_str().unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules = of_kind("PrometheusRule", "gitlab-runner-webhook")["spec"]["groups"][0]["rules"].as_array().unwrap();
    panels.chain(rules).map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The words of an expression that look like a metric of ours, each with the labels that are asked of it.
fn asked(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut asked = Vec::new();
    for (at, _) in expression.match_indices("gitlab_runner_webhook_") {
        let rest = &expression[at..];
        let (name, rest) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let matchers = matchers.split(", ").filter_map(|matcher| Some(matcher.split_once(['=', '!'])?.0.to_owned()));
        // `by (...)` stands before its metric.
        let by = expression[..at].rfind("by (").map(|start| &expression[start + 4..at]);
        let by = by.filter(|by| !by.contains(" or ")).and_then(|by| by.split(')').next()).unwrap_or_default();
        let by = by.split(", ").filter(|label| !label.is_empty() && *label != "le").map(str::to_owned);
        asked.push((name.to_owned(), matchers.chain(by).collect()));
    }
    asked
}

#[test]
fn every_metric_and_label_that_is_asked_for_is_exported() {
    let exported = exported();
    let mut names = BTreeSet::new();
    for expression in expressions() {
        let asked = asked(&expression);
        assert!(!asked.is_empty(), "{expression}");
        promql_parser::parser::parse(&expression).unwrap_or_else(|error| panic!("{error}: {expression}"));
        for (name, labels) in asked {
            let there = exported.get(&name).unwrap_or_else(|| panic!("{name} is not exported: {expression}"));
            for label in labels {
                assert!(there.contains(&label), "{name} has no label {label}: {expression}");
            }
            names.insert(name);
        }
    }
    assert!(names.len() >= 11, "{names:?}");
}

#[test]
fn an_expression_that_prometheus_would_not_read_is_noticed() {
    for bad in ["sum by (a (x)", "rate(x[5m)", "x >"] {
        assert!(promql_parser::parser::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_misspelt_metric_or_label_is_noticed() {
    let table = [
        ("rate(gitlab_runner_webhook_clone[5m])", "gitlab_runner_webhook_clone", vec![]),
        (
            "sum by (a, b) (gitlab_runner_webhook_x{c=\"1\", d!~\"2\"})",
            "gitlab_runner_webhook_x",
            vec!["c", "d", "a", "b"],
        ),
    ];
    for (expression, name, labels) in table {
        let labels = labels.into_iter().map(str::to_owned).collect();
        assert_eq!(asked(expression), [(name.to_owned(), labels)]);
    }
}

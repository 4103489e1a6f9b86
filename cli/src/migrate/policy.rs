//! What a Kyverno policy does, as far as this program can do the same. PURE.

use std::collections::{BTreeMap, BTreeSet};

use gitlab_runner_webhook::{config::PolicyName, names::LABEL_NAMESPACE_NAME};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Selector, SelectorExt as _};
use serde_json::{Map, Value, json};

use crate::json::text;

/// The target namespace of a rule that makes a clone in each namespace that it matches.
const OF_TRIGGER: &str = "{{request.object.metadata.name}}";

/// Namespaces by label, as they were written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Labels {
    /// As it was written, with checked fields.
    pub(super) json: Value,
    /// The same, to be asked.
    pub(super) selector: Selector,
}

/// Namespaces that a policy makes clones in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Covered {
    pub(super) names: BTreeSet<String>,
    pub(super) selectors: Vec<Labels>,
}

impl Covered {
    /// Whether a namespace is one of them.
    pub(super) fn has(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.names.contains(name) || self.selectors.iter().any(|labelled| labelled.selector.matches(labels))
    }
}

/// One Secret that the policy clones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cloned {
    pub(super) secret: String,
    pub(super) from: String,
}

/// One rule, as far as it is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) synchronize: bool,
}

/// A policy that was understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Policy {
    pub(super) rules: Vec<Rule>,
    pub(super) clones: BTreeSet<Cloned>,
    pub(super) covered: Covered,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Each thing in it that this program does not do: what, and where.
    pub(super) fn read(policy: &Value) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut by_clone: BTreeMap<Cloned, Covered> = BTreeMap::new();
        let mut rules = Vec::new();
        for (index, rule) in policy.pointer("/spec/rules").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let name = Some(text(rule, "/name")).filter(|name| !name.is_empty());
            let name = name.map_or_else(|| format!("rules[{index}]"), str::to_owned);
            match read_rule(rule) {
                Ok((cloned, names, selectors)) => {
                    let covered = by_clone.entry(cloned).or_default();
                    covered.names.extend(names);
                    covered.selectors.extend(selectors);
                }
                Err(problem) => problems.push(format!("rule {name}: {problem}")),
            }
            let synchronize = rule.pointer("/generate/synchronize").and_then(Value::as_bool).unwrap_or_default();
            rules.push(Rule { name, synchronize });
        }
        let mut all = by_clone.values();
        let covered = all.next().cloned().unwrap_or_default();
        if rules.is_empty() {
            problems.push("it has no rules".to_owned());
        } else if all.any(|other| *other != covered) {
            problems.push(
                "its rules clone different Secrets into different namespaces; the configuration clones each of its \
                 Secrets into every runner namespace"
                    .to_owned(),
            );
        }
        if problems.is_empty() {
            Ok(Self { rules, clones: by_clone.into_keys().collect(), covered })
        } else {
            Err(problems)
        }
    }

    /// The configuration that does the same.
    pub(super) fn configuration(&self, name: &PolicyName) -> String {
        // Kyverno, too, makes no clone of a Secret in the namespace that it is in.
        let is_of_sources = |name: &&String| self.clones.iter().all(|cloned| cloned.from == **name);
        let names = json!(self.covered.names.iter().filter(|name| !is_of_sources(name)).collect::<Vec<_>>());
        let mut lines = vec![
            format!("# What ClusterPolicy {name} does, by `gitlab-runner-webhook migrate`."),
            "runnerNamespaces:".to_owned(),
            format!("  names: {names}"),
        ];
        if !self.covered.selectors.is_empty() {
            lines.push("  selectors:".to_owned());
            lines.extend(self.covered.selectors.iter().map(|labelled| format!("    - {}", labelled.json)));
        }
        lines.push("clones:".to_owned());
        for cloned in &self.clones {
            lines.push(format!("  - secret: {}", json!(cloned.secret)));
            lines.push(format!("    from: {}", json!(cloned.from)));
            lines.push(
                "    # Kyverno deletes the clones when the source is deleted; `delete` does that, too.".to_owned(),
            );
            lines.push("    onSourceDeleted: keep".to_owned());
        }
        lines.join("\n") + "\n"
    }
}

type Understood = (Cloned, BTreeSet<String>, Vec<Labels>);

fn read_rule(rule: &Value) -> Result<Understood, String> {
    only(rule, "", &["name", "match", "generate", "exclude", "preconditions", "context", "skipBackgroundRequests"])?;
    for field in ["exclude", "preconditions", "context"] {
        if rule.get(field).is_some_and(|value| !is_empty(value)) {
            return Err(format!("{field}: namespaces are found by name or label only; remove it, or change the rule"));
        }
    }
    let generate = rule.get("generate").ok_or("it does not generate anything")?;
    let known = [
        "apiVersion",
        "kind",
        "name",
        "namespace",
        "synchronize",
        "clone",
        "generateExisting",
        "orphanDownstreamOnPolicyDelete",
        "uid",
    ];
    only(generate, "generate", &known)?;
    if text(generate, "/apiVersion") != "v1" || text(generate, "/kind") != "Secret" {
        return Err("generate: it makes something else than a Secret".to_owned());
    }
    let need = |pointer: &str| match text(generate, pointer) {
        "" => Err(format!("generate{pointer} is missing")),
        there => Ok(there),
    };
    let (secret, from) = (need("/clone/name")?, need("/clone/namespace")?);
    only(generate.get("clone").unwrap_or(&Value::Null), "generate.clone", &["name", "namespace"])?;
    if need("/name")? != secret {
        return Err(
            "generate.name: the clone has another name than its source, which this program never does".to_owned()
        );
    }
    let cloned = Cloned { secret: secret.to_owned(), from: from.to_owned() };
    let (names, selectors) = read_match(rule.get("match").unwrap_or(&Value::Null))?;
    let target = need("/namespace")?;
    if target.replace(' ', "") == OF_TRIGGER {
        return Ok((cloned, names, selectors));
    }
    if target.contains("{{") {
        return Err(format!("generate.namespace: {target:?} is neither a name nor {OF_TRIGGER:?}"));
    }
    // Made when any namespace matches; in Big Bang's rule that is this one itself.
    Ok((cloned, BTreeSet::from([target.to_owned()]), Vec::new()))
}

fn read_match(matches: &Value) -> Result<(BTreeSet<String>, Vec<Labels>), String> {
    only(matches, "match", &["resources", "any", "all"])?;
    let list = |field: &str| matches.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut blocks = Vec::new();
    for (field, filters) in [("any", list("any")), ("all", list("all"))] {
        if field == "all" && filters.len() > 1 {
            return Err("match.all: more than one entry; write it as one".to_owned());
        }
        for filter in filters {
            only(filter, &format!("match.{field}"), &["resources"])?;
            blocks.extend(filter.get("resources"));
        }
    }
    blocks.extend(matches.get("resources").filter(|value| !is_empty(value)));
    if blocks.is_empty() {
        return Err("match: it names no resources".to_owned());
    }
    let (mut names, mut selectors) = (BTreeSet::new(), Vec::new());
    for block in blocks {
        match read_resources(block)? {
            Matched::Names(found) => names.extend(found),
            Matched::Labels(labelled) => selectors.push(labelled),
        }
    }
    Ok((names, selectors))
}

enum Matched {
    Names(BTreeSet<String>),
    Labels(Labels),
}

fn read_resources(block: &Value) -> Result<Matched, String> {
    // `operations` say when Kyverno looks; this program looks always.
    only(block, "match.resources", &["kinds", "name", "names", "selector", "operations"])?;
    let kinds = strings(block.get("kinds"));
    if kinds.is_empty() || kinds.iter().any(|kind| *kind != "Namespace" && *kind != "v1/Namespace") {
        return Err("match.resources.kinds: something else than Namespace starts it".to_owned());
    }
    let names: BTreeSet<_> =
        strings(block.get("names")).into_iter().chain(block.get("name").and_then(Value::as_str)).collect();
    if let Some(pattern) = names.iter().find(|name| name.contains(['*', '?'])) {
        return Err(format!("match.resources.names: {pattern:?} is a pattern; give these namespaces a label instead"));
    }
    let selector = block.get("selector").filter(|selector| !is_empty(selector));
    let owned = |names: &BTreeSet<&str>| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    match selector {
        None if names.is_empty() => {
            Err("match.resources: it matches every namespace; name them, or label them".to_owned())
        }
        None => Ok(Matched::Names(owned(&names))),
        Some(selector) => read_selector(selector, &owned(&names)),
    }
}

fn read_selector(selector: &Value, names: &BTreeSet<String>) -> Result<Matched, String> {
    const FIELD: &str = "match.resources.selector";
    only(selector, FIELD, &["matchLabels", "matchExpressions"])?;
    let labels = selector.get("matchLabels").and_then(Value::as_object).cloned().unwrap_or_default();
    let pattern = |text: &str| text.contains(['*', '?']);
    if let Some((key, _)) = labels.iter().find(|(key, value)| pattern(key) || value.as_str().is_none_or(pattern)) {
        return Err(format!("{FIELD}.matchLabels: {key:?} is, or has, a pattern; labels are compared as they are"));
    }
    let mut expressions = selector.get("matchExpressions").and_then(Value::as_array).cloned().unwrap_or_default();
    // Only by the label that is the name: that is a list of names.
    if names.is_empty() {
        let by_label = labels.get(LABEL_NAMESPACE_NAME).and_then(Value::as_str);
        if let (Some(name), 1, true) = (by_label, labels.len(), expressions.is_empty()) {
            return Ok(Matched::Names(BTreeSet::from([name.to_owned()])));
        }
        if let (true, [one]) = (labels.is_empty(), expressions.as_slice())
            && text(one, "/key") == LABEL_NAMESPACE_NAME
            && text(one, "/operator") == "In"
        {
            return Ok(Matched::Names(strings(one.get("values")).into_iter().map(str::to_owned).collect()));
        }
    } else {
        expressions.push(json!({"key": LABEL_NAMESPACE_NAME, "operator": "In", "values": names}));
    }
    let mut json = Map::new();
    if !labels.is_empty() {
        json.insert("matchLabels".to_owned(), labels.clone().into());
    }
    if !expressions.is_empty() {
        json.insert("matchExpressions".to_owned(), expressions.clone().into());
    }
    let requirements: Result<Vec<_>, String> = expressions
        .iter()
        .map(|one| {
            only(one, &format!("{FIELD}.matchExpressions"), &["key", "operator", "values"])?;
            let values: Vec<_> = strings(one.get("values")).into_iter().map(str::to_owned).collect();
            Ok(LabelSelectorRequirement {
                key: text(one, "/key").to_owned(),
                operator: text(one, "/operator").to_owned(),
                values: Some(values).filter(|values| !values.is_empty()),
            })
        })
        .collect();
    let match_labels = labels.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    let selector = LabelSelector { match_labels: Some(match_labels.collect()), match_expressions: Some(requirements?) };
    let selector = selector.try_into().map_err(|error| format!("{FIELD}: {error}"))?;
    Ok(Matched::Labels(Labels { json: json.into(), selector }))
}

/// Fields that are not known would mean something that is not known.
fn only(value: &Value, what: &str, known: &[&str]) -> Result<(), String> {
    let unknown =
        value.as_object().into_iter().flatten().find(|(key, value)| !known.contains(&key.as_str()) && !is_empty(value));
    match unknown {
        None => Ok(()),
        Some((key, _)) if what.is_empty() => Err(format!("{key}: it does something else as well")),
        Some((key, _)) => Err(format!("{what}.{key}: this program does nothing of the kind")),
    }
}

/// What Kubernetes writes for a field that is not set.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.values().all(is_empty),
        Value::Number(_) => false,
    }
}

fn strings(value: Option<&Value>) -> Vec<&str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

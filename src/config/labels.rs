//! Labels and label selectors in the configuration file.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::Selector;
use serde::Deserialize;

use super::{
    SecretName,
    error::{ConfigError, invalid},
};
use crate::names;

/// A `LabelSelector` that refuses unknown fields: a misspelt `matchLabel` would match everything.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct SelectorFile {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<RequirementFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequirementFile {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl SelectorFile {
    /// The selector, if each of its parts is one.
    pub(super) fn check(self, field: &str) -> Result<Selector, ConfigError> {
        if self.match_labels.is_empty() && self.match_expressions.is_empty() {
            return Err(invalid(
                field,
                "an empty selector would match every namespace; give matchLabels or matchExpressions",
            ));
        }
        for (key, value) in &self.match_labels {
            check_label_key(&format!("{field}.matchLabels"), key)?;
            check_label_value(&format!("{field}.matchLabels.{key}"), value)?;
        }
        for (index, expression) in self.match_expressions.iter().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            check_label_key(&format!("{field}.key"), &expression.key)?;
            for value in &expression.values {
                check_label_value(&format!("{field}.values"), value)?;
            }
            let problem = match (expression.operator.as_str(), expression.values.is_empty()) {
                ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => continue,
                ("In" | "NotIn", true) => "In and NotIn need at least one value",
                ("Exists" | "DoesNotExist", false) => "Exists and DoesNotExist take no values",
                _ => "operator is one of In, NotIn, Exists, DoesNotExist",
            };
            return Err(invalid(field, problem));
        }
        let selector = LabelSelector {
            match_labels: Some(self.match_labels),
            match_expressions: Some(
                self.match_expressions
                    .into_iter()
                    .map(|expression| LabelSelectorRequirement {
                        key: expression.key,
                        operator: expression.operator,
                        values: Some(expression.values).filter(|values| !values.is_empty()),
                    })
                    .collect(),
            ),
        };
        selector.try_into().map_err(|error| invalid(field, format!("{error:?}")))
    }
}

/// Labels that a clone may not be given: they are ours, or another controller would take the clone for its own.
pub(super) fn check_label(field: &str, key: &str, value: &str) -> Result<(), ConfigError> {
    if key == names::LABEL_MANAGED_BY || key.starts_with(names::LABEL_PREFIX_KYVERNO) {
        return Err(invalid(field, format!("{key:?} says who owns a clone and cannot be configured")));
    }
    check_label_key(field, key)?;
    check_label_value(&format!("{field}.{key}"), value)
}

/// Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>.
fn check_label_key(field: &str, key: &str) -> Result<(), ConfigError> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if !name.is_empty() && is_label_word(name) && prefix.is_none_or(|prefix| prefix.parse::<SecretName>().is_ok()) {
        return Ok(());
    }
    Err(invalid(
        field,
        format!(
            "{key:?} is not a label key: expected [prefix/]name, name of at most 63 letters, digits, '-', '_' and '.'"
        ),
    ))
}

fn check_label_value(field: &str, value: &str) -> Result<(), ConfigError> {
    if is_label_word(value) {
        return Ok(());
    }
    Err(invalid(field, format!("{value:?} is not a label value: at most 63 letters, digits, '-', '_' and '.'")))
}

fn is_label_word(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
}

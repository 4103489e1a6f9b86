//! Runner namespaces as a namespaceSelector and as CEL. PURE.

use gitlab_runner_webhook::{
    config::{NamespaceName, NamespaceSelection},
    names::LABEL_NAMESPACE_NAME,
};
use kube::core::{Expression, Selector};

use super::text::{cel_list, flow, scalar};

/// The `matchExpressions` of one entry each: the names, then every selector.
pub(super) fn entries(runner_namespaces: &NamespaceSelection) -> Vec<String> {
    let names = runner_namespaces.names.iter().map(NamespaceName::as_str);
    let of_names = (!runner_namespaces.names.is_empty()).then(|| {
        "        # The API server itself sets this label, so nobody can take it off or fake it.\n".to_owned()
            + &requirement(LABEL_NAMESPACE_NAME, "In", Some(&flow(names)))
    });
    let of_labels = runner_namespaces.selectors.iter().map(|selector| expressions(selector).map(in_yaml).collect());
    of_names.into_iter().chain(of_labels).collect()
}

/// Whether the namespace of a request is a runner namespace: `variables.inNamespace` is its name, `variables.labels` its
/// labels.
pub(super) fn condition(runner_namespaces: &NamespaceSelection) -> String {
    let names = runner_namespaces.names.iter().map(NamespaceName::as_str);
    let of_names =
        (!runner_namespaces.names.is_empty()).then(|| format!("variables.inNamespace in {}", cel_list(names)));
    let of_labels = runner_namespaces.selectors.iter().map(|selector| {
        let terms: Vec<_> = expressions(selector).map(in_cel).collect();
        format!("({})", terms.join(" &&\n          "))
    });
    of_names.into_iter().chain(of_labels).collect::<Vec<_>>().join(" ||\n        ")
}

fn expressions(selector: &Selector) -> impl Iterator<Item = Expression> + use<> {
    selector.clone().into_iter()
}

fn in_yaml(expression: Expression) -> String {
    match expression {
        Expression::In(key, values) => requirement(&key, "In", Some(&flow(values.iter().map(String::as_str)))),
        Expression::NotIn(key, values) => requirement(&key, "NotIn", Some(&flow(values.iter().map(String::as_str)))),
        Expression::Equal(key, value) => requirement(&key, "In", Some(&flow([value.as_str()]))),
        Expression::NotEqual(key, value) => requirement(&key, "NotIn", Some(&flow([value.as_str()]))),
        Expression::Exists(key) => requirement(&key, "Exists", None),
        Expression::DoesNotExist(key) => requirement(&key, "DoesNotExist", None),
    }
}

fn requirement(key: &str, operator: &str, values: Option<&str>) -> String {
    let values = values.map(|values| format!("          values: {values}\n")).unwrap_or_default();
    format!("        - key: {}\n          operator: {operator}\n{values}", scalar(key))
}

fn in_cel(expression: Expression) -> String {
    let exists = |key: &str| format!("'{key}' in variables.labels");
    let is_in = |key: &str, values: String| format!("{} && variables.labels['{key}'] in {values}", exists(key));
    match expression {
        Expression::In(key, values) => is_in(&key, cel_list(values.iter().map(String::as_str))),
        Expression::NotIn(key, values) => format!("!({})", is_in(&key, cel_list(values.iter().map(String::as_str)))),
        Expression::Equal(key, value) => is_in(&key, cel_list([value.as_str()])),
        Expression::NotEqual(key, value) => format!("!({})", is_in(&key, cel_list([value.as_str()]))),
        Expression::Exists(key) => exists(&key),
        Expression::DoesNotExist(key) => format!("!({})", exists(&key)),
    }
}

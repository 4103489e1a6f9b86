//! Rights: what roles grant, and what was used of that by the word of the audit log.

use std::collections::BTreeSet;

use control_plane::AuditEvent;
use serde_json::{Value, json};

/// The shipped `ServiceAccount`, and its namespace.
const ACCOUNT: &str = "gitlab-runner-webhook";
const EVERYWHERE: &str = "everywhere";
/// The one resource whose names cannot be known before: the revisions of our own Deployment.
const REVISIONS: &str = "replicasets";
const ANY: &str = "any";

/// (namespace or everywhere, verb, resource, object): one thing that may be done.
pub type Right = (String, String, String, String);

/// What the roles among these objects grant the shipped `ServiceAccount`.
///
/// # Panics
/// When a rule names no objects, has a wildcard, or grants what another one grants; when a role is bound to another.
pub fn granted(objects: &[Value]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for role in objects.iter().filter(|object| text(&object["kind"]).ends_with("Role")) {
        assert_eq!(role["aggregationRule"], Value::Null);
        let (kind, name) = (text(&role["kind"]), &role["metadata"]["name"]);
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or(EVERYWHERE);
        let binding = objects.iter().find(|object| {
            object["kind"] == format!("{kind}Binding")
                && object["metadata"]["name"] == *name
                && object["metadata"]["namespace"] == role["metadata"]["namespace"]
        });
        let binding = binding.unwrap_or_else(|| panic!("{kind} {name} is bound to nobody"));
        assert_eq!(binding["roleRef"], json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}));
        let subject = json!({"kind": "ServiceAccount", "name": ACCOUNT, "namespace": ACCOUNT});
        assert_eq!(binding["subjects"], json!([subject]));
        for rule in list(&role["rules"]) {
            assert_eq!(rule["nonResourceURLs"], Value::Null, "{rule:#}");
            let is_of_revisions = rule["resources"] == json!([REVISIONS]) && namespace == ACCOUNT;
            let any = [json!(ANY)];
            let names = if is_of_revisions { &any } else { list(&rule["resourceNames"]) };
            assert!(!names.is_empty(), "a rule without resourceNames is one on all objects: {rule:#}");
            assert!(!rule.to_string().contains('*'), "wildcard: {rule:#}");
            for resource in list(&rule["resources"]) {
                let group = match text(resource) {
                    kind if kind.ends_with("webhookconfigurations") => "admissionregistration.k8s.io",
                    kind if kind.starts_with("validatingadmissionpolic") => "admissionregistration.k8s.io",
                    "deployments" | REVISIONS => "apps",
                    _ => "",
                };
                assert_eq!(rule["apiGroups"], json!([group]), "{rule:#}");
                for (verb, name) in
                    list(&rule["verbs"]).iter().flat_map(|verb| names.iter().map(move |name| (verb, name)))
                {
                    let right = [namespace, text(verb), text(resource), text(name)].map(str::to_owned).into();
                    assert!(rights.insert(right), "granted twice: {rule:#}");
                }
            }
        }
    }
    rights
}

/// Which of the granted rights these requests took, each as the narrowest one that covers it.
///
/// # Panics
/// When no granted right covers a request, or one was refused.
pub fn used(granted: &BTreeSet<Right>, requests: &[AuditEvent]) -> BTreeSet<Right> {
    let mut used = BTreeSet::new();
    for request in requests {
        assert_ne!(request.code, 403, "refused: {request:?}");
        let object = named(request);
        // An apply that finds nothing there is a create, too.
        let verbs: &[&str] =
            if request.verb == "patch" && request.code == 201 { &["patch", "create"] } else { &[&request.verb] };
        for verb in verbs {
            let right = [request.namespace.as_str(), EVERYWHERE].into_iter().find_map(|namespace| {
                let right = [namespace, verb, &request.resource, &object].map(str::to_owned).into();
                granted.contains(&right).then_some(right)
            });
            used.insert(right.unwrap_or_else(|| panic!("not granted: {verb} by {request:?}")));
        }
    }
    used
}

/// The name of the object; lists and watches have it in their field selector.
fn named(request: &AuditEvent) -> String {
    if !request.name.is_empty() {
        return request.name.clone();
    }
    if request.resource == REVISIONS {
        return ANY.to_owned();
    }
    let selector = request.uri.split("fieldSelector=metadata.name%3D").nth(1);
    let selector = selector.and_then(|rest| rest.split('&').next());
    selector.unwrap_or_else(|| panic!("on no object by name: {request:?}")).to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

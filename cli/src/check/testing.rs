//! Facts for tables: a cluster in which all is well. PURE.

use gitlab_runner_webhook::config::Config;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::{Value, json};

use super::{
    certificate::{
        Certificate,
        tests::{now, pem},
    },
    facts::{CertsFacts, Facts, Grant, Presence, Reach, Rights, RunnerNamespace, SecretFacts, Serving, Unseen},
    manager::Manager,
    report::{Finding, Level},
};
use crate::{
    drift::{Named, Program, expected},
    rollout::Rollout,
};

/// The program's own, with so many replicas to be and to serve.
pub(super) fn deployment(wanted: i64, available: i64) -> Rollout {
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    Rollout { wanted, available, updated: wanted, version, ..Rollout::default() }
}

/// A Secret with this data.
pub(super) fn secret(namespace: &str, data: &[(&str, &str)]) -> Secret {
    let metadata = json!({"namespace": namespace, "name": "gitlab-gitlab-runner-secret", "creationTimestamp": "2026-01-02T00:00:00Z"});
    let mut secret: Secret = serde_json::from_value(json!({"metadata": metadata})).unwrap();
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
    secret.data = Some(data.collect());
    secret
}

pub(super) fn source(data: &[(&str, &str)]) -> SecretFacts {
    SecretFacts::new(secret("gitlab", data))
}

/// A clone of ours, with further labels.
pub(super) fn clone(data: &[(&str, &str)], labels: &[&str]) -> SecretFacts {
    let mut clone = secret("gitlab-runner", data);
    let annotations = clone.metadata.annotations.get_or_insert_default();
    annotations.insert("gitlab-runner-webhook/source".to_owned(), "gitlab/gitlab-gitlab-runner-secret".to_owned());
    let marks = ["app.kubernetes.io/managed-by=gitlab-runner-webhook"].iter().chain(labels);
    let labels = marks.filter_map(|label| label.split_once('='));
    clone.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
    SecretFacts::new(clone)
}

pub(super) const TOKEN: [(&str, &str); 2] = [("runner-token", "glrt-canary"), ("runner-registration-token", "")];

/// `certsSecretName` with this data.
pub(super) fn certs(data: &[(&str, &str)]) -> CertsFacts {
    CertsFacts::new(&secret("gitlab-runner", data), gitlab_runner_webhook::config::PublicRoots::None)
}

/// A manager pod of the chart, for this `CI_SERVER_URL`, with a `CI_SERVER_TLS_CA_FILE`.
pub(super) fn manager(url: &str, ca_file: Option<&str>) -> Manager {
    let mut env = vec![json!({"name": "CI_SERVER_URL", "value": url})];
    env.extend(ca_file.map(|file| json!({"name": "CI_SERVER_TLS_CA_FILE", "value": file})));
    let tokens = json!([{"key": "runner-token", "path": "t"}, {"key": "runner-registration-token", "path": "r"}]);
    let pod = json!({
        "metadata": {"name": "manager", "namespace": "gitlab-runner"},
        "spec": {
            "containers": [{
                "name": "gitlab-runner", "command": ["/bin/bash", "/configmaps/entrypoint"], "env": env,
                "volumeMounts": [{"name": "custom-certs", "mountPath": "/home/gitlab-runner/.gitlab-runner/certs/"}],
            }],
            "volumes": [
                {"name": "projected-secrets", "projected": {"sources": [
                    {"secret": {"name": "gitlab-gitlab-runner-secret", "items": tokens}},
                ]}},
                {"name": "custom-certs", "secret": {"secretName": "gitlab-runner-certs"}},
            ],
        },
        "status": {"containerStatuses": [
            {"name": "gitlab-runner", "state": {"running": {"startedAt": "2026-01-02T00:00:00Z"}}},
        ]},
    });
    Manager::of(&pod, &Config::default()).unwrap()
}

pub(super) const INJECTED: &str = "/etc/gitlab-runner-webhook/trust/ca.crt";

/// All is well.
pub(super) fn facts(config: &Config) -> Facts {
    let ca = pem(&[], (-100, 265));
    let program = Program::shipped();
    let webhooks = |kind: &str| {
        let mut webhooks = expected::webhooks(kind, &program, config);
        for webhook in &mut webhooks {
            webhook["clientConfig"]["caBundle"] = base64(&ca).into();
        }
        Ok(Some(json!({"kind": kind, "webhooks": webhooks})))
    };
    let guard = |kind: &str, name: &str| Ok(Some(expected::guard(kind, name, &program, config)));
    let guards = gitlab_runner_webhook::names::GUARDS
        .map(|name| (name, guard("ValidatingAdmissionPolicy", name), guard("ValidatingAdmissionPolicyBinding", name)));
    Facts {
        now: now(),
        deployment: Ok(Some(deployment(2, 2))),
        config_origin: "the defaults".to_owned(),
        config: Ok(config.clone()),
        sources: vec![Ok(Some(source(&TOKEN)))],
        unlisted: Vec::new(),
        namespaces: vec![RunnerNamespace {
            name: "gitlab-runner".parse().unwrap(),
            presence: Ok(Presence::Active),
            opted_out: false,
            clones: vec![Ok(Some(clone(&TOKEN, &[])))],
            certs: Ok(None),
            trust: Ok(None),
            managers: Ok(Vec::new()),
        }],
        serving: Serving {
            mutating: webhooks("MutatingWebhookConfiguration"),
            validating: webhooks("ValidatingWebhookConfiguration"),
            endpoints: Ok(Some(2)),
            certificates: Ok(Some(Certificate::all(ca.as_bytes()))),
            certificates_from: "gitlab-runner-webhook/gitlab-runner-webhook-ca".to_owned(),
            reach: Reach::Answered("it has the certificates"),
            client_ca: None,
        },
        rights: Rights { grants: grants(&program, config, 0), unseen: Vec::new() },
        guards: guards.into(),
        kyverno: Ok(false),
        program,
    }
}

/// What the manifests of one form give.
pub(super) fn grants(program: &Program, config: &Config, form: usize) -> Vec<Grant> {
    let roles = expected::roles(program, config).swap_remove(form);
    let grants = roles.into_iter().map(|role| Grant {
        binding: Named {
            kind: if role.named.namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" },
            ..role.named.clone()
        },
        rules: Some(role.rules),
        role: role.named,
        is_for_group: false,
    });
    grants.collect()
}

pub(super) fn unseen() -> Unseen {
    Unseen("get secrets/x in namespace y: forbidden: no".to_owned())
}

pub(super) fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

/// `level check: what` of those that are not well, each with a reason and a way out.
pub(super) fn bad(findings: &[Finding]) -> Vec<String> {
    let bad = findings.iter().filter(|finding| finding.level != Level::Ok);
    bad.map(|finding| {
        assert!(!finding.impact.is_empty() && !finding.remediation.is_empty(), "{finding:?}");
        format!("{} {}: {}", finding.level.as_str(), finding.check.as_str(), finding.what)
    })
    .collect()
}

/// The one that is not well begins like this.
pub(super) fn assert_only(findings: &[Finding], expected: &str) {
    match bad(findings).as_slice() {
        [only] if only.starts_with(expected) => {}
        other => panic!("expected {expected:?}, found {other:?}"),
    }
}

/// A value of a JSON object, to be changed.
pub(super) fn at_mut<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
    value.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}"))
}

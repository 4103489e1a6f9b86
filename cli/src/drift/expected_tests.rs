//! What is expected, beside the shipped manifests. PURE.

use gitlab_runner_webhook::names::GUARDS;

use super::*;

#[test]
fn the_shipped_roles() {
    let forms = roles(&Program::shipped(), &Config::default());
    let names = |form: &[Role]| form.iter().map(|role| role.named.to_string()).collect::<Vec<_>>();
    let base = [
        "Role gitlab-runner-webhook/gitlab-runner-webhook",
        "Role gitlab-runner-webhook/gitlab-runner-webhook-pki",
        "ClusterRole gitlab-runner-webhook-pki",
    ];
    assert_eq!(names(&forms[0])[..3], base);
    assert_eq!(names(&forms[0])[3..], ["ClusterRole gitlab-runner-webhook"]);
    assert_eq!(
        names(&forms[1])[3..],
        [
            "ClusterRole gitlab-runner-webhook",
            "Role gitlab/gitlab-runner-webhook",
            "Role gitlab-runner/gitlab-runner-webhook"
        ]
    );
    let by_label = Config::from_yaml("runnerNamespaces: {selectors: [{matchLabels: {a: b}}]}").unwrap();
    assert_eq!(roles(&Program::shipped(), &by_label).len(), 1, "Roles cannot be where namespaces are found by label");
    let files = Program { tls: TlsMode::Files, ..Program::shipped() };
    assert_eq!(roles(&files, &Config::default())[0].len(), 2, "nothing of the PKI");
}

#[test]
fn other_names_are_those_of_the_installation() {
    let program = Program {
        namespace: "infra".parse().unwrap(),
        service: "hook".parse().unwrap(),
        ca_secret: "my-ca".parse().unwrap(),
        webhook_configuration: "my-hooks".to_owned(),
        service_account: "robot".to_owned(),
        ..Program::shipped()
    };
    let config = Config::default();
    let forms = roles(&program, &config);
    let named: Vec<_> = forms[0]
        .iter()
        .flat_map(|role| &role.rules)
        .filter_map(|rule| rule.resource_names.as_ref())
        .flatten()
        .collect();
    for name in ["my-ca", "my-hooks"] {
        assert!(named.iter().any(|there| *there == name), "{name}: {named:?}");
    }
    for name in GUARDS {
        let text = guard("ValidatingAdmissionPolicy", name, &program, &config).to_string();
        assert!(text.contains(".endsWith(':robot')") && !text.contains("':gitlab-runner-webhook'"), "{text}");
    }
    let objects = guard("ValidatingAdmissionPolicy", GUARDS[0], &program, &config).to_string();
    assert!(objects.contains("request.name == 'my-ca'"), "{objects}");
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        for webhook in webhooks(kind, &program, &config) {
            let service = &webhook["clientConfig"]["service"];
            assert_eq!((&service["name"], &service["namespace"]), (&"hook".into(), &"infra".into()));
        }
    }
}

#[test]
fn guards_and_webhooks_are_found_by_name() {
    for name in GUARDS {
        for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
            assert!(guard(kind, name, &Program::shipped(), &Config::default())["spec"].is_object(), "{kind} {name}");
        }
    }
    for (name, is_entry) in
        [("inject.pods.x", true), ("inject-2.pods.x", true), ("gate.pods.x", false), ("inject.y", false)]
    {
        assert_eq!(is_entry_of(name, "inject.pods.x"), is_entry, "{name}");
    }
}

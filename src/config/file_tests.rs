use super::*;

fn error(yaml: &str) -> String {
    Config::from_yaml(yaml).expect_err(yaml).to_string()
}

#[test]
fn an_empty_file_is_the_mission() {
    for yaml in ["", "\n", "# only a comment\n", "---\n", "{}", "runnerNamespaces: {}"] {
        let config = Config::from_yaml(yaml).expect(yaml);
        assert_eq!(config.runner_namespaces.names, default_names(), "{yaml:?}");
        assert_eq!(config.clones, Config::default().clones);
        assert_eq!(config.clones[0].source(), "gitlab/gitlab-gitlab-runner-secret");
        assert_eq!(config.certs_secret_name.as_str(), "gitlab-runner-certs");
    }
}

#[test]
fn every_field_is_read() {
    let config = Config::from_yaml(
        "runnerNamespaces:\n  names: [a, b]\n  selectors:\n  - matchLabels: {team: x}\n    \
         matchExpressions: [{key: env, operator: In, values: [dev, prod]}]\n\
         clones:\n- {secret: s, from: src, onSourceDeleted: delete, onForeignTarget: refuse, labels: {a: b}}\n\
         certsSecretName: ca\ncerts:\n  from: infra\n  publicRoots: none\n  \
         inject: {manager: false, clientCertificate: false, jobs: false, services: true}\n  \
         variables: {additive: [A], directory: [SSL_CERT_DIR], java: [], replacing: []}\ngate: {giveUpAfter: 500ms, then: deny}\n",
    )
    .unwrap();
    assert_eq!(config.runner_namespaces.names.len(), 2);
    let never =
        "kubernetes.io/metadata.name notin (gitlab-runner-webhook,infra,kube-node-lease,kube-public,kube-system,src)";
    assert_eq!(config.runner_namespaces.selectors[0].to_string(), format!("team=x,env in (dev,prod),{never}"));
    assert_eq!(config.clones[0].on_source_deleted, OnSourceDeleted::Delete);
    assert_eq!(config.clones[0].on_foreign_target, OnForeignTarget::Refuse);
    assert_eq!(config.clones[0].labels["a"], "b");
    assert_eq!(config.certs_secret_name.as_str(), "ca");
    let off = Inject { manager: false, client_certificate: false, jobs: false, services: true };
    assert_eq!(config.inject, off);
    assert_eq!(config.public_roots, PublicRoots::None);
    assert_eq!(
        config.variables,
        Variables {
            additive: vec!["A".into()],
            directory: vec!["SSL_CERT_DIR".into()],
            java: vec![],
            replacing: vec![]
        }
    );
    assert_eq!(config.gate, GateConfig { give_up_after: Duration::from_millis(500), then: GateThen::Deny });
    let certs = &config.clones[1];
    assert!(certs.holds_certs && certs.source() == "infra/ca" && !config.clones[0].holds_certs);
}

#[test]
fn each_error_names_the_field_and_what_is_expected() {
    let table = [
        ("runnerNamespace: {}", "runnerNamespace", "runnerNamespaces"),
        ("runnerNamespaces: {names: [Git_Lab]}", "Git_Lab", "lower-case"),
        ("runnerNamespaces: {names: []}", "runnerNamespaces", "at least one"),
        ("runnerNamespaces: {names: [kube-system]}", "runnerNamespaces.names", "kube-system"),
        ("runnerNamespaces: {names: [gitlab-runner-webhook]}", "runnerNamespaces.names", "itself"),
        ("runnerNamespaces: {selectors: [{}]}", "runnerNamespaces.selectors[0]", "every namespace"),
        ("runnerNamespaces: {selectors: [{matchLabel: {a: b}}]}", "matchLabel", "matchLabels"),
        ("runnerNamespaces: {selectors: [{matchLabels: {'a b': c}}]}", "selectors[0].matchLabels", "label key"),
        ("runnerNamespaces: {selectors: [{matchLabels: {a: '-'}}]}", "matchLabels.a", "label value"),
        (
            "runnerNamespaces: {selectors: [{matchExpressions: [{key: a, operator: Equals}]}]}",
            "matchExpressions[0]",
            "one of In, NotIn",
        ),
        ("runnerNamespaces: {selectors: [{matchExpressions: [{key: a, operator: In}]}]}", "[0]", "at least one value"),
        ("clones: [{secret: s}]", "from", "missing"),
        ("clones: [{secret: s, from: a}, {secret: s, from: b}]", "clones[1].secret", "twice"),
        ("clones: [{secret: s, from: gitlab-runner}]", "clones[0].from", "own clone"),
        ("clones: [{secret: s, from: a, onSourceDeleted: drop}]", "drop", "keep"),
        ("clones: [{secret: s, from: a, labels: {app.kubernetes.io/managed-by: x}}]", "clones[0].labels", "owns"),
        ("certs: {inject: {manager: maybe}}", "maybe", "bool"),
        ("certsSecretName: a/b", "a/b", "Secret name"),
        ("certs: {from: gitlab-runner}", "certs.from", "leave the field out"),
        ("{certsSecretName: s, certs: {from: a}, clones: [{secret: s, from: b}]}", "certs.from", "one of the two"),
        ("certs: {publicRoots: mozilla}", "mozilla", "builtin"),
        ("certs: {variables: {additive: ['A B']}}", "certs.variables.additive", "variable name"),
        ("certs: {variables: {additive: [A], replacing: [A]}}", "certs.variables.replacing", "twice"),
        ("certs: {variables: {replacing: [SSL_CERT_DIR]}}", "certs.variables.replacing", "directories"),
        ("gate: {giveUpAfter: soon}", "gate.giveUpAfter", "500ms"),
        ("gate: {then: wait}", "wait", "admit"),
        ("clones: [", "line 1", ""),
        ("- a", "", ""),
    ];
    for (yaml, names, expects) in table {
        let error = error(yaml);
        assert!(error.contains(names) && error.contains(expects), "{yaml}\n -> {error}");
    }
}

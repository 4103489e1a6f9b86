//! Holds what `manifests/` renders to the configuration, and to the names, ports, paths and flags of the code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Parser as _};
use gitlab_runner_webhook::{
    config::{Config, NamespaceName, Settings},
    names,
};
use gitlab_runner_webhook_cli::manifests;
use serde_json::{Value, json};
use test_support::{
    Manifests, documents, repository,
    rights::{Right, granted},
};

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

fn overlay(name: &str) -> Vec<Value> {
    Manifests::render(&format!("overlays/{name}")).objects
}

/// The default overlay with a component.
fn with_component(path: &str) -> Vec<Value> {
    Manifests::combine(&["overlays/default"], &[path]).unwrap().objects
}

/// The one object of a kind with the name of the program.
fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let config = format!("{}-config-", names::APP);
    let ours = |name: &Value| name == names::APP || text(name).starts_with(&config);
    let found: Vec<_> =
        objects.iter().filter(|object| object["kind"] == kind && ours(&object["metadata"]["name"])).collect();
    assert_eq!(found.len(), 1, "{kind}: {found:#?}");
    found[0]
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("expected a string: {value}"))
}

fn named<'a>(values: &'a Value, name: &str) -> &'a Value {
    list(values).iter().find(|value| value["name"] == name).unwrap_or_else(|| panic!("no {name} in {values:#}"))
}

/// What is in a folder of `manifests/`, by path.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, content)| (name.join(below), content)));
        } else {
            found.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
    found
}

#[test]
fn the_shipped_folder_is_what_the_program_writes_for_an_empty_file() {
    let shipped = files(&repository().join("manifests/generated"));
    let config = &shipped[Path::new("config.yaml")];
    let written = manifests::render(&Config::from_yaml("").unwrap(), config);
    let written: BTreeMap<_, _> = written.into_iter().map(|file| (PathBuf::from(file.path), file.content)).collect();
    assert_eq!(written.keys().collect::<Vec<_>>(), shipped.keys().collect::<Vec<_>>());
    for (path, content) in written {
        assert_eq!(content, shipped[&path], "{}: `make manifests` writes it", path.display());
    }
    // And config.yaml, which writes the defaults out, makes the same of it.
    let from_file = manifests::render(&Config::from_yaml(config).unwrap(), config);
    for file in from_file {
        assert_eq!(file.content, shipped[Path::new(file.path)], "{}", file.path);
    }
}

#[test]
fn who_writes_a_file_is_said_in_its_first_line() {
    for (path, content) in files(&repository().join("manifests")) {
        let is_written = path.starts_with("generated") && !path.ends_with("config.yaml");
        assert_eq!(content.starts_with(manifests::HEADER), is_written, "{}", path.display());
    }
}

#[test]
fn every_object_has_the_name_and_namespace_of_the_code() {
    let objects = overlay("default");
    let cluster_wide = [
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
        MUTATING,
        VALIDATING,
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    let namespaced = [
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "Service",
        "Deployment",
        "PodDisruptionBudget",
        "ResourceQuota",
        "NetworkPolicy",
    ];
    let kinds: BTreeSet<_> = objects.iter().map(|object| text(&object["kind"])).collect();
    assert_eq!(kinds, cluster_wide.into_iter().chain(namespaced).collect());

    for object in &objects {
        let kind = text(&object["kind"]);
        let metadata = &object["metadata"];
        let name = text(&metadata["name"]);
        if kind == "ConfigMap" {
            assert!(name.starts_with(&format!("{}-config-", names::APP)), "no content hash in {name}");
        } else {
            assert!(name.starts_with(names::APP), "{kind} {name}");
        }
        let namespace = namespaced.contains(&kind).then_some(names::APP);
        assert_eq!(metadata["namespace"].as_str(), namespace, "{kind}");
        assert_eq!(metadata["labels"]["app.kubernetes.io/name"], names::APP, "{kind}");
        assert_eq!(metadata["labels"][names::LABEL_MANAGED_BY], Value::Null, "{kind}: only clones carry it");
    }
    for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
        let there = objects.iter().filter(|object| object["kind"] == kind);
        let there: BTreeSet<_> = there.map(|object| text(&object["metadata"]["name"])).collect();
        assert_eq!(there, BTreeSet::from(names::GUARDS), "{kind}");
    }
    let deployment = only(&objects, "Deployment");
    for labels in [&deployment["metadata"]["labels"], &deployment["spec"]["template"]["metadata"]["labels"]] {
        assert_eq!(labels["app.kubernetes.io/version"], env!("CARGO_PKG_VERSION"));
    }
    for kind in ["Namespace", "ServiceAccount", "Service", "Deployment", MUTATING, VALIDATING] {
        only(&objects, kind);
    }
    for mode in ["enforce", "audit", "warn"] {
        let labels = &only(&objects, "Namespace")["metadata"]["labels"];
        assert_eq!(labels[format!("pod-security.kubernetes.io/{mode}")], "restricted");
    }
}

fn expected(table: &[(&str, &[&str], &str, &str)]) -> BTreeSet<Right> {
    let all = table.iter().flat_map(|(namespace, verbs, resource, name)| {
        verbs.iter().map(|verb| [*namespace, *verb, *resource, *name].map(str::to_owned).into())
    });
    all.collect()
}

const SECRET: &str = "gitlab-gitlab-runner-secret";
const CERTS: &str = "gitlab-runner-certs";
const READ: [&str; 3] = ["get", "list", "watch"];
const WATCH: [&str; 2] = ["list", "watch"];
const WRITE: [&str; 4] = ["create", "patch", "update", "delete"];
const APPLY: [&str; 2] = ["create", "patch"];
const EVENTS: [&str; 2] =
    ["gitlab-runner-webhook.gitlab-gitlab-runner-secret", "gitlab-runner-webhook.gitlab-runner-webhook-trust"];
const OWN: [(&str, &[&str], &str, &str); 3] = [
    (names::APP, &["get"], "deployments", names::APP),
    // Their names are generated.
    (names::APP, &WATCH, "replicasets", "any"),
    (names::APP, &APPLY, "events", "gitlab-runner-webhook.gitlab-runner-webhook"),
];
const PKI: [(&str, &[&str], &str, &str); 3] = [
    (names::APP, &["get", "list", "watch", "create", "patch", "update"], "secrets", "gitlab-runner-webhook-ca"),
    ("everywhere", &["list", "watch", "patch"], "mutatingwebhookconfigurations", names::APP),
    ("everywhere", &["list", "watch", "patch"], "validatingwebhookconfigurations", names::APP),
];

#[test]
fn the_rights_are_those_that_the_configuration_needs_and_no_more() {
    let of_configuration: [(&str, &[&str], &str, &str); 8] = [
        ("everywhere", &READ, "secrets", SECRET),
        ("everywhere", &WRITE, "secrets", SECRET),
        ("everywhere", &READ, "secrets", CERTS),
        ("everywhere", &READ, "configmaps", names::CONFIGMAP_TRUST),
        ("everywhere", &WRITE, "configmaps", names::CONFIGMAP_TRUST),
        ("everywhere", &WATCH, "namespaces", "gitlab-runner"),
        ("everywhere", &APPLY, "events", EVENTS[0]),
        ("everywhere", &APPLY, "events", EVENTS[1]),
    ];
    let of_files = [&OWN[..], &of_configuration].concat();
    let of_all = [&of_files[..], &PKI].concat();
    for name in ["default", "minimal", "local"] {
        assert_eq!(granted(&overlay(name)), expected(&of_all), "{name}");
    }
    // Whoever brings a certificate takes the rights of the self-managed PKI away.
    for component in ["components/tls-files", "components/cert-manager"] {
        assert_eq!(granted(&with_component(component)), expected(&of_files), "{component}");
    }
}

#[test]
fn with_roles_in_namespaces_nothing_can_be_written_anywhere_else() {
    let of_configuration: [(&str, &[&str], &str, &str); 12] = [
        ("everywhere", &WATCH, "secrets", SECRET),
        ("everywhere", &WATCH, "secrets", CERTS),
        ("everywhere", &WATCH, "configmaps", names::CONFIGMAP_TRUST),
        ("everywhere", &WATCH, "namespaces", "gitlab-runner"),
        ("gitlab", &["get"], "secrets", SECRET),
        ("gitlab-runner", &["get"], "secrets", SECRET),
        ("gitlab-runner", &WRITE, "secrets", SECRET),
        ("gitlab-runner", &["get"], "secrets", CERTS),
        ("gitlab-runner", &["get"], "configmaps", names::CONFIGMAP_TRUST),
        ("gitlab-runner", &WRITE, "configmaps", names::CONFIGMAP_TRUST),
        ("gitlab-runner", &APPLY, "events", EVENTS[0]),
        ("gitlab-runner", &APPLY, "events", EVENTS[1]),
    ];
    let all = [&OWN[..], &of_configuration, &PKI].concat();
    assert_eq!(granted(&with_component("generated/namespaced-rbac")), expected(&all));
}

/// The webhooks of both configurations, each with the kind of its configuration.
fn webhooks(objects: &[Value]) -> Vec<(&str, &Value)> {
    let of = |kind| list(&only(objects, kind)["webhooks"]).iter().map(move |webhook| (kind, webhook));
    of(MUTATING).chain(of(VALIDATING)).collect()
}

fn webhooks_mut(objects: &mut [Value]) -> impl Iterator<Item = &mut Value> {
    objects.iter_mut().filter_map(|object| object.get_mut("webhooks")?.as_array_mut()).flatten()
}

fn webhook<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    let webhooks = webhooks(objects);
    webhooks.iter().find(|(_, webhook)| webhook["name"] == name).unwrap_or_else(|| panic!("no webhook {name}")).1
}

/// Objects whose label has none of these values, or that lack it.
fn not_in(label: &str, value: &str) -> Value {
    json!({"key": label, "operator": "NotIn", "values": [value]})
}

#[test]
fn the_webhooks_see_runner_namespaces_and_nothing_else() {
    let objects = overlay("default");
    let service = only(&objects, "Service");
    let config = Config::default();
    assert!(config.runner_namespaces.selectors.is_empty(), "a selector by name cannot say this");
    let runner_namespaces: Vec<_> = config.runner_namespaces.names.iter().map(NamespaceName::as_str).collect();
    let runner_namespaces = json!({"key": names::LABEL_NAMESPACE_NAME, "operator": "In", "values": runner_namespaces});
    let opt_out = not_in(names::LABEL_INJECT, "false");
    let pods = |path| ("pods", "Namespaced", path, 5);

    // kind, name, (resource, scope, path, timeout in seconds), reinvocation, terms beside the runner namespaces
    let table = [
        (MUTATING, names::WEBHOOK_INJECT, pods(names::PATH_MUTATE_PODS), json!("IfNeeded"), vec![opt_out]),
        (
            MUTATING,
            names::WEBHOOK_NAMESPACES,
            ("namespaces", "Cluster", names::PATH_MUTATE_NAMESPACES, 2),
            json!("Never"),
            vec![],
        ),
        (VALIDATING, names::WEBHOOK_GATE, pods(names::PATH_VALIDATE_PODS), Value::Null, vec![]),
    ];
    let webhooks = webhooks(&objects);
    assert_eq!(webhooks.len(), table.len());
    for ((kind, name, (resource, scope, path, timeout), reinvocation, terms), (found_in, webhook)) in
        table.into_iter().zip(webhooks)
    {
        assert_eq!((found_in, text(&webhook["name"])), (kind, name));
        let terms: Vec<_> = [runner_namespaces.clone()].into_iter().chain(terms).collect();
        assert_eq!(webhook["namespaceSelector"], json!({"matchExpressions": terms}), "{name}");
        assert_eq!(
            webhook["rules"],
            json!([{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": [resource], "operations": ["CREATE"], "scope": scope,
            }]),
            "{name}"
        );
        assert_eq!(
            webhook["clientConfig"],
            json!({"service": {
                "name": names::APP, "namespace": names::APP, "path": path, "port": service["spec"]["ports"][0]["port"],
            }}),
            "{name}: and no caBundle, which is not in git"
        );
        let policy = if name == names::WEBHOOK_NAMESPACES { "Ignore" } else { "Fail" };
        assert_eq!(webhook["failurePolicy"], policy, "{name}: no warning is worth a namespace");
        assert_eq!(webhook["sideEffects"], "None", "{name}");
        assert_eq!(webhook["matchPolicy"], "Equivalent", "{name}");
        assert_eq!(webhook["admissionReviewVersions"], json!(["v1"]), "{name}");
        assert_eq!(webhook["timeoutSeconds"], timeout, "{name}");
        assert_eq!(webhook["reinvocationPolicy"], reinvocation, "{name}");
    }
}

#[test]
fn the_pod_webhooks_are_spared_what_does_not_concern_them() {
    let objects = overlay("default");
    let inject = webhook(&objects, names::WEBHOOK_INJECT);
    let gate = webhook(&objects, names::WEBHOOK_GATE);
    let conditions = |webhook: &Value| -> Vec<String> {
        list(&webhook["matchConditions"]).iter().map(|condition| text(&condition["name"]).to_owned()).collect()
    };

    assert_eq!(conditions(inject), ["not-a-mirror-pod"]);
    assert_eq!(inject["objectSelector"], json!({"matchExpressions": [not_in(names::LABEL_INJECT, "false")]}));

    assert_eq!(conditions(gate), ["not-a-mirror-pod", "uses-clone"]);
    assert_eq!(inject["matchConditions"][0], gate["matchConditions"][0]);
    let job = json!({"key": "job.runner.gitlab.com/pod", "operator": "DoesNotExist"});
    assert_eq!(
        gate["objectSelector"],
        json!({"matchExpressions": [job, not_in("runner.gitlab.com/pause-pod", "true")]}),
        "job pods never reach the gate"
    );
    let uses_clone = text(&named(&gate["matchConditions"], "uses-clone")["expression"]);
    let names: Vec<_> = Config::default().clones.iter().map(|clone| format!("'{}'", clone.secret)).collect();
    assert!(uses_clone.starts_with(&format!("[{}].exists(clone,", names.join(", "))), "{uses_clone}");
    assert_eq!(uses_clone.matches('\'').count(), 2 * names.len(), "no other name in it: {uses_clone}");
}

#[test]
fn a_call_reaches_the_port_that_is_listened_on() {
    let objects = overlay("default");
    let deployment = only(&objects, "Deployment");
    let pod = &deployment["spec"]["template"];
    let container = named(&pod["spec"]["containers"], names::APP);
    let service = only(&objects, "Service");

    let selector = service["spec"]["selector"].as_object().unwrap();
    assert_eq!(deployment["spec"]["selector"]["matchLabels"].as_object(), Some(selector));
    for (key, value) in selector {
        assert_eq!(&pod["metadata"]["labels"][key], value, "the pod's label {key}");
    }
    assert_eq!(list(&service["spec"]["ports"]).len(), 1, "probes and metrics are not for the Service");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "webhook");
    assert_eq!(service["spec"]["ports"][0]["appProtocol"], "https");

    let settings = settings_of(container);
    assert_eq!(list(&container["ports"]).len(), 2);
    for (name, port, listened_on) in [
        ("webhook", names::PORT_WEBHOOK, settings.listen.port()),
        ("probes", names::PORT_PROBES, settings.probe_listen.port()),
    ] {
        assert_eq!(named(&container["ports"], name)["containerPort"], port, "{name}");
        assert_eq!(port, listened_on, "{name}");
    }
    for (probe, path) in [
        ("startupProbe", names::PATH_LIVEZ),
        ("livenessProbe", names::PATH_LIVEZ),
        ("readinessProbe", names::PATH_READYZ),
    ] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "probes"}), "{probe}");
    }
}

/// What the program makes of the container's arguments.
fn settings_of(container: &Value) -> Settings {
    assert_eq!(container["command"], Value::Null, "the image's own entry point");
    let known: Vec<_> = Settings::command()
        .get_arguments()
        .filter_map(|flag| flag.get_env())
        .map(std::borrow::ToOwned::to_owned)
        .collect();
    for variable in list(&container["env"]) {
        let name = text(&variable["name"]);
        assert!(known.iter().any(|known| known == name), "{name} is of no flag");
    }
    let arguments = list(&container["args"]).iter().map(text);
    Settings::try_parse_from([names::APP].into_iter().chain(arguments)).unwrap()
}

/// Every file that the pod's volumes put into the container, and the object and key it comes from.
fn mounted_files(pod: &Value) -> BTreeMap<PathBuf, (String, String)> {
    let mut files = BTreeMap::new();
    for mount in list(&pod["containers"][0]["volumeMounts"]) {
        assert_eq!(mount["readOnly"], true, "{mount}");
        assert_eq!(mount["subPath"], Value::Null, "a subPath mount never sees an update: {mount}");
        let volume = named(&pod["volumes"], text(&mount["name"]));
        for source in list(&volume["projected"]["sources"]) {
            for (kind, source) in source.as_object().unwrap() {
                if kind == "serviceAccountToken" {
                    let path = Path::new(text(&mount["mountPath"])).join(text(&source["path"]));
                    assert!(files.insert(path, (kind.clone(), String::new())).is_none(), "{mount}");
                }
                for item in list(&source["items"]) {
                    let path = Path::new(text(&mount["mountPath"])).join(text(&item["path"]));
                    let from = source["name"].as_str().map_or_else(|| kind.clone(), |name| format!("{kind} {name}"));
                    let key = item["key"].as_str().unwrap_or_default().to_owned();
                    assert!(files.insert(path, (from, key)).is_none(), "{item}");
                }
            }
        }
    }
    files
}

#[test]
fn the_files_are_where_the_flags_look_for_them() {
    let tls = format!("secret {}-tls", names::APP);
    let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
    for (objects, has_certificate) in [
        (overlay("default"), false),
        (overlay("minimal"), false),
        (with_component("components/tls-files"), true),
        (with_component("components/cert-manager"), true),
        (with_component("components/client-ca"), false),
    ] {
        let pod = &only(&objects, "Deployment")["spec"]["template"]["spec"];
        let settings = settings_of(&pod["containers"][0]);
        let config = format!("configMap {}", text(&only(&objects, "ConfigMap")["metadata"]["name"]));
        let mut expected = vec![
            (settings.config.unwrap(), config.as_str(), "config.yaml"),
            (settings.log_level_file.unwrap(), "configMap gitlab-runner-webhook-log-level", "level"),
            (account.join("token"), "serviceAccountToken", ""),
            (account.join("ca.crt"), "configMap kube-root-ca.crt", "ca.crt"),
            (account.join("namespace"), "downwardAPI", ""),
        ];
        let environment = list(&pod["containers"][0]["env"]);
        let value =
            |name: &str| environment.iter().find(|variable| variable["name"] == name).map(|found| &found["value"]);
        assert_eq!(value("GITLAB_RUNNER_WEBHOOK_TLS").is_some_and(|mode| mode == "files"), has_certificate);
        if let Some(file) = value("GITLAB_RUNNER_WEBHOOK_CLIENT_CA") {
            expected.push((text(file).into(), "configMap gitlab-runner-webhook-client-ca", "ca.crt"));
        }
        if has_certificate {
            expected.extend([(settings.tls_cert, tls.as_str(), "tls.crt"), (settings.tls_key, &tls, "tls.key")]);
        }
        let expected = expected.into_iter().map(|(path, from, key)| (path, (from.to_owned(), key.to_owned())));
        assert_eq!(mounted_files(pod), expected.collect());
    }
}

#[test]
fn the_pod_is_restricted() {
    let objects = overlay("default");
    let deployment = only(&objects, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(
        pod["securityContext"],
        json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        })
    );
    assert_eq!(list(&pod["containers"]).len(), 1);
    assert_eq!(pod["initContainers"], Value::Null);
    let container = &pod["containers"][0];
    assert_eq!(
        container["securityContext"],
        json!({
            "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        })
    );
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(pod[field], Value::Null, "{field}");
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(only(&objects, "ServiceAccount")["automountServiceAccountToken"], false);
    assert_eq!(pod["serviceAccountName"], names::APP);
    assert_eq!(pod["enableServiceLinks"], false);
    for volume in list(&pod["volumes"]) {
        assert_eq!(volume["projected"]["defaultMode"], 0o440, "readable by the pod's group only: {volume:#}");
    }
    assert_eq!(container["resources"]["limits"]["memory"], container["resources"]["requests"]["memory"]);
    assert_eq!(container["resources"]["limits"]["cpu"], Value::Null);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({"maxUnavailable": 0, "maxSurge": 1}));
    assert_eq!(container["image"], format!("{}:{}", names::APP, env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_shipped_configuration_writes_the_defaults_out() {
    let objects = overlay("default");
    let file = text(&only(&objects, "ConfigMap")["data"]["config.yaml"]);
    let Config {
        runner_namespaces,
        trust_namespaces,
        clones,
        certs_secret_name,
        public_roots,
        inject,
        variables,
        gate,
        restart,
    } = Config::from_yaml(file).unwrap();
    let default = Config::default();
    assert_eq!(runner_namespaces.names, default.runner_namespaces.names);
    assert!(runner_namespaces.selectors.is_empty() && default.runner_namespaces.selectors.is_empty());
    assert!(trust_namespaces.is_empty() && default.trust_namespaces.is_empty());
    assert_eq!(clones, default.clones);
    assert_eq!(certs_secret_name, default.certs_secret_name);
    assert_eq!(public_roots, default.public_roots);
    assert_eq!(inject, default.inject);
    assert_eq!(variables, default.variables);
    assert_eq!(gate, default.gate);
    assert_eq!(restart, default.restart);
    // Nothing is left for the reader to guess.
    for field in ["from: null", "publicRoots:", "services:", "additive:", "replacing:", "giveUpAfter:", "then:"] {
        assert!(file.lines().any(|line| line.trim_start().starts_with(field)), "{field}");
    }
}

#[test]
fn two_replicas_wait_for_no_second_node_and_one_replica_fails_open() {
    let (default, minimal) = (overlay("default"), overlay("minimal"));
    let spec = &only(&default, "Deployment")["spec"];
    assert_eq!(spec["replicas"], 2);
    let spread = list(&spec["template"]["spec"]["topologySpreadConstraints"]);
    let keys: Vec<_> = spread.iter().map(|constraint| text(&constraint["topologyKey"])).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    for constraint in spread {
        assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway", "{constraint:#}");
        assert_eq!(constraint["labelSelector"], spec["selector"]);
    }
    let budget = &only(&default, "PodDisruptionBudget")["spec"];
    assert_eq!((&budget["maxUnavailable"], &budget["selector"]), (&json!(1), &spec["selector"]));

    // The minimal one is the default without these, and fails open.
    let mut expected = default.clone();
    expected.retain(|object| object["kind"] != "PodDisruptionBudget");
    let deployment = expected.iter_mut().find(|object| object["kind"] == "Deployment").unwrap();
    deployment["spec"]["replicas"] = json!(1);
    deployment["spec"]["template"]["spec"].as_object_mut().unwrap().remove("topologySpreadConstraints");
    for webhook in webhooks_mut(&mut expected) {
        webhook["failurePolicy"] = json!("Ignore");
    }
    assert_eq!(minimal, expected);
}

#[test]
fn cert_manager_issues_for_the_service_and_fills_in_both_configurations() {
    let objects = with_component("components/cert-manager");
    let leaf = only(&objects, "Certificate");
    let ca = objects.iter().find(|object| object["spec"]["isCA"] == true).unwrap();
    let service = only(&objects, "Service");
    let host = format!("{}.{}.svc", text(&service["metadata"]["name"]), text(&service["metadata"]["namespace"]));
    assert_eq!(leaf["spec"]["dnsNames"], json!([host, format!("{host}.cluster.local")]));
    assert_eq!(leaf["spec"]["secretName"], format!("{}-tls", names::APP));
    let issuers = objects.iter().filter(|object| object["kind"] == "Issuer");
    let issuer =
        issuers.into_iter().find(|issuer| issuer["metadata"]["name"] == leaf["spec"]["issuerRef"]["name"]).unwrap();
    assert_eq!(issuer["spec"]["ca"]["secretName"], ca["spec"]["secretName"]);
    let from = format!("{}/{}", names::APP, text(&ca["metadata"]["name"]));
    for kind in [MUTATING, VALIDATING] {
        let annotations = &only(&objects, kind)["metadata"]["annotations"];
        assert_eq!(annotations, &json!({"cert-manager.io/inject-ca-from": from}), "{kind}");
    }
}

/// kubelet needs no rule, and who scrapes is named by component monitoring. For port 10250 nothing can be said that holds
/// for every CNI: docs/security.md.
#[test]
fn pods_are_kept_off_the_plain_port_without_any_component() {
    for name in ["default", "minimal"] {
        let objects = overlay(name);
        let policies: Vec<_> = objects.iter().filter(|object| object["kind"] == "NetworkPolicy").collect();
        let [policy] = policies[..] else { panic!("{name}: {policies:#?}") };
        let selector = &only(&objects, "Deployment")["spec"]["selector"];
        let expected = json!({
            "podSelector": selector,
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": names::PORT_WEBHOOK}]}],
        });
        assert_eq!(policy["spec"], expected, "{name}");
    }
    let monitoring = with_component("components/monitoring");
    let scrape = monitoring.iter().find(|object| object["metadata"]["name"] == "gitlab-runner-webhook-metrics");
    let rules = monitoring.iter().filter(|object| object["kind"] == "NetworkPolicy").collect::<Vec<_>>();
    assert!(scrape.is_some() && rules.len() == 2, "{rules:#?}");
}

#[test]
fn the_components_name_the_ports_labels_and_images_that_are_there() {
    let objects = Manifests::combine(
        &["overlays/default"],
        &["components/monitoring", "components/network-policy", "components/flow-schema", "components/big-bang"],
    );
    let objects = objects.unwrap().objects;
    let of_kind = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
    let deployment = only(&objects, "Deployment");
    let pod = &deployment["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    let labels = pod["metadata"]["labels"].as_object().unwrap();
    let selects =
        |selector: &Value| selector.as_object().unwrap().iter().all(|(key, value)| labels.get(key) == Some(value));

    for policy in of_kind("NetworkPolicy") {
        let selector = &policy["spec"]["podSelector"];
        assert!(*selector == json!({}) || selects(&selector["matchLabels"]), "{policy:#}");
    }
    let ingress = &only(&objects, "NetworkPolicy")["spec"]["ingress"];
    // Open until it is narrowed, so nothing else may open it, too.
    assert_eq!(ingress[0], json!({"ports": [{"protocol": "TCP", "port": names::PORT_WEBHOOK}]}));
    let opens = of_kind("NetworkPolicy").into_iter().filter(|policy| {
        policy["spec"]["ingress"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|rule| list(&rule["ports"]).iter().any(|port| port["port"] == names::PORT_WEBHOOK))
    });
    assert_eq!(opens.count(), 1);
    assert_eq!(ingress[1]["ports"], json!([{"protocol": "TCP", "port": names::PORT_PROBES}]));
    assert_eq!(list(ingress).len(), 2);
    assert!(
        of_kind("NetworkPolicy")
            .iter()
            .any(|policy| { policy["spec"] == json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}) })
    );

    let monitor = &only(&objects, "ServiceMonitor")["spec"];
    let services = of_kind("Service").into_iter().filter(|service| {
        monitor["selector"]["matchLabels"]
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| service["metadata"]["labels"][key] == *value)
    });
    let [service] = services.collect::<Vec<_>>()[..] else { panic!("a ServiceMonitor is for one Service") };
    assert!(selects(&service["spec"]["selector"]));
    let port = named(&service["spec"]["ports"], text(&monitor["endpoints"][0]["port"]));
    assert_eq!(named(&container["ports"], text(&port["targetPort"]))["containerPort"], names::PORT_PROBES);
    assert_eq!(monitor["endpoints"][0]["path"], names::PATH_METRICS);

    let port = names::PORT_WEBHOOK.to_string();
    assert_eq!(pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeInboundPorts"], port);
    let peers = &only(&objects, "PeerAuthentication")["spec"];
    assert!(selects(&peers["selector"]["matchLabels"]));
    assert_eq!(peers["portLevelMtls"], json!({port.as_str(): {"mode": "PERMISSIVE"}}));
    assert_eq!(
        only(&objects, "AuthorizationPolicy")["spec"]["rules"][0]["to"],
        json!([{"operation": {"ports": [port]}}])
    );
    assert!(text(&container["image"]).starts_with("registry1.dso.mil/"));
    for label in ["name", "instance", "version", "component", "part-of"] {
        assert!(labels.contains_key(&format!("app.kubernetes.io/{label}")), "{label}");
    }
    let subject = &only(&objects, "FlowSchema")["spec"]["rules"][0]["subjects"];
    let account = json!({"name": names::APP, "namespace": names::APP});
    assert_eq!(*subject, json!([{"kind": "ServiceAccount", "serviceAccount": account}]));
}

#[test]
fn the_local_overlay_differs_in_the_url_and_the_missing_deployment_only() {
    let mut expected = overlay("default");
    expected.retain(|object| object["kind"] != "Deployment");
    for webhook in webhooks_mut(&mut expected) {
        let path = text(&webhook["clientConfig"]["service"]["path"]).to_owned();
        webhook["clientConfig"] = json!({"url": format!("https://127.0.0.1:{}{path}", names::PORT_WEBHOOK)});
    }
    assert_eq!(overlay("local"), expected);
}

#[test]
fn the_runner_fixtures_use_the_configured_secrets() {
    let config = Config::default();
    for (file, mounts_certs) in [("gitlab-runner.yaml", false), ("gitlab-runner-with-certs.yaml", true)] {
        let objects =
            documents(&fs::read_to_string(repository().join("tests/fixtures/deployments").join(file)).unwrap());
        for object in &objects {
            assert!(config.runner_namespaces.names.contains(text(&object["metadata"]["namespace"])), "{file}");
        }
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let pod = &deployment["spec"]["template"]["spec"];
        let token = &named(&pod["volumes"], "projected-secrets")["projected"]["sources"][0]["secret"]["name"];
        assert_eq!(text(token), config.clones[0].secret.as_str(), "{file}");
        let mount = list(&pod["containers"][0]["volumeMounts"])
            .iter()
            .find(|mount| text(&mount["mountPath"]).trim_end_matches('/') == names::MOUNT_MANAGER_CERTS);
        assert_eq!(mount.is_some(), mounts_certs, "{file}");
        if let Some(mount) = mount {
            let volume = named(&pod["volumes"], text(&mount["name"]));
            assert_eq!(text(&volume["secret"]["secretName"]), config.certs_secret_name.as_str(), "{file}");
        }
    }
}

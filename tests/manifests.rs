//! Holds what `manifests/` renders, and what `certs/issue.sh` issues, to the names, ports, paths and defaults of the code.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not the helpers they share"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use clap::Parser;
use gitlab_runner_webhook::{
    config::{Config, NamespaceName, Settings},
    names,
};
use serde_json::{Value, json};

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

/// kubectl, which carries kustomize: `$KUBECTL`, else the one on `PATH`.
fn kubectl() -> Command {
    Command::new(env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()))
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn stdout_of(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn documents(yaml: &str) -> Vec<Value> {
    yaml.split("\n---\n").map(|document| serde_saphyr::from_str(document).expect(document)).collect()
}

fn render(folder: &Path) -> Vec<Value> {
    documents(&stdout_of(kubectl().arg("kustomize").arg(folder)))
}

fn overlay(name: &str) -> Vec<Value> {
    render(&repository().join("manifests/overlays").join(name))
}

/// The one object of a kind.
fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["kind"] == kind).collect();
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

/// A folder that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_default_overlay_is_the_base() {
    assert_eq!(overlay("default"), render(&repository().join("manifests/base")));
}

#[test]
fn every_object_has_the_name_and_namespace_of_the_code() {
    let objects = overlay("default");
    let cluster_wide = ["Namespace", "ClusterRole", "ClusterRoleBinding", MUTATING, VALIDATING];
    let namespaced = ["ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Service", "Deployment"];
    let kinds: BTreeSet<_> = objects.iter().map(|object| text(&object["kind"])).collect();
    assert_eq!(kinds, cluster_wide.into_iter().chain(namespaced).collect());

    for object in &objects {
        let kind = text(&object["kind"]);
        let metadata = &object["metadata"];
        if kind == "ConfigMap" {
            let name = text(&metadata["name"]);
            assert!(name.starts_with(&format!("{}-config-", names::APP)), "no content hash in {name}");
        } else {
            assert_eq!(metadata["name"], names::APP, "{kind}");
        }
        let namespace = namespaced.contains(&kind).then_some(names::APP);
        assert_eq!(metadata["namespace"].as_str(), namespace, "{kind}");
        assert_eq!(metadata["labels"]["app.kubernetes.io/name"], names::APP, "{kind}");
        assert_eq!(metadata["labels"]["app.kubernetes.io/version"], env!("CARGO_PKG_VERSION"), "{kind}");
        assert_eq!(metadata["labels"][names::LABEL_MANAGED_BY], Value::Null, "{kind}: only clones carry it");
    }
    for mode in ["enforce", "audit", "warn"] {
        let labels = &only(&objects, "Namespace")["metadata"]["labels"];
        assert_eq!(labels[format!("pod-security.kubernetes.io/{mode}")], "restricted");
    }
}

/// (verb, resource, object): one thing that may be done.
type Right = (String, String, String);

fn expected_cluster_rights(config: &Config) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let mut grant = |verbs: &[&str], resource: &str, name: &str| {
        rights.extend(verbs.iter().map(|verb| ((*verb).to_owned(), resource.to_owned(), name.to_owned())));
    };
    let read = ["get", "list", "watch"];
    for clone in &config.clones {
        grant(&read, "secrets", clone.secret.as_str());
        grant(&["create", "patch", "update", "delete"], "secrets", clone.secret.as_str());
    }
    grant(&read, "secrets", config.certs_secret_name.as_str());
    grant(&read, "configmaps", names::CONFIGMAP_TRUST);
    grant(&["create", "patch", "update", "delete"], "configmaps", names::CONFIGMAP_TRUST);
    for namespace in &config.runner_namespaces.names {
        grant(&read, "namespaces", namespace.as_str());
    }
    rights
}

#[test]
fn the_rights_are_those_that_the_configuration_needs_and_no_more() {
    let objects = overlay("default");
    let cluster_wide = only(&objects, "ClusterRole");
    assert_eq!(cluster_wide["aggregationRule"], Value::Null);
    assert_eq!(rights(cluster_wide), expected_cluster_rights(&Config::default()));
    let right = |verb: &str, resource: &str, name: &str| (verb.to_owned(), resource.to_owned(), name.to_owned());
    assert_eq!(rights(only(&objects, "Role")), BTreeSet::from([right("get", "endpoints", names::APP)]));

    for kind in ["ClusterRole", "Role"] {
        let binding = only(&objects, &format!("{kind}Binding"));
        assert_eq!(
            binding["roleRef"],
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": names::APP})
        );
        let subject = json!({"kind": "ServiceAccount", "name": names::APP, "namespace": names::APP});
        assert_eq!(binding["subjects"], json!([subject]));
    }
}

/// What a role grants: names of objects only, and nothing twice.
fn rights(role: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in list(&role["rules"]) {
        assert_eq!(rule["apiGroups"], json!([""]), "{rule:#}");
        assert_eq!(rule["nonResourceURLs"], Value::Null, "{rule:#}");
        assert!(
            !list(&rule["resourceNames"]).is_empty(),
            "a rule without resourceNames is one on all objects: {rule:#}"
        );
        assert!(!rule.to_string().contains('*'), "wildcard: {rule:#}");
        for verb in list(&rule["verbs"]) {
            for resource in list(&rule["resources"]) {
                for name in list(&rule["resourceNames"]) {
                    let right = (text(verb).to_owned(), text(resource).to_owned(), text(name).to_owned());
                    assert!(rights.insert(right), "granted twice: {rule:#}");
                }
            }
        }
    }
    rights
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
        assert_eq!(webhook["failurePolicy"], "Ignore", "{name}: one replica fails open");
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
    let pod_name = json!({"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}});
    assert_eq!(container["env"], json!([{"name": "POD_NAME", "valueFrom": pod_name}]), "flags say the rest");
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
    let objects = overlay("default");
    let pod = &only(&objects, "Deployment")["spec"]["template"]["spec"];
    let settings = settings_of(&pod["containers"][0]);
    let tls = format!("secret {}-tls", names::APP);
    let config = format!("configMap {}", text(&only(&objects, "ConfigMap")["metadata"]["name"]));
    let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");

    let expected = [
        (settings.config.expect("--config"), config.as_str(), "config.yaml"),
        (settings.tls_cert, &tls, "tls.crt"),
        (settings.tls_key, &tls, "tls.key"),
        (account.join("token"), "serviceAccountToken", ""),
        (account.join("ca.crt"), "configMap kube-root-ca.crt", "ca.crt"),
        (account.join("namespace"), "downwardAPI", ""),
    ];
    let expected = expected.map(|(path, from, key)| (path, (from.to_owned(), key.to_owned())));
    assert_eq!(mounted_files(pod), BTreeMap::from(expected));
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
    let Config { runner_namespaces, clones, certs_secret_name, public_roots, inject, variables, gate } =
        Config::from_yaml(file).unwrap();
    let default = Config::default();
    assert_eq!(runner_namespaces.names, default.runner_namespaces.names);
    assert!(runner_namespaces.selectors.is_empty() && default.runner_namespaces.selectors.is_empty());
    assert_eq!(clones, default.clones);
    assert_eq!(certs_secret_name, default.certs_secret_name);
    assert_eq!(public_roots, default.public_roots);
    assert_eq!(inject, default.inject);
    assert_eq!(variables, default.variables);
    assert_eq!(gate, default.gate);
    // Nothing is left for the reader to guess.
    for field in ["from: null", "publicRoots:", "services:", "additive:", "replacing:", "giveUpAfter:", "then:"] {
        assert!(file.lines().any(|line| line.trim_start().starts_with(field)), "{field}");
    }
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
        let pod = &only(&objects, "Deployment")["spec"]["template"]["spec"];
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

fn issue(out: &Path) -> Command {
    let mut command = Command::new(repository().join("certs/issue.sh"));
    command.arg("--out").arg(out).env_remove("KUBECTL");
    command
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments);
    command
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

const ISSUED: [&str; 5] = ["ca-bundle-mutating.yaml", "ca-bundle-validating.yaml", "ca.crt", "tls.crt", "tls.key"];

#[test]
fn an_issued_certificate_is_valid_for_the_service_and_what_else_was_asked_for() {
    let scratch = Scratch::new("issue");
    let out = scratch.0.join("new/folder");
    stdout_of(issue(&out).args(["--san", "127.0.0.1", "--san", "webhook.example.com"]));
    assert_eq!(
        names_in(&out),
        BTreeSet::from(ISSUED.map(str::to_owned)),
        "and neither a CA key nor a temporary folder"
    );

    let service = format!("{0}.{0}.svc", names::APP);
    for identity in [
        ["-verify_hostname", &service],
        ["-verify_hostname", &format!("{service}.cluster.local")],
        ["-verify_hostname", "webhook.example.com"],
        ["-verify_ip", "127.0.0.1"],
    ] {
        let mut verify = openssl(&["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]);
        stdout_of(verify.arg(out.join("ca.crt")).args(identity).arg(out.join("tls.crt")));
    }
    let mut verify = openssl(&["verify", "-verify_hostname", "example.com", "-CAfile"]);
    assert!(!run(verify.arg(out.join("ca.crt")).arg(out.join("tls.crt"))).status.success(), "a name nobody asked for");

    let public_key = stdout_of(openssl(&["pkey", "-pubout", "-in"]).arg(out.join("tls.key")));
    assert_eq!(public_key, stdout_of(openssl(&["x509", "-pubkey", "-noout", "-in"]).arg(out.join("tls.crt"))));
    let leaf = stdout_of(openssl(&["x509", "-noout", "-text", "-in"]).arg(out.join("tls.crt")));
    for part in ["prime256v1", "CA:FALSE", "TLS Web Server Authentication"] {
        assert!(leaf.contains(part), "{part}\n{leaf}");
    }
    let ca = stdout_of(openssl(&["x509", "-noout", "-text", "-in"]).arg(out.join("ca.crt")));
    assert!(ca.contains("CA:TRUE, pathlen:0") && ca.contains("Certificate Sign"), "{ca}");

    let nine_days = 9 * 86_400;
    let short = scratch.0.join("short");
    stdout_of(issue(&short).args(["--days", "9"]));
    for (seconds, expected) in [(nine_days - 3600, true), (nine_days + 3600, false)] {
        let mut check = openssl(&["x509", "-noout", "-checkend", &seconds.to_string(), "-in"]);
        assert_eq!(run(check.arg(short.join("tls.crt"))).status.success(), expected, "{seconds} s");
    }

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(out.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn issuing_again_needs_force_and_keeps_trust_in_the_certificate_before() {
    let scratch = Scratch::new("again");
    let out = scratch.0.as_path();
    stdout_of(&mut issue(out));
    let read = |file: &str| fs::read_to_string(out.join(file)).unwrap();
    let first = ISSUED.map(read);

    let refused = run(&mut issue(out));
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(ISSUED.iter().any(|file| message.contains(file)), "{message}");
    assert!(message.contains("--force"), "{message}");
    assert_eq!(ISSUED.map(read), first, "nothing changed");

    let trusted = |leaf: &str| {
        let mut verify = openssl(&["verify", "-purpose", "sslserver", "-CAfile"]);
        run(verify.arg(out.join("ca.crt")).arg(out.join(leaf))).status.success()
    };
    fs::copy(out.join("tls.crt"), out.join("before.crt")).unwrap();
    for still_trusted in [true, false] {
        stdout_of(issue(out).arg("--force"));
        assert!(trusted("tls.crt"));
        assert_eq!(trusted("before.crt"), still_trusted, "the CA before is kept, the one before that is not");
    }
}

/// A kubectl that writes down how it was called, and fails when told to patch what `fail` names.
fn fake_kubectl(folder: &Path) -> PathBuf {
    let path = folder.join("kubectl");
    fs::write(
        &path,
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$*\" >>calls\n\
         case $1 in\npatch) case $(cat fail 2>/dev/null) in $2) exit 1 ;; esac ;;\ncreate) echo 'a Secret' ;;\n\
         apply) for file; do :; done && cat \"$file\" >>calls ;;\nesac\n",
    )
    .unwrap();
    stdout_of(Command::new("chmod").arg("+x").arg(&path));
    path
}

#[test]
fn kubectl_is_told_whom_to_trust_before_it_is_given_the_certificate() {
    let scratch = Scratch::new("kubectl");
    let out = scratch.0.join("out");
    let kubectl = fake_kubectl(&scratch.0);
    let calls = || fs::read_to_string(scratch.0.join("calls")).unwrap();

    stdout_of(issue(&out).arg("--kubectl").env("KUBECTL", &kubectl));
    let seen = calls();
    let [mutating, validating, create, apply, secret] = seen.lines().collect::<Vec<_>>()[..] else { panic!("{seen}") };
    for (kind, patch) in [("mutating", mutating), ("validating", validating)] {
        let start = format!("patch {kind}webhookconfiguration {} --type=strategic --patch-file ", names::APP);
        assert!(patch.starts_with(&start) && patch.ends_with(&format!("/out/ca-bundle-{kind}.yaml")), "{patch}");
    }
    assert!(create.starts_with(&format!("create secret tls {0}-tls --namespace {0} --cert", names::APP)), "{create}");
    assert!(create.ends_with("--dry-run=client -o yaml"), "{create}");
    assert!(apply.starts_with("apply --server-side"), "a client-side apply copies the key into an annotation: {apply}");
    assert_eq!(secret, "a Secret");

    for (calls_made, kind) in [(1, "mutatingwebhookconfiguration"), (2, "validatingwebhookconfiguration")] {
        fs::write(scratch.0.join("fail"), kind).unwrap();
        fs::write(scratch.0.join("calls"), "").unwrap();
        let output = run(issue(&out).args(["--force", "--kubectl"]).env("KUBECTL", &kubectl));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(message.contains("do not issue again") && message.contains("kubectl patch"), "{message}");
        assert_eq!(calls().lines().count(), calls_made, "no certificate that nobody trusts yet: {}", calls());
        assert_eq!(names_in(&out), BTreeSet::from(ISSUED.map(str::to_owned)));
    }
}

#[test]
fn a_refused_argument_leaves_nothing_behind() {
    let scratch = Scratch::new("refused");
    let table: [(&[&str], &str); 9] = [
        (&["--days", "0"], "--days '0'"),
        (&["--days", "3651"], "1 to 3650"),
        (&["--days", "1e2"], "1 to 3650"),
        (&["--namespace", "A"], "--namespace 'A'"),
        (&["--service", "a.b"], "--service 'a.b'"),
        (&["--san", "a,DNS:b"], "--san 'a,DNS:b'"),
        (&["--san", "1.2.3"], "bad ip address"),
        (&["--san"], "needs a value"),
        (&["--sans=x"], "unknown option"),
    ];
    for (arguments, expected) in table {
        let output = run(issue(&scratch.0).args(arguments));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && message.contains(expected), "{arguments:?}: {message}");
        assert_eq!(names_in(&scratch.0), BTreeSet::new(), "{arguments:?}");
    }
    let output = run(issue(&scratch.0).arg("--kubectl").env("KUBECTL", "no-such-kubectl"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-kubectl is not on PATH"));
    assert_eq!(names_in(&scratch.0), BTreeSet::new());
}

#[test]
fn the_issued_patches_give_every_webhook_the_ca_and_change_nothing_else() {
    let scratch = Scratch::new("patch");
    // A copy of the base, because kustomize wants relative paths.
    let out = scratch.0.join("overlay");
    stdout_of(&mut issue(&out));
    let base = scratch.0.join("base");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(repository().join("manifests/base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let kustomization = "resources: [../base]\n\
                         patches: [{path: ca-bundle-mutating.yaml}, {path: ca-bundle-validating.yaml}]\n";
    fs::write(out.join("kustomization.yaml"), kustomization).unwrap();

    let bundle = stdout_of(openssl(&["base64", "-A", "-in"]).arg(out.join("ca.crt")));
    let mut expected = overlay("default");
    for webhook in webhooks_mut(&mut expected) {
        webhook["clientConfig"]["caBundle"] = json!(bundle.trim());
    }
    assert_eq!(render(&out), expected);
}

use serde_json::json;

use super::{
    super::*, ADDITIVE, LIST, REPLACING, SECRET, applied, certs, config, inject, items, job, run, seen, texts,
    trust_volume, variables,
};
use crate::{
    names::{KEY_CA, MOUNT_JOB_CERTS, MOUNT_TRUST, VOLUME_TRUST},
    trust::BundleFiles,
};

/// What a job container has of ours: paths, and variables with their files or directories.
fn trusts(container: &Value) -> (Vec<&str>, Vec<String>) {
    let mounts = items(&container["volumeMounts"]).filter(|mount| mount["name"] == VOLUME_TRUST);
    (mounts.map(|mount| mount["mountPath"].as_str().unwrap()).collect(), variables(container))
}

fn lines(names: &[&str], value: &str) -> Vec<String> {
    names.iter().map(|name| format!("{name}={value}")).collect()
}

fn java() -> String {
    format!(
        "JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore={MOUNT_TRUST}/truststore.jks -Djavax.net.ssl.trustStoreType=JKS"
    )
}

/// Those of the default configuration, where the bundle has all of its files.
fn all() -> Vec<String> {
    let directory = [format!("SSL_CERT_DIR={MOUNT_TRUST}/:{LIST}"), format!("GIT_SSL_CAPATH={MOUNT_TRUST}")];
    let replacing = lines(&REPLACING, &format!("{MOUNT_TRUST}/bundle.crt"));
    [lines(&ADDITIVE, &format!("{MOUNT_TRUST}/ca.crt")), directory.to_vec(), vec![java()], replacing].concat()
}

#[test]
fn a_job_gets_the_trust_bundle_in_build_and_helper_and_no_secret() {
    let injection = run(&job(), PodKind::Job, &certs(true));
    let pod = applied(&job(), &injection);
    assert_eq!(pod["spec"]["volumes"], json!([trust_volume()]));
    for index in [0, 1] {
        let container = &pod["spec"]["containers"][index];
        assert_eq!(trusts(container), (vec![MOUNT_TRUST, MOUNT_JOB_CERTS], all()));
        assert!(items(&container["volumeMounts"]).all(|mount| mount["readOnly"] == true));
    }
    assert_eq!(pod["spec"]["containers"][2], json!({"name": "svc-0"}));
    assert!(injection.warnings.is_empty());
    assert!(!json!(injection.patch).to_string().contains(SECRET));
}

#[test]
fn variables_follow_what_the_trust_bundle_has() {
    let additive = |file: &str| lines(&ADDITIVE, &format!("{MOUNT_TRUST}/{file}"));
    let directories = vec![format!("SSL_CERT_DIR={MOUNT_TRUST}/:{LIST}")];
    let replacing = lines(&[REPLACING.as_slice(), &["SSL_CERT_FILE"]].concat(), &format!("{MOUNT_TRUST}/bundle.crt"));
    let (builtin, none) = (Config::default(), config("certs: {publicRoots: none}"));
    for (config, (has_ca, has_bundle, has_hashes), expected) in [
        (&builtin, (true, true, true), all()),
        // What another revision published, or a moment ago this one.
        (&builtin, (true, false, true), [additive("ca.crt"), directories.clone()].concat()),
        (&none, (true, true, true), [additive("ca.crt"), directories.clone()].concat()),
        (&none, (true, false, true), [additive("ca.crt"), directories].concat()),
        // Too many CAs.
        (&builtin, (true, true, false), [additive("ca.crt"), replacing.clone()].concat()),
        (&builtin, (false, true, false), [additive("bundle.crt"), replacing].concat()),
        (&none, (true, false, false), additive("ca.crt")),
    ] {
        let trust = BundleFiles { has_ca, has_bundle, has_hashes, has_java: has_bundle && has_hashes };
        let snapshot = seen(certs(false).certs.into_values().next(), Some(trust));
        let injection = inject(&job(), PodKind::Job, "ns", &snapshot, config);
        assert_eq!(trusts(&applied(&job(), &injection)["spec"]["containers"][0]).1, expected);
    }
}

#[test]
fn the_trust_of_a_newer_revision_is_given_whatever_its_configuration() {
    for config in [Config::default(), config("certs: {publicRoots: none}")] {
        for has_bundle in [true, false] {
            // Its Secret has another name, too: this configuration's is not there.
            let trust = BundleFiles { has_ca: true, has_bundle, has_hashes: true, has_java: has_bundle };
            let snapshot = Snapshot { is_passive: true, ..seen(None, Some(trust)) };
            let pod = applied(&job(), &inject(&job(), PodKind::Job, "ns", &snapshot, &config));
            let variables = trusts(&pod["spec"]["containers"][0]).1;
            assert!(variables.iter().any(|line| line.starts_with("SSL_CERT_DIR=")), "{variables:?}");
        }
    }
}

#[test]
fn the_names_of_variables_are_those_of_the_configuration() {
    let config =
        config("certs: {variables: {additive: [A], directory: [D], java: [J], replacing: [GIT_SSL_CAINFO, B]}}");
    let pod = applied(&job(), &inject(&job(), PodKind::Job, "ns", &certs(false), &config));
    let names = |index: usize| {
        let all = items(&pod["spec"]["containers"][index]["env"]);
        all.map(|variable| variable["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(0), ["A", "D", "J", "GIT_SSL_CAINFO", "B"]);
    assert_eq!(names(1), ["A", "D", "J", "B"]);
}

#[test]
fn services_get_it_when_the_configuration_says_so_and_the_mesh_never() {
    let mut pod = job();
    let mesh = ["istio-proxy", "istio-init", "istio-validation", "linkerd-proxy", "linkerd-init"];
    pod["spec"]["containers"].as_array_mut().unwrap().extend(mesh.map(|name| json!({"name": name})));
    pod["spec"]["initContainers"] =
        json!([{"name": "init-permissions"}, {"name": "istio-proxy", "restartPolicy": "Always"}]);
    let injection = inject(&pod, PodKind::Job, "ns", &certs(false), &config("certs: {inject: {services: true}}"));
    let after = applied(&pod, &injection);
    assert_eq!(after["spec"]["initContainers"], pod["spec"]["initContainers"]);
    for (index, container) in items(&after["spec"]["containers"]).enumerate() {
        assert_eq!(container.get("env").is_some_and(Value::is_array), index < 3, "{container}");
    }
}

#[test]
fn variables_of_a_jobs_user_stay_with_one_warning() {
    let mut pod = job();
    pod["spec"]["containers"][0]["env"] = json!([
        {"name": "SSL_CERT_FILE", "value": "/own.crt"},
        {"name": "GIT_SSL_CAPATH", "value": ""},
        {"name": "PIP_CERT", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}},
        {"name": "DENO_CERT", "value": format!("{MOUNT_TRUST}/ca.crt")},
    ]);
    pod["spec"]["containers"][1]["env"] = json!([{"name": "PIP_CERT", "value": "/own.crt"}]);
    let injection = run(&pod, PodKind::Job, &certs(false));
    let after = applied(&pod, &injection);
    assert_eq!(texts(&injection), ["already set, so kept: GIT_SSL_CAPATH, PIP_CERT, SSL_CERT_FILE"]);
    let names: Vec<_> =
        items(&after["spec"]["containers"][0]["env"]).map(|entry| entry["name"].as_str().unwrap()).collect();
    // A file of the user's would count for nothing in some versions of curl, beside SSL_CERT_DIR.
    assert_eq!(names[4..], ["NODE_EXTRA_CA_CERTS", "JAVA_TOOL_OPTIONS", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"]);
    assert_eq!(after["spec"]["containers"][1]["env"][0]["value"], "/own.crt");
}

#[test]
fn a_warning_names_as_many_variables_as_fit() {
    let mut pod = job();
    pod["spec"]["containers"][0]["env"] = ADDITIVE
        .iter()
        .chain(&REPLACING)
        .chain(&["SSL_CERT_DIR", "GIT_SSL_CAPATH"])
        .map(|name| json!({"name": name, "value": "x"}))
        .collect();
    assert_eq!(
        texts(&run(&pod, PodKind::Job, &certs(false))),
        ["already set, so kept: AWS_CA_BUNDLE, DENO_CERT, GIT_SSL_CAPATH, NODE_EXTRA_CA_CERTS, PIP_CERT and 2 more"]
    );
}

#[test]
fn where_the_user_mounts_certificates_only_our_own_place_is_used() {
    for mount in ["/etc/gitlab-runner/certs/", "/etc/gitlab-runner/certs/ca.crt", "/etc/gitlab-runner"] {
        let mut pod = job();
        pod["spec"]["volumes"] = json!([{"name": "own", "configMap": {"name": "own"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "own", "mountPath": mount}]);
        let injection = run(&pod, PodKind::Job, &certs(false));
        let after = applied(&pod, &injection);
        assert_eq!(trusts(&after["spec"]["containers"][0]).0, [MOUNT_TRUST], "{mount}");
        assert_eq!(variables(&after["spec"]["containers"][0]).len(), all().len());
        assert!(injection.warnings.is_empty());
    }
}

#[test]
fn a_volume_of_our_name_that_shows_something_else_is_not_used() {
    for volume in [
        json!({"secret": {"secretName": CONFIGMAP_TRUST}}),
        json!({"configMap": {"name": "other"}}),
        json!({"configMap": {"name": CONFIGMAP_TRUST, "items": [{"key": KEY_CA, "path": KEY_CA}]}}),
        json!({"emptyDir": {}}),
        json!({"projected": {"sources": [{"configMap": {"name": "other"}}]}}),
        json!({"projected": {"sources": [{"configMap": {"name": CONFIGMAP_TRUST, "items": [{"key": KEY_CA, "path": KEY_CA}]}}]}}),
        json!({"projected": {"sources": [{"configMap": {"name": CONFIGMAP_TRUST}}, {"configMap": {"name": "other"}}]}}),
        json!({"projected": {"sources": [{"configMap": {"name": CONFIGMAP_TRUST}}, {"secret": {"name": "other"}}]}}),
        json!({"projected": {"sources": []}}),
        // As earlier versions have it.
        json!({"configMap": {"name": CONFIGMAP_TRUST}}),
    ] {
        let mut pod = job();
        pod["spec"]["volumes"] = json!([volume]);
        pod["spec"]["volumes"][0]["name"] = json!(VOLUME_TRUST);
        let injection = run(&pod, PodKind::Job, &certs(true));
        assert!(injection.patch.is_empty());
        assert_eq!((injection.reason, injection.warnings.len()), (InjectReason::Blocked, 1));

        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": VOLUME_TRUST, "mountPath": MOUNT_TRUST}]);
        let injection = run(&pod, PodKind::Job, &certs(true));
        assert!(injection.patch.is_empty());
    }
}

#[test]
fn two_hundred_containers_are_not_two_hundred_warnings() {
    let mut pod = job();
    let user = |index: usize| json!({"name": "build", "env": [{"name": "PIP_CERT", "value": index.to_string()}]});
    let blocked = json!({"name": "helper", "volumeMounts": [{"name": "x", "mountPath": "/etc/gitlab-runner-webhook"}]});
    pod["spec"]["containers"] = (0..100).flat_map(|index| [user(index), blocked.clone()]).collect();
    let injection = run(&pod, PodKind::Job, &certs(false));
    assert_eq!(injection.warnings.len(), 2);
    let after = applied(&pod, &injection);
    assert!(
        items(&after["spec"]["containers"]).step_by(2).all(|container| items(&container["env"]).count() == all().len())
    );
    assert!(run(&after, PodKind::Job, &certs(false)).patch.is_empty());
}

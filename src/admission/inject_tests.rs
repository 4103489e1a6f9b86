#[path = "inject_job_tests.rs"]
mod jobs;
#[path = "inject_properties.rs"]
mod properties;

use serde_json::json;

use super::*;
use crate::{
    admission::pod::MountPlace,
    names::{KEY_TLS_CERT, MOUNT_MANAGER_CERTS, VOLUME_CERTS},
    trust::BundleFiles,
};

const SECRET: &str = "gitlab-runner-certs";
const ENTRYPOINT: &str = "/configmaps/entrypoint";

const TRUST: BundleFiles = BundleFiles { has_bundle: true, has_hashes: true };
const ADDITIVE: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
const REPLACING: [&str; 6] =
    ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO"];

fn seen(certs: Option<Certs>, trust: Option<BundleFiles>) -> Snapshot {
    Snapshot {
        certs: certs.into_iter().map(|certs| ("ns".parse().unwrap(), certs)).collect(),
        trust: trust.into_iter().map(|trust| ("ns".parse().unwrap(), trust)).collect(),
        certs_loaded: true,
        ..Snapshot::default()
    }
}

/// `ca.crt` is there, perhaps the pair, and the trust bundle.
fn certs(client_pair: bool) -> Snapshot {
    seen(Some(Certs { ca: Ca::Valid, client_pair, ..Certs::default() }), Some(TRUST))
}

/// No `ca.crt`, but these keys.
fn other_cas(keys: &[&str]) -> Snapshot {
    let other_cas = keys.iter().map(|key| (*key).to_owned()).collect();
    seen(Some(Certs { other_cas, client_pair: true, ..Certs::default() }), Some(TRUST))
}

/// The elements of an array; none for anything else.
fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn inject(pod: &Value, kind: PodKind, namespace: &str, snapshot: &Snapshot, config: &Config) -> Injection {
    super::inject(&PodView::of(pod).unwrap(), kind, namespace, snapshot, config)
}

fn run(pod: &Value, kind: PodKind, snapshot: &Snapshot) -> Injection {
    inject(pod, kind, "ns", snapshot, &Config::default())
}

fn config(yaml: &str) -> Config {
    Config::from_yaml(yaml).unwrap()
}

fn applied(pod: &Value, injection: &Injection) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &injection.patch).unwrap();
    pod
}

/// Variables of a container, as `name=value`.
fn variables(container: &Value) -> Vec<String> {
    items(&container["env"])
        .map(|variable| format!("{}={}", variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap_or("?")))
        .collect()
}

fn texts(injection: &Injection) -> Vec<String> {
    injection.warnings.iter().map(ToString::to_string).collect()
}

fn manager() -> Value {
    json!({"spec": {
        "volumes": [{"name": "home", "emptyDir": {"medium": "Memory"}}],
        "containers": [
            {"name": "istio-proxy"},
            {
                "name": "gitlab-runner",
                "command": ["/bin/bash", ENTRYPOINT],
                "env": [{"name": "CI_SERVER_URL", "value": "https://gitlab.example.com"}],
                "volumeMounts": [{"name": "home", "mountPath": "/home/gitlab-runner/.gitlab-runner"}],
            },
        ],
    }})
}

/// The manager of a chart that mounts the Secret itself.
fn manager_with_chart_certs() -> Value {
    let mut pod = manager();
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    volumes.push(json!({"name": "custom-certs", "secret": {"secretName": SECRET}}));
    let mounts = pod["spec"]["containers"][1]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "custom-certs", "mountPath": format!("{MOUNT_MANAGER_CERTS}/"), "readOnly": true}));
    pod
}

fn job() -> Value {
    json!({"spec": {"containers": [{"name": "build"}, {"name": "helper", "env": null}, {"name": "svc-0"}]}})
}

#[test]
fn a_manager_gets_the_volume_the_mount_and_the_variables() {
    let injection = run(&manager(), PodKind::Manager, &certs(true));
    assert_eq!(injection.reason, InjectReason::Injected);
    let pod = applied(&manager(), &injection);
    assert_eq!(
        pod["spec"]["volumes"][1],
        json!({"name": VOLUME_CERTS, "secret": {"secretName": SECRET, "optional": true, "items": [
            {"key": "ca.crt", "path": "ca.crt"},
            {"key": "tls.crt", "path": "tls.crt"},
            {"key": "tls.key", "path": "tls.key"},
        ]}})
    );
    let runner = &pod["spec"]["containers"][1];
    assert_eq!(
        runner["volumeMounts"][1],
        json!({"name": VOLUME_CERTS, "mountPath": MOUNT_MANAGER_CERTS, "readOnly": true})
    );
    assert_eq!(
        variables(runner)[1..],
        [("CA", "ca.crt"), ("CERT", "tls.crt"), ("KEY", "tls.key")]
            .map(|(name, key)| format!("CI_SERVER_TLS_{name}_FILE={MOUNT_MANAGER_CERTS}/{key}"))
    );
    assert_eq!(pod["spec"]["containers"][0], json!({"name": "istio-proxy"}));
    assert_eq!(
        texts(&injection),
        ["CI jobs receive tls.key of Secret gitlab-runner-certs; certs.inject.clientCertificate: false stops that"]
    );
}

#[test]
fn without_a_client_pair_a_manager_sees_the_ca_only() {
    let off = config("certs: {inject: {clientCertificate: false}}");
    for (config, pair) in [(&Config::default(), false), (&off, true)] {
        let injection = inject(&manager(), PodKind::Manager, "ns", &certs(pair), config);
        let pod = applied(&manager(), &injection);
        assert_eq!(pod["spec"]["volumes"][1]["secret"]["items"], json!([{"key": "ca.crt", "path": "ca.crt"}]));
        assert_eq!(variables(&pod["spec"]["containers"][1]).len(), 2);
        assert!(injection.warnings.is_empty());
    }
}

#[test]
fn where_the_chart_mounts_the_secret_only_variables_are_added() {
    let pod = manager_with_chart_certs();
    let after = applied(&pod, &run(&pod, PodKind::Manager, &certs(true)));
    assert_eq!(after["spec"]["volumes"], pod["spec"]["volumes"]);
    assert_eq!(after["spec"]["containers"][1]["volumeMounts"], pod["spec"]["containers"][1]["volumeMounts"]);
    assert_eq!(variables(&after["spec"]["containers"][1]).len(), 4);
}

#[test]
fn nothing_points_into_a_foreign_mount() {
    for source in [
        json!({"secret": {"secretName": "other"}}),
        json!({"secret": {"secretName": SECRET, "items": [{"key": "ca.crt", "path": "gitlab.example.com.crt"}]}}),
        json!({"configMap": {"name": SECRET}}),
    ] {
        let mut pod = manager_with_chart_certs();
        let mut volume = source;
        volume["name"] = json!("custom-certs");
        pod["spec"]["volumes"][1] = volume;
        let injection = run(&pod, PodKind::Manager, &certs(true));
        assert!(injection.patch.is_empty());
        assert_eq!(injection.reason, InjectReason::ForeignMount);
        assert!(texts(&injection)[0].contains("is not mounted from Secret gitlab-runner-certs"), "{injection:?}");
    }
}

#[test]
fn only_the_keys_that_a_mount_shows_are_pointed_at() {
    let mut pod = manager_with_chart_certs();
    pod["spec"]["volumes"][1] = json!({"name": "custom-certs", "projected": {"sources": [
        {"secret": {"name": SECRET, "items": [{"key": "ca.crt", "path": "ca.crt"}, {"key": "tls.crt", "path": "tls.crt"}]}},
    ]}});
    let after = applied(&pod, &run(&pod, PodKind::Manager, &certs(true)));
    assert_eq!(variables(&after["spec"]["containers"][1]).len(), 2);
}

#[test]
fn variables_of_the_user_stay_and_a_pair_is_not_mixed() {
    let mut pod = manager();
    let env = pod["spec"]["containers"][1]["env"].as_array_mut().unwrap();
    env.push(json!({"name": "CI_SERVER_TLS_CA_FILE", "value": ""}));
    env.push(json!({"name": "CI_SERVER_TLS_KEY_FILE", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}));
    let injection = run(&pod, PodKind::Manager, &certs(true));
    let after = applied(&pod, &injection);
    assert_eq!(after["spec"]["containers"][1]["env"], pod["spec"]["containers"][1]["env"]);
    assert_eq!(texts(&injection), ["already set, so kept: CI_SERVER_TLS_CA_FILE, CI_SERVER_TLS_KEY_FILE"]);
}

#[test]
fn a_manager_without_ca_crt_finds_its_host_or_is_told_of_the_only_file() {
    let host = "gitlab.example.com.crt";
    let chart = manager_with_chart_certs();
    for (keys, variable) in [
        (&[host][..], None),
        (&["company.pem", host], None),
        (&["company.pem"], Some("company.pem")),
        (&["other.example.com.crt"], Some("other.example.com.crt")),
    ] {
        let injection = run(&manager(), PodKind::Manager, &other_cas(keys));
        let pod = applied(&manager(), &injection);
        let shown: Vec<_> = items(&pod["spec"]["volumes"][1]["secret"]["items"]).map(|item| &item["key"]).collect();
        let expected: Vec<_> = keys.iter().copied().chain([KEY_TLS_CERT, "tls.key"]).collect();
        assert_eq!(shown, expected);
        let ca = |pod: &Value| {
            let all = variables(&pod["spec"]["containers"][1]);
            all.iter().find_map(|variable| variable.strip_prefix("CI_SERVER_TLS_CA_FILE=").map(str::to_owned))
        };
        let expected = variable.map(|key| format!("{MOUNT_MANAGER_CERTS}/{key}"));
        assert_eq!(ca(&pod), expected, "{keys:?}");
        assert_eq!(ca(&applied(&chart, &run(&chart, PodKind::Manager, &other_cas(keys)))), expected, "{keys:?}");
    }
    let injection = run(&manager(), PodKind::Manager, &other_cas(&["a.pem", "b.pem"]));
    assert!(injection.patch.is_empty());
    assert!(texts(&injection)[0].contains("neither ca.crt nor <host>.crt"), "{injection:?}");
}

#[test]
fn a_manager_sees_every_ca_when_ca_crt_is_what_it_is_told_of() {
    let mut snapshot = other_cas(&["gitlab.example.com.crt"]);
    snapshot.certs.values_mut().for_each(|certs| certs.ca = Ca::Valid);
    let pod = applied(&manager(), &run(&manager(), PodKind::Manager, &snapshot));
    assert_eq!(pod["spec"]["volumes"][1]["secret"]["items"][1]["key"], "gitlab.example.com.crt");
    assert_eq!(
        variables(&pod["spec"]["containers"][1])[1],
        format!("CI_SERVER_TLS_CA_FILE={MOUNT_MANAGER_CERTS}/ca.crt")
    );
}

#[test]
fn without_the_entrypoint_every_container_but_the_mesh_is_a_runner() {
    let mut pod = manager();
    pod["spec"]["containers"][1]["command"] = json!(["/custom"]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "second"}));
    let after = applied(&pod, &run(&pod, PodKind::Manager, &certs(false)));
    let after = PodView::of(&after).unwrap();
    let place = |container| MountPlace::of(&after, container, MOUNT_MANAGER_CERTS);
    let containers = after.spec.containers.iter();
    let mounts: Vec<bool> =
        containers.map(|container| matches!(place(container), MountPlace::Mounted { .. })).collect();
    assert_eq!(mounts, [false, true, true]);
}

#[test]
fn opting_out_is_a_label() {
    for (kind, pod) in [(PodKind::Manager, manager()), (PodKind::Job, job())] {
        for (value, reason) in
            [("false", InjectReason::OptedOut), ("true", InjectReason::Injected), ("", InjectReason::Injected)]
        {
            let mut pod = pod.clone();
            pod["metadata"] = json!({"labels": {LABEL_INJECT: value}});
            let injection = run(&pod, kind, &certs(true));
            assert_eq!((injection.reason, injection.patch.is_empty()), (reason, reason == InjectReason::OptedOut));
        }
    }
}

#[test]
fn a_container_that_came_later_gets_the_same() {
    let mut pod = applied(&job(), &run(&job(), PodKind::Job, &certs(false)));
    assert_eq!(run(&pod, PodKind::Job, &certs(false)).reason, InjectReason::Present);
    pod["spec"]["containers"][2]["name"] = json!("build");
    let injection = run(&pod, PodKind::Job, &certs(false));
    assert_eq!(injection.patch.len(), 2);
    assert!(injection.patch.iter().all(|operation| operation.path().as_str().starts_with("/spec/containers/2/")));
}

#[test]
fn a_pair_that_came_between_two_passes_is_not_pointed_at_where_it_is_not_shown() {
    let pod = applied(&manager(), &run(&manager(), PodKind::Manager, &certs(false)));
    assert_eq!(run(&pod, PodKind::Manager, &certs(true)).reason, InjectReason::Present);
}

#[test]
fn pods_that_get_nothing() {
    let with = |spec: Value| {
        let mut pod = job();
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        pod
    };
    let mounted_by_user = with(json!({
        "volumes": [{"name": "ca", "secret": {"secretName": "x"}}],
        "containers": [{"name": "build", "volumeMounts": [{"name": "ca", "mountPath": "/etc/gitlab-runner-webhook/trust/"}]}],
    }));
    let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
            {"key": "kubernetes.io/os", "operator": "In", "values": ["windows"]},
        ]}],
    }}}});
    let within = with(json!({
        "volumes": [{"name": "c", "configMap": {"name": "x"}}],
        "containers": [{"name": "build", "volumeMounts": [{"name": "c", "mountPath": "/etc/gitlab-runner-webhook"}]}],
    }));
    let table = [
        (PodKind::Other, job(), InjectReason::OtherPod, 0),
        (PodKind::Pause, job(), InjectReason::OtherPod, 0),
        (PodKind::Job, with(json!({"os": {"name": "windows"}})), InjectReason::Windows, 0),
        (PodKind::Job, with(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})), InjectReason::Windows, 0),
        (PodKind::Job, with(json!({"nodeSelector": {"beta.kubernetes.io/os": "windows"}})), InjectReason::Windows, 0),
        (PodKind::Job, with(affinity), InjectReason::Windows, 0),
        (PodKind::Job, with(json!({"containers": [{"name": "svc-0"}]})), InjectReason::NoContainer, 0),
        (PodKind::Job, with(json!({"containers": null})), InjectReason::NoContainer, 0),
        (PodKind::Job, mounted_by_user, InjectReason::ForeignMount, 1),
        (PodKind::Job, within, InjectReason::Blocked, 1),
    ];
    for (kind, pod, reason, warnings) in table {
        let injection = run(&pod, kind, &certs(true));
        assert!(injection.patch.is_empty(), "{pod}");
        assert_eq!((injection.reason, injection.warnings.len()), (reason, warnings), "{pod}");
    }
}

#[test]
fn certificates_that_cannot_be_used_are_said_and_not_injected() {
    let of = |certs: Certs| seen(Some(certs), None);
    let bad = |key: &str| Certs { unreadable: Some(key.to_owned()), ..Certs::default() };
    let secret = "Secret ns/gitlab-runner-certs";
    let pending = "ConfigMap ns/gitlab-runner-webhook-trust is being published; wait a moment";
    let both = [PodKind::Manager, PodKind::Job];
    let table = [
        (
            Snapshot::default(),
            &both[..],
            InjectReason::CertsNotLoaded,
            format!("{secret} is not loaded yet; wait a moment"),
        ),
        (seen(None, None), &both, InjectReason::CertsMissing, format!("{secret} is missing; create it with ca.crt")),
        // About to be deleted.
        (
            seen(None, Some(TRUST)),
            &both,
            InjectReason::CertsMissing,
            format!("{secret} is missing; create it with ca.crt"),
        ),
        (of(Certs::default()), &both[..1], InjectReason::CertsMissing, format!("{secret} has no ca.crt; add it")),
        (of(Certs::default()), &both[1..], InjectReason::CertsMissing, format!("{secret} has no CA; add ca.crt")),
        (
            of(Certs { ca: Ca::Invalid, ..bad("ca.crt") }),
            &both,
            InjectReason::CertsInvalid,
            format!("ca.crt in {secret} is not PEM; fix it"),
        ),
        (
            of(Certs { ca: Ca::Valid, ..bad("x.pem") }),
            &both[1..],
            InjectReason::CertsInvalid,
            format!("x.pem in {secret} is not PEM; fix it"),
        ),
        (of(Certs { ca: Ca::Valid, ..Certs::default() }), &both[1..], InjectReason::TrustPending, pending.to_owned()),
    ];
    for (snapshot, kinds, reason, problem) in table {
        for kind in kinds {
            let (pod, again) =
                if *kind == PodKind::Job { (job(), "retry the job") } else { (manager(), "recreate the pod") };
            let injection = run(&pod, *kind, &snapshot);
            assert!(injection.patch.is_empty());
            assert_eq!(injection.reason, reason, "{problem}");
            // Cut where it gets too long.
            let expected = Warning::new(format!("no CA injected: {problem} and {again}"));
            assert_eq!(injection.warnings, [expected]);
        }
        assert!(run(&job(), PodKind::Other, &snapshot).warnings.is_empty());
    }
}

#[test]
fn a_trust_bundle_that_is_there_serves_until_its_secret_can_be_read_again() {
    let unreadable = Certs { ca: Ca::Invalid, unreadable: Some("ca.crt".to_owned()), ..Certs::default() };
    let before_the_secret = Snapshot { certs_loaded: false, ..seen(None, Some(TRUST)) };
    for snapshot in [seen(Some(unreadable), Some(TRUST)), before_the_secret] {
        assert_eq!(run(&job(), PodKind::Job, &snapshot).reason, InjectReason::Injected);
    }
}

#[test]
fn what_is_switched_off_is_left_alone() {
    let off = config("certs: {inject: {manager: false, jobs: false}}");
    for (kind, pod) in [(PodKind::Manager, manager()), (PodKind::Job, job())] {
        for snapshot in [certs(true), seen(None, None)] {
            let injection = inject(&pod, kind, "ns", &snapshot, &off);
            assert!(injection.patch.is_empty() && injection.warnings.is_empty());
            assert_eq!(injection.reason, InjectReason::Disabled);
        }
    }
}

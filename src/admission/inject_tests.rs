#[path = "inject_job_tests.rs"]
mod jobs;
#[path = "inject_properties.rs"]
mod properties;

use serde_json::json;

use super::*;
use crate::{
    admission::pod::MountPlace,
    names::{MOUNT_CLIENT, MOUNT_MANAGER_CERTS, MOUNT_TRUST, VOLUME_CERTS, VOLUME_TRUST},
    trust::{BundleFiles, ClientPair, PairFlaw},
};

const SECRET: &str = "gitlab-runner-certs";
const ENTRYPOINT: &str = "/configmaps/entrypoint";

const TRUST: BundleFiles = BundleFiles { has_ca: true, has_bundle: true, has_hashes: true, has_java: true };
const ADDITIVE: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
const REPLACING: [&str; 3] = ["REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE"];
const LIST: &str = "/etc/ssl/certs:/etc/pki/tls/certs:/kaniko/ssl/certs";

fn seen(certs: Option<Certs>, trust: Option<BundleFiles>) -> Snapshot {
    Snapshot {
        certs: certs.into_iter().map(|certs| ("ns".parse().unwrap(), certs)).collect(),
        trust: trust.into_iter().map(|trust| ("ns".parse().unwrap(), trust)).collect(),
        certs_loaded: true,
        ..Snapshot::default()
    }
}

/// A CA is there, perhaps the pair, and the trust bundle.
fn certs(has_pair: bool) -> Snapshot {
    with_pair(if has_pair { ClientPair::Usable } else { ClientPair::Absent })
}

fn with_pair(client_pair: ClientPair) -> Snapshot {
    seen(Some(Certs { has_ca: true, client_pair, ..Certs::default() }), Some(TRUST))
}

/// The same certificates in a folder that is called like the list of directories.
fn trust_volume() -> Value {
    let again = [("bundle.crt", "00000000.0"), ("ca.crt", "00000001.0")];
    let again = again.map(|(key, file)| json!({"key": key, "path": format!(":{LIST}/{file}")}));
    json!({"name": VOLUME_TRUST, "projected": {"sources": [
        {"configMap": {"name": CONFIGMAP_TRUST, "optional": true}},
        {"configMap": {"name": CONFIGMAP_TRUST, "optional": true, "items": again}},
    ]}})
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
fn a_manager_gets_the_trust_bundle_and_the_pair_alone() {
    let injection = run(&manager(), PodKind::Manager, &certs(true));
    assert_eq!(injection.reason, InjectReason::Injected);
    let pod = applied(&manager(), &injection);
    assert_eq!(
        pod["spec"]["volumes"].as_array().unwrap()[1..],
        [
            trust_volume(),
            json!({"name": VOLUME_CERTS, "secret": {"secretName": SECRET, "optional": true, "items": [
                {"key": "tls.crt", "path": "tls.crt"},
                {"key": "tls.key", "path": "tls.key"},
            ]}}),
        ]
    );
    let runner = &pod["spec"]["containers"][1];
    assert_eq!(
        runner["volumeMounts"].as_array().unwrap()[1..],
        [(VOLUME_TRUST, MOUNT_TRUST), (VOLUME_CERTS, MOUNT_CLIENT)]
            .map(|(name, path)| json!({"name": name, "mountPath": path, "readOnly": true}))
    );
    assert_eq!(
        variables(runner)[1..],
        [
            format!("CI_SERVER_TLS_CA_FILE={MOUNT_TRUST}/ca.crt"),
            format!("CI_SERVER_TLS_CERT_FILE={MOUNT_CLIENT}/tls.crt"),
            format!("CI_SERVER_TLS_KEY_FILE={MOUNT_CLIENT}/tls.key"),
        ]
    );
    assert_eq!(pod["spec"]["containers"][0], json!({"name": "istio-proxy"}));
    assert_eq!(
        texts(&injection),
        ["CI jobs receive tls.key of Secret gitlab-runner-certs; certs.inject.clientCertificate: false stops that"]
    );
}

#[test]
fn without_a_client_pair_a_manager_sees_nothing_of_the_secret() {
    let off = config("certs: {inject: {clientCertificate: false}}");
    let flawed = ClientPair::Unusable(PairFlaw::OfCa);
    for (config, pair, warnings) in [
        (&Config::default(), ClientPair::Absent, &[][..]),
        (&off, ClientPair::Usable, &[]),
        (&off, flawed, &[]),
        (
            &Config::default(),
            flawed,
            &["no client certificate for the runner: tls.crt is the certificate of a CA (Secret gitlab-runner-certs)"],
        ),
    ] {
        let injection = inject(&manager(), PodKind::Manager, "ns", &with_pair(pair), config);
        let pod = applied(&manager(), &injection);
        assert!(!json!(injection.patch).to_string().contains(SECRET));
        assert_eq!(variables(&pod["spec"]["containers"][1]).len(), 2);
        assert_eq!(texts(&injection), warnings);
    }
}

/// Whatever is mounted where the runner looks for certificates by itself, it is told of the trust bundle.
#[test]
fn the_charts_mount_is_left_alone_and_not_relied_upon() {
    for source in [
        json!({"secret": {"secretName": SECRET}}),
        json!({"secret": {"secretName": "other"}}),
        json!({"persistentVolumeClaim": {"claimName": "home"}}),
    ] {
        let mut pod = manager_with_chart_certs();
        let mut volume = source;
        volume["name"] = json!("custom-certs");
        pod["spec"]["volumes"][1] = volume;
        let after = applied(&pod, &run(&pod, PodKind::Manager, &certs(false)));
        assert_eq!(after["spec"]["volumes"][1], pod["spec"]["volumes"][1]);
        assert_eq!(
            variables(&after["spec"]["containers"][1])[1..],
            [format!("CI_SERVER_TLS_CA_FILE={MOUNT_TRUST}/ca.crt")]
        );
    }
}

#[test]
fn where_the_pair_has_no_place_the_ca_is_injected_all_the_same() {
    for (volume, mount) in [
        (json!({"name": VOLUME_CERTS, "secret": {"secretName": "other"}}), json!(null)),
        (
            json!({"name": VOLUME_CERTS, "secret": {"secretName": SECRET, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
            json!(null),
        ),
        (json!({"name": "own", "emptyDir": {}}), json!({"name": "own", "mountPath": MOUNT_CLIENT})),
        (json!({"name": "own", "emptyDir": {}}), json!({"name": "own", "mountPath": format!("{MOUNT_CLIENT}/x")})),
    ] {
        let mut pod = manager();
        pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
        if mount.is_object() {
            pod["spec"]["containers"][1]["volumeMounts"].as_array_mut().unwrap().push(mount);
        }
        let injection = run(&pod, PodKind::Manager, &certs(true));
        assert_eq!(variables(&applied(&pod, &injection)["spec"]["containers"][1]).len(), 2);
        assert!(texts(&injection)[0].starts_with("no client certificate for the runner: "), "{injection:?}");
    }
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
    assert!(!json!(injection.patch).to_string().contains(SECRET));
    assert_eq!(texts(&injection), ["already set, so kept: CI_SERVER_TLS_CA_FILE, CI_SERVER_TLS_KEY_FILE"]);
}

#[test]
fn without_the_entrypoint_every_container_but_the_mesh_is_a_runner() {
    let mut pod = manager();
    pod["spec"]["containers"][1]["command"] = json!(["/custom"]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "second"}));
    let after = applied(&pod, &run(&pod, PodKind::Manager, &certs(false)));
    let after = PodView::of(&after).unwrap();
    let place = |container| MountPlace::of(&after, container, MOUNT_TRUST);
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
fn a_second_pass_adds_nothing_but_a_pair_that_came_between() {
    let pod = applied(&manager(), &run(&manager(), PodKind::Manager, &certs(false)));
    assert_eq!(run(&pod, PodKind::Manager, &certs(false)).reason, InjectReason::Present);
    let pod = applied(&pod, &run(&pod, PodKind::Manager, &certs(true)));
    assert_eq!(variables(&pod["spec"]["containers"][1]).len(), 4);
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
            &both,
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
        (of(Certs::default()), &both, InjectReason::CertsMissing, format!("{secret} has no CA; add ca.crt")),
        (of(bad("ca.crt")), &both, InjectReason::CertsInvalid, format!("ca.crt in {secret} cannot be read; fix it")),
        (
            of(Certs { has_ca: true, ..bad("x.pem") }),
            &both,
            InjectReason::CertsInvalid,
            format!("x.pem in {secret} cannot be read; fix it"),
        ),
        (
            of(Certs { has_ca: true, too_large: true, ..Certs::default() }),
            &both,
            InjectReason::CertsInvalid,
            format!("{secret} has too many CAs; remove some"),
        ),
        (of(Certs { has_ca: true, ..Certs::default() }), &both, InjectReason::TrustPending, pending.to_owned()),
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
    let unreadable = Certs { unreadable: Some("ca.crt".to_owned()), ..Certs::default() };
    let before_the_secret = Snapshot { certs_loaded: false, ..seen(None, Some(TRUST)) };
    for snapshot in [seen(Some(unreadable), Some(TRUST)), before_the_secret] {
        assert_eq!(run(&job(), PodKind::Job, &snapshot).reason, InjectReason::Injected);
        assert_eq!(run(&manager(), PodKind::Manager, &snapshot).reason, InjectReason::Injected);
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

#[path = "inject_properties.rs"]
mod properties;

use super::*;

const SECRET: &str = "gitlab-runner-certs";
const ENTRYPOINT: &str = "/configmaps/entrypoint";

fn certs(client_pair: bool) -> CertsView {
    CertsView::Present(Certs { ca: Ca::Valid, client_pair })
}

fn run(pod: &Value, kind: Kind, certs: CertsView) -> Injection {
    inject(pod, kind, "ns", certs, &Config::default())
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
    let injection = run(&manager(), Kind::Manager, certs(true));
    assert_eq!(injection.reason, Reason::Injected);
    let pod = applied(&manager(), &injection);
    assert_eq!(
        pod["spec"]["volumes"][1],
        json!({"name": VOLUME_CERTS, "secret": {"secretName": SECRET, "optional": true, "items": [
            {"key": "ca.crt", "path": "ca.crt"}, {"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"},
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
    let off = Config::from_yaml("certs: {inject: {clientCertificate: false}}").unwrap();
    for (config, pair) in [(&Config::default(), false), (&off, true)] {
        let injection = inject(&manager(), Kind::Manager, "ns", certs(pair), config);
        let pod = applied(&manager(), &injection);
        assert_eq!(pod["spec"]["volumes"][1]["secret"]["items"], json!([{"key": "ca.crt", "path": "ca.crt"}]));
        assert_eq!(variables(&pod["spec"]["containers"][1]).len(), 2);
        assert!(injection.warnings.is_empty());
    }
}

#[test]
fn where_the_chart_mounts_the_secret_only_variables_are_added() {
    let pod = manager_with_chart_certs();
    let after = applied(&pod, &run(&pod, Kind::Manager, certs(true)));
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
        let injection = run(&pod, Kind::Manager, certs(true));
        assert!(injection.patch.is_empty());
        assert_eq!(injection.reason, Reason::ForeignMount);
        assert!(texts(&injection)[0].contains("is not mounted from Secret gitlab-runner-certs"), "{injection:?}");
    }
}

#[test]
fn only_the_keys_that_a_mount_shows_are_pointed_at() {
    let mut pod = manager_with_chart_certs();
    pod["spec"]["volumes"][1] = json!({"name": "custom-certs", "projected": {"sources": [
        {"secret": {"name": SECRET, "items": [{"key": "ca.crt", "path": "ca.crt"}, {"key": "tls.crt", "path": "tls.crt"}]}},
    ]}});
    let after = applied(&pod, &run(&pod, Kind::Manager, certs(true)));
    assert_eq!(variables(&after["spec"]["containers"][1]).len(), 2);
}

#[test]
fn variables_of_the_user_stay_and_a_pair_is_not_mixed() {
    let mut pod = manager();
    let env = pod["spec"]["containers"][1]["env"].as_array_mut().unwrap();
    env.push(json!({"name": "CI_SERVER_TLS_CA_FILE", "value": ""}));
    env.push(json!({"name": "CI_SERVER_TLS_KEY_FILE", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}));
    let injection = run(&pod, Kind::Manager, certs(true));
    let after = applied(&pod, &injection);
    assert_eq!(after["spec"]["containers"][1]["env"], pod["spec"]["containers"][1]["env"]);
    assert_eq!(
        texts(&injection),
        [("CA", "ca.crt"), ("KEY", "tls.key")].map(|(name, key)| format!(
            "CI_SERVER_TLS_{name}_FILE is set already and is kept; the mounted file is {MOUNT_MANAGER_CERTS}/{key}"
        ))
    );
}

#[test]
fn without_the_entrypoint_every_container_but_the_mesh_is_a_runner() {
    let mut pod = manager();
    pod["spec"]["containers"][1]["command"] = json!(["/custom"]);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "second"}));
    let after = applied(&pod, &run(&pod, Kind::Manager, certs(false)));
    let mounts: Vec<bool> = items(&after["spec"]["containers"])
        .map(|container| matches!(Place::of(&after, container, MOUNT_MANAGER_CERTS), Place::Mounted { .. }))
        .collect();
    assert_eq!(mounts, [false, true, true]);
}

#[test]
fn a_job_gets_the_ca_in_build_and_helper_and_never_the_key() {
    let injection = run(&job(), Kind::Job, certs(true));
    let pod = applied(&job(), &injection);
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": VOLUME_CERTS, "secret": {
            "secretName": SECRET, "optional": true, "items": [{"key": "ca.crt", "path": "ca.crt"}],
        }}])
    );
    for index in [0, 1] {
        assert_eq!(
            variables(&pod["spec"]["containers"][index]),
            ["NODE_EXTRA_CA_CERTS", "DENO_CERT"].map(|name| format!("{name}=/etc/gitlab-runner/certs/ca.crt"))
        );
    }
    assert_eq!(pod["spec"]["containers"][2], json!({"name": "svc-0"}));
    assert!(injection.warnings.is_empty());
    assert!(!json!(injection.patch).to_string().contains("tls.key"));
}

#[test]
fn a_volume_of_our_name_that_shows_a_job_more_is_not_used() {
    for secret in [
        json!({"secretName": SECRET}),
        json!({"secretName": SECRET, "items": []}),
        json!({"secretName": SECRET, "items": [{"key": "ca.crt", "path": "ca.crt"}, {"key": "tls.key", "path": "x"}]}),
        json!({"secretName": "other", "items": [{"key": "ca.crt", "path": "ca.crt"}]}),
    ] {
        let mut pod = job();
        pod["spec"]["volumes"] = json!([{"name": VOLUME_CERTS, "secret": secret}]);
        let injection = run(&pod, Kind::Job, certs(true));
        assert!(injection.patch.is_empty());
        assert_eq!((injection.reason, injection.warnings.len()), (Reason::Blocked, 1));
    }
}

#[test]
fn a_container_that_came_later_gets_the_same() {
    let mut pod = applied(&job(), &run(&job(), Kind::Job, certs(false)));
    assert_eq!(run(&pod, Kind::Job, certs(false)).reason, Reason::Present);
    pod["spec"]["containers"][2]["name"] = json!("build");
    let injection = run(&pod, Kind::Job, certs(false));
    assert_eq!(injection.patch.len(), 2);
    assert!(injection.patch.iter().all(|operation| operation.path().as_str().starts_with("/spec/containers/2/")));
}

#[test]
fn a_pair_that_came_between_two_passes_is_not_pointed_at_where_it_is_not_shown() {
    let pod = applied(&manager(), &run(&manager(), Kind::Manager, certs(false)));
    assert_eq!(run(&pod, Kind::Manager, certs(true)).reason, Reason::Present);
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
        "containers": [{"name": "build", "volumeMounts": [{"name": "ca", "mountPath": "/etc/gitlab-runner/certs/"}]}],
    }));
    let within = with(json!({
        "volumes": [{"name": "c", "configMap": {"name": "x"}}],
        "containers": [{"name": "build", "volumeMounts": [{"name": "c", "mountPath": "/etc/gitlab-runner"}]}],
    }));
    let table = [
        (Kind::Other, job(), Reason::OtherPod, 0),
        (Kind::Pause, job(), Reason::OtherPod, 0),
        (Kind::Job, with(json!({"os": {"name": "windows"}})), Reason::Windows, 0),
        (Kind::Job, with(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})), Reason::Windows, 0),
        (Kind::Job, with(json!({"containers": [{"name": "svc-0"}]})), Reason::NoContainer, 0),
        (Kind::Job, with(json!({"containers": null})), Reason::NoContainer, 0),
        (Kind::Job, with(json!({"volumes": {}})), Reason::Blocked, 1),
        (Kind::Job, with(json!({"containers": [{"name": "build", "env": {}}]})), Reason::Blocked, 1),
        (Kind::Job, mounted_by_user, Reason::ForeignMount, 0),
        (Kind::Job, within, Reason::Blocked, 1),
    ];
    for (kind, pod, reason, warnings) in table {
        let injection = run(&pod, kind, certs(true));
        assert!(injection.patch.is_empty(), "{pod}");
        assert_eq!((injection.reason, injection.warnings.len()), (reason, warnings), "{pod}");
    }
}

#[test]
fn certificates_that_cannot_be_used_are_said_and_not_injected() {
    let present = |ca| CertsView::Present(Certs { ca, client_pair: true });
    let secret = "Secret ns/gitlab-runner-certs";
    let table = [
        (CertsView::NotLoaded, Reason::CertsNotLoaded, format!("{secret} is not loaded yet; wait a moment")),
        (CertsView::Absent, Reason::CertsMissing, format!("{secret} is missing; create it with ca.crt")),
        (present(Ca::Missing), Reason::CertsMissing, format!("{secret} has no ca.crt; add it")),
        (present(Ca::Invalid), Reason::CertsInvalid, format!("ca.crt in {secret} is not PEM; mend it")),
    ];
    for (certs, reason, problem) in table {
        for (kind, pod, again) in [(Kind::Manager, manager(), "recreate the pod"), (Kind::Job, job(), "retry the job")]
        {
            let injection = run(&pod, kind, certs);
            assert!(injection.patch.is_empty());
            assert_eq!(injection.reason, reason);
            assert_eq!(texts(&injection), [format!("no CA injected: {problem} and {again}")]);
        }
        assert!(run(&job(), Kind::Other, certs).warnings.is_empty());
    }
}

#[test]
fn what_is_switched_off_is_left_alone() {
    let off = Config::from_yaml("certs: {inject: {manager: false, jobs: false}}").unwrap();
    for (kind, pod) in [(Kind::Manager, manager()), (Kind::Job, job())] {
        for certs in [certs(true), CertsView::Absent] {
            let injection = inject(&pod, kind, "ns", certs, &off);
            assert!(injection.patch.is_empty() && injection.warnings.is_empty());
            assert_eq!(injection.reason, Reason::Disabled);
        }
    }
}

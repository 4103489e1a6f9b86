//! What holds for any pod that an API server may send; what another one sends is refused, or the same holds.

use json_patch::PatchOperation;
use proptest::{collection::vec, option, prelude::*, sample::select};

use serde_json::json;

use super::{
    super::*, ADDITIVE, ENTRYPOINT, REPLACING, SECRET, TRUST, certs, config, inject, items, seen, trust_volume,
    with_pair,
};
use crate::{
    admission::{
        pod::{MountPlace, shows},
        pod_view::within_cost,
    },
    names::{MOUNT_CLIENT, MOUNT_JOB_CERTS, MOUNT_TRUST, VOLUME_CERTS, VOLUME_TRUST},
    trust::{BundleFiles, ClientPair, PairFlaw},
};

/// A value of a type that does not belong where it is.
fn odd() -> impl Strategy<Value = Value> {
    select(vec![json!(null), json!(true), json!(7), json!("x"), json!([]), json!({}), json!([null, 1, "x", {}, []])])
}

/// Mostly there.
fn mostly(strategy: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![6 => strategy.prop_map(Some), 1 => Just(Some(json!(null))), 1 => Just(None)]
}

/// Every place in a document.
fn places(value: &Value, place: &str, found: &mut Vec<String>) {
    found.push(place.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            places(value, &format!("{place}/{}", name.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::Array(elements) => {
            elements.iter().enumerate().for_each(|(index, value)| places(value, &format!("{place}/{index}"), found));
        }
        _ => {}
    }
}

fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    values.prop_map(move |values| {
        names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?))).collect()
    })
}

fn list(element: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    vec(element, 0..4).prop_map(Value::Array)
}

fn one_of(values: &[&'static str]) -> impl Strategy<Value = Value> {
    select(values.iter().map(|value| json!(value)).collect::<Vec<_>>())
}

const VOLUMES: [&str; 5] = [VOLUME_CERTS, VOLUME_TRUST, "home", "custom-certs", "gone"];

fn volumes() -> impl Strategy<Value = Value> {
    let item = || {
        object(vec![
            ("key", mostly(one_of(&["ca.crt", "tls.crt", "tls.key"])).boxed()),
            ("path", mostly(one_of(&["ca.crt", "tls.crt", "tls.key"])).boxed()),
        ])
    };
    let secret = object(vec![
        ("secretName", mostly(one_of(&[SECRET, "other"])).boxed()),
        ("items", option::of(list(item())).boxed()),
    ]);
    list(object(vec![
        ("name", mostly(one_of(&VOLUMES)).boxed()),
        ("secret", option::of(secret).boxed()),
        ("emptyDir", option::of(Just(json!({}))).boxed()),
        ("projected", option::weighted(0.3, Just(trust_volume()["projected"].clone())).boxed()),
        (
            "configMap",
            option::of(object(vec![
                ("name", mostly(one_of(&[CONFIGMAP_TRUST, "other"])).boxed()),
                ("items", option::weighted(0.2, list(item())).boxed()),
            ]))
            .boxed(),
        ),
    ]))
}

fn containers() -> impl Strategy<Value = Value> {
    let variable = object(vec![
        (
            "name",
            mostly(one_of(&[
                "CI_SERVER_TLS_CA_FILE",
                "CI_SERVER_TLS_KEY_FILE",
                "NODE_EXTRA_CA_CERTS",
                "SSL_CERT_FILE",
                "SSL_CERT_DIR",
                "X",
            ]))
            .boxed(),
        ),
        (
            "value",
            mostly(one_of(&[
                "",
                "/etc/gitlab-runner-webhook/trust/ca.crt",
                "/etc/gitlab-runner-webhook/client/tls.key",
                "/etc/gitlab-runner-webhook/trust/bundle.crt",
            ]))
            .boxed(),
        ),
    ]);
    let mount = object(vec![
        ("name", mostly(one_of(&VOLUMES)).boxed()),
        (
            "mountPath",
            mostly(one_of(&[
                "/home/gitlab-runner/.gitlab-runner",
                "/home/gitlab-runner/.gitlab-runner/certs/",
                "/etc/gitlab-runner",
                "/etc/gitlab-runner/certs",
                "/etc/gitlab-runner/certs/ca.crt",
                "/etc/gitlab-runner-webhook",
                "/etc/gitlab-runner-webhook/client",
                "/etc/gitlab-runner-webhook/client/x",
                "/etc/gitlab-runner-webhook/trust",
                "/etc/gitlab-runner-webhook/trust/bundle.crt",
                "/builds",
            ]))
            .boxed(),
        ),
        ("subPath", option::weighted(0.1, Just(json!("ca.crt"))).boxed()),
        ("readOnly", option::weighted(0.3, Just(json!(true))).boxed()),
    ]);
    list(object(vec![
        ("name", mostly(one_of(&["build", "helper", "gitlab-runner", "istio-proxy", "svc-0"])).boxed()),
        ("command", mostly(list(one_of(&["/bin/bash", ENTRYPOINT]))).boxed()),
        ("env", mostly(list(variable)).boxed()),
        ("volumeMounts", mostly(list(mount)).boxed()),
    ]))
}

fn pods() -> impl Strategy<Value = Value> {
    let spec = object(vec![
        ("volumes", mostly(volumes()).boxed()),
        ("containers", mostly(containers()).boxed()),
        ("future", Just(Some(json!({"a/b~c": [null]}))).boxed()),
    ]);
    mostly(spec).prop_map(|spec| json!({"spec": spec}))
}

/// Everything that was there is there: nothing removed, nothing replaced, null aside.
fn is_kept(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().all(|(key, value)| after.get(key).is_some_and(|after| is_kept(value, after)))
        }
        (Value::Array(before), Value::Array(after)) => {
            before.len() <= after.len() && before.iter().zip(after).all(|(before, after)| is_kept(before, after))
        }
        (Value::Null, Value::Array(_)) => true,
        (before, after) => before == after,
    }
}

/// What the webhook knows.
fn snapshots() -> impl Strategy<Value = Snapshot> {
    let with = |has_bundle, has_hashes| {
        let trust = BundleFiles { has_ca: has_hashes, has_bundle, has_hashes, has_java: has_bundle };
        seen(certs(true).certs.into_values().next(), Some(trust))
    };
    select(vec![
        certs(true),
        certs(false),
        with(false, true),
        with(true, false),
        with_pair(ClientPair::Unusable(PairFlaw::Key)),
        seen(None, Some(TRUST)),
        seen(certs(false).certs.into_values().next(), None),
        Snapshot::default(),
    ])
}

fn configs() -> impl Strategy<Value = Config> {
    select(vec![
        Config::default(),
        config("certs: {publicRoots: none}"),
        config("certs: {inject: {services: true, clientCertificate: false}}"),
        config("certs: {publicRoots: none, inject: {services: true}, variables: {additive: [GIT_SSL_CAINFO, X]}}"),
    ])
}

/// RFC 6902 for the one operation that there may be, written from its text: an engine that shares no code with the one
/// that made the patch.
fn add(document: &mut Value, operation: &Value) -> Result<(), String> {
    let fields: Vec<&String> = operation.as_object().ok_or("no object")?.keys().collect();
    if fields != ["op", "path", "value"] || operation["op"] != "add" {
        return Err(format!("not an addition: {operation}"));
    }
    let (value, path) = (operation["value"].clone(), operation["path"].as_str().ok_or("no path")?);
    let Some(tokens) = path.strip_prefix('/') else {
        return Err("the whole document".to_owned());
    };
    let mut tokens: Vec<String> = tokens.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect();
    let last = tokens.pop().ok_or("no token")?;
    let index = |token: &str, length: usize| {
        let plain = token == "0" || !token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit());
        token.parse::<usize>().ok().filter(|index| plain && *index <= length).ok_or(format!("{token} in {path}"))
    };
    let mut parent = document;
    for token in &tokens {
        parent = match parent {
            Value::Object(fields) => fields.get_mut(token).ok_or(format!("no {token} in {path}"))?,
            Value::Array(elements) => {
                let index = index(token, elements.len())?;
                elements.get_mut(index).ok_or(format!("no {token} in {path}"))?
            }
            _ => return Err(format!("{token} in {path} is within a scalar")),
        };
    }
    match parent {
        Value::Object(fields) => _ = fields.insert(last, value),
        Value::Array(elements) if last == "-" => elements.push(value),
        Value::Array(elements) => elements.insert(index(&last, elements.len())?, value),
        _ => return Err(format!("{path} is within a scalar")),
    }
    Ok(())
}

/// Whether a pod refers to a Secret anywhere.
fn names_a_secret(value: &Value) -> bool {
    match value {
        Value::Object(fields) => {
            fields.iter().any(|(key, value)| key.to_ascii_lowercase().contains("secret") || names_a_secret(value))
        }
        Value::Array(elements) => elements.iter().any(names_a_secret),
        _ => false,
    }
}

fn kinds() -> impl Strategy<Value = PodKind> {
    select(vec![PodKind::Manager, PodKind::Job])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn any_pod(pod in pods(), kind in kinds(), snapshot in snapshots(), config in configs()) {
        let injection = inject(&pod, kind, "ns", &snapshot, &config);
        // From bytes as from a value.
        let (text, view) = (pod.to_string(), PodView::of(&pod).unwrap());
        let read: PodView<'_> = within_cost(|| serde_json::from_str(&text)).0.unwrap();
        prop_assert_eq!(PodKind::of(&read, &config), PodKind::of(&view, &config));
        let read = super::super::inject(&read, kind, "ns", &snapshot, &config);
        prop_assert_eq!((&read.patch, &read.warnings, read.reason), (&injection.patch, &injection.warnings, injection.reason));
        let patch = json!(injection.patch);
        prop_assert!(injection.patch.iter().all(|operation| matches!(operation, PatchOperation::Add(_))));
        prop_assert_eq!(injection.reason == InjectReason::Injected, !injection.patch.is_empty());
        prop_assert!(injection.warnings.len() <= 4);
        prop_assert!(injection.warnings.iter().all(|warning| warning.to_string().chars().count() <= 120));

        let mut after = pod.clone();
        prop_assert!(json_patch::patch(&mut after, &injection.patch).is_ok());
        let mut by_the_other = pod.clone();
        for operation in items(&patch) {
            add(&mut by_the_other, operation).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(&by_the_other, &after, "two engines, two pods");

        prop_assert!(is_kept(&pod, &after));
        prop_assert!(inject(&after, kind, "ns", &snapshot, &config).patch.is_empty(), "twice = once");
        prop_assert!(kind == PodKind::Manager || !names_a_secret(&patch), "{}", patch);
        let trust = snapshot.trust.get("ns").copied();
        nothing_dangles(&pod, &after, trust)?;
    }

    #[test]
    fn a_container_that_another_webhook_adds_gets_the_same(
        containers in containers(), volumes in mostly(volumes()), kind in kinds(), config in configs(),
        name in select(vec!["build", "helper", "svc-0"]),
    ) {
        let once = |pod: &mut Value| {
            let injection = inject(pod, kind, "ns", &certs(true), &config);
            json_patch::patch(pod, &injection.patch).unwrap();
            injection
        };
        let late = json!({"name": name, "command": ["/bin/bash", ENTRYPOINT]});
        let mut after = json!({"spec": {"containers": containers, "volumes": volumes}});
        // Whether there is an entrypoint decides which containers of a manager pod run a runner.
        after["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "first", "command": [ENTRYPOINT]}));
        let mut before = after.clone();
        once(&mut after);
        after["spec"]["containers"].as_array_mut().unwrap().push(late.clone());
        let injection = once(&mut after);
        let prefix = format!("/spec/containers/{}/", items(&after["spec"]["containers"]).count() - 1);
        for operation in injection.patch.iter() {
            let path = operation.path().as_str();
            prop_assert!(path.starts_with(&prefix) || path.starts_with("/spec/volumes"), "{}", path);
        }
        // As if it had been there from the start.
        before["spec"]["containers"].as_array_mut().unwrap().push(late);
        once(&mut before);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn a_part_of_another_type_is_refused_or_does_no_harm(
        mut pod in pods(), odd in odd(), place in any::<prop::sample::Index>(), snapshot in snapshots(), kind in kinds(),
    ) {
        let mut all = Vec::new();
        places(&pod, "", &mut all);
        let place: &String = place.get(&all);
        *pod.pointer_mut(place).unwrap() = odd;
        let Ok(view) = PodView::of(&pod) else { return Ok(()) };
        let injection = super::super::inject(&view, kind, "ns", &snapshot, &Config::default());
        let mut after = pod.clone();
        prop_assert!(json_patch::patch(&mut after, &injection.patch).is_ok());
        prop_assert!(is_kept(&pod, &after));
    }
}

/// Each variable that was added is new to its container, and its files are mounted there and hold what it needs.
fn nothing_dangles(before: &Value, after: &Value, trust: Option<BundleFiles>) -> Result<(), TestCaseError> {
    for (index, container) in items(&after["spec"]["containers"]).enumerate() {
        let old = items(&before["spec"]["containers"][index]["env"]).count();
        for variable in items(&container["env"]).skip(old) {
            let name = variable["name"].as_str().unwrap();
            let of_user = items(&container["env"]).take(old).any(|other| other["name"] == name);
            prop_assert!(!of_user, "{} of the user is set twice", name);
            let value = variable["value"].as_str().unwrap();
            let value = value.strip_prefix("-Djavax.net.ssl.trustStore=").unwrap_or(value);
            let path = value.split([':', ' ']).next().unwrap();
            let is_directory = ["SSL_CERT_DIR", "GIT_SSL_CAPATH"].contains(&name);
            let (directory, key) = if is_directory { (path, "") } else { path.rsplit_once('/').unwrap() };
            let view = PodView::of(after).unwrap();
            let seen = view.spec.containers.iter().nth(index).unwrap();
            let MountPlace::Mounted { mount } = MountPlace::of(&view, seen, directory) else {
                return Err(TestCaseError::fail(format!("{name} points nowhere")));
            };
            if directory == MOUNT_CLIENT {
                prop_assert!(shows(&view, mount, SECRET, key), "{} is not there", key);
                continue;
            }
            prop_assert_eq!(directory.trim_end_matches('/'), MOUNT_TRUST);
            let trust = trust.unwrap();
            let is_there = match key {
                "" => trust.has_hashes,
                "ca.crt" => trust.has_ca,
                "truststore.jks" => trust.has_java,
                _ => trust.has_bundle,
            };
            prop_assert!(is_there);
            prop_assert!(!REPLACING.contains(&name) || key == "bundle.crt");
            prop_assert!(!ADDITIVE.contains(&name) || key == trust.least());
            prop_assert!(name != "GIT_SSL_CAINFO" || container["name"] != "helper");
            let volume = items(&after["spec"]["volumes"]).find(|volume| volume["name"] == *mount.name).unwrap();
            prop_assert_eq!(&volume["projected"]["sources"][0]["configMap"]["name"], CONFIGMAP_TRUST);
        }
        // Two mounts at one path are refused by the API server.
        let ours = |path| items(&container["volumeMounts"]).filter(|mount| mount["mountPath"] == path).count();
        let had = |path| {
            items(&before["spec"]["containers"][index]["volumeMounts"]).filter(|m| m["mountPath"] == path).count()
        };
        for path in [MOUNT_TRUST, MOUNT_JOB_CERTS, MOUNT_CLIENT] {
            prop_assert!(ours(path) <= had(path).max(1));
        }
    }
    Ok(())
}

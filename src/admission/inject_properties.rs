//! What holds for any pod, however odd.

use json_patch::PatchOperation;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{super::*, ENTRYPOINT, SECRET, certs, run};

/// A value of a type that does not belong where it is.
fn odd() -> impl Strategy<Value = Value> {
    select(vec![json!(null), json!(true), json!(7), json!("x"), json!([]), json!({}), json!([null, 1, "x", {}, []])])
}

/// Mostly what belongs there.
fn mostly(strategy: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![6 => strategy.prop_map(Some), 1 => odd().prop_map(Some), 1 => Just(None)]
}

fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    values.prop_map(move |values| {
        names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?))).collect()
    })
}

fn list(element: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    vec(prop_oneof![9 => element, 1 => odd()], 0..4).prop_map(Value::Array)
}

fn one_of(values: &[&'static str]) -> impl Strategy<Value = Value> {
    select(values.iter().map(|value| json!(value)).collect::<Vec<_>>())
}

const VOLUMES: [&str; 4] = [VOLUME_CERTS, "home", "custom-certs", "gone"];

fn volumes() -> impl Strategy<Value = Value> {
    let item = object(vec![
        ("key", mostly(one_of(&["ca.crt", "tls.crt", "tls.key"])).boxed()),
        ("path", mostly(one_of(&["ca.crt", "tls.crt", "tls.key"])).boxed()),
    ]);
    let secret = object(vec![
        ("secretName", mostly(one_of(&[SECRET, "other"])).boxed()),
        ("items", option::of(list(item)).boxed()),
    ]);
    list(object(vec![
        ("name", mostly(one_of(&VOLUMES)).boxed()),
        ("secret", option::of(secret).boxed()),
        ("emptyDir", option::of(Just(json!({}))).boxed()),
    ]))
}

fn containers() -> impl Strategy<Value = Value> {
    let variable = object(vec![
        (
            "name",
            mostly(one_of(&["CI_SERVER_TLS_CA_FILE", "CI_SERVER_TLS_KEY_FILE", "NODE_EXTRA_CA_CERTS", "X"])).boxed(),
        ),
        ("value", mostly(one_of(&["", "/home/gitlab-runner/.gitlab-runner/certs/ca.crt"])).boxed()),
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
                "/builds",
            ]))
            .boxed(),
        ),
        ("subPath", option::weighted(0.1, Just(json!("ca.crt"))).boxed()),
        ("readOnly", option::weighted(0.3, Just(json!(true))).boxed()),
    ]);
    list(object(vec![
        ("name", mostly(one_of(&["build", "helper", "gitlab-runner", "istio-proxy"])).boxed()),
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
    prop_oneof![20 => mostly(spec).prop_map(|spec| json!({"spec": spec})), 1 => odd()]
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_pod(pod in pods(), pair: bool, kind in select(vec![Kind::Manager, Kind::Job])) {
        let injection = run(&pod, kind, certs(pair));
        prop_assert!(injection.patch.iter().all(|operation| matches!(operation, PatchOperation::Add(_))));
        prop_assert_eq!(injection.reason == Reason::Injected, !injection.patch.is_empty());
        prop_assert!(injection.warnings.len() <= 4);

        let mut after = pod.clone();
        prop_assert!(json_patch::patch(&mut after, &injection.patch).is_ok());
        prop_assert!(is_kept(&pod, &after));
        prop_assert!(run(&after, kind, certs(pair)).patch.is_empty(), "twice = once");

        let path = if kind == Kind::Job { MOUNT_JOB_CERTS } else { MOUNT_MANAGER_CERTS };
        for (index, container) in items(&after["spec"]["containers"]).enumerate() {
            let before = &pod["spec"]["containers"][index];
            let (old, new) = (items(&before["env"]).count(), items(&container["env"]).skip(items(&before["env"]).count()));
            for variable in new {
                let same_name = items(&container["env"]).take(old).any(|other| other["name"] == variable["name"]);
                prop_assert!(!same_name, "a variable of the user is set twice");
                let key = variable["value"].as_str().unwrap().strip_prefix(path).unwrap().strip_prefix('/').unwrap();
                let Place::Mounted { mount } = Place::of(&after, container, path) else {
                    return Err(TestCaseError::fail("a variable points nowhere"));
                };
                prop_assert!(shows(&after, mount, SECRET, key), "{key} is not there");
            }
        }
        if kind == Kind::Job {
            prop_assert!(!json!(injection.patch).to_string().contains("tls."));
        }
    }

    #[test]
    fn anything_at_all_is_classified_and_survives(pod in pods()) {
        let kind = Kind::of(&pod, &Config::default());
        let injection = run(&pod, kind, certs(true));
        prop_assert!(json_patch::patch(&mut pod.clone(), &injection.patch).is_ok());
    }
}

//! `migrate` on a real API server: from what Kyverno 1.18 and 1.19 leave to what is ours, watched all the way.
//!
//! Kyverno itself is not here: `kyverno.rs` has its objects, and a stand-in for what its code does with them.

mod caller;
mod kyverno;
mod obstacles;
mod recorder;

use std::{collections::BTreeMap, process::Output, time::Duration};

use gitlab_runner_webhook_cli::migrate::{Migration, Options};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Manifests, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data},
    control_plane::ControlPlane,
    wait,
};
use tokio::process::Command;

use self::{
    kyverno::{
        POLICY, Shape, StandIn, Version, by_labels, create_clone, create_policy, install_kinds, kind, policies,
        requests,
    },
    recorder::Recorder,
};

use crate::BINARY;

const APP: &str = "gitlab-runner-webhook";
const TOKENS: [(&str, &str); 2] = [("runner-registration-token", ""), ("runner-token", "the-token")];
const CONFIG: &str = "runnerNamespaces: {names: [gitlab-runner], selectors: [{matchLabels: {runner: 'yes'}}]}\n\
                      clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab, onForeignTarget: refuse}]\n";

/// A cluster with the source, Kyverno's kinds and a Deployment of the program that says it is ready. The process itself
/// runs beside the API server, as in every test.
async fn cluster(config: &str) -> Cluster {
    let builder = ControlPlane::builder().controller_manager(false);
    let cluster = Cluster::start_as(builder, Setup { config: Some(config) }).await;
    install_kinds(&cluster.plane).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKENS).await;
    let map = json!({"metadata": {"name": "migrate-config"}, "data": {"config.yaml": config}});
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), APP);
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let mut shipped = Manifests::render("overlays/minimal").objects;
    shipped.retain(|object| object["kind"] == "Deployment");
    let mut deployment = shipped.remove(0);
    for volume in deployment["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap() {
        for source in volume["projected"]["sources"].as_array_mut().into_iter().flatten() {
            if source["configMap"]["items"][0]["key"] == "config.yaml" {
                source["configMap"]["name"] = json!("migrate-config");
            }
        }
    }
    let deployments: Api<Deployment> = Api::namespaced(cluster.admin.clone(), APP);
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment).unwrap()).await.unwrap();
    set_available(&cluster, 1).await;
    cluster
}

async fn set_available(cluster: &Cluster, available: i32) {
    let deployments: Api<Deployment> = Api::namespaced(cluster.admin.clone(), APP);
    let generation = deployments.get(APP).await.unwrap().metadata.generation;
    let status = json!({"status": {
        "observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": available, "availableReplicas": available,
        "unavailableReplicas": 1 - available,
    }});
    deployments.patch_status(APP, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// A runner namespace in which Kyverno was first.
async fn kyvernos_namespace(cluster: &Cluster, name: &str, labels: &[(&str, &str)], shape: Shape) -> Secret {
    cluster.create_namespace(name, &[]).await;
    let clone = create_clone(cluster, name, shape, &TOKENS).await;
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    let labels = json!({"metadata": {"labels": labels}});
    cluster.namespaces().patch(name, &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
    clone
}

fn options() -> Options {
    Options {
        policy: POLICY.parse().unwrap(),
        namespace: APP.parse().unwrap(),
        config: None,
        force_managed: false,
        timeout: Duration::from_mins(1),
    }
}

async fn prepare(cluster: &Cluster) -> Migration {
    Migration::prepare(cluster.admin.clone(), &options()).await.unwrap()
}

/// The command, with these flags.
async fn migrate(cluster: &Cluster, flags: &[&str]) -> Output {
    command(cluster, flags).output().await.unwrap()
}

fn command(cluster: &Cluster, flags: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("migrate").arg("--kubeconfig").arg(cluster.plane.admin_kubeconfig()).args(flags);
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// It is ours in every respect, and nothing of Kyverno is left on it.
fn is_ours(clone: &Secret, former: &Secret) {
    assert_eq!(clone.uid(), former.uid(), "the same object all the way");
    assert_eq!(clone.labels()["app.kubernetes.io/managed-by"], APP);
    assert_eq!(clone.annotations()["gitlab-runner-webhook/source"], "gitlab/gitlab-gitlab-runner-secret");
    assert_eq!((clone.labels().len(), clone.annotations().len()), (1, 1), "{:?}", clone.metadata);
    let managers: Vec<_> = clone.managed_fields().iter().filter_map(|entry| entry.manager.as_deref()).collect();
    assert!(managers.iter().all(|manager| *manager == "gitlab-runner-webhook-clone"), "{managers:?}");
}

async fn policy(cluster: &Cluster) -> Option<DynamicObject> {
    policies(&cluster.admin).get_opt(POLICY).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_after_each_step_the_clone_is_never_absent_and_ends_as_ours() {
    let cluster = cluster(CONFIG).await;
    let tool = cluster.tool(BINARY).await.config(CONFIG).start().await;

    // What happens without `migrate`, so that this test can fail: Kyverno 1.19 puts its labels back, and deletes.
    {
        let _kyverno = StandIn::start(cluster.admin.clone(), Version::V1_19).await;
        kyvernos_namespace(&cluster, "careless", &[("runner", "yes")], Shape::Put).await;
        let recorder = Recorder::start(&cluster).await;
        create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"runner": "yes"}))).await;
        let stripped = json!({"metadata": {"labels": {"generate.kyverno.io/policy-name": null}}});
        cluster.patch_secret("careless", SECRET, &stripped).await;
        let has_label = |secret: &Secret| secret.labels().contains_key("generate.kyverno.io/policy-name");
        cluster.secret_that("gets its label back", "careless", SECRET, has_label).await;
        policies(&cluster.admin).delete(POLICY, &DeleteParams::default()).await.unwrap();
        wait::until("the clone was deleted", || async {
            recorder.states(&cluster, "careless").await.iter().any(Option::is_none).then_some(())
        })
        .await;
        cluster.clone_with("careless", SECRET, &TOKENS).await;
    }

    let mut round = 0;
    for (version, shape) in [
        (Version::V1_19, Shape::Put),
        (Version::V1_19, Shape::Apply),
        (Version::V1_18, Shape::Put),
        (Version::V1_18, Shape::Legacy),
    ] {
        let _kyverno = StandIn::start(cluster.admin.clone(), version).await;
        // Six steps of one namespace: interrupted after none of them, after the first, ... after all.
        for steps_before in 0..=6 {
            round += 1;
            let (namespace, value) = (format!("round-{round}"), round.to_string());
            let labels = [("runner", "yes"), ("round", value.as_str())];
            let former = kyvernos_namespace(&cluster, &namespace, &labels, shape).await;
            create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"runner": "yes", "round": value}))).await;
            let recorder = Recorder::start(&cluster).await;

            let first = prepare(&cluster).await;
            assert_eq!(first.refusals(), Vec::<String>::new());
            assert_eq!(first.steps().len(), 6, "{:?}", first.steps());
            for step in first.steps().iter().take(steps_before) {
                first.carry_out(step).await.unwrap();
            }
            // Each step can be repeated on the spot, too.
            if let Some(step) = first.steps().iter().take(steps_before).next_back() {
                first.carry_out(step).await.unwrap();
            }
            drop(first);

            let second = prepare(&cluster).await;
            assert_eq!(second.refusals(), Vec::<String>::new());
            for step in second.steps() {
                second.carry_out(step).await.unwrap();
            }
            assert!(policy(&cluster).await.is_none());
            let clone = cluster.clone_with(&namespace, SECRET, &TOKENS).await;
            let states = recorder.held_throughout(&cluster, &namespace, &TOKENS).await;
            is_ours(&clone, &former);
            assert_eq!(states, 2, "labels taken off, marks put on, and nothing else");
            let third = prepare(&cluster).await;
            assert_eq!(third.refusals(), Vec::<String>::new());
            assert!(third.steps().is_empty(), "there is nothing left to do");
        }
    }

    // The source changes before and after each step: somebody keeps the clone in step all the way.
    let labels = [("runner", "yes"), ("round", "rotating")];
    let former = kyvernos_namespace(&cluster, "rotating", &labels, Shape::Put).await;
    create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"runner": "yes", "round": "rotating"}))).await;
    let recorder = Recorder::start(&cluster).await;
    let migration = prepare(&cluster).await;
    for (index, step) in migration.steps().iter().enumerate() {
        let token = format!("token-{index}");
        let token = [("runner-token", token.as_str())];
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &token).await;
        cluster.secret_that("follows", "rotating", SECRET, |there| has_data(there, &token)).await;
        migration.carry_out(step).await.unwrap();
    }
    is_ours(&cluster.clone_with("rotating", SECRET, &[("runner-token", "token-5")]).await, &former);
    assert!(recorder.states(&cluster, "rotating").await.iter().all(Option::is_some));

    // Rotation, with a key dropped: exactly that arrives, whoever once owned the key.
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
    for round in 1..=round {
        cluster.clone_with(&format!("round-{round}"), SECRET, &[("runner-token", "rotated")]).await;
    }
    assert!(tool.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_and_run_again_it_comes_to_its_end() {
    let cluster = cluster(CONFIG).await;
    let _tool = cluster.tool(BINARY).await.config(CONFIG).start().await;
    let _kyverno = StandIn::start(cluster.admin.clone(), Version::V1_19).await;
    let names: Vec<_> = (0..12).map(|index| format!("runner-{index}")).collect();
    let mut former = Vec::new();
    for name in &names {
        former.push(kyvernos_namespace(&cluster, name, &[("runner", "yes")], Shape::Put).await);
    }
    create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"runner": "yes"}))).await;
    let recorder = Recorder::start(&cluster).await;

    // Killed after more and more lines of what it says, until it has said all and ended by itself.
    let mut killed = 0;
    for lines in 0.. {
        use tokio::io::{AsyncBufReadExt as _, BufReader};
        let mut child = command(&cluster, &["--yes"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut done = 0;
        while done < lines {
            match said.next_line().await.unwrap() {
                Some(line) if line.starts_with(|first: char| first.is_ascii_digit()) => done += 1,
                Some(_) => {}
                None => break,
            }
        }
        if done < lines {
            assert!(child.wait().await.unwrap().success());
            break;
        }
        // In the middle of the next step, wherever that is by now.
        for _ in 0..fastrand::u32(0..2000) {
            tokio::task::yield_now().await;
        }
        child.kill().await.unwrap();
        killed += 1;
    }
    assert!(killed >= 3, "{killed}");
    assert!(policy(&cluster).await.is_none());
    for (name, former) in names.iter().zip(&former) {
        is_ours(&cluster.clone_with(name, SECRET, &TOKENS).await, former);
        recorder.held_throughout(&cluster, name, &TOKENS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_changes_nothing_and_a_refusal_names_its_reason() {
    let cluster = cluster(CONFIG).await;
    let nothing = migrate(&cluster, &["--yes"]).await;
    assert!(nothing.status.success() && said(&nothing).contains("nothing to do"), "{}", said(&nothing));

    let missing = cluster.plane.dir().join("missing.yaml");
    let output = migrate(&cluster, &["--dry-run", "--output-config", missing.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("missing.yaml was not written: there is no policy"), "{}", said(&output));
    assert!(!missing.exists());

    // Kyverno was first here: this namespace is the program's by name, so that it would be quicker.
    let former = kyvernos_namespace(&cluster, RUNNER_NAMESPACE, &[], Shape::Put).await;
    let tool = cluster.tool(BINARY).await.config(CONFIG).start().await;
    tool.clones_in_state(SECRET, "synced", 1.0).await;
    let created = create_policy(&cluster.admin, |_| {}).await;

    // The plan; every write is tried by dry run, and none takes effect.
    let file = cluster.plane.dir().join("derived.yaml");
    let output = migrate(&cluster, &["--dry-run", "--output-config", file.to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", said(&output));
    for words in ["1. orphan", "3. take-over", "gitlab-runner", "nothing was changed", "last-applied-configuration"] {
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
    }
    assert!(!said(&output).contains("canary") && !said(&output).contains("the-token"));
    let derived = gitlab_runner_webhook::config::Config::from_yaml(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(derived.clones, gitlab_runner_webhook::config::Config::default().clones);
    let unchanged = async || {
        let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
        assert_eq!(there.resource_version(), former.resource_version());
        let source = cluster.secret(SOURCE_NAMESPACE, SECRET).await.unwrap();
        assert!(source.labels().is_empty() && source.annotations().is_empty());
    };
    unchanged().await;
    assert_eq!(policy(&cluster).await.unwrap().resource_version(), created.resource_version());

    let refused = async |flags: &[&str], words: &[&str]| {
        let output = migrate(&cluster, flags).await;
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {}", said(&output));
        for word in words {
            assert!(said(&output).contains(word), "{word}: {}", said(&output));
        }
        unchanged().await;
    };
    refused(&[], &["--yes"]).await;
    let elsewhere = cluster.plane.dir().join("elsewhere.yaml");
    std::fs::write(&elsewhere, "runnerNamespaces: {names: [elsewhere]}").unwrap();
    let elsewhere = elsewhere.to_str().unwrap();
    refused(&["--yes", "--config", elsewhere], &["does not cover namespace gitlab-runner"]).await;
    refused(&["--yes", "--namespace", "elsewhere"], &["not installed", "--namespace"]).await;
    refused(&["--yes", "--context", "nowhere"], &["nowhere"]).await;
    set_available(&cluster, 0).await;
    refused(&["--yes"], &["not ready", "rollout status"]).await;
    set_available(&cluster, 1).await;

    // Who may only read is told by the dry run which verb is missing.
    let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}]);
    let kubeconfig = caller::who_may(&cluster, "reader", &everything).await;
    let output =
        Command::new(BINARY).args(["migrate", "--yes", "--kubeconfig"]).arg(&kubeconfig).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    for word in ["patch resource \"clusterpolicies\"", "you may not delete ClusterPolicy", "patch resource \"secrets\""]
    {
        assert!(said(&output).contains(word), "{word}: {}", said(&output));
    }
    unchanged().await;

    // Kept by Flux: refused while it acts, done when it rests.
    let labels = json!({"helm.toolkit.fluxcd.io/name": "gitlab-runner", "helm.toolkit.fluxcd.io/namespace": "default"});
    let change = async |patch: Value| {
        policies(&cluster.admin).patch(POLICY, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    };
    change(json!({"metadata": {"labels": labels}})).await;
    refused(&["--yes"], &["HelmRelease default/gitlab-runner", "flux suspend", "addons.gitlabRunner.autoRegister"])
        .await;
    let releases: Api<DynamicObject> =
        Api::namespaced_with(cluster.admin.clone(), "default", &kind("helm.toolkit.fluxcd.io", "v2", "HelmRelease"));
    let release = json!({"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease",
        "metadata": {"name": "gitlab-runner"}, "spec": {"suspend": true}});
    releases.create(&PostParams::default(), &serde_json::from_value(release).unwrap()).await.unwrap();
    let output = migrate(&cluster, &["--dry-run"]).await;
    assert!(output.status.success() && said(&output).contains("which is suspended"), "{}", said(&output));
    unchanged().await;
    let rest = Patch::Merge(json!({"spec": {"suspend": false}}));
    releases.patch("gitlab-runner", &PatchParams::default(), &rest).await.unwrap();
    refused(&["--yes"], &["flux suspend"]).await;
    change(json!({"metadata": {"labels": null}})).await;

    // It does something else as well.
    let lived = policy(&cluster).await.unwrap();
    let mut rules = lived.data["spec"]["rules"].clone();
    rules.as_array_mut().unwrap().push(json!({"name": "more", "mutate": {"targets": [{"kind": "Pod"}]}}));
    change(json!({"spec": {"rules": rules}})).await;
    refused(&["--yes"], &["rule more", "mutate"]).await;
    change(json!({"spec": {"rules": lived.data["spec"]["rules"]}})).await;

    // A clone that is not right, and one of another policy.
    assert!(tool.stop().await.success());
    let differs = cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "newer")]).await;
    refused(&["--yes"], &["differs from its source"]).await;
    cluster.delete_secret(SOURCE_NAMESPACE, &differs.name_any()).await;
    let output = migrate(&cluster, &["--yes"]).await;
    assert!(said(&output).contains("is missing, so nobody can say"), "{}", said(&output));
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKENS).await;

    // The program stands still although its Deployment says otherwise: the first clone waits in vain, the policy stays,
    // and the next run comes to the end.
    let output = migrate(&cluster, &["--yes", "--timeout", "1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the program does not mark it"), "{}", said(&output));
    assert!(policy(&cluster).await.is_some());
    let _tool = cluster.tool(BINARY).await.config(CONFIG).start().await;
    let output = migrate(&cluster, &["--yes"]).await;
    assert!(output.status.success(), "{}", said(&output));
    is_ours(&cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKENS).await, &former);

    a_policy_that_goes_late_is_gone(&cluster).await;
    a_deleted_policy_leaves_a_deletion_in_hand(&cluster).await;
    a_policy_that_is_set_back_is_not_deleted(&cluster).await;
}

/// Taking over once more used up the patience, and the deletion takes effect at once: it was not in vain.
async fn a_policy_that_goes_late_is_gone(cluster: &Cluster) {
    kyvernos_namespace(cluster, "late", &[("runner", "yes"), ("is", "late")], Shape::Put).await;
    create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"is": "late", "runner": "yes"}))).await;
    let migration = prepare(cluster).await;
    for step in &migration.steps()[..3] {
        migration.carry_out(step).await.unwrap();
    }
    let hasty = Options { timeout: Duration::from_nanos(1), ..options() };
    let hasty = Migration::prepare(cluster.admin.clone(), &hasty).await.unwrap();
    assert_eq!(hasty.steps()[3].to_string(), "remove");
    hasty.carry_out(&hasty.steps()[3]).await.unwrap();
    assert!(policy(cluster).await.is_none());

    // With a finalizer it is not gone, and that is said.
    let finalizers = json!(["example.com/waits"]);
    create_policy(&cluster.admin, |policy| policy["metadata"]["finalizers"] = finalizers).await;
    let hasty = Options { timeout: Duration::from_secs(1), ..options() };
    let hasty = Migration::prepare(cluster.admin.clone(), &hasty).await.unwrap();
    let mut said = String::new();
    for step in hasty.steps() {
        if let Err(error) = hasty.carry_out(step).await {
            said = format!("{step}: {error}");
            break;
        }
    }
    assert!(said.contains("remove: waited 1 s in vain") && said.contains("finalizer"), "{said}");
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    policies(&cluster.admin).patch(POLICY, &PatchParams::default(), &none).await.unwrap();
}

/// Kyverno 1.19 was told to delete the clones by name, and was down: what it left is dropped before it is back.
async fn a_deleted_policy_leaves_a_deletion_in_hand(cluster: &Cluster) {
    let former = kyvernos_namespace(cluster, "left", &[("runner", "yes")], Shape::Put).await;
    let all = [("ur-ours", POLICY, "generate"), ("ur-other", "other", "generate"), ("ur-cel", POLICY, "cel-generate")];
    for (name, policy, request_type) in all {
        in_hand(cluster, name, policy, request_type).await;
    }
    let recorder = Recorder::start(cluster).await;
    let output = migrate(cluster, &["--yes"]).await;
    assert!(output.status.success() && said(&output).contains("is gone already"), "{}", said(&output));
    is_ours(&cluster.clone_with("left", SECRET, &TOKENS).await, &former);
    recorder.held_throughout(cluster, "left", &TOKENS).await;
    assert!(requests(&cluster.admin).get_opt("ur-ours").await.unwrap().is_none());
    for name in ["ur-other", "ur-cel"] {
        assert!(requests(&cluster.admin).get_opt(name).await.unwrap().is_some(), "{name}");
    }

    // The same, although no clone carries Kyverno's labels any more: interrupted after the policy was deleted.
    in_hand(cluster, "ur-late", POLICY, "generate").await;
    let output = migrate(cluster, &["--yes"]).await;
    assert!(output.status.success() && said(&output).contains("1 UpdateRequests dropped"), "{}", said(&output));
    assert!(requests(&cluster.admin).get_opt("ur-late").await.unwrap().is_none());
    let output = migrate(cluster, &["--yes"]).await;
    assert!(output.status.success() && said(&output).contains("nothing to do"), "{}", said(&output));
}

/// An `UpdateRequest` by which Kyverno is about to delete a clone.
async fn in_hand(cluster: &Cluster, name: &str, policy: &str, request_type: &str) {
    let request = json!({
        "apiVersion": "kyverno.io/v2", "kind": "UpdateRequest",
        "metadata": {"name": name, "labels": {"generate.kyverno.io/policy-name": policy}},
        "spec": {"requestType": request_type, "policy": policy, "ruleContext": [{"deleteDownstream": true}]},
        "status": {"state": "Pending", "generatedResources": [{"kind": "Secret", "name": SECRET, "namespace": "left"}]},
    });
    let request = serde_json::from_value(request).unwrap();
    requests(&cluster.admin).create(&PostParams::default(), &request).await.unwrap();
}

/// Somebody restores the policy between two steps: with clones at stake, it is not deleted.
async fn a_policy_that_is_set_back_is_not_deleted(cluster: &Cluster) {
    kyvernos_namespace(cluster, "set-back", &[("runner", "yes"), ("set", "back")], Shape::Put).await;
    create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"set": "back", "runner": "yes"}))).await;
    let migration = prepare(cluster).await;
    assert_eq!(migration.refusals(), Vec::<String>::new());
    let steps = migration.steps().to_vec();
    for step in &steps[..3] {
        migration.carry_out(step).await.unwrap();
    }
    let mut rules = policy(cluster).await.unwrap().data["spec"]["rules"].clone();
    rules[0]["generate"]["synchronize"] = json!(true);
    let back = Patch::Merge(json!({"spec": {"rules": rules}}));
    policies(&cluster.admin).patch(POLICY, &PatchParams::default(), &back).await.unwrap();
    let error = migration.carry_out(&steps[3]).await.unwrap_err().to_string();
    assert!(error.contains("set back"), "{error}");
    assert!(policy(cluster).await.is_some());

    // Made anew altogether: not the policy of the plan.
    policies(&cluster.admin).delete(POLICY, &DeleteParams::default()).await.unwrap();
    create_policy(&cluster.admin, |_| {}).await;
    let error = migration.carry_out(&steps[3]).await.unwrap_err().to_string();
    assert!(error.contains("made anew"), "{error}");
    assert!(policy(cluster).await.is_some());
}

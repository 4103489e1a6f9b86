//! An installation as users make it, on a real API server: every overlay with every component, the pods, what happens when
//! all replicas are gone, and an overlay for a configuration of one's own.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use gitlab_runner_webhook::names::{APP, CONFIGMAP_TRUST, WEBHOOK_INJECT};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{
    Cluster, Manifests, ServingCertificate,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    control_plane::ControlPlane,
    fixture, repository, wait,
};

use crate::BINARY;

const BREAK_GLASS: &str =
    "kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration gitlab-runner-webhook";

/// As GKE has it: pods of this class only where a quota is for them.
const RATIONED: &str = "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: ResourceQuota
    configuration:
      apiVersion: apiserver.config.k8s.io/v1
      kind: ResourceQuotaConfiguration
      limitedResources:
        - resource: pods
          matchScopes: [{scopeName: PriorityClass, operator: In, values: [system-cluster-critical]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn an_installation() {
    let folder = TempDir::new().unwrap();
    let admission = folder.path().join("admission.yaml");
    fs::write(&admission, RATIONED).unwrap();
    let flag = format!("--admission-control-config-file={}", admission.display());
    let plane = ControlPlane::builder().api_server_arg(flag).start().await.unwrap();
    let certificate = ServingCertificate::issue(&folder.path().join("serving"));
    let cluster = Cluster { admin: plane.admin(), certificate, plane, config: None };
    for namespace in [APP, SOURCE_NAMESPACE, RUNNER_NAMESPACE, "elsewhere"] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }

    let combinations = combinations().into_iter().filter(every_day).collect();
    are_accepted(&cluster, combinations).await;
    the_pods_are_restricted_and_of_a_critical_class(&cluster).await;
    when_all_replicas_are_gone_only_runner_namespaces_are_affected(&cluster).await;
    roles_in_namespaces_are_rights_enough(&cluster).await;
    a_configuration_of_ones_own_is_installed_by_an_overlay(&cluster, folder.path()).await;
}

/// Whether this is built in the run of every day: none, one, two of the components, or all. What can be wrong with more is
/// wrong with two: one id twice, or a patch that misses what another took away. The soak takes every subset.
fn every_day((resources, components): &Combination) -> bool {
    let few = if resources == &["overlays/default"] { 2 } else { 1 };
    components.len() <= few || components.len() >= OPTIONAL.len()
}

const OPTIONAL: [&str; 6] = [
    "generated/namespaced-rbac",
    "components/network-policy",
    "components/flow-schema",
    "components/client-ca",
    "components/monitoring",
    "components/big-bang",
];

/// Folders and components, as an overlay lists them.
type Combination = (Vec<&'static str>, Vec<&'static str>);

fn combinations() -> Vec<Combination> {
    let mut combinations = vec![(vec!["overlays/local"], vec![]), (vec!["base", "generated"], vec![])];
    for overlay in ["overlays/default", "overlays/minimal"] {
        for certificate in [None, Some("components/tls-files"), Some("components/cert-manager")] {
            for subset in 0..1_u32 << OPTIONAL.len() {
                let chosen = OPTIONAL.iter().enumerate().filter(|(bit, _)| subset & (1 << bit) != 0);
                let components = certificate.into_iter().chain(chosen.map(|(_, component)| *component));
                combinations.push((vec![overlay], components.collect()));
            }
        }
    }
    combinations
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: 386 builds"]
async fn soak_every_subset_of_the_components_is_accepted() {
    let cluster = Cluster::start().await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
    }
    are_accepted(&cluster, combinations()).await;
}

/// Each combination builds; each object that comes of it passes a dry run.
async fn are_accepted(cluster: &Cluster, combinations: Vec<Combination>) {
    cluster.apply(&fixture("crds.yaml"), &[]).await;
    // kubectl takes a fifth of a second for each.
    let builds = combinations.chunks(combinations.len().div_ceil(4)).map(|chunk| {
        let chunk = chunk.to_vec();
        tokio::task::spawn_blocking(move || {
            let build = |(resources, components): &Combination| {
                let built = Manifests::combine(resources, components);
                built.unwrap_or_else(|error| panic!("{resources:?} with {components:?}: {error}")).objects
            };
            chunk.iter().flat_map(build).collect::<Vec<_>>()
        })
    });
    let mut distinct = BTreeMap::new();
    for objects in builds.collect::<Vec<_>>() {
        distinct.extend(objects.await.unwrap().into_iter().map(|object| (object.to_string(), object)));
    }
    println!("{} combinations, {} distinct objects", combinations.len(), distinct.len());
    let custom: Vec<_> =
        distinct.values().filter(|object| object["apiVersion"].as_str().unwrap().contains(".io/v1")).collect();
    for kind in ["Certificate", "Issuer", "PeerAuthentication", "AuthorizationPolicy", "FlowSchema"] {
        assert!(custom.iter().any(|object| object["kind"] == kind), "{kind}");
    }
    let answer =
        cluster.apply(&distinct.into_values().collect::<Vec<_>>(), &["--dry-run=server", "--validate=strict"]).await;
    assert!(!answer.contains("Warning"), "{answer}");
}

/// Two pods of the Deployment as it is shipped, in the namespace as it is shipped.
async fn the_pods_are_restricted_and_of_a_critical_class(cluster: &Cluster) {
    let shipped = Manifests::render("overlays/default").without(&WEBHOOK_CONFIGURATIONS);
    shipped.apply(&cluster.plane).await;
    let pods = our_pods(cluster).await;
    let spec = pods[0].spec.clone().unwrap();
    assert_eq!(spec.priority_class_name.as_deref(), Some("system-cluster-critical"));
    assert!(spec.priority.unwrap() > 1_000_000_000);

    // The namespace refuses what is not restricted; elsewhere, the class is refused for want of a quota.
    let plain = json!({"containers": [{"name": "c", "image": "i"}]});
    let refused = create(cluster, APP, "plain", &plain).await.unwrap_err();
    assert!(refused.contains("violates PodSecurity \"restricted"), "{refused}");
    let critical = json!({"containers": [{"name": "c", "image": "i"}], "priorityClassName": "system-cluster-critical"});
    let refused = create(cluster, "elsewhere", "critical", &critical).await.unwrap_err();
    assert!(refused.contains("insufficient quota"), "{refused}");
}

/// Fails closed, and nobody answers: the whole cluster works but runner namespaces, and one command restores them.
async fn when_all_replicas_are_gone_only_runner_namespaces_are_affected(cluster: &Cluster) {
    let port = free_port();
    let webhooks = Manifests::render("overlays/local").reached_at(port, &cluster.certificate.ca_pem);
    webhooks.apply(&cluster.plane).await;
    let (plain, uses_clone) =
        (spec(&json!({})), spec(&json!({"volumes": [{"name": "v", "secret": {"secretName": SECRET}}]})));
    wait::until("the webhooks are registered", || async {
        let (inject, gate) = (
            create(cluster, RUNNER_NAMESPACE, "dry", &plain).await.err()?,
            create(cluster, RUNNER_NAMESPACE, "dry", &uses_clone).await.err()?,
        );
        assert!(gate.contains("failed calling webhook"), "{gate}");
        inject.contains(WEBHOOK_INJECT).then_some(())
    })
    .await;

    for namespace in ["kube-system", SOURCE_NAMESPACE, "elsewhere", "default"] {
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
        for (name, spec) in [("plain", &plain), ("uses-clone", &uses_clone)] {
            create(cluster, namespace, name, spec).await.unwrap_or_else(|error| panic!("{namespace}: {error}"));
        }
    }
    // Our own replicas come back by themselves.
    let before = our_pods(cluster).await;
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), APP);
    let name = before[0].metadata.name.clone().unwrap();
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
    wait::until("its ReplicaSet makes another", || async {
        let there = our_pods(cluster).await;
        there.iter().all(|pod| pod.metadata.name.as_deref() != Some(&name)).then_some(())
    })
    .await;

    // The command that the documents give, run as it is.
    let documents = ["README.md", "manifests/README.md"];
    for document in documents {
        let text = fs::read_to_string(repository().join(document)).unwrap();
        assert!(text.contains(BREAK_GLASS), "{document}");
    }
    let arguments: Vec<_> = BREAK_GLASS.split(' ').skip(1).collect();
    cluster.plane.kubectl(&arguments).await.unwrap();
    wait::until("pods are created in the runner namespace again", || async {
        create(cluster, RUNNER_NAMESPACE, "uses-clone", &uses_clone).await.is_ok().then_some(())
    })
    .await;
    // And the manifests bring them back.
    webhooks.apply(&cluster.plane).await;
    wait::until("the gate is asked again", || async {
        let error = create(cluster, RUNNER_NAMESPACE, "again", &plain).await.err()?;
        error.contains("failed calling webhook").then_some(())
    })
    .await;
}

/// Clone, trust bundle and gate, with every right to write in a Role.
async fn roles_in_namespaces_are_rights_enough(cluster: &Cluster) {
    let manifests = Manifests::combine(&["overlays/default"], &["generated/namespaced-rbac"]).unwrap();
    let manifests = manifests.without(&["Deployment"]);
    manifests.clone().without(&WEBHOOK_CONFIGURATIONS).apply(&cluster.plane).await;
    let ca = cluster.certificate.ca_pem.clone();
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "t")]).await;
    cluster.put_secret(RUNNER_NAMESPACE, "gitlab-runner-certs", &[("ca.crt", &ca)]).await;
    let before = cluster.requests().await.len();
    let tool = cluster.tool(BINARY).await.start().await;
    tool.clones_in_state(SECRET, "synced", 1.0).await;
    tool.metric_is("gitlab_runner_webhook_trust_bundles{state=\"synced\"}", 1.0).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
    manifests.reached_at(tool.webhook_port().await, &ca).apply(&cluster.plane).await;
    let uses_clone = spec(&json!({"volumes": [{"name": "v", "secret": {"secretName": SECRET}}]}));
    wait::until("the gate lets a pod in", || async {
        create(cluster, RUNNER_NAMESPACE, "with-roles", &uses_clone).await.is_ok().then_some(())
    })
    .await;
    tool.metric_is(CURRENT, 1.0).await;
    no_right_is_missing(cluster, before).await;
    assert!(tool.stop().await.success());
}

/// RBAC refused nothing of what the program asked for since then. (A guard of a moment ago may have: tried again.)
async fn no_right_is_missing(cluster: &Cluster, since: usize) {
    let requests = cluster.requests().await;
    let decision = "authorization.k8s.io/decision";
    let refused: Vec<_> =
        requests[since..].iter().filter(|request| request.annotations[decision] == "forbid").collect();
    assert!(refused.is_empty(), "{refused:?}");
}

const CURRENT: &str =
    "gitlab_runner_webhook_admissions_total{webhook=\"validate-pods\",decision=\"allowed\",reason=\"current\"}";
const WEBHOOK_CONFIGURATIONS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

const CONFIG: &str = "
runnerNamespaces:
  names: [builds, builds-2]
  selectors:
    - matchLabels: {runner: 'yes'}
    - matchExpressions: [{key: tier, operator: In, values: [ci, build]}]
clones:
  - {secret: gitlab-gitlab-runner-secret, from: gitlab}
  - {secret: registry, from: infra, labels: {team: ci}}
  - {secret: deploy.key, from: gitlab}
certsSecretName: company-ca
certs: {from: infra}
";

/// One file, one command, an overlay of three lines: the program runs with exactly the rights that come of it.
async fn a_configuration_of_ones_own_is_installed_by_an_overlay(cluster: &Cluster, folder: &Path) {
    let file = folder.join("my.yaml");
    fs::write(&file, CONFIG).unwrap();
    let overlay = folder.join("my-overlay");
    let mut command = Command::new(BINARY);
    command.args(["manifests", "--config"]).arg(&file).arg("--output").arg(overlay.join("generated"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::os::unix::fs::symlink(repository().join("manifests"), folder.join("manifests")).unwrap();
    let kustomization = "resources: [../manifests/base, generated]\ncomponents: [../manifests/components/ha]\n";
    fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    let built = Manifests::build(&overlay).unwrap();
    let map = built.objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    assert_eq!(map["data"]["config.yaml"], CONFIG);
    let manifests = built.without(&["Deployment", "PodDisruptionBudget"]);

    let namespaces = [
        ("builds", &[][..]),
        ("builds-2", &[]),
        ("by-label", &[("runner", "yes")]),
        ("by-expression", &[("tier", "build")]),
        ("infra", &[("tier", "ci")]),
    ];
    for (namespace, labels) in namespaces {
        cluster.create_namespace(namespace, labels).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    let ca = cluster.certificate.ca_pem.clone();
    for (namespace, secret, key, value) in [
        (SOURCE_NAMESPACE, SECRET, "runner-token", "t"),
        ("infra", "registry", "password", "p"),
        (SOURCE_NAMESPACE, "deploy.key", "key", "k"),
        ("infra", "company-ca", "ca.crt", ca.as_str()),
    ] {
        cluster.put_secret(namespace, secret, &[(key, value)]).await;
    }
    // As the rollout does it: rights and guard first, then the pods, which listen before they are called.
    manifests.clone().without(&WEBHOOK_CONFIGURATIONS).apply(&cluster.plane).await;
    let before = cluster.requests().await.len();
    let tool = cluster.tool(BINARY).await.config(CONFIG).start().await;
    for secret in [SECRET, "registry", "deploy.key", "company-ca"] {
        tool.clones_in_state(secret, "synced", 4.0).await;
    }
    tool.metric_is("gitlab_runner_webhook_trust_bundles{state=\"synced\"}", 4.0).await;
    manifests.reached_at(tool.webhook_port().await, &ca).apply(&cluster.plane).await;

    let job = json!({"containers": [{"name": "build", "image": "i"}]});
    let mut gated = 0.0;
    for (namespace, _) in &namespaces[..4] {
        // Inject: the trust bundle is in the pod that the API server answers with.
        wait::until(format!("a job pod in {namespace} gets the trust bundle"), || async {
            let label = json!({"job.runner.gitlab.com/pod": "runner-x"});
            let pod = create_labelled(cluster, namespace, "job", &label, &job, true).await.ok()?;
            let volumes = pod.spec.unwrap().volumes.unwrap_or_default();
            volumes
                .iter()
                .any(|volume| {
                    volume.config_map.as_ref().is_some_and(|map| map.name == CONFIGMAP_TRUST)
                        || volume.projected.as_ref().is_some_and(|projected| {
                            let mut maps =
                                projected.sources.iter().flatten().filter_map(|source| source.config_map.as_ref());
                            maps.any(|map| map.name == CONFIGMAP_TRUST)
                        })
                })
                .then_some(())
        })
        .await;
        // The gate: it said "current" about one pod for each clone.
        for secret in [SECRET, "registry", "deploy.key", "company-ca"] {
            let uses = spec(&json!({"volumes": [{"name": "v", "secret": {"secretName": secret}}]}));
            let name = format!("uses-{secret}");
            create(cluster, namespace, &name, &uses).await.unwrap_or_else(|error| panic!("{namespace}: {error}"));
            gated += 1.0;
            tool.metric_is(CURRENT, gated).await;
        }
    }
    // The namespace of a source is none of ours, whatever its labels.
    let uses = spec(&json!({"volumes": [{"name": "v", "secret": {"secretName": "registry"}}]}));
    create(cluster, "infra", "uses-registry", &uses).await.unwrap();
    assert_eq!(tool.metric(CURRENT).await, Some(gated), "nobody asked about it");
    assert!(cluster.secret("infra", SECRET).await.is_none());

    no_right_is_missing(cluster, before).await;
    assert!(tool.stop().await.success());
}

async fn our_pods(cluster: &Cluster) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), APP);
    let ours = ListParams::default().labels("app.kubernetes.io/name=gitlab-runner-webhook");
    wait::until("two replicas are created", || async {
        let there = pods.list(&ours).await.unwrap().items;
        (there.len() == 2).then_some(there)
    })
    .await
}

/// One container, and this beside it.
fn spec(more: &Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Creates a pod, or gives the API server's words.
async fn create(cluster: &Cluster, namespace: &str, name: &str, spec: &Value) -> Result<Pod, String> {
    create_labelled(cluster, namespace, name, &json!({}), spec, name == "dry").await
}

async fn create_labelled(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    labels: &Value,
    spec: &Value,
    dry_run: bool,
) -> Result<Pod, String> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), namespace);
    let pod = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": spec})).unwrap();
    let params = PostParams { dry_run, ..PostParams::default() };
    pods.create(&params, &pod).await.map_err(|error| error.to_string())
}

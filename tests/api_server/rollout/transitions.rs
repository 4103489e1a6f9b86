//! Every change of the configuration as a rollout of another build: the old replica and the new one live side by side, then the old one
//! ends; and back again.

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{Api, api::PostParams};
use serde_json::json;
use test_support::{
    Balancer, Cluster, Setup, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET},
    control_plane::ControlPlane,
    wait,
};
use tokio::time::{Duration, Instant, sleep_until};

use super::{
    BINARY, CERTS, TRUST,
    binaries::ANOTHER,
    history::History,
    revisions::{Revisions, stands},
};

/// What rights, guards and webhooks are for: all that any of the configurations wants.
const ALL: &str = "
runnerNamespaces:
  names: [gitlab-runner, builds]
  selectors: [{matchLabels: {runner: 'yes'}}]
clones:
  - {secret: gitlab-gitlab-runner-secret, from: gitlab, labels: {team: ci}}
  - {secret: company-certs, from: infra, labels: {team: other}}
";

/// A change of the configuration, made together with a change of the binary: what it is, before, and after. `gitlab-runner` is a runner namespace in all of them.
const TRANSITIONS: [(&str, &str, &str); 11] = [
    ("the binary only", "", ""),
    ("the public roots", "", "certs: {publicRoots: none}"),
    ("a namespace is added", "", "runnerNamespaces: {names: [gitlab-runner, builds]}"),
    (
        "a namespace is renamed",
        "runnerNamespaces: {names: [gitlab-runner, builds]}",
        "runnerNamespaces: {names: [gitlab-runner, labelled]}",
    ),
    ("a selector is added", "", "runnerNamespaces: {selectors: [{matchLabels: {runner: 'yes'}}]}"),
    (
        "a selector is another one",
        "runnerNamespaces: {selectors: [{matchLabels: {runner: 'yes'}}]}",
        "runnerNamespaces: {selectors: [{matchLabels: {other: 'yes'}}]}",
    ),
    ("labels", "", "clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab, labels: {team: ci}}]"),
    (
        "another value of a label",
        "clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab, labels: {team: ci}}]",
        "clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab, labels: {team: other}}]",
    ),
    ("from", "", "clones: [{secret: gitlab-gitlab-runner-secret, from: vault}]"),
    ("certsSecretName", "", "certsSecretName: company-certs"),
    ("onSourceDeleted", "", "clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab, onSourceDeleted: delete}]"),
];

/// How many writes of an object a rollout may take beside those that follow a rotation: one for what is new, and one for
/// the moment in which the one has taken over and the other does not know yet.
const SLACK: usize = 2;
const ROTATIONS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn one_revision_writes_and_no_clone_or_trust_is_absent_for_a_moment() {
    go_through_all(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes: make soak"]
async fn soak_every_transition_of_the_configuration_side_by_side_for_30_s() {
    go_through_all(Duration::from_secs(30)).await;
}

async fn go_through_all(side_by_side: Duration) {
    let cluster = Cluster::start_as(ControlPlane::builder().nodes(true), Setup { config: Some(ALL) }).await;
    for (namespace, labels) in [
        ("gitlab", &[][..]),
        ("vault", &[]),
        (RUNNER_NAMESPACE, &[("runner", "yes"), ("other", "yes")]),
        ("builds", &[]),
        ("labelled", &[("runner", "yes")]),
    ] {
        cluster.create_namespace(namespace, labels).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    let another = test_support::ServingCertificate::issue(&cluster.plane.dir().join("company"));
    for namespace in [RUNNER_NAMESPACE, "builds", "labelled"] {
        cluster.put_secret(namespace, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
        cluster.put_secret(namespace, "company-certs", &[("ca.crt", &another.ca_pem)]).await;
    }
    let balancer = Balancer::start().await;
    cluster.register_webhooks(balancer.port, "Fail").await;
    let revisions = Revisions::new(&cluster).await;
    for (number, (what, before, after)) in TRANSITIONS.iter().enumerate() {
        let [here, there] = [(BINARY, *before), (ANOTHER.as_str(), *after)];
        for (direction, programs) in [("there", [here, there]), ("back", [there, here])] {
            let what = format!("{what}, {direction}");
            let names = programs.map(|(binary, config)| format!("{number}-{binary}-{config}"));
            let transition = Transition { cluster: &cluster, balancer: &balancer, revisions: &revisions, what: &what };
            transition.take(programs, &names, side_by_side).await;
        }
    }
}

struct Transition<'a> {
    cluster: &'a Cluster,
    balancer: &'a Balancer,
    revisions: &'a Revisions<'a>,
    what: &'a str,
}

impl Transition<'_> {
    /// From one binary and configuration to the other.
    async fn take(&self, programs: [(&str, &str); 2], names: &[String; 2], side_by_side: Duration) {
        let configs = programs.map(|(_, config)| config);
        self.rotate().await;
        let old_hash = self.revisions.roll_out(&names[0]).await;
        let old = self.revisions.start_binary(programs[0].0, &old_hash, configs[0]).await;
        stands(&old, "active").await;
        self.follows(configs[0], &old).await;
        // Of the first one, there is no bundle yet.
        let bundles: Api<ConfigMap> = Api::namespaced(self.cluster.admin.clone(), RUNNER_NAMESPACE);
        wait::until("there is a trust bundle", async || bundles.get_opt(TRUST).await.unwrap()).await;
        self.route_to(&[&old]).await;
        self.a_job_has_trust().await;

        let (clones, bundles) = self.histories().await;
        let new_hash = self.revisions.roll_out(&names[1]).await;
        let new = self.revisions.start_binary(programs[1].0, &new_hash, configs[1]).await;
        stands(&new, "active").await;
        stands(&old, "superseded").await;
        self.route_to(&[&old, &new]).await;
        let end = Instant::now() + side_by_side;
        for _ in 0..ROTATIONS {
            self.rotate().await;
            self.follows(configs[1], &new).await;
            for _ in 0..4 {
                self.a_job_has_trust().await;
                self.a_manager_is_let_in().await;
            }
        }
        while Instant::now() < end {
            self.a_job_has_trust().await;
            sleep_until(end.min(Instant::now() + Duration::from_millis(100))).await;
        }
        self.route_to(&[&new]).await;
        assert!(old.stop().await.success());
        self.a_job_has_trust().await;
        self.follows(configs[1], &new).await;

        for (object, history, expected) in [("clone", &clones, ROTATIONS), ("trust bundle", &bundles, 0)] {
            for namespace in [RUNNER_NAMESPACE, "builds", "labelled"] {
                let writes = history.writes(namespace);
                let told = format!("{}: the {object} in {namespace}: {writes:?}\n{}", self.what, new.log_text());
                assert_eq!(writes.deletes, 0, "{told}");
                assert!(writes.all() <= expected + SLACK, "{told}");
            }
        }
        assert!(new.stop().await.success());
    }

    async fn histories(&self) -> (History, History) {
        let admin = &self.cluster.admin;
        (History::of::<Secret>(admin, SECRET).await, History::of::<ConfigMap>(admin, TRUST).await)
    }

    /// Both sources, so that it does not matter which one counts.
    async fn rotate(&self) {
        for namespace in ["gitlab", "vault"] {
            let token = format!("{namespace}-{}", wait::unique());
            self.cluster.put_secret(namespace, SECRET, &[("runner-token", &token)]).await;
        }
    }

    /// Waits until the clone in `gitlab-runner` is what follows from a configuration.
    async fn follows(&self, config: &str, writer: &Tool) {
        let from = if config.contains("from: vault") { "vault" } else { "gitlab" };
        let source = self.cluster.secret(from, SECRET).await.unwrap();
        let has_labels = |clone: &Secret| {
            let team = clone.metadata.labels.as_ref().and_then(|labels| labels.get("team")).cloned();
            let wanted = ["ci", "other"].into_iter().find(|value| config.contains(&format!("team: {value}")));
            wanted.is_none_or(|wanted| team.as_deref() == Some(wanted))
        };
        let follows = async || {
            let clone = self.cluster.secret(RUNNER_NAMESPACE, SECRET).await?;
            (clone.data == source.data && has_labels(&clone)).then_some(())
        };
        let started = Instant::now();
        wait::within(2 * wait::PATIENCE, "the clone follows", async || {
            let told = format!("{}: the clone does not follow; the writer's log:\n{}", self.what, writer.log_text());
            assert!(started.elapsed() < wait::PATIENCE, "{told}");
            follows().await
        })
        .await;
    }

    async fn route_to(&self, tools: &[&Tool]) {
        let mut ports = Vec::new();
        for tool in tools {
            ports.push(tool.webhook_port().await);
        }
        self.balancer.route_to(ports);
        // Connections to the former ones are kept for a while.
        wait::until("reviews are answered", async || self.job().await.is_ok().then_some(())).await;
    }

    async fn a_job_has_trust(&self) {
        let pod = self.job().await.unwrap_or_else(|error| panic!("{}: {error}", self.what));
        let pod = serde_json::to_value(pod).unwrap();
        let environment = &pod["spec"]["containers"][0]["env"];
        let has = |name: &str| environment.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name));
        assert!(has("SSL_CERT_FILE") || has("SSL_CERT_DIR"), "{}: {environment}", self.what);
    }

    /// By the gate, which reads what is stored: no dry run.
    async fn a_manager_is_let_in(&self) {
        let pod = json!({
            "metadata": {"generateName": "manager-"},
            "spec": {
                "containers": [{"name": "gitlab-runner", "image": "gitlab-runner"}],
                "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
            },
        });
        let pod = serde_json::from_value(pod).unwrap();
        let created = self.pods().create(&PostParams::default(), &pod).await;
        created.unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.admin.clone(), RUNNER_NAMESPACE)
    }

    async fn job(&self) -> kube::Result<Pod> {
        let pod = json!({
            "metadata": {"name": "job", "labels": {"job.runner.gitlab.com/pod": "job"}},
            "spec": {"containers": [{"name": "build", "image": "alpine"}, {"name": "helper", "image": "helper"}]},
        });
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        self.pods().create(&dry_run, &serde_json::from_value(pod).unwrap()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_fails_stops_nothing_and_a_rollback_is_a_newer_revision() {
    let cluster = Cluster::start_as(ControlPlane::builder().nodes(true), Setup::default()).await;
    for namespace in ["gitlab", RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
    }
    cluster.put_secret("gitlab", SECRET, &[("runner-token", "first")]).await;
    let revisions = Revisions::new(&cluster).await;
    let first = revisions.start(&revisions.roll_out("first").await, "").await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "first")]).await;

    // It serves and writes although there is a newer one, which never gets ready.
    let broken = revisions.start(&revisions.roll_out_broken("broken").await, "").await;
    stands(&broken, "standby").await;
    cluster.put_secret("gitlab", SECRET, &[("runner-token", "second")]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "second")]).await;
    stands(&first, "active").await;
    let wrote = |tool: &Tool| tool.log_lines().iter().filter(|line| line["message"] == "written").count();
    wait::until("both writes are logged", async || (wrote(&first) >= 2).then_some(())).await;
    assert_eq!((wrote(&first), wrote(&broken)), (2, 0));

    let second = revisions.start(&revisions.roll_out("second").await, "").await;
    stands(&second, "active").await;
    stands(&first, "superseded").await;
    revisions.roll_out("first").await;
    stands(&first, "active").await;
    stands(&second, "superseded").await;
    cluster.put_secret("gitlab", SECRET, &[("runner-token", "third")]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "third")]).await;
    wait::until("the third write is logged", async || (wrote(&first) >= 3).then_some(())).await;
    assert_eq!((wrote(&first), wrote(&second), wrote(&broken)), (3, 0, 0));
}

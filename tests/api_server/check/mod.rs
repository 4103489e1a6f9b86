//! `gitlab-runner-webhook check` on a real API server: all green where all is well, and for each planted fault exactly
//! that one, with what mends it.

mod installed;
mod out_of_reach;
mod runner;

use std::{collections::BTreeSet, path::Path, sync::LazyLock, time::Duration};

use gitlab_runner_webhook_cli::check::report::Check;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use test_support::{
    Cluster, Manifests, Setup, Tool, client_pair,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    control_plane::{Binaries, Component, ControlPlane},
    fixture, repository, wait,
};
use time::OffsetDateTime;
use tokio::process::Command;

use crate::{BINARY, mission::CERTS};

const OWN: &str = "gitlab-runner-webhook";
const HOST: &str = "gitlab.example.com";
static CLIENT: LazyLock<(String, String)> = LazyLock::new(client_pair);
/// In every value of every Secret but the client's key, and in an annotation of the source: it must be nowhere in the output.
const CANARY: &str = "canary7f3a";
const TOKEN: [(&str, &str); 2] = [("runner-token", "glrt-canary7f3a"), ("runner-registration-token", "")];

/// The mission's cluster, with a runner in it and everything as it should be.
struct Fixture {
    cluster: Cluster,
    port: u16,
    tool: Option<Tool>,
    /// What the check printed so far.
    told: String,
}

/// What the check told.
struct Told {
    code: i32,
    json: Value,
}

impl Told {
    fn findings(&self) -> impl Iterator<Item = &Value> {
        self.json["findings"].as_array().unwrap().iter()
    }

    /// `check subject` of each finding of these levels.
    fn of(&self, levels: &[&str]) -> BTreeSet<String> {
        let concerned = self.findings().filter(|finding| levels.contains(&finding["level"].as_str().unwrap()));
        // The names of pods are made up by the cluster.
        let subject = |finding: &Value| match text(finding, "subject") {
            pod if pod.starts_with("pod ") => "pod".to_owned(),
            subject => subject.to_owned(),
        };
        concerned.map(|finding| format!("{} {}", text(finding, "check"), subject(finding))).collect()
    }

    fn bad(&self) -> BTreeSet<String> {
        self.of(&["fault", "warning", "unseen"])
    }

    /// The one that is not well.
    fn only(&self) -> &Value {
        self.findings().find(|finding| finding["level"] != "ok").expect("a finding")
    }

    fn what(&self) -> &str {
        text(self.only(), "what")
    }

    fn mend(&self) -> String {
        text(self.only(), "mend").to_owned()
    }

    fn mend_of(&self, check: &str) -> &str {
        let of_check = |finding: &&Value| finding["check"] == check && finding["level"] != "ok";
        text(self.findings().find(of_check).expect("a finding"), "mend")
    }

    /// How to mend it has these words, and there is a reason to.
    fn mends(&self, words: &str) {
        assert!(self.mend().contains(words), "{}", self.pretty());
        assert!(!text(self.only(), "why").is_empty());
    }

    fn pretty(&self) -> String {
        let bad = self.findings().filter(|finding| finding["level"] != "ok");
        bad.map(|finding| format!("{finding:#}")).collect::<Vec<_>>().join("\n")
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap()
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start_as(ControlPlane::builder().nodes(true), Setup::default()).await;
        cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
        let port = free_port();
        let mut fixture = Self { cluster, port, tool: None, told: String::new() };
        fixture.put_token(&TOKEN).await;
        let annotation = json!({"metadata": {"annotations": {"last-applied": CANARY}}});
        fixture.cluster.patch_secret(SOURCE_NAMESPACE, SECRET, &annotation).await;
        fixture.register().await;
        fixture.start().await;
        let mut shipped = Manifests::render("overlays/default");
        shipped.objects.retain(|object| object["kind"] == "Deployment");
        // What generates the name of the ConfigMap is not there with the Deployment alone: take both.
        fixture.apply(&shipped.objects).await;

        fixture.cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        fixture.put_certs(&certs(&certificate(&[], 300))).await;
        fixture.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
        let bundle = ["get", "configmap", "gitlab-runner-webhook-trust", "-n", RUNNER_NAMESPACE];
        wait::until("the trust bundle", || async { fixture.kubectl(&bundle).await.ok() }).await;
        fixture.apply(&runner()).await;
        fixture.runner_runs().await;
        fixture.settled().await;
        fixture
    }

    /// The webhooks as shipped; `caBundle` is the program's affair.
    async fn register(&self) {
        let mut manifests = self.cluster.manifests();
        manifests.objects.retain(|object| object["webhooks"].is_array());
        manifests.reached_at_port(self.port).apply(&self.cluster.plane).await;
    }

    async fn start(&mut self) {
        let listen = format!("127.0.0.1:{}", self.port);
        self.tool = Some(self.cluster.tool(BINARY).await.self_managed().flag("--listen", &listen).start().await);
    }

    async fn stop(&mut self) {
        self.tool.take().unwrap().kill().await;
    }

    async fn put_token(&self, data: &[(&str, &str)]) {
        self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, data).await;
    }

    async fn put_certs(&self, data: &[(&str, &str)]) {
        self.cluster.put_secret(RUNNER_NAMESPACE, CERTS, data).await;
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.plane.kubectl(arguments).await.map_err(|error| error.to_string())
    }

    async fn apply(&self, objects: &[Value]) {
        Manifests { objects: objects.to_vec() }.apply(&self.cluster.plane).await;
    }

    /// Runs the check as JSON.
    async fn check(&mut self, flags: &[&str]) -> Told {
        let kubeconfig = self.cluster.plane.admin_kubeconfig().to_owned();
        self.check_as(&kubeconfig, flags).await
    }

    async fn check_as(&mut self, kubeconfig: &Path, flags: &[&str]) -> Told {
        let (code, output) = self.run(kubeconfig, &[&["--output", "json"], flags].concat()).await;
        let json = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
        Told { code, json }
    }

    async fn run(&mut self, kubeconfig: &Path, flags: &[&str]) -> (i32, String) {
        let mut command = Command::new(BINARY);
        command.arg("check").arg("--kubeconfig").arg(kubeconfig).args(flags).env_remove("KUBECONFIG");
        let output = command.output().await.unwrap();
        let (told, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(log.is_empty(), "{log}");
        self.told += &told;
        (output.status.code().unwrap(), told)
    }

    /// Waits until the check finds nothing to say.
    async fn settled(&mut self) {
        self.finds(&[]).await;
    }

    /// Waits until the check finds exactly this, and returns it.
    async fn finds(&mut self, expected: &[&str]) -> Told {
        self.finds_that(expected, |_| true).await
    }

    /// Like [`Fixture::finds`], and something is true of it.
    async fn finds_that(&mut self, expected: &[&str], is_true: impl Fn(&Told) -> bool) -> Told {
        let expected: BTreeSet<_> = expected.iter().map(|words| (*words).to_owned()).collect();
        let give_up = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            let told = self.check(&[]).await;
            if told.bad() == expected && is_true(&told) {
                assert_eq!(told.code, i32::from(!told.of(&["fault"]).is_empty()));
                return told;
            }
            assert!(std::time::Instant::now() < give_up, "expected {expected:#?}, found {}", told.pretty());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn restart_runner(&self) {
        let delete = ["delete", "pods", "-n", RUNNER_NAMESPACE, "-l", "app=gitlab-runner", "--grace-period=0"];
        self.kubectl(&delete).await.unwrap();
        self.runner_runs().await;
    }

    /// Waits for a manager pod. Before there is one, the check looks at the template alone, and finds less.
    async fn runner_runs(&self) {
        let ready = ["wait", "--for=condition=Ready", "pods", "-n", RUNNER_NAMESPACE, "-l", "app=gitlab-runner"];
        wait::until("a manager pod runs", || async { self.kubectl(&ready).await.ok() }).await;
    }

    /// Runs what the check says, as a person would.
    async fn shell(&self, script: &str) {
        let binaries = Binaries::find(&[Component::Kubectl]).unwrap();
        let folder = binaries.path(Component::Kubectl).unwrap().parent().unwrap().to_owned();
        let own = Path::new(BINARY).parent().unwrap();
        let path = format!("{}:{}:{}", folder.display(), own.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-ec", script]).env("PATH", path).env("KUBECONFIG", self.cluster.plane.admin_kubeconfig());
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    async fn tells_nothing_secret(&self) {
        let secret = self.cluster.secret(OWN, "gitlab-runner-webhook-ca").await.unwrap().data.unwrap();
        let key = String::from_utf8(secret["ca.key"].0.clone()).unwrap();
        let lines = key.lines().chain(CLIENT.1.lines()).filter(|line| !line.starts_with("-----"));
        for secret in
            lines.map(str::to_owned).chain([CANARY.to_owned(), base64(&format!("glrt-{CANARY}")), base64(CANARY)])
        {
            assert!(!self.told.contains(secret.trim_end_matches('=')), "{secret} was told");
        }
        assert!(self.told.len() > 10_000);
    }
}

/// The runner as its chart makes it, with the certificates, for a GitLab with TLS.
fn runner() -> Vec<Value> {
    let mut objects = fixture("deployments/gitlab-runner-with-certs.yaml");
    for object in objects.iter_mut().filter(|object| object["kind"] == "Deployment") {
        object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = json!(format!("https://{HOST}"));
    }
    objects
}

/// The certificates as they should be, with a client certificate beside the CA.
fn certs(ca: &str) -> [(&str, &str); 3] {
    [("ca.crt", ca), ("tls.crt", &CLIENT.0), ("tls.key", &CLIENT.1)]
}

/// A CA, or with names a server's certificate, valid for so many days.
fn certificate(names: &[&str], days: i64) -> String {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(400);
    params.not_after = now + time::Duration::days(days);
    if names.is_empty() {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

#[test]
fn the_docs_name_each_check() {
    let docs = std::fs::read_to_string(repository().join("docs/check.md")).unwrap();
    let rows = docs.split("## What is looked at").nth(1).unwrap().split("##").next().unwrap();
    let rows: Vec<_> = rows.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, Check::ALL.iter().map(|check| check.as_str()).collect::<Vec<_>>());
}

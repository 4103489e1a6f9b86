//! `gitlab-runner-webhook check` on a real API server: all green where all is well, and for each planted fault exactly
//! that one, with what mends it.

use std::{collections::BTreeSet, path::Path, time::Duration};

use gitlab_runner_webhook_cli::check::report::Check;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use test_support::{
    Cluster, Manifests, Setup, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    control_plane::{Binaries, Component, ControlPlane},
    documents, fixture, repository, wait,
};
use time::OffsetDateTime;
use tokio::process::Command;

use crate::BINARY;

const OWN: &str = "gitlab-runner-webhook";
const CERTS: &str = "gitlab-runner-certs";
const HOST: &str = "gitlab.example.com";
/// In every value of every Secret: it must be nowhere in the output.
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
        fixture.register().await;
        fixture.start().await;
        let mut shipped = Manifests::render("overlays/default");
        shipped.objects.retain(|object| object["kind"] == "Deployment");
        // What generates the name of the ConfigMap is not there with the Deployment alone: take both.
        fixture.apply(&shipped.objects).await;

        fixture.cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        fixture.put_certs(&[("ca.crt", &certificate(&[], 300)), ("tls.crt", CANARY), ("tls.key", CANARY)]).await;
        fixture.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
        let bundle = ["get", "configmap", "gitlab-runner-webhook-trust", "-n", RUNNER_NAMESPACE];
        wait::until("the trust bundle", || async { fixture.kubectl(&bundle).await.ok() }).await;
        fixture.apply(&runner()).await;
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
}

/// The runner as its chart makes it, with the certificates, for a GitLab with TLS.
fn runner() -> Vec<Value> {
    let mut objects = fixture("deployments/gitlab-runner-with-certs.yaml");
    for object in objects.iter_mut().filter(|object| object["kind"] == "Deployment") {
        object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = json!(format!("https://{HOST}"));
    }
    objects
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

#[tokio::test(flavor = "multi_thread")]
async fn each_planted_fault_is_found_and_its_mend_is_named() {
    let mut fixture = Fixture::new().await;
    let source = format!("{SOURCE_NAMESPACE}/{SECRET}");
    let clone = format!("clone {RUNNER_NAMESPACE}/{SECRET}");
    let annotation = json!({"metadata": {"annotations": {"last-applied": CANARY}}});
    fixture.cluster.patch_secret(SOURCE_NAMESPACE, SECRET, &annotation).await;

    // The source and its token.
    fixture.cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    fixture.finds(&[&format!("source {source}")]).await.mends("helm upgrade");
    let registration = format!("GR1348941{CANARY}");
    let glrt = format!("glrt-{CANARY}");
    for (data, expected, mend) in [
        (vec![("runner-token", &*glrt)], "source", "stringData"),
        (vec![("runner-token", &*format!("{glrt}\n")), ("runner-registration-token", "")], "token", "tr -d"),
        (vec![("runner-token", ""), ("runner-registration-token", &*registration)], "token", "base64 < token.txt"),
        (vec![("runner-token", ""), ("runner-registration-token", "")], "token", "base64 < token.txt"),
    ] {
        fixture.new_token(&data).await;
        let told = fixture.finds(&[&format!("{expected} {source}")]).await;
        told.mends(mend);
        // As it stands; of who has to make a token first, what comes after that.
        let commands = told.mend();
        let (made, commands) = match commands.split_once(", then\n") {
            Some((_, commands)) => (format!("printf %s '{glrt}3' > token.txt\n"), commands.to_owned()),
            None => (String::new(), commands),
        };
        let folder = fixture.cluster.plane.dir().display().to_string();
        if commands.starts_with("kubectl") || !made.is_empty() {
            fixture.shell(&format!("cd {folder}\n{made}{commands}")).await;
            fixture.restart_runner().await;
            fixture.settled().await;
        }
        fixture.healthy_token().await;
    }

    // A rotated token, and a manager pod from before; the mend is a command.
    fixture.second_after_the_runner_started().await;
    fixture.put_token(&[("runner-token", &format!("{glrt}2")), ("runner-registration-token", "")]).await;
    let told = fixture.finds(&["manager-token pod"]).await;
    assert!(told.mend().starts_with("kubectl rollout restart deployment/gitlab-runner -n gitlab-runner"));
    fixture.shell(&told.mend()).await;
    fixture.settled().await;

    // Kyverno: the labels it leaves, and its policy.
    let label = [
        "label",
        "secret",
        SECRET,
        "-n",
        RUNNER_NAMESPACE,
        "generate.kyverno.io/policy-name=sync-gitlab-runner-secret",
    ];
    fixture.kubectl(&label).await.unwrap();
    let told = fixture.finds(&[&clone]).await;
    // Where somebody can be asked, it asks.
    fixture.shell(&told.mend().replace("   #", " --yes   #")).await;
    fixture.settled().await;
    fixture.apply(&documents(KYVERNO)).await;
    fixture.kubectl(&["wait", "--for=condition=Established", "crd/clusterpolicies.kyverno.io"]).await.unwrap();
    fixture.settled().await;
    let policy = json!({"apiVersion": "kyverno.io/v1", "kind": "ClusterPolicy", "metadata": {"name": "sync-gitlab-runner-secret"}});
    fixture.apply(&[policy]).await;
    fixture.finds(&["kyverno ClusterPolicy sync-gitlab-runner-secret"]).await.mends("gitlab-runner-webhook migrate");
    fixture.kubectl(&["delete", "clusterpolicy", "sync-gitlab-runner-secret"]).await.unwrap();
    fixture.settled().await;

    // The certificates.
    let (certs, ca) = (format!("certs {RUNNER_NAMESPACE}/{CERTS}"), certificate(&[], 300));
    let well = [("ca.crt", &*ca), ("tls.crt", CANARY), ("tls.key", CANARY)];
    fixture.cluster.delete_secret(RUNNER_NAMESPACE, CERTS).await;
    fixture.finds(&[&certs]).await.mends("kubectl create secret generic gitlab-runner-certs");
    for (content, says) in
        [(CANARY.to_owned(), "it is not PEM"), (certificate(&[], -1), "no certificate in it is valid")]
    {
        fixture.put_certs(&[("ca.crt", &content)]).await;
        assert!(fixture.finds(&[&certs]).await.what().contains(says));
        fixture.put_certs(&well).await;
        fixture.settled().await;
    }
    fixture.put_certs(&[("ca.crt", &ca), ("tls.key", CANARY)]).await;
    fixture.finds(&[&certs]).await.mends("tls.crt and tls.key");
    fixture.put_certs(&well).await;
    fixture.settled().await;
    // Names that are not that of the host of CI_SERVER_URL: for the pod from before, and for the next one.
    fixture.put_certs(&[("a.example.com.crt", &ca), ("b.example.com.crt", &ca)]).await;
    assert!(
        fixture.finds(&["certs-host pod"]).await.what().contains("reads ca.crt, which gitlab-runner-certs has not")
    );
    fixture.restart_runner().await;
    let told = fixture.finds_that(&["certs-host pod"], |told| told.what().contains("a.example.com.crt")).await;
    let folder = fixture.cluster.plane.dir().join("mend");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("company-ca.pem"), &ca).unwrap();
    let commands = told.mend().split_once('\n').unwrap().1.to_owned();
    fixture.shell(&format!("cd {}\n{commands}", folder.display())).await;
    fixture.settled().await;
    fixture.put_certs(&[("gitlab.example.com.crt", &certificate(&["other.example.com"], 300))]).await;
    fixture.finds(&["certs-host pod"]).await.mends("Put the CA that issued");
    fixture.put_certs(&well).await;
    fixture.restart_runner().await;
    fixture.settled().await;

    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_installed_is_held_to_the_configuration() {
    let mut fixture = Fixture::new().await;
    let (mutating, validating) =
        ("MutatingWebhookConfiguration gitlab-runner-webhook", "ValidatingWebhookConfiguration gitlab-runner-webhook");
    let account = "rights ServiceAccount gitlab-runner-webhook/gitlab-runner-webhook";
    let own = format!("{OWN}/{OWN}");

    // Deployment and Service.
    let scale = |replicas| ["scale", "deployment", OWN, "-n", OWN, replicas];
    fixture.kubectl(&scale("--replicas=0")).await.unwrap();
    let told = fixture.finds(&[&format!("deployment {own}"), &format!("endpoints {own}")]).await;
    let admin = fixture.cluster.plane.admin_kubeconfig().to_owned();
    let (code, text) = fixture.run(&admin, &[]).await;
    assert!(code == 1 && text.contains("✗ deployment") && text.contains("remediation:\n    kubectl scale"), "{text}");
    fixture.shell(told.mend_of("deployment")).await;
    fixture.settled().await;
    let service = |app: &str| json!({"spec": {"selector": {"app.kubernetes.io/name": app}}}).to_string();
    fixture.kubectl(&["patch", "service", OWN, "-n", OWN, "--type=merge", "-p", &service("other")]).await.unwrap();
    fixture.finds(&[&format!("endpoints {own}")]).await.mends("kubectl get service,endpointslices");
    fixture.kubectl(&["patch", "service", OWN, "-n", OWN, "--type=merge", "-p", &service(OWN)]).await.unwrap();
    fixture.settled().await;

    // Registration and selectors.
    fixture.kubectl(&["delete", "mutatingwebhookconfiguration", OWN]).await.unwrap();
    fixture.finds(&[&format!("registration {mutating}")]).await.mends("kubectl apply -k");
    fixture.register().await;
    fixture.settled().await;
    let elsewhere = json!([{"op": "replace", "path": "/webhooks/0/namespaceSelector/matchExpressions/0/values", "value": ["other"]}]);
    for (kind, subject) in [("mutatingwebhookconfiguration", mutating), ("validatingwebhookconfiguration", validating)]
    {
        fixture.kubectl(&["patch", kind, OWN, "--type=json", "-p", &elsewhere.to_string()]).await.unwrap();
        let told = fixture.finds(&[&format!("webhooks {subject}")]).await;
        assert!(told.what().contains("namespaceSelector.matchExpressions[0].values"), "{}", told.pretty());
        told.mends("gitlab-runner-webhook manifests");
        fixture.kubectl(&["delete", kind, OWN]).await.unwrap();
        fixture.register().await;
        fixture.settled().await;
    }
    let none = json!([{"op": "remove", "path": "/webhooks/0"}]).to_string();
    fixture.kubectl(&["patch", "validatingwebhookconfiguration", OWN, "--type=json", "-p", &none]).await.unwrap();
    let told = fixture.finds(&[&format!("webhooks {validating}")]).await;
    assert!(told.what().contains("gate.pods.gitlab-runner-webhook is missing"));
    fixture.kubectl(&["delete", "validatingwebhookconfiguration", OWN]).await.unwrap();
    fixture.register().await;
    fixture.settled().await;

    // Guards.
    let objects = "guards ValidatingAdmissionPolicy gitlab-runner-webhook-objects";
    let registration = "guards ValidatingAdmissionPolicy gitlab-runner-webhook-registration";
    let audit = json!({"spec": {"validationActions": ["Audit"]}}).to_string();
    let binding = "validatingadmissionpolicybinding/gitlab-runner-webhook-objects";
    fixture.kubectl(&["patch", binding, "--type=merge", "-p", &audit]).await.unwrap();
    fixture.finds(&[objects]).await.mends("gitlab-runner-webhook manifests");
    fixture.kubectl(&["delete", "validatingadmissionpolicy/gitlab-runner-webhook-registration"]).await.unwrap();
    fixture.finds(&[objects, registration]).await;
    fixture.reinstall().await;
    fixture.settled().await;

    // Rights: one that is missing, a binding that is, and some that are one too many.
    let without = json!([{"op": "remove", "path": "/rules/1/verbs/3"}]).to_string();
    fixture.kubectl(&["patch", "clusterrole", OWN, "--type=json", "-p", &without]).await.unwrap();
    let told = fixture.finds(&[account]).await;
    assert_eq!(told.what(), "lacks delete secrets/gitlab-gitlab-runner-secret");
    told.mends("resourceNames: [\"gitlab-gitlab-runner-secret\"]\n    verbs: [\"delete\"]");
    fixture.kubectl(&["delete", "rolebinding", OWN, "-n", OWN]).await.unwrap();
    assert_eq!(fixture.finds(&[account]).await.of(&["fault"]).len(), 1);
    fixture.reinstall().await;
    fixture.settled().await;
    let bind = [
        "create",
        "clusterrolebinding",
        "too-much",
        "--clusterrole=view",
        "--serviceaccount=gitlab-runner-webhook:gitlab-runner-webhook",
    ];
    fixture.kubectl(&bind).await.unwrap();
    fixture.finds(&[account]).await.mends("kubectl delete clusterrolebinding/too-much");
    fixture.kubectl(&["delete", "clusterrolebinding", "too-much"]).await.unwrap();
    fixture.settled().await;

    // The configuration: of no use, another than what is installed, gone.
    let name = fixture.config_map().await;
    let configuration = format!("configuration ConfigMap {OWN}/{name}");
    fixture.configure(&name, "runnerNamespaces: {names: [Gitlab]}").await;
    let told = fixture.finds(&[&configuration]).await;
    assert!(told.what().contains("Gitlab"), "{}", told.pretty());
    fixture.configure(&name, "runnerNamespaces: {names: [gitlab-runner, second]}").await;
    let disagreements = [
        account,
        objects,
        &format!("webhooks {mutating}"),
        &format!("webhooks {validating}"),
        "runner-namespace second",
    ];
    fixture.finds(&disagreements).await;
    let file = fixture.cluster.plane.dir().join("empty.yaml");
    std::fs::write(&file, "").unwrap();
    let told = fixture.check(&["--config", file.to_str().unwrap()]).await;
    assert_eq!((told.code, told.bad().len()), (0, 0), "{}", told.pretty());
    fixture.kubectl(&["delete", "configmap", &name, "-n", OWN]).await.unwrap();
    fixture.finds(&[&configuration]).await;
    fixture.kubectl(&["delete", "deployment", OWN, "-n", OWN]).await.unwrap();
    fixture.finds(&[&format!("deployment {own}"), &format!("endpoints {own}")]).await.mends("kubectl apply -k");
    fixture.reinstall().await;
    fixture.settled().await;

    fixture.less_rights().await;
    fixture.program_down().await;
    fixture.tells_nothing_secret().await;
}

impl Fixture {
    /// What others than the administrator see.
    async fn less_rights(&mut self) {
        let role = repository().join("docs/check.md");
        let docs = std::fs::read_to_string(role).unwrap();
        let yaml = docs.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a ClusterRole");
        self.apply(&documents(yaml)).await;
        for (account, role) in [("reader", "view"), ("checker", "gitlab-runner-webhook-check")] {
            self.kubectl(&["create", "serviceaccount", account, "-n", "default"]).await.unwrap();
            let (role, subject) = (format!("--clusterrole={role}"), format!("--serviceaccount=default:{account}"));
            self.kubectl(&["create", "clusterrolebinding", account, &role, &subject]).await.unwrap();
        }
        let checker = self.cluster.plane.service_account_kubeconfig("default", "checker").await.unwrap();
        let told = self.check_as(&checker, &[]).await;
        assert_eq!((told.code, told.bad().len()), (0, 0), "{}", told.pretty());

        let reader = self.cluster.plane.service_account_kubeconfig("default", "reader").await.unwrap();
        let told = self.check_as(&reader, &[]).await;
        assert_eq!((told.code, told.of(&["fault"]).len()), (2, 0), "{}", told.pretty());
        let unseen = told.of(&["unseen"]);
        for check in ["source", "clone", "registration", "certs", "rights", "guards", "reach"] {
            assert!(unseen.iter().any(|told| told.starts_with(check)), "{check}: {}", told.pretty());
        }
        for check in ["runner-namespace", "deployment", "endpoints", "configuration"] {
            let is_ok = |finding: &Value| finding["check"] == check && finding["level"] == "ok";
            assert!(told.findings().any(is_ok), "{check}");
        }
        let (code, text) = self.run(&reader, &[]).await;
        assert!(
            code == 2
                && text
                    .contains("could not see: get secrets/gitlab-gitlab-runner-secret in namespace gitlab: forbidden")
        );
        assert!(!text.contains('\u{1b}'), "no colour, for this is no terminal");
    }

    /// What the program keeps right while it runs, and that it does not run.
    async fn program_down(&mut self) {
        let clone = format!("clone {RUNNER_NAMESPACE}/{SECRET}");
        let bundle = format!("trust-bundle {RUNNER_NAMESPACE}/gitlab-runner-webhook-trust");
        let ca = format!("serving-ca Secret {OWN}/gitlab-runner-webhook-ca");
        let ca_bundle = "ca-bundle MutatingWebhookConfiguration gitlab-runner-webhook";
        let other = "ca-bundle ValidatingWebhookConfiguration gitlab-runner-webhook";
        let down = "reach from the API server";
        let script = |kind: &str| format!("kubectl patch {kind} gitlab-runner-webhook --type=json -p");
        let set = |pem: &str| {
            let value = base64(pem);
            format!(
                "{} '[{{\"op\":\"replace\",\"path\":\"/webhooks/0/clientConfig/caBundle\",\"value\":\"{value}\"}}]'",
                script("mutatingwebhookconfiguration")
            )
        };
        let edit = "kubectl patch secret gitlab-gitlab-runner-secret -n gitlab-runner --type=merge -p '{\"stringData\":{\"runner-token\":\"edited\"}}'";
        let put_ca = |pem: &str| {
            format!(
                "kubectl patch secret gitlab-runner-webhook-ca -n gitlab-runner-webhook --type=merge -p '{{\"data\":{{\"ca.crt\":\"{}\"}}}}'",
                base64(pem)
            )
        };
        let faults: [(String, &[&str]); 7] = [
            ("true".to_owned(), &[]),
            ("kubectl delete secret gitlab-gitlab-runner-secret -n gitlab-runner".to_owned(), &[&clone]),
            (edit.to_owned(), &[&clone]),
            ("kubectl delete configmap gitlab-runner-webhook-trust -n gitlab-runner".to_owned(), &[&bundle]),
            (set("canary7f3a"), &[ca_bundle]),
            (set(&certificate(&[], -1)), &[ca_bundle]),
            (put_ca(&certificate(&[], -1)), &[&ca, ca_bundle, other]),
        ];
        for (plant, expected) in faults {
            self.stop().await;
            self.shell(&plant).await;
            let told = self.finds(&[expected, &[down]].concat()).await;
            let finding = told.findings().find(|finding| finding["check"] == "reach").unwrap();
            assert!(text(finding, "what").starts_with("the program does not serve"), "{finding}");
            self.start().await;
            self.settled().await;
        }
        // Whoever drops what the API server sends keeps it waiting: that is no time-out of the check.
        self.stop().await;
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let told = self.finds(&[down]).await;
        assert!(told.what().contains("context deadline exceeded") || told.what().contains("imeout"), "{}", told.what());
        told.mends("NetworkPolicy");
        drop(silent);
        self.start().await;
        self.settled().await;

        let nowhere = self.cluster.plane.dir().join("nowhere");
        let admin = std::fs::read_to_string(self.cluster.plane.admin_kubeconfig()).unwrap();
        std::fs::write(&nowhere, admin.replace(self.cluster.plane.url(), "https://127.0.0.1:1")).unwrap();
        let told = self.check_as(&nowhere, &["--timeout", "2"]).await;
        assert_eq!((told.code, told.findings().count()), (2, 1), "{}", told.pretty());
        assert_eq!(told.bad(), BTreeSet::from(["cluster https://127.0.0.1:1/".to_owned()]));
    }

    /// Puts a token, and lets everything follow: the clone, and a new manager pod.
    async fn new_token(&mut self, data: &[(&str, &str)]) {
        self.put_token(data).await;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, data).await;
        self.restart_runner().await;
    }

    async fn healthy_token(&mut self) {
        self.new_token(&TOKEN).await;
        self.settled().await;
    }

    async fn restart_runner(&self) {
        let delete = ["delete", "pods", "-n", RUNNER_NAMESPACE, "-l", "app=gitlab-runner", "--grace-period=0"];
        self.kubectl(&delete).await.unwrap();
        let started = ["wait", "--for=condition=Ready", "pods", "-n", RUNNER_NAMESPACE, "-l", "app=gitlab-runner"];
        wait::until("a new manager pod runs", || async { self.kubectl(&started).await.ok() }).await;
    }

    /// The API server counts in seconds: what is written now is later than the start of the manager pod.
    async fn second_after_the_runner_started(&self) {
        let path = "jsonpath={.items[0].status.containerStatuses[0].state.running.startedAt}";
        let get = ["get", "pods", "-n", RUNNER_NAMESPACE, "-l", "app=gitlab-runner", "-o", path];
        let started: k8s_openapi::jiff::Timestamp = self.kubectl(&get).await.unwrap().trim().parse().unwrap();
        wait::until("the next second", || async {
            (k8s_openapi::jiff::Timestamp::now().as_second() > started.as_second()).then_some(())
        })
        .await;
    }

    async fn config_map(&self) -> String {
        let name = "jsonpath={.spec.template.spec.volumes[0].projected.sources[0].configMap.name}";
        self.kubectl(&["get", "deployment", OWN, "-n", OWN, "-o", name]).await.unwrap()
    }

    async fn configure(&self, name: &str, yaml: &str) {
        let patch = json!({"data": {"config.yaml": yaml}}).to_string();
        self.kubectl(&["patch", "configmap", name, "-n", OWN, "--type=merge", "-p", &patch]).await.unwrap();
    }

    /// Applies everything that is shipped, but the webhooks, anew.
    async fn reinstall(&self) {
        let mut shipped = Manifests::render("overlays/default");
        shipped.objects.retain(|object| !object["webhooks"].is_array());
        let list = json!({"apiVersion": "v1", "kind": "List", "items": shipped.objects}).to_string();
        let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=installer", "-f", "-"];
        self.cluster.plane.kubectl_with_stdin(&apply, &list).await.unwrap();
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
        let lines = key.lines().filter(|line| !line.starts_with("-----"));
        for secret in
            lines.map(str::to_owned).chain([CANARY.to_owned(), base64(&format!("glrt-{CANARY}")), base64(CANARY)])
        {
            assert!(!self.told.contains(secret.trim_end_matches('=')), "{secret} was told");
        }
        assert!(self.told.len() > 10_000);
    }
}

/// The definition of Kyverno's policies, as far as this test needs it.
const KYVERNO: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: clusterpolicies.kyverno.io}
spec:
  group: kyverno.io
  scope: Cluster
  names: {kind: ClusterPolicy, plural: clusterpolicies, singular: clusterpolicy}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

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

//! The story, step by step.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gitlab_runner_webhook::{
    config::Config,
    names::{
        APP, CONFIGMAP_TRUST, KEY_BUNDLE, KEY_CA, KEY_TLS_CERT, KEY_TLS_KEY, MOUNT_CLIENT, MOUNT_JOB_CERTS,
        MOUNT_TRUST, PATH_METRICS, PATH_READYZ, SECRET_CA, VOLUME_CERTS, VOLUME_TRUST,
    },
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Container, Namespace, Pod, Secret, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use test_support::{
    Cluster, ServingCertificate, Tool, client_pair,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data},
    fixture, wait,
};

use crate::{
    console::Console,
    watcher::{Watcher, version},
};

/// The shipped default of `certsSecretName`.
const CERTS: &str = "gitlab-runner-certs";
const FIRST: [(&str, &str); 2] = [("runner-registration-token", ""), ("runner-token", "glrt-first")];
const ROTATED: [(&str, &str); 2] = [("runner-registration-token", ""), ("runner-token", "glrt-rotated")];
/// How often the token is rotated while pods that use it are created.
const ROTATIONS: usize = 10;
/// On pods that use the clone in this story.
const READER: &str = "demo=reader";
/// Answers of the gate to pods whose clone was current.
const LET_IN: &str =
    r#"gitlab_runner_webhook_admissions_total{webhook="validate-pods",decision="allowed",reason="current"}"#;
/// Answers of the gate to pods whose source is gone.
const TURNED_AWAY: &str =
    r#"gitlab_runner_webhook_admissions_total{webhook="validate-pods",decision="denied",reason="source-missing"}"#;
/// How long the rest at the end is looked at.
const REST: Duration = Duration::from_secs(5);

/// The story and those who are in it.
pub struct Scenario<'a> {
    cluster: &'a Cluster,
    tool: &'a Tool,
    kubectl: &'a Path,
    console: Console,
    clones: Watcher<Secret>,
    bundles: Watcher<ConfigMap>,
    pods: Watcher<Pod>,
}

impl<'a> Scenario<'a> {
    /// Opens the eyes.
    pub async fn new(cluster: &'a Cluster, tool: &'a Tool, kubectl: &'a Path, console: Console) -> Result<Self> {
        let clones = Watcher::open(cluster.secrets(RUNNER_NAMESPACE), Some(SECRET)).await?;
        let bundles = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
        let bundles = Watcher::open(bundles, Some(CONFIGMAP_TRUST)).await?;
        let pods = Watcher::open(Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE), None).await?;
        Ok(Self { cluster, tool, kubectl, console, clones, bundles, pods })
    }

    /// Tells it. An error is a step that was not seen.
    pub async fn tell(&mut self) -> Result<()> {
        self.webhooks_are_registered().await?;

        self.console.chapter(
            "The token",
            &[
                "GitLab keeps the runner's token in Secret gitlab/gitlab-gitlab-runner-secret: the source.",
                "The runner can only read it in its own namespace, gitlab-runner: the clone.",
            ],
        );
        self.namespace_comes_before_the_source().await?;
        self.source_is_created().await?;
        self.namespace_is_created_again().await?;
        self.token_is_rotated().await?;
        self.clone_is_edited().await?;
        self.clone_is_deleted().await?;

        self.console.chapter(
            "The gate",
            &[
                "A pod that uses the clone is let in when the clone is there and equals its source: read from the",
                "API server for that very pod. Revisions of the store show what came first.",
            ],
        );
        let manager = self.runner_comes_with_its_namespace().await?;
        self.pods_come_with_rotations().await?;
        self.pod_comes_while_the_source_is_gone().await?;

        self.console.chapter(
            "The CA",
            &[
                "GitLab has a certificate of the company's own CA. The runner and its jobs are to trust it,",
                "without a change to images, chart values or CI files.",
            ],
        );
        self.ca_is_created().await?;
        self.manager_restarts(&manager).await?;
        self.job_starts().await?;

        self.console.chapter("The rest", &[]);
        self.nothing_is_written_at_rest().await
    }

    /// The table and, with `keep`, what to try.
    pub async fn end(self, keep: bool) -> Result<()> {
        self.console.chapter("Every step was seen", &[]);
        self.console.print_table();
        let (status, _) = self.tool.get(PATH_READYZ).await;
        ensure!(status == 200, "{PATH_READYZ} answers {status} at the end");
        println!();
        if keep {
            let (webhook, probes) = (self.tool.webhook_address().await, self.tool.probe_address().await);
            let kubeconfig = self.cluster.plane.admin_kubeconfig().display();
            let kubectl = self.kubectl.display();
            println!(
                "Everything stays up until Ctrl-C. In another terminal:

  export KUBECONFIG={kubeconfig}
  alias kubectl={kubectl}

  kubectl get secrets,pods --namespace {RUNNER_NAMESPACE}
  kubectl delete secret {SECRET} --namespace {RUNNER_NAMESPACE}     # it comes back
  kubectl get pods --namespace {RUNNER_NAMESPACE} --output yaml     # the CA in the manager pod and the job pod
  kubectl get configmap {CONFIGMAP_TRUST} --namespace {RUNNER_NAMESPACE} --output yaml
  kubectl delete namespace {RUNNER_NAMESPACE}
  kubectl create namespace {RUNNER_NAMESPACE}                       # with a clone from the start
  curl http://{probes}{PATH_READYZ}?verbose
  curl http://{probes}{PATH_METRICS}

The webhook listens on https://{webhook}."
            );
        }
        Ok(())
    }

    async fn webhooks_are_registered(&mut self) -> Result<()> {
        self.console.step("The webhooks are registered with the API server, without a caBundle");
        let started = Instant::now();
        self.cluster.register_webhooks_without_ca(self.tool.webhook_port().await, "Ignore").await;
        self.cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
        let namespaces = self.cluster.namespaces();
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        wait::until("the API server calls the webhook", || async {
            let asked = namespaces.create(&dry_run, &namespace()).await;
            let (_, metrics) = self.tool.get(PATH_METRICS).await;
            (asked.is_ok() && metrics.contains("webhook=\"mutate-namespaces\"")).then_some(())
        })
        .await;
        self.console.seen("the program has put its CA in, and the API server calls it over HTTPS", started.elapsed());
        Ok(())
    }

    async fn namespace_comes_before_the_source(&mut self) -> Result<()> {
        self.console.step("Namespace gitlab-runner is created while the source is still missing");
        let started = Instant::now();
        let mut kubectl = Command::new(self.kubectl);
        kubectl.arg("--kubeconfig").arg(self.cluster.plane.admin_kubeconfig());
        kubectl.args(["create", "namespace", RUNNER_NAMESPACE]).env("HOME", self.cluster.plane.dir());
        let output = tokio::task::spawn_blocking(move || kubectl.output()).await?.context("kubectl")?;
        let took = started.elapsed();
        let (printed, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.console.note(&format!("$ kubectl create namespace {RUNNER_NAMESPACE}"));
        warned.lines().chain(printed.lines()).for_each(|line| self.console.note(line));
        ensure!(output.status.success(), "kubectl create namespace failed ({})", output.status);
        let source = format!("{SOURCE_NAMESPACE}/{SECRET} is missing");
        ensure!(
            warned.lines().any(|line| line.starts_with("Warning:") && line.contains(&source)),
            "kubectl showed no warning that {source}"
        );
        self.cluster.namespaces().get(RUNNER_NAMESPACE).await.context("the namespace")?;
        ensure!(self.cluster.secret(RUNNER_NAMESPACE, SECRET).await.is_none(), "there is a clone of a missing source");
        self.console.measured(
            "admitted, and told at once what is missing (the time is kubectl's)",
            "namespace created without a source -> admitted with a warning (kubectl)",
            took,
        );
        Ok(())
    }

    async fn source_is_created(&mut self) -> Result<()> {
        self.console.step("The source is created: Secret gitlab/gitlab-gitlab-runner-secret");
        let started = Instant::now();
        self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &FIRST).await;
        let (seen, _) = self.clones.sees("the clone", |clone| has_data(clone, &FIRST)).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &FIRST).await;
        self.console.measured("the clone is in gitlab-runner", "source created -> clone there", seen - started);
        Ok(())
    }

    async fn namespace_is_created_again(&mut self) -> Result<()> {
        self.console.step("Namespace gitlab-runner is deleted and created again");
        let former = self.clone().await?.uid();
        self.cluster.delete_namespace(RUNNER_NAMESPACE).await;
        ensure!(self.cluster.secret(RUNNER_NAMESPACE, SECRET).await.is_none(), "the clone outlived its namespace");
        let started = Instant::now();
        self.cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        let anew = |clone: &Secret| clone.uid() != former && has_data(clone, &FIRST);
        let (seen, _) = self.clones.sees("a clone in the new namespace", anew).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &FIRST).await;
        self.console.measured("the new namespace has its clone", "namespace created -> clone there", seen - started);
        Ok(())
    }

    async fn token_is_rotated(&mut self) -> Result<()> {
        self.console.step("The token in the source is rotated");
        let started = Instant::now();
        self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &ROTATED).await;
        let (seen, _) = self.clones.sees("the rotated token", |clone| has_data(clone, &ROTATED)).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &ROTATED).await;
        self.console.measured("the clone has the new token", "token rotated -> clone follows", seen - started);
        Ok(())
    }

    async fn clone_is_edited(&mut self) -> Result<()> {
        self.console.step("Somebody edits the clone");
        let edit = json!({"stringData": {"runner-token": "edited by hand"}, "metadata": {"labels": null}});
        let started = Instant::now();
        let edited = self.cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &edit).await;
        let edited = version(&edited)?;
        let restored = |clone: &Secret| has_data(clone, &ROTATED) && version(clone).is_ok_and(|now| now > edited);
        let (seen, _) = self.clones.sees("the clone as it was before", restored).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &ROTATED).await;
        self.console.measured("restored, its labels too", "clone edited -> restored", seen - started);
        Ok(())
    }

    async fn clone_is_deleted(&mut self) -> Result<()> {
        self.console.step("Somebody deletes the clone");
        let former = self.clone().await?.uid();
        let started = Instant::now();
        self.cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
        let anew = |clone: &Secret| clone.uid() != former && has_data(clone, &ROTATED);
        let (seen, _) = self.clones.sees("a new clone", anew).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &ROTATED).await;
        self.console.measured("restored", "clone deleted -> restored", seen - started);
        Ok(())
    }

    async fn runner_comes_with_its_namespace(&mut self) -> Result<Pod> {
        self.console.step("Namespace gitlab-runner is deleted; then it comes with GitLab Runner in the same moment");
        self.console.note("The Deployment is what the runner's Helm chart renders; its pod mounts the clone.");
        self.cluster.delete_namespace(RUNNER_NAMESPACE).await;
        let objects = fixture("deployments/gitlab-runner.yaml");
        let started = Instant::now();
        let namespace = self.cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        self.create::<ServiceAccount>(&objects).await?;
        self.create::<ConfigMap>(&objects).await?;
        self.create::<Deployment>(&objects).await?;
        let fresh = version(&namespace)?;
        let is_fresh = |pod: &Pod| is_manager(pod) && version(pod).is_ok_and(|now| now > fresh);
        let (created, pod) = self.pods.sees("the manager pod", is_fresh).await?;
        let clone = self.clone().await?;
        ensure!(has_data(&clone, &ROTATED), "the clone is not what its source is");
        let [clone, admitted] = in_order([version(&clone)?, version(&pod)?], "clone, pod")?;
        self.asked(1.0).await?;
        self.console.note(&format!("revisions: namespace {fresh} < clone {clone} < pod {admitted}"));
        self.console.measured(
            "its pod is let in after the clone is there, never before",
            "namespace and Deployment created -> manager pod let in",
            created - started,
        );
        let name = pod.name_any();
        let runs = |pod: &Pod| pod.name_any() == name && is_running(pod);
        let (running, _) = self.pods.sees("the manager pod Running", runs).await?;
        self.console.measured(
            "the pod is Running",
            "namespace and Deployment created -> manager pod Running",
            running - started,
        );
        Ok(pod)
    }

    async fn pods_come_with_rotations(&mut self) -> Result<()> {
        self.console
            .step(&format!("The token is rotated and a pod that uses it is created at once, {ROTATIONS} times"));
        self.cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await?;
        let before = self.tool.metric(LET_IN).await.unwrap_or_default();
        let (mut slowest, mut sum) = (Duration::ZERO, Duration::ZERO);
        for number in 0..ROTATIONS {
            let token = format!("glrt-{number}");
            let data = [("runner-registration-token", ""), ("runner-token", token.as_str())];
            let pod = reader(&format!("reader-{number}"))?;
            let source = self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &data).await;
            let started = Instant::now();
            let pod = self.pods().create(&PostParams::default(), &pod).await.context("a pod that uses the clone")?;
            let took = started.elapsed();
            let clone = self.clone().await?;
            ensure!(has_data(&clone, &data), "a pod was let in before the clone had the rotated token");
            let order = in_order([version(&source)?, version(&clone)?, version(&pod)?], "source, clone, pod")?;
            if number == 0 {
                let [source, clone, pod] = order;
                self.console.note(&format!("revisions of the first: source {source} < clone {clone} < pod {pod}"));
            }
            slowest = slowest.max(took);
            sum += took;
        }
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        self.asked(before + ROTATIONS as f64).await?;
        let mean = sum / u32::try_from(ROTATIONS)?;
        self.console.seen("each pod was let in after its clone had the new token; the mean", mean);
        self.console.measured("the slowest", "token rotated, pod created at once -> let in (slowest)", slowest);
        Ok(())
    }

    async fn pod_comes_while_the_source_is_gone(&mut self) -> Result<()> {
        self.console.step("A pod that uses the clone is created while the source is gone");
        let before = self.tool.metric(TURNED_AWAY).await.unwrap_or_default();
        let clone = self.clone().await?;
        self.cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
        self.console.note(&format!("$ kubectl create --namespace {RUNNER_NAMESPACE} --filename reader.yaml"));
        let pod = serde_json::to_string(&reader("reader-that-waits")?)?;
        let arguments = ["create", "--namespace", RUNNER_NAMESPACE, "--filename=-"];
        let kubectl = self.cluster.plane.kubectl_with_stdin(&arguments, &pod);
        let back = async {
            wait::until("the gate turns the pod away", || async {
                (self.tool.metric(TURNED_AWAY).await? > before).then_some(())
            })
            .await;
            ensure!(self.pods().get_opt("reader-that-waits").await?.is_none(), "the pod was let in without a source");
            let data = clone.data.iter().flatten();
            let data = data.map(|(key, value)| Ok((key.as_str(), str::from_utf8(&value.0)?)));
            let data = data.collect::<Result<Vec<_>>>()?;
            self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &data).await;
            anyhow::Ok(Instant::now())
        };
        let (printed, back) = tokio::join!(kubectl, back);
        let (printed, took) = (printed.context("kubectl")?, back?.elapsed());
        printed.lines().for_each(|line| self.console.note(line));
        self.console.measured(
            "turned away with 429 until the source was back; kubectl tried again",
            "source back -> waiting pod let in (kubectl tries once a second)",
            took,
        );
        let readers = ListParams::default().labels(READER);
        self.pods().delete_collection(&DeleteParams::default().grace_period(0), &readers).await?;
        Ok(())
    }

    async fn ca_is_created(&mut self) -> Result<()> {
        self.console
            .step("The company's CA comes, with a client certificate: Secret gitlab-runner/gitlab-runner-certs");
        let company = ServingCertificate::issue(&self.cluster.plane.dir().join("company"));
        let (certificate, key) = client_pair();
        let (pods, pod) = (self.pods(), job_pod()?);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let before = pods.create(&dry_run, &pod).await.context("dry run of a job pod")?;
        ensure!(shows_trust(&before).is_err(), "a job pod gets a trust bundle that does not exist");
        let started = Instant::now();
        let data = [(KEY_CA, company.ca_pem.as_str()), (KEY_TLS_CERT, &certificate), (KEY_TLS_KEY, &key)];
        self.cluster.put_secret(RUNNER_NAMESPACE, CERTS, &data).await;
        let (published, bundle) = self.bundles.sees("the trust bundle", |_| true).await?;
        wait::until("a job pod would get the CA", || async {
            let answer = pods.create(&dry_run, &pod).await.ok()?;
            shows_trust(&answer).is_ok().then_some(())
        })
        .await;
        let injected = started.elapsed();

        let data = bundle.data.unwrap_or_default();
        let (ca, all) = (data.get(KEY_CA).context(KEY_CA)?, data.get(KEY_BUNDLE).context(KEY_BUNDLE)?);
        let (ca, all) = (certificates(ca), certificates(all));
        ensure!(ca == certificates(&company.ca_pem), "{KEY_CA} is not the company's CA alone");
        ensure!(
            all.len() > 100 && ca.iter().all(|ca| all.contains(ca)),
            "{KEY_BUNDLE} is not public roots and the company's CA"
        );
        for text in data.values() {
            ensure!(!text.contains("PRIVATE KEY"), "a private key in a ConfigMap");
            ensure!(
                certificates(&certificate).iter().all(|leaf| !certificates(text).contains(leaf)),
                "the client certificate, too"
            );
        }
        self.console.note(&format!("ConfigMap {RUNNER_NAMESPACE}/{CONFIGMAP_TRUST}: {KEY_CA} (the company's CA) and"));
        self.console.note(&format!("{KEY_BUNDLE} ({} certificates: public roots, too); no key", all.len()));
        self.console.measured(
            "the trust bundle is published",
            "CA created -> trust bundle published",
            published - started,
        );
        self.console.measured(
            "a job pod created now would get it (seen in a dry run)",
            "CA created -> injected from now on",
            injected,
        );
        Ok(())
    }

    async fn manager_restarts(&mut self, former: &Pod) -> Result<()> {
        self.console.step("The manager pod, which came before the CA, is deleted: its Deployment makes another");
        ensure!(!shows_certs(former), "the manager pod was created with a CA that did not exist");
        let started = Instant::now();
        self.pods().delete(&former.name_any(), &DeleteParams::default().grace_period(0)).await?;
        let anew = |pod: &Pod| is_manager(pod) && pod.uid() != former.uid();
        let (created, pod) = self.pods.sees("the next manager pod", anew).await?;
        ensure!(shows_certs(&pod), "the manager pod was created without the CA mounted");
        let file = format!("{MOUNT_TRUST}/{KEY_CA}");
        let all = |_: &Container| true;
        ensure!(
            has_variable(&pod, all, "CI_SERVER_TLS_CA_FILE", &file),
            "the manager pod was created without CI_SERVER_TLS_CA_FILE"
        );
        self.console.note(&format!("CI_SERVER_TLS_CA_FILE={file}"));
        self.console.measured(
            "it is created with the CA mounted and the variable set",
            "manager pod deleted -> next one created with the CA",
            created - started,
        );
        Ok(())
    }

    async fn job_starts(&mut self) -> Result<()> {
        self.console.step("The runner starts a CI job: a job pod");
        let pods = self.pods();
        let started = Instant::now();
        let pod = pods.create(&PostParams::default(), &job_pod()?).await.context("the job pod")?;
        let created = started.elapsed();
        shows_trust(&pod)?;
        ensure!(!refers_to_certs(&pod), "the job pod refers to Secret {CERTS}");
        self.console.note(&format!("{MOUNT_TRUST} and {MOUNT_JOB_CERTS}: the trust bundle"));
        for name in ["NODE_EXTRA_CA_CERTS", "SSL_CERT_DIR", "GIT_SSL_CAPATH", "REQUESTS_CA_BUNDLE"] {
            let mut variables = containers(&pod, |_| true).flat_map(|container| container.env.iter().flatten());
            let variable = variables.find(|variable| variable.name == name).with_context(|| name.to_owned())?;
            self.console.note(&format!("{name}={}", variable.value.as_deref().unwrap_or_default()));
        }
        self.console.measured(
            "it is created with the trust bundle and no reference to that Secret",
            "job started -> job pod created with the trust bundle",
            created,
        );
        let name = pod.name_any();
        let runs = |pod: &Pod| pod.name_any() == name && is_running(pod);
        let (running, _) = self.pods.sees("the job pod Running", runs).await?;
        self.console.measured("the pod is Running", "job started -> job pod Running", running - started);
        pods.get(&name).await.context("the job pod")?;
        Ok(())
    }

    async fn nothing_is_written_at_rest(&mut self) -> Result<()> {
        self.console.step("Nothing happens for five seconds; the API server's audit log is counted");
        let before = self.cluster.requests().await.len();
        let started = Instant::now();
        tokio::time::sleep(REST).await;
        let took = started.elapsed();
        let requests = self.cluster.requests().await;
        let since: Vec<_> = requests.iter().skip(before).filter(|request| request.verb != "watch").collect();
        ensure!(since.is_empty(), "requests at rest: {since:?}");
        let writes = self.cluster.writes().await;
        let (mut clones, mut bundles, mut certificates) = (0, 0, 0);
        for write in &writes {
            match (write.resource.as_str(), write.namespace.as_str(), write.name.as_str()) {
                ("secrets", RUNNER_NAMESPACE, SECRET) => clones += 1,
                ("configmaps", RUNNER_NAMESPACE, CONFIGMAP_TRUST) => bundles += 1,
                // The serving CA, and caBundle of both webhook configurations.
                ("secrets", APP, SECRET_CA)
                | ("mutatingwebhookconfigurations" | "validatingwebhookconfigurations", "", APP) => certificates += 1,
                _ => bail!("something else was written: {} {}", write.verb, write.uri),
            }
        }
        self.console.note(&format!("Writes in the whole story: {clones} to the clone, {bundles} to the trust bundle,"));
        self.console.note(&format!("{certificates} to the serving CA and to caBundle."));
        self.console.measured(
            "no write, and no request beyond its watches",
            "at rest -> no write, no request beyond watches",
            took,
        );
        Ok(())
    }

    /// Checks that the gate has let in this many pods because their clone was current.
    async fn asked(&self, times: f64) -> Result<()> {
        let let_in = self.tool.metric(LET_IN).await.unwrap_or_default();
        ensure!(let_in >= times, "the gate let in {let_in} pods, not {times}: it was not asked");
        Ok(())
    }

    /// Creates the one object of this kind.
    async fn create<K>(&self, objects: &[Value]) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let kind = K::kind(&());
        let object = objects.iter().find(|object| object["kind"] == *kind).with_context(|| kind.to_string())?;
        let api: Api<K> = Api::namespaced(self.cluster.admin.clone(), RUNNER_NAMESPACE);
        api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await.with_context(|| kind)?;
        Ok(())
    }

    async fn clone(&self) -> Result<Secret> {
        self.cluster.secret(RUNNER_NAMESPACE, SECRET).await.context("the clone is there")
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.admin.clone(), RUNNER_NAMESPACE)
    }
}

fn namespace() -> Namespace {
    let metadata = ObjectMeta { name: Some(RUNNER_NAMESPACE.to_owned()), ..ObjectMeta::default() };
    Namespace { metadata, ..Namespace::default() }
}

/// A job pod as GitLab Runner 19.4 creates it.
fn job_pod() -> Result<Pod> {
    let pod = fixture("pods/job-runner-19.4-concrete.json").into_iter().next().context("a job pod")?;
    Ok(serde_json::from_value(pod)?)
}

/// A pod that gets the token from the clone.
fn reader(name: &str) -> Result<Pod> {
    let key = json!({"name": SECRET, "key": "runner-token"});
    let (label, value) = READER.split_once('=').context("a label")?;
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {label: value}},
        "spec": {"containers": [{
            "name": "reader", "image": "reader", "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": key}}],
        }]},
    }))?)
}

/// Revisions, if each is greater than the one before.
fn in_order<const N: usize>(revisions: [u64; N], names: &str) -> Result<[u64; N]> {
    ensure!(revisions.is_sorted_by(|a, b| a < b), "not in this order: {names}: {revisions:?}");
    Ok(revisions)
}

fn is_manager(pod: &Pod) -> bool {
    pod.labels().get("release").is_some_and(|release| release == "gitlab-runner")
}

/// The variables of job pods and what they are set to.
fn variables() -> Vec<(String, String)> {
    let variables = Config::default().variables;
    let set = |names: Vec<String>, key: &'static str| {
        names.into_iter().map(move |name| (name, format!("{MOUNT_TRUST}/{key}")))
    };
    // SSL_CERT_DIR is a list that begins with it.
    let directories = variables.directory.into_iter().filter(|name| name != "SSL_CERT_DIR");
    let directories = directories.map(|name| (name, MOUNT_TRUST.to_owned()));
    set(variables.additive, KEY_CA).chain(directories).chain(set(variables.replacing, KEY_BUNDLE)).collect()
}

/// That the container of the job's script sees the trust bundle and has every variable.
fn shows_trust(pod: &Pod) -> Result<()> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let ours = volumes.filter(|volume| volume.name == VOLUME_TRUST).filter_map(|volume| volume.projected.as_ref());
    let mut maps = ours.flat_map(|ours| ours.sources.iter().flatten()).filter_map(|source| source.config_map.as_ref());
    ensure!(maps.any(|map| map.name == CONFIGMAP_TRUST), "there is no volume with the trust bundle");
    let build = |container: &Container| container.name == "build";
    for path in [MOUNT_TRUST, MOUNT_JOB_CERTS] {
        ensure!(mounts(pod, build, VOLUME_TRUST, path), "the trust bundle is not mounted at {path}");
    }
    for (variable, value) in variables() {
        ensure!(has_variable(pod, build, &variable, &value), "{variable}={value} is not set");
    }
    Ok(())
}

/// Whether a container sees the trust bundle, and of the certificate Secret the client's pair alone.
fn shows_certs(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut sources = volumes.filter(|volume| volume.name == VOLUME_CERTS).filter_map(|volume| volume.secret.as_ref());
    mounts(pod, |_| true, VOLUME_TRUST, MOUNT_TRUST)
        && mounts(pod, |_| true, VOLUME_CERTS, MOUNT_CLIENT)
        && sources.any(|secret| {
            let keys = secret.items.iter().flatten().map(|item| item.key.as_str());
            secret.secret_name.as_deref() == Some(CERTS) && keys.eq([KEY_TLS_CERT, KEY_TLS_KEY])
        })
}

fn refers_to_certs(pod: &Pod) -> bool {
    serde_json::to_string(&pod.spec).is_ok_and(|spec| spec.contains(CERTS))
}

fn containers(pod: &Pod, which: impl Fn(&Container) -> bool) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| &spec.containers).filter(move |container| which(container))
}

fn mounts(pod: &Pod, which: impl Fn(&Container) -> bool, volume: &str, path: &str) -> bool {
    let mut mounts = containers(pod, which).flat_map(|container| container.volume_mounts.iter().flatten());
    mounts.any(|mount| mount.name == volume && mount.mount_path == path)
}

fn has_variable(pod: &Pod, which: impl Fn(&Container) -> bool, name: &str, value: &str) -> bool {
    let mut variables = containers(pod, which).flat_map(|container| container.env.iter().flatten());
    variables.any(|variable| variable.name == name && variable.value.as_deref() == Some(value))
}

/// The certificates of a PEM file, without line breaks.
fn certificates(pem: &str) -> Vec<String> {
    let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks.map(|block| block.split("-----END").next().unwrap_or_default().split_whitespace().collect()).collect()
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

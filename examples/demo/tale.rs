//! The story, step by step.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gitlab_runner_webhook::names::{
    KEY_CA, MOUNT_JOB_CERTS, MOUNT_MANAGER_CERTS, PATH_METRICS, PATH_READYZ, VOLUME_CERTS,
};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::json;
use test_support::{
    Cluster, ServingCertificate, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data},
    fixture, wait,
};

use crate::{
    eye::{Eye, version},
    page::Page,
};

/// The shipped default of `certsSecretName`.
const CERTS: &str = "gitlab-runner-certs";
const FIRST: [(&str, &str); 2] = [("runner-registration-token", ""), ("runner-token", "glrt-first")];
const ROTATED: [(&str, &str); 2] = [("runner-registration-token", ""), ("runner-token", "glrt-rotated")];
/// How long the rest at the end is looked at.
const REST: Duration = Duration::from_secs(5);

/// The story and those who are in it.
pub struct Tale<'a> {
    cluster: &'a Cluster,
    tool: &'a Tool,
    kubectl: &'a Path,
    page: Page,
    clones: Eye<Secret>,
    pods: Eye<Pod>,
}

impl<'a> Tale<'a> {
    /// Opens the eyes.
    pub async fn new(cluster: &'a Cluster, tool: &'a Tool, kubectl: &'a Path, page: Page) -> Result<Self> {
        let clones = Eye::open(cluster.secrets(RUNNER_NAMESPACE), Some(SECRET)).await?;
        let pods = Eye::open(Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE), None).await?;
        Ok(Self { cluster, tool, kubectl, page, clones, pods })
    }

    /// Tells it. An error is a step that was not seen.
    pub async fn tell(&mut self) -> Result<()> {
        self.webhooks_are_registered().await?;

        self.page.chapter(
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

        self.page.chapter(
            "The CA",
            &[
                "GitLab has a certificate of the company's own CA. The runner and its jobs are to trust it,",
                "without a change to images, chart values or CI files.",
            ],
        );
        self.ca_is_created().await?;
        self.manager_starts().await?;
        self.job_starts().await?;

        self.page.chapter("The rest", &[]);
        self.nothing_is_written_at_rest().await
    }

    /// The table and, with `keep`, what to try.
    pub async fn end(self, keep: bool) -> Result<()> {
        self.page.chapter("Every step was seen", &[]);
        self.page.print_table();
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
        self.page.step("The webhooks are registered with the API server");
        let started = Instant::now();
        self.cluster.register_webhooks(self.tool.webhook_port().await, "Ignore").await;
        self.cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
        let namespaces = self.cluster.namespaces();
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        wait::until("the API server calls the webhook", || async {
            let asked = namespaces.create(&dry_run, &namespace()).await;
            let (_, metrics) = self.tool.get(PATH_METRICS).await;
            (asked.is_ok() && metrics.contains("webhook=\"mutate-namespaces\"")).then_some(())
        })
        .await;
        self.page.seen("the API server calls them over HTTPS", started.elapsed());
        Ok(())
    }

    async fn namespace_comes_before_the_source(&mut self) -> Result<()> {
        self.page.step("Namespace gitlab-runner is created while the source is still missing");
        let started = Instant::now();
        let mut kubectl = Command::new(self.kubectl);
        kubectl.arg("--kubeconfig").arg(self.cluster.plane.admin_kubeconfig());
        kubectl.args(["create", "namespace", RUNNER_NAMESPACE]).env("HOME", self.cluster.plane.dir());
        let output = tokio::task::spawn_blocking(move || kubectl.output()).await?.context("kubectl")?;
        let took = started.elapsed();
        let (printed, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.page.note(&format!("$ kubectl create namespace {RUNNER_NAMESPACE}"));
        warned.lines().chain(printed.lines()).for_each(|line| self.page.note(line));
        ensure!(output.status.success(), "kubectl create namespace failed ({})", output.status);
        let source = format!("{SOURCE_NAMESPACE}/{SECRET} is missing");
        ensure!(
            warned.lines().any(|line| line.starts_with("Warning:") && line.contains(&source)),
            "kubectl showed no warning that {source}"
        );
        self.cluster.namespaces().get(RUNNER_NAMESPACE).await.context("the namespace")?;
        ensure!(self.cluster.secret(RUNNER_NAMESPACE, SECRET).await.is_none(), "there is a clone of a missing source");
        self.page.measured(
            "admitted, and told at once what is missing (the time is kubectl's)",
            "namespace created without a source -> admitted with a warning (kubectl)",
            took,
        );
        Ok(())
    }

    async fn source_is_created(&mut self) -> Result<()> {
        self.page.step("The source is created: Secret gitlab/gitlab-gitlab-runner-secret");
        let started = Instant::now();
        self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &FIRST).await;
        let (seen, _) = self.clones.sees("the clone", |clone| has_data(clone, &FIRST)).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &FIRST).await;
        self.page.measured("the clone is in gitlab-runner", "source created -> clone there", seen - started);
        Ok(())
    }

    async fn namespace_is_created_again(&mut self) -> Result<()> {
        self.page.step("Namespace gitlab-runner is deleted and created again");
        let former = self.clone().await?.uid();
        self.cluster.delete_namespace(RUNNER_NAMESPACE).await;
        ensure!(self.cluster.secret(RUNNER_NAMESPACE, SECRET).await.is_none(), "the clone outlived its namespace");
        let started = Instant::now();
        self.cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        let anew = |clone: &Secret| clone.uid() != former && has_data(clone, &FIRST);
        let (seen, _) = self.clones.sees("a clone in the new namespace", anew).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &FIRST).await;
        self.page.measured("the new namespace has its clone", "namespace created -> clone there", seen - started);
        Ok(())
    }

    async fn token_is_rotated(&mut self) -> Result<()> {
        self.page.step("The token in the source is rotated");
        let started = Instant::now();
        self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &ROTATED).await;
        let (seen, _) = self.clones.sees("the rotated token", |clone| has_data(clone, &ROTATED)).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &ROTATED).await;
        self.page.measured("the clone has the new token", "token rotated -> clone follows", seen - started);
        Ok(())
    }

    async fn clone_is_edited(&mut self) -> Result<()> {
        self.page.step("Somebody edits the clone");
        let edit = json!({"stringData": {"runner-token": "edited by hand"}, "metadata": {"labels": null}});
        let started = Instant::now();
        let edited = self.cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &edit).await;
        let edited = version(&edited)?;
        let restored = |clone: &Secret| has_data(clone, &ROTATED) && version(clone).is_ok_and(|now| now > edited);
        let (seen, _) = self.clones.sees("the clone as it was before", restored).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &ROTATED).await;
        self.page.measured("restored, its labels too", "clone edited -> restored", seen - started);
        Ok(())
    }

    async fn clone_is_deleted(&mut self) -> Result<()> {
        self.page.step("Somebody deletes the clone");
        let former = self.clone().await?.uid();
        let started = Instant::now();
        self.cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
        let anew = |clone: &Secret| clone.uid() != former && has_data(clone, &ROTATED);
        let (seen, _) = self.clones.sees("a new clone", anew).await?;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &ROTATED).await;
        self.page.measured("restored", "clone deleted -> restored", seen - started);
        Ok(())
    }

    async fn ca_is_created(&mut self) -> Result<()> {
        self.page.step("The company's CA comes: Secret gitlab-runner/gitlab-runner-certs");
        self.cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await?;
        let company = ServingCertificate::issue(&self.cluster.plane.dir().join("company"));
        let (pods, pod) = (self.pods(), job_pod()?);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let before = pods.create(&dry_run, &pod).await.context("dry run of a job pod")?;
        ensure!(!shows_ca(&before, MOUNT_JOB_CERTS), "a job pod gets a CA that does not exist");
        let started = Instant::now();
        self.cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[(KEY_CA, &company.ca_pem)]).await;
        wait::until("a job pod would get the CA", || async {
            let answer = pods.create(&dry_run, &pod).await.ok()?;
            shows_ca(&answer, MOUNT_JOB_CERTS).then_some(())
        })
        .await;
        self.page.measured(
            "a pod created now would get it (seen in a dry run)",
            "CA created -> injected from now on",
            started.elapsed(),
        );
        Ok(())
    }

    async fn manager_starts(&mut self) -> Result<()> {
        self.page.step("GitLab Runner is deployed, as its Helm chart renders it without any CA settings");
        let mut others = fixture("deployments/gitlab-runner.yaml");
        let deployment = others.iter().position(|object| object["kind"] == "Deployment").context("a Deployment")?;
        let deployment: Deployment = serde_json::from_value(others.remove(deployment))?;
        let others = json!({"apiVersion": "v1", "kind": "List", "items": others}).to_string();
        self.cluster.plane.kubectl_with_stdin(&["apply", "--server-side", "--filename=-"], &others).await?;

        let deployments: Api<Deployment> = Api::namespaced(self.cluster.admin.clone(), RUNNER_NAMESPACE);
        let started = Instant::now();
        deployments.create(&PostParams::default(), &deployment).await.context("the Deployment")?;
        let is_manager = |pod: &Pod| pod.labels().get("release").is_some_and(|release| release == "gitlab-runner");
        let (created, pod) = self.pods.sees("the manager pod", is_manager).await?;
        ensure!(shows_ca(&pod, MOUNT_MANAGER_CERTS), "the manager pod was created without the CA mounted");
        let file = format!("{MOUNT_MANAGER_CERTS}/{KEY_CA}");
        ensure!(
            has_variable(&pod, "CI_SERVER_TLS_CA_FILE", &file),
            "the manager pod was created without CI_SERVER_TLS_CA_FILE"
        );
        self.page.note(&format!("CI_SERVER_TLS_CA_FILE={file}"));
        self.page.measured(
            "its pod is created with the CA mounted and the variable set",
            "runner deployed -> manager pod created with the CA",
            created - started,
        );
        let name = pod.name_any();
        let runs = |pod: &Pod| pod.name_any() == name && is_running(pod);
        let (running, _) = self.pods.sees("the manager pod Running", runs).await?;
        self.page.measured("the pod is Running", "runner deployed -> manager pod Running", running - started);
        Ok(())
    }

    async fn job_starts(&mut self) -> Result<()> {
        self.page.step("The runner starts a CI job: a job pod");
        let pods = self.pods();
        let started = Instant::now();
        let pod = pods.create(&PostParams::default(), &job_pod()?).await.context("the job pod")?;
        let created = started.elapsed();
        ensure!(shows_ca(&pod, MOUNT_JOB_CERTS), "the job pod was created without ca.crt");
        ensure!(shown_keys(&pod) == [KEY_CA], "the job pod is shown more than ca.crt: {:?}", shown_keys(&pod));
        self.page.note(&format!("{MOUNT_JOB_CERTS}/{KEY_CA}"));
        self.page.measured(
            "it is created with ca.crt mounted, and nothing else of that Secret",
            "job started -> job pod created with the CA",
            created,
        );
        let name = pod.name_any();
        let runs = |pod: &Pod| pod.name_any() == name && is_running(pod);
        let (running, _) = self.pods.sees("the job pod Running", runs).await?;
        self.page.measured("the pod is Running", "job started -> job pod Running", running - started);
        pods.get(&name).await.context("the job pod")?;
        Ok(())
    }

    async fn nothing_is_written_at_rest(&mut self) -> Result<()> {
        self.page.step("Nothing happens for five seconds; the API server's audit log is counted");
        let before = self.cluster.requests().await.len();
        let started = Instant::now();
        tokio::time::sleep(REST).await;
        let took = started.elapsed();
        let requests = self.cluster.requests().await;
        let since: Vec<_> = requests.iter().skip(before).filter(|request| request.verb != "watch").collect();
        ensure!(since.is_empty(), "requests at rest: {since:?}");
        let writes = self.cluster.writes().await;
        for write in &writes {
            let clone = write.resource == "secrets" && write.namespace == RUNNER_NAMESPACE && write.name == SECRET;
            ensure!(clone, "something else than the clone was written: {write:?}");
        }
        self.page.note(&format!("In the whole story it wrote {} times, each time the clone.", writes.len()));
        self.page.measured(
            "no write, and no request beyond its watches",
            "at rest -> no write, no request beyond watches",
            took,
        );
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

/// Whether a container mounts our volume there, and the volume shows the CA.
fn shows_ca(pod: &Pod, path: &str) -> bool {
    let spec = pod.spec.iter();
    let mut mounts =
        spec.flat_map(|spec| &spec.containers).flat_map(|container| container.volume_mounts.iter().flatten());
    mounts.any(|mount| mount.name == VOLUME_CERTS && mount.mount_path == path) && shown_keys(pod).contains(&KEY_CA)
}

/// Keys of the certificate Secret that the pod's containers can see.
fn shown_keys(pod: &Pod) -> Vec<&str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter(|volume| volume.name == VOLUME_CERTS).filter_map(|volume| volume.secret.as_ref());
    let ours = sources.filter(|secret| secret.secret_name.as_deref() == Some(CERTS));
    ours.flat_map(|secret| secret.items.iter().flatten()).map(|item| item.key.as_str()).collect()
}

fn has_variable(pod: &Pod, name: &str, value: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut variables = containers.flat_map(|container| container.env.iter().flatten());
    variables.any(|variable| variable.name == name && variable.value.as_deref() == Some(value))
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

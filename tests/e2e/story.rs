//! The story of the demo, with real pods.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gitlab_runner_webhook::names;
use gitlab_runner_webhook_cli::manifests;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, until},
    pods,
};

const SOURCE_NAMESPACE: &str = "gitlab";
const RUNNER_NAMESPACE: &str = "gitlab-runner";
const SECRET: &str = "gitlab-gitlab-runner-secret";
const CERTS: &str = "gitlab-runner-certs";
const OURS: &str = "app.kubernetes.io/name=gitlab-runner-webhook";
const MANAGERS: &str = "app=gitlab-runner";

/// How many fresh runner namespaces get their manager pod in the same moment.
const NAMESPACES: usize = 20;
/// Marks them.
const LABEL: &str = "e2e.example.com/gitlab-runner";

/// The overlay with which they are found by their label. Its folder must be below the repository: kustomize takes
/// no absolute path.
const OVERLAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/e2e");
const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/overlays/default");

/// The story, on a cluster that has nothing of it.
pub struct Story<'a> {
    cluster: &'a Cluster,
    company_ca: String,
}

impl<'a> Story<'a> {
    /// Refuses a cluster in which the story would change something that is there.
    pub fn begin(cluster: &'a Cluster) -> Result<Self> {
        for namespace in [names::APP, SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
            if cluster.get("", "namespace", namespace)?.is_some() {
                bail!("the cluster has a namespace {namespace} already; use one that is empty");
            }
        }
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "Company CA");
        Ok(Self { cluster, company_ca: params.self_signed(&key)?.pem() })
    }

    pub fn tell(self) -> Result<()> {
        self.image_runs_on_an_empty_root()?;
        self.install()?;
        self.webhook_is_reached_through_its_service()?;
        self.clone_appears()?;
        self.trust_appears()?;
        self.manager_reads_its_token()?;
        self.job_reads_its_ca()?;
        self.rotation_is_followed()?;
        self.deleted_clone_is_restored()?;
        self.manager_never_waits_for_its_clone()
    }

    /// The image has no file but the program.
    fn image_runs_on_an_empty_root(&self) -> Result<()> {
        let step = Step::begin("The image runs --version and --help on its empty root, as no root");
        for (argument, expected) in [("--version", env!("CARGO_PKG_VERSION")), ("--help", "--kubeconfig")] {
            let name = format!("e2e{argument}");
            let image =
                self.cluster.image.clone().unwrap_or_else(|| format!("{}:{}", names::APP, env!("CARGO_PKG_VERSION")));
            let context =
                json!({"runAsNonRoot": true, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
            self.cluster.apply(&[json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "x", "image": image, "imagePullPolicy": "IfNotPresent", "args": [argument],
                                    "securityContext": context}],
                },
            })])?;
            self.phase("default", &name, "Succeeded")?;
            let said = self.cluster.logs("default", &name)?;
            ensure!(said.contains(expected), "{argument} printed {said:?}");
            self.cluster.kubectl(&["delete", "pod", "--namespace", "default", &name, "--wait=false"])?;
        }
        step.seen("both end with success")
    }

    /// All that a user does.
    fn install(&self) -> Result<()> {
        let step = Step::begin("kubectl apply -k manifests/overlays/default");
        match &self.cluster.image {
            None => self.cluster.kubectl(&["apply", "-k", DEFAULT])?,
            Some(image) => {
                overlay(Some(image), false)?;
                self.cluster.kubectl(&["apply", "-k", OVERLAY])?
            }
        };
        self.rolled_out()?;
        step.seen("the Deployment is available: kubelet's probes of /livez and /readyz succeed")
    }

    /// The warning for a namespace fails open: a call that fails is hidden, but not the warning that is missing.
    fn webhook_is_reached_through_its_service(&self) -> Result<()> {
        let step = Step::begin("Namespace gitlab-runner is created while the source is missing");
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RUNNER_NAMESPACE}}).to_string();
        let warning = format!("Secret {SOURCE_NAMESPACE}/{SECRET} is missing");
        // A new caBundle, and a new address of the Service, reach the API server a moment later.
        until("the API server calls the webhook through its Service", || {
            let dry = self.cluster.kubectl_reads(&["create", "--dry-run=server", "--filename", "-"], &namespace)?;
            Ok(dry.err.contains(&warning).then_some(()))
        })?;
        let said = self.cluster.kubectl_reads(&["create", "--filename", "-"], &namespace)?;
        ensure!(said.err.contains(&warning), "no warning: {:?}", said.err);
        step.seen("the webhook answers through its Service, with a warning that names the source")
    }

    fn clone_appears(&self) -> Result<()> {
        let step = Step::begin("The source is created: Secret gitlab/gitlab-gitlab-runner-secret");
        self.cluster.kubectl(&["create", "namespace", SOURCE_NAMESPACE])?;
        self.cluster.apply(&[source("first")])?;
        self.clone_has(RUNNER_NAMESPACE, "first")?;
        step.seen("the clone is in gitlab-runner")
    }

    fn trust_appears(&self) -> Result<()> {
        let step = Step::begin("The company's CA comes: Secret gitlab-runner/gitlab-runner-certs");
        self.cluster.apply(&[json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CERTS, "namespace": RUNNER_NAMESPACE},
            "stringData": {"ca.crt": self.company_ca},
        })])?;
        let job = pods::job(RUNNER_NAMESPACE, &self.cluster.busybox)?.to_string();
        until("a job pod would get the trust bundle", || {
            let dry = ["create", "--dry-run=server", "-o", "json", "--filename", "-"];
            let pod: Value = serde_json::from_str(&self.cluster.kubectl_reads(&dry, &job)?.out)?;
            let volumes = pod["spec"]["volumes"].as_array().context("volumes")?;
            Ok(volumes.iter().any(|volume| volume["name"] == names::VOLUME_TRUST).then_some(()))
        })?;
        step.seen("the trust bundle is published")
    }

    fn manager_reads_its_token(&self) -> Result<()> {
        let step = Step::begin("GitLab Runner is installed: what its Helm chart renders");
        self.cluster.apply(&pods::manager(RUNNER_NAMESPACE, &self.cluster.busybox)?)?;
        let said = self.manager_says(RUNNER_NAMESPACE, "runner-token: first")?;
        ensure!(said.contains("runner-registration-token: registration-first\n"), "it reads {said}");
        ensure!(said.contains(&format!("CI_SERVER_TLS_CA_FILE: {}/ca.crt\n", names::MOUNT_TRUST)), "{said}");
        ensure!(said.contains(self.company_ca.trim()), "the CA in the pod is not the company's: {said}");
        step.seen("the manager pod runs, has read its token, and has the CA")
    }

    fn job_reads_its_ca(&self) -> Result<()> {
        let step = Step::begin("The runner starts a CI job: a job pod as user 1001");
        let job = pods::job(RUNNER_NAMESPACE, &self.cluster.busybox)?;
        let name = job["metadata"]["name"].as_str().context("a name")?.to_owned();
        self.cluster.apply(&[job])?;
        self.phase(RUNNER_NAMESPACE, &name, "Succeeded")?;
        for container in ["build", "helper"] {
            let said =
                self.cluster.kubectl(&["logs", "--namespace", RUNNER_NAMESPACE, &name, "--container", container])?;
            ensure!(said.contains(&format!("ca.crt: {}/ca.crt\n", names::MOUNT_TRUST)), "{container}: {said}");
            ensure!(said.contains(self.company_ca.trim()), "{container} does not see the company's CA: {said}");
            let (_, bundle) =
                said.split_once(&format!("bundle.crt: {}/bundle.crt, ", names::MOUNT_TRUST)).context(said.clone())?;
            let count: usize = bundle.split(' ').next().unwrap_or_default().parse().context(said.clone())?;
            ensure!(count > 100, "{container} sees {count} certificates, no public roots");
        }
        step.seen("its containers build and helper read both files by their variables")
    }

    fn rotation_is_followed(&self) -> Result<()> {
        let step = Step::begin("The token is rotated, and the manager pod deleted at once");
        self.cluster.apply(&[source("second")])?;
        self.cluster.kubectl(&[
            "delete",
            "pods",
            "--namespace",
            RUNNER_NAMESPACE,
            "--selector",
            MANAGERS,
            "--wait=false",
        ])?;
        self.manager_says(RUNNER_NAMESPACE, "runner-token: second")?;
        self.clone_has(RUNNER_NAMESPACE, "second")?;
        step.seen("the next one reads the new token")
    }

    fn deleted_clone_is_restored(&self) -> Result<()> {
        let step = Step::begin("Somebody deletes the clone");
        let uid = |secret: &Value| secret["metadata"]["uid"].as_str().map(str::to_owned);
        let before = self.clone_has(RUNNER_NAMESPACE, "second")?;
        self.cluster.kubectl(&["delete", "secret", "--namespace", RUNNER_NAMESPACE, SECRET])?;
        let after = self.clone_has(RUNNER_NAMESPACE, "second")?;
        ensure!(uid(&before) != uid(&after), "it was never gone");
        step.seen("restored")
    }

    /// Without the gate, kubelet starts a pod whose Secret comes a moment later only at its next try.
    fn manager_never_waits_for_its_clone(&self) -> Result<()> {
        let step = Step::begin("The configuration finds runner namespaces by a label");
        overlay(self.cluster.image.as_deref(), true)?;
        self.cluster.kubectl(&["apply", "-k", OVERLAY])?;
        self.rolled_out()?;
        // Pods before it may answer one more call.
        let deployment = self.cluster.get(names::APP, "deployment", names::APP)?.context("the Deployment")?;
        until("no pod has the configuration before it", || {
            let pods = self.cluster.list(names::APP, "pods", OURS)?;
            Ok((deployment["spec"]["replicas"] == pods.len()).then_some(()))
        })?;
        step.seen("the program runs with it")?;

        let step =
            Step::begin(&format!("{NAMESPACES} namespaces are created, each with GitLab Runner in the same moment"));
        let fresh: Vec<String> = (1..=NAMESPACES).map(|number| format!("e2e-runner-{number}")).collect();
        for namespace in &fresh {
            self.create_with_runner(namespace, &json!({LABEL: "true"}))?;
        }
        for namespace in &fresh {
            self.manager_says(namespace, "runner-token: second")?;
        }
        step.seen("every manager pod runs and has read its token")?;

        let step = Step::begin("The same in a namespace that is no runner namespace, to know what waiting looks like");
        self.create_with_runner("e2e-other", &json!({}))?;
        until("kubelet reports that the Secret is missing", || {
            Ok((!self.failed_mounts("e2e-other")?.is_empty()).then_some(()))
        })?;
        step.seen("its pod has a FailedMount event")?;

        let step = Step::begin("kubelet's events in the runner namespaces");
        for namespace in &fresh {
            let failed = self.failed_mounts(namespace)?;
            ensure!(failed.is_empty(), "a manager pod in {namespace} waited for its clone: {failed:?}");
        }
        step.seen("no manager pod ever had a FailedMount event for its clone")?;

        let step = Step::begin("Everything is deleted again");
        self.cluster.kubectl(&["delete", "-k", OVERLAY])?;
        let mut delete = vec!["delete", "namespace", "e2e-other", RUNNER_NAMESPACE, SOURCE_NAMESPACE];
        delete.extend(fresh.iter().map(String::as_str));
        self.cluster.kubectl(&delete)?;
        step.seen("no namespace waits for the program that is gone")
    }

    fn create_with_runner(&self, namespace: &str, labels: &Value) -> Result<()> {
        let mut objects =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})];
        objects.extend(pods::manager(namespace, &self.cluster.busybox)?);
        self.cluster.apply(&objects).map(drop)
    }

    /// What kubelet had to wait for, where it was the clone.
    fn failed_mounts(&self, namespace: &str) -> Result<Vec<String>> {
        let events = self.cluster.list(namespace, "events", "")?;
        let failed = events.iter().filter(|event| event["reason"] == "FailedMount");
        let words = failed.filter_map(|event| event["message"].as_str());
        Ok(words.filter(|words| words.contains(SECRET)).map(str::to_owned).collect())
    }

    fn rolled_out(&self) -> Result<()> {
        let deployment = format!("deployment/{}", names::APP);
        self.cluster.kubectl(&["rollout", "status", &deployment, "--namespace", names::APP, "--timeout=180s"]).map(drop)
    }

    fn clone_has(&self, namespace: &str, token: &str) -> Result<Value> {
        let expected = source(token);
        until(&format!("the clone in {namespace} has the token {token}"), || {
            let clone = self.cluster.get(namespace, "secret", SECRET)?;
            Ok(clone.filter(|clone| clone["data"] == expected["data"]))
        })
    }

    fn phase(&self, namespace: &str, pod: &str, phase: &str) -> Result<()> {
        let found = until(&format!("pod {namespace}/{pod} is {phase}"), || {
            let found = self.cluster.get(namespace, "pod", pod)?.context("it is gone")?;
            let found = found["status"]["phase"].as_str().unwrap_or_default().to_owned();
            Ok((found == phase || found == "Failed").then_some(found))
        })?;
        ensure!(
            found == phase,
            "pod {namespace}/{pod} is {found}: {}",
            self.cluster.logs(namespace, pod).unwrap_or_else(|error| format!("{error:#}"))
        );
        Ok(())
    }

    /// Waits for a running manager pod that has printed these words, and returns all that it has printed.
    fn manager_says(&self, namespace: &str, words: &str) -> Result<String> {
        until(&format!("a manager pod in {namespace} says {words:?}"), || {
            for pod in self.cluster.list(namespace, "pods", MANAGERS)? {
                if pod["status"]["phase"] != "Running" || !pod["metadata"]["deletionTimestamp"].is_null() {
                    continue;
                }
                let said = self.cluster.logs(namespace, pod["metadata"]["name"].as_str().context("a name")?)?;
                // All of it: the last thing that it prints is a certificate, or an empty variable.
                if said.contains(words) && said.contains("CI_SERVER_TLS_CA_FILE: ") {
                    return Ok(Some(said));
                }
            }
            Ok(None)
        })
    }
}

fn source(token: &str) -> Value {
    let base64 =
        |text: &str| serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": SOURCE_NAMESPACE},
        "data": {
            "runner-registration-token": base64(&format!("registration-{token}")),
            "runner-token": base64(token),
        },
    })
}

/// Writes an overlay: the default one with another image, or with runner namespaces by their label.
fn overlay(image: Option<&str>, by_label: bool) -> Result<()> {
    let folder = Path::new(OVERLAY);
    fs::create_dir_all(folder)?;
    let mut kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../manifests/overlays/default"],
    });
    if let Some(image) = image {
        kustomization["images"] = if let Some((name, digest)) = image.split_once('@') {
            json!([{"name": names::APP, "newName": name, "digest": digest}])
        } else {
            let (name, tag) = image.rsplit_once(':').context("E2E_IMAGE needs a tag or a digest")?;
            json!([{"name": names::APP, "newName": name, "newTag": tag}])
        };
    }
    if by_label {
        let selector = json!({"matchLabels": {LABEL: "true"}});
        let config = folder.join("config.yaml");
        fs::write(&config, format!("{:#}\n", json!({"runnerNamespaces": {"selectors": [selector]}})))?;
        // What `gitlab-runner-webhook manifests --config config.yaml --output generated` does.
        manifests::run(&manifests::Arguments { config, output: Some(folder.join("generated")) })?;
        kustomization["resources"] = json!(["../../manifests/base", "generated"]);
        kustomization["components"] = json!(["../../manifests/components/ha"]);
    }
    fs::write(folder.join("kustomization.yaml"), format!("{kustomization:#}\n"))?;
    Ok(())
}

/// A line with what is done, then a line with what came of it.
struct Step {
    started: Instant,
}

impl Step {
    fn begin(what: &str) -> Self {
        println!("\n{what}");
        Self { started: Instant::now() }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the last words of a step that did not fail before")]
    fn seen(self, what: &str) -> Result<()> {
        println!("  -> {what} ({:.1} s)", self.started.elapsed().as_secs_f64());
        Ok(())
    }
}

//! A control plane with the shipped manifests, and words for what tests do in it.

use std::{collections::BTreeMap, net::TcpListener, path::Path};

use control_plane::{AuditEvent, Builder, ControlPlane};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Pod, Secret},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{Manifests, ServingCertificate, ToolBuilder, canary, wait};

/// The shipped `ServiceAccount`, as RBAC names it.
const USER: &str = "system:serviceaccount:gitlab-runner-webhook:gitlab-runner-webhook";

const WEBHOOK_CONFIGURATIONS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// The names of the mission.
pub const SOURCE_NAMESPACE: &str = "gitlab";
/// The runner namespace of the mission.
pub const RUNNER_NAMESPACE: &str = "gitlab-runner";
/// The cloned Secret of the mission.
pub const SECRET: &str = "gitlab-gitlab-runner-secret";

/// A real control plane in which the program is installed.
pub struct Cluster {
    /// The control plane.
    pub plane: ControlPlane,
    /// A client that may do everything.
    pub admin: Client,
    /// What the program serves with.
    pub certificate: ServingCertificate,
    /// The configuration that rights, guard and webhooks are for; `None` means the shipped one.
    pub config: Option<String>,
}

/// How a cluster is set up, where it is not as the mission has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup<'a> {
    /// The configuration that rights, guard and webhooks are for; `None` means the shipped one.
    pub config: Option<&'a str>,
}

impl Cluster {
    /// Starts a control plane and installs everything but the webhook configurations.
    pub async fn start() -> Self {
        Self::start_as(ControlPlane::builder(), Setup::default()).await
    }

    /// Like [`Cluster::start`], and the source of the mission is there.
    pub async fn with_source(data: &[(&str, &str)]) -> Self {
        let cluster = Self::start().await;
        cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, data).await;
        cluster
    }

    /// Like [`Cluster::start`], otherwise configured.
    ///
    /// # Panics
    /// When the control plane does not start; says why.
    pub async fn start_as(builder: Builder, setup: Setup<'_>) -> Self {
        let plane = builder.start().await.unwrap_or_else(|error| panic!("{error}"));
        let certificate = ServingCertificate::issue(&plane.dir().join("serving"));
        let cluster = Self { admin: plane.admin(), certificate, plane, config: setup.config.map(str::to_owned) };
        cluster.manifests().without(&WEBHOOK_CONFIGURATIONS).apply(&cluster.plane).await;
        cluster
    }

    /// `overlays/local`, for the configuration of this cluster.
    pub fn manifests(&self) -> Manifests {
        let shipped = Manifests::render("overlays/local");
        self.config.iter().fold(shipped, |manifests, config| manifests.configured(config))
    }

    /// Applies objects as whoever installs, with further flags of kubectl; gives what it says.
    ///
    /// # Panics
    /// When the API server refuses one.
    pub async fn apply(&self, objects: &[Value], flags: &[&str]) -> String {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let arguments = [&["apply", "--server-side", "--field-manager=installer", "-f", "-"], flags].concat();
        let answer = self.plane.kubectl_with_stdin(&arguments, &list).await;
        answer.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Registers the webhooks, reached at this port.
    pub async fn register_webhooks(&self, port: u16, failure_policy: &str) {
        let mut manifests = self.manifests();
        manifests.objects.retain(|object| object["webhooks"].is_array());
        manifests.reached_at(port, &self.certificate.ca_pem).failing(failure_policy).apply(&self.plane).await;
    }

    /// Registers the shipped webhooks, reached at this port, and leaves `caBundle` to the program.
    pub async fn register_webhooks_without_ca(&self, port: u16, failure_policy: &str) {
        let mut manifests = self.manifests();
        manifests.objects.retain(|object| object["webhooks"].is_array());
        manifests.reached_at_port(port).failing(failure_policy).apply(&self.plane).await;
    }

    /// The program, not started yet, as the shipped `ServiceAccount`.
    ///
    /// `binary` is `env!("CARGO_BIN_EXE_gitlab-runner-webhook")`.
    ///
    /// # Panics
    /// When no token is given out for the `ServiceAccount`.
    pub async fn tool(&self, binary: &str) -> ToolBuilder {
        let kubeconfig = self
            .plane
            .service_account_kubeconfig("gitlab-runner-webhook", "gitlab-runner-webhook")
            .await
            .expect("a token for the shipped ServiceAccount");
        self.tool_from(binary, &kubeconfig)
    }

    /// The program, not started yet, with a kubeconfig of the caller's.
    pub fn tool_from(&self, binary: &str, kubeconfig: &Path) -> ToolBuilder {
        ToolBuilder::new(binary, kubeconfig, &self.certificate, self.plane.dir())
    }

    /// Creates a namespace, with labels.
    ///
    /// # Panics
    /// When the API server refuses.
    pub async fn create_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Namespace {
        let namespace = json!({"metadata": {"name": name, "labels": BTreeMap::from_iter(labels.iter().copied())}});
        let namespace = serde_json::from_value(namespace).expect("a Namespace");
        self.namespaces().create(&PostParams::default(), &namespace).await.expect("the namespace is created")
    }

    /// Deletes a namespace and waits until it is gone.
    pub async fn delete_namespace(&self, name: &str) {
        let api = self.namespaces();
        api.delete(name, &DeleteParams::default()).await.expect("the namespace is deleted");
        wait::until(format!("namespace {name} is gone"), || async {
            api.get_opt(name).await.expect("an answer").is_none().then_some(())
        })
        .await;
    }

    /// Creates or replaces the content of a Secret, as an administrator with `kubectl replace` would.
    ///
    /// # Panics
    /// When the API server refuses.
    pub async fn put_secret(&self, namespace: &str, name: &str, data: &[(&str, &str)]) -> Secret {
        let api = self.secrets(namespace);
        let mut secret = secret(name, data);
        canary::remember(&secret);
        match api.get_opt(name).await.expect("an answer") {
            None => api.create(&PostParams::default(), &secret).await.expect("the Secret is created"),
            Some(there) => {
                secret.metadata = there.metadata;
                api.replace(name, &PostParams::default(), &secret).await.expect("the Secret is replaced")
            }
        }
    }

    /// Changes a Secret by a merge patch.
    ///
    /// # Panics
    /// When the API server refuses.
    pub async fn patch_secret(&self, namespace: &str, name: &str, patch: &serde_json::Value) -> Secret {
        let api = self.secrets(namespace);
        let secret =
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("the Secret is patched");
        canary::remember(&secret);
        secret
    }

    /// Deletes a Secret.
    ///
    /// # Panics
    /// When the API server refuses.
    pub async fn delete_secret(&self, namespace: &str, name: &str) {
        self.secrets(namespace).delete(name, &DeleteParams::default()).await.expect("the Secret is deleted");
    }

    /// A Secret, if it is there.
    ///
    /// # Panics
    /// When the API server does not answer.
    pub async fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.secrets(namespace).get_opt(name).await.expect("an answer")
    }

    /// Waits for a Secret of which something is true, and returns it.
    pub async fn secret_that(
        &self,
        what: &str,
        namespace: &str,
        name: &str,
        is_true: impl Fn(&Secret) -> bool,
    ) -> Secret {
        wait::until(format!("secret {namespace}/{name} {what}"), || async {
            self.secret(namespace, name).await.filter(|secret| is_true(secret))
        })
        .await
    }

    /// Waits until a clone has exactly this data and our marks.
    pub async fn clone_with(&self, namespace: &str, name: &str, data: &[(&str, &str)]) -> Secret {
        self.secret_that("is the clone", namespace, name, |there| {
            has_data(there, data)
                && there.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "gitlab-runner-webhook")
                && there.annotations().contains_key("gitlab-runner-webhook/source")
        })
        .await
    }

    /// What the program asked of the API server so far, by the audit log. A request of our own marks
    /// the end: when it is in the log, so is all that was answered before.
    ///
    /// # Panics
    /// When the audit log cannot be read.
    pub async fn requests(&self) -> Vec<AuditEvent> {
        let mark = format!("audit-mark-{}", wait::unique());
        assert!(self.secret("default", &mark).await.is_none());
        self.plane.audit_event(|event| event.name == mark).await.expect("the audit log");
        let events = self.plane.audit_events().expect("the audit log");
        events.into_iter().filter(|event| event.user == USER).collect()
    }

    /// What the program wrote, or tried to write, so far, by the audit log. Without Events, which come when a problem has
    /// lasted a while.
    pub async fn writes(&self) -> Vec<AuditEvent> {
        let reads = ["get", "list", "watch"];
        let is_write = |request: &AuditEvent| request.resource != "events" && !reads.contains(&request.verb.as_str());
        self.requests().await.into_iter().filter(is_write).collect()
    }

    /// Asks, by dry run, for a pod in the runner namespace that uses the clone: inject and gate are both called.
    ///
    /// # Errors
    /// The API server's refusal.
    ///
    /// # Panics
    /// Never: the pod is one.
    pub async fn try_pod(&self) -> Result<Pod, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), RUNNER_NAMESPACE);
        let pod = json!({
            "metadata": {"generateName": "p-"},
            "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
            },
        });
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        pods.create(&dry_run, &serde_json::from_value(pod).expect("a Pod")).await
    }

    /// Namespaces, as admin.
    pub fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.admin.clone())
    }

    /// Secrets of a namespace, as admin.
    pub fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.admin.clone(), namespace)
    }
}

/// A loopback port that nobody listens on.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a loopback port").port()
}

/// Whether a Secret holds exactly this data.
pub fn has_data(secret: &Secret, data: &[(&str, &str)]) -> bool {
    secret.data.clone().unwrap_or_default() == bytes(data)
}

/// An Opaque Secret.
pub fn secret(name: &str, data: &[(&str, &str)]) -> Secret {
    let mut secret = Secret { data: Some(bytes(data)), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    secret
}

fn bytes(data: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
    data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect()
}

//! Runs a real Kubernetes control plane on loopback, for tests, demo and benchmarks.
//!
//! ```no_run
//! # async fn example() -> Result<(), control_plane::Error> {
//! let control_plane = control_plane::ControlPlane::start().await?;
//! control_plane.kubectl(&["create", "namespace", "demo"]).await?;
//! let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(control_plane.admin());
//! # Ok(())
//! # }
//! ```
//!
//! [`node`] has a control plane with a node that runs containers, for which it needs root.
//!
//! The programs come from Go modules, or from the folder that `KUBEBUILDER_ASSETS` names (see
//! [`Binaries::find`]). They end with the process that started them, even when that is killed.

mod arguments;
mod audit;
mod binaries;
mod builder;
mod credentials;
mod error;
pub mod node;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

pub use crate::audit::{AuditEvent, AuditLevel};
pub use crate::binaries::{Binaries, Component, KUBERNETES_VERSION};
pub use crate::builder::Builder;
pub use crate::error::Error;

use crate::arguments::Ports;
use crate::process::{Folder, Process, TAIL, log_file, tail};

/// The node of a control plane with nodes.
pub const NODE: &str = "node-0";

/// How long a state may take to come.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long one look at a state may take.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(30);
/// How long a token is valid, in seconds.
const TOKEN_LIFE: i64 = 24 * 60 * 60;

/// A running control plane. Dropping it kills its programs and removes its folder.
pub struct ControlPlane {
    processes: Mutex<BTreeMap<Component, Process>>,
    binaries: Binaries,
    ports: Ports,
    url: String,
    ca_pem: String,
    admin: Client,
    admin_kubeconfig: PathBuf,
    /// For the harness itself: as the administrator, without retries.
    probe: Client,
    api_server_arguments: Vec<String>,
    etcd_arguments: Vec<String>,
    // Last, so that it is removed when nobody writes to it any more.
    folder: Folder,
}

/// All that was stored at some time; see [`ControlPlane::back_up`].
#[derive(Debug)]
pub struct Backup(PathBuf);

impl ControlPlane {
    /// Starts etcd, kube-apiserver and kube-controller-manager.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start() -> Result<Self, Error> {
        Self::builder().start().await
    }

    /// For a control plane with more, less or other parts than [`ControlPlane::start`] gives.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client of `kubernetes-admin` in the group `system:masters`. It retries on 429, 503 and
    /// 504 for minutes, as kube does by default.
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// The kubeconfig of the same user. It names files by absolute paths in [`ControlPlane::dir`].
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// The API server, `https://127.0.0.1:<port>`; the same for as long as this value lives.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate authority behind the API server and all client certificates, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The folder with logs, keys and data.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves [`ControlPlane::dir`] behind, for people to look at.
    pub fn keep_files(&self) {
        self.folder.keep();
    }

    /// A token of a ServiceAccount that exists, for the API server, valid for 24 hours.
    ///
    /// # Errors
    /// When the API server refuses: there is no such ServiceAccount, say.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> Result<String, Error> {
        let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_LIFE), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.probe.clone(), namespace);
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
        let answer = answer.map_err(Error::request(format!("get a token of ServiceAccount {namespace}/{name}")))?;
        Ok(answer.status.map(|status| status.token).unwrap_or_default())
    }

    /// A kubeconfig of a ServiceAccount, in [`ControlPlane::dir`], with a fresh token.
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_token`].
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let user = json!({"token": self.service_account_token(namespace, name).await?});
        // A comma cannot be part of either name.
        let file = format!("{namespace},{name}");
        credentials::write_kubeconfig(self.dir(), &file, &self.url, namespace, &user)
    }

    /// A client of a ServiceAccount, with a fresh token. It retries as [`ControlPlane::admin`].
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_token`].
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client, Error> {
        credentials::client(&self.service_account_kubeconfig(namespace, name).await?, true).await
    }

    /// Runs kubectl as the administrator and returns what it prints. A `--kubeconfig` among the
    /// arguments makes it somebody else.
    ///
    /// # Errors
    /// When its exit code is not zero; the error carries its standard error.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, Error> {
        self.kubectl_with_stdin(arguments, "").await
    }

    /// The same, with something to read, for `apply -f -`.
    ///
    /// # Errors
    /// As [`ControlPlane::kubectl`].
    pub async fn kubectl_with_stdin(&self, arguments: &[&str], stdin: &str) -> Result<String, Error> {
        let program = self.binary(Component::Kubectl)?;
        let mut child = tokio::process::Command::new(program)
            .arg(format!("--kubeconfig={}", self.admin_kubeconfig.display()))
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // For its caches, and so that the user's own preferences do not count.
            .env("HOME", self.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::on("start", program))?;
        let input = child.stdin.take();
        let feed = async {
            if let Some(mut input) = input {
                // An error means that it ended before it had read all; its exit code tells more.
                let _ = input.write_all(stdin.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.map_err(Error::on("run", program))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Kubectl { arguments: arguments.join(" "), status: output.status, stderr });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends kube-apiserver and leaves everything else running. It finishes what it is at, and
    /// watches for one second; after ten it is killed. Nothing happens if it does not run.
    pub async fn stop_api_server(&self) {
        let process = self.processes().remove(&Component::ApiServer);
        if let Some(process) = process {
            process.terminate().await;
        }
    }

    /// Starts kube-apiserver again, with the same port, keys and data, and waits until it is
    /// ready. Nothing but the waiting happens if it runs. The controllers find it by themselves,
    /// but back off: after the second restart that took ten seconds.
    ///
    /// # Errors
    /// When it ends or is not ready after 60 seconds.
    pub async fn start_api_server(&self) -> Result<(), Error> {
        let runs = self.processes().contains_key(&Component::ApiServer);
        if !runs {
            self.launch(Component::ApiServer, &self.api_server_arguments)?;
        }
        self.until(Component::ApiServer, "/readyz answers", || async {
            let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
            self.probe.request_text(request).await.map_err(|error| error.to_string())
        })
        .await?;
        let namespaces: Api<Namespace> = Api::all(self.probe.clone());
        self.until(Component::ApiServer, "the namespace default exists", || async {
            namespaces.get("default").await.map_err(|error| error.to_string())
        })
        .await?;
        Ok(())
    }

    /// Copies all that is stored, as a backup of etcd does. The API server and etcd are away meanwhile.
    ///
    /// # Errors
    /// When the data cannot be copied, or one of them is not ready again after 60 seconds.
    pub async fn back_up(&self) -> Result<Backup, Error> {
        self.stop_store().await;
        let number = fs::read_dir(self.dir()).map_err(Error::on("read", self.dir()))?.count();
        let backup = Backup(self.dir().join(format!("backup-{number}")));
        copy(&self.dir().join("etcd"), &backup.0)?;
        self.start_store().await?;
        Ok(backup)
    }

    /// Makes the store what it was at the time of a backup, revision included, as a restored etcd is.
    ///
    /// # Errors
    /// As [`ControlPlane::back_up`].
    pub async fn restore(&self, backup: &Backup) -> Result<(), Error> {
        self.stop_store().await;
        let data = self.dir().join("etcd");
        fs::remove_dir_all(&data).map_err(Error::on("remove", &data))?;
        copy(&backup.0, &data)?;
        self.start_store().await
    }

    async fn stop_store(&self) {
        self.stop_api_server().await;
        let process = self.processes().remove(&Component::Etcd);
        if let Some(process) = process {
            process.terminate().await;
        }
    }

    async fn start_store(&self) -> Result<(), Error> {
        self.start_etcd().await?;
        self.start_api_server().await
    }

    /// Starts etcd and waits until it listens.
    pub(crate) async fn start_etcd(&self) -> Result<(), Error> {
        self.launch(Component::Etcd, &self.etcd_arguments)?;
        let connect = || async {
            let stream = TcpStream::connect(("127.0.0.1", self.ports.etcd)).await;
            stream.map(drop).map_err(|error| error.to_string())
        };
        self.until(Component::Etcd, "it accepts connections", connect).await
    }

    /// [`ControlPlane::stop_api_server`] and [`ControlPlane::start_api_server`].
    ///
    /// # Errors
    /// As the latter.
    pub async fn restart_api_server(&self) -> Result<(), Error> {
        self.stop_api_server().await;
        self.start_api_server().await
    }

    /// What the API server has recorded so far, oldest first, from all users. A record can come
    /// a moment after the client has its answer: see [`ControlPlane::audit_event`].
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit_events(&self) -> Result<Vec<AuditEvent>, Error> {
        audit::events(&audit::log_file(self.dir()))
    }

    /// Waits for the first record that is `wanted`, past or future.
    ///
    /// # Errors
    /// When none comes within 60 seconds, or the API server ends.
    pub async fn audit_event(&self, mut wanted: impl FnMut(&AuditEvent) -> bool) -> Result<AuditEvent, Error> {
        let mut look = || {
            let mut events = self.audit_events().map_err(|error| error.to_string())?;
            let count = events.len();
            let found = events.iter().position(&mut wanted);
            found.map(|index| events.swap_remove(index)).ok_or_else(|| format!("{count} others"))
        };
        self.until(Component::ApiServer, "an audit event is as wanted", || ready(look())).await
    }

    /// The last 200 lines of a program's log; nothing if it never ran.
    pub fn logs(&self, component: Component) -> String {
        tail(&log_file(self.dir(), component.name()), 200)
    }

    /// Waits until a ServiceAccount exists: the ServiceAccount `default` comes a moment after its
    /// namespace, and pods are refused until then.
    ///
    /// # Errors
    /// When it is not there after 60 seconds.
    pub async fn service_account_ready(&self, namespace: &str, name: &str) -> Result<(), Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.probe.clone(), namespace);
        let state = format!("the ServiceAccount {namespace}/{name} exists");
        let look = || async { accounts.get(name).await.map_err(|error| error.to_string()) };
        self.until(Component::ControllerManager, &state, look).await.map(drop)
    }

    /// `component` is who makes the node ready.
    async fn node_ready(&self, component: Component) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.probe.clone());
        let look = || async {
            let node = nodes.get(NODE).await.map_err(|error| error.to_string())?;
            let conditions = node.status.unwrap_or_default().conditions.unwrap_or_default();
            let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
            let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
            if ready && taints.is_empty() { Ok(()) } else { Err(format!("ready: {ready}, taints: {taints:?}")) }
        };
        self.until(component, "its node takes pods", look).await
    }

    /// Starts a program in the background; the caller waits for it to be ready.
    fn launch(&self, component: Component, arguments: &[String]) -> Result<(), Error> {
        let process = Process::start(component.name(), self.binary(component)?, arguments, self.dir())?;
        self.processes().insert(component, process);
        Ok(())
    }

    /// Looks until there is something to see, or a program has ended.
    async fn until<T, F>(&self, component: Component, state: &str, mut look: impl FnMut() -> F) -> Result<T, Error>
    where
        // Not AsyncFnMut: the compiler cannot tell yet that such a future may be spawned.
        F: Future<Output = Result<T, String>>,
    {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // First: whoever answers on the port of a program that has ended is not ours.
            self.processes().values_mut().try_for_each(Process::running)?;
            let seen = match timeout(LOOK, look()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(seen)) => seen,
                Err(_) => format!("no answer in {LOOK:?}"),
            };
            if Instant::now() > deadline {
                let log = tail(&log_file(self.dir(), component.name()), TAIL);
                return Err(Error::NotReady { component: component.name(), state: state.to_owned(), seen, log });
            }
            sleep(PAUSE).await;
        }
    }

    fn binary(&self, component: Component) -> Result<&Path, Error> {
        self.binaries.path(component).ok_or(Error::Absent(component.name()))
    }

    fn kubeconfig(&self, component: Component) -> PathBuf {
        self.dir().join(format!("{}.kubeconfig", component.name()))
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<Component, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("url", &self.url).field("dir", &self.dir()).finish_non_exhaustive()
    }
}

impl Drop for ControlPlane {
    /// All at once; that each is waited for follows from their own [`Drop`].
    fn drop(&mut self) {
        self.processes().values_mut().for_each(Process::release);
    }
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::on("create", to))?;
    for entry in fs::read_dir(from).map_err(Error::on("read", from))? {
        let entry = entry.map_err(Error::on("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(Error::on("copy", &source))?;
        }
    }
    Ok(())
}

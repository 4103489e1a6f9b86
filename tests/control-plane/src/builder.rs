use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::arguments::{self, Ports};
use crate::credentials::{self, Authority};
use crate::process::{Folder, port_was_taken};
use crate::{AuditLevel, Binaries, Component, ControlPlane, Error, NODE, audit, node};

const STAGES: &str = include_str!("stages.yaml");

/// How often another port is tried when somebody else takes it between choice and use.
const ATTEMPTS: usize = 5;

/// What a control plane consists of; see [`ControlPlane::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing runs before start()"]
pub struct Builder {
    controller_manager: bool,
    nodes: bool,
    real_node: bool,
    audit: AuditLevel,
    audit_starts: bool,
    api_server_arguments: Vec<String>,
    etcd_arguments: Vec<String>,
    keep_files: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            controller_manager: true,
            nodes: false,
            real_node: false,
            audit: AuditLevel::default(),
            audit_starts: false,
            api_server_arguments: Vec::new(),
            etcd_arguments: Vec::new(),
            keep_files: false,
        }
    }
}

impl Builder {
    /// Whether kube-controller-manager runs: yes by default. Without it namespaces do not
    /// terminate, and the ServiceAccount `default`, which each pod needs, never appears.
    pub fn controller_manager(mut self, wanted: bool) -> Self {
        self.controller_manager = wanted;
        self
    }

    /// Whether pods run: no by default. Adds kube-scheduler, kwok and one Ready node, [`NODE`],
    /// on which each pod becomes Running without any container behind it. Brings
    /// kube-controller-manager with it.
    pub fn nodes(mut self, wanted: bool) -> Self {
        self.nodes = wanted;
        self
    }

    /// For a node with containers: the API server is reached from it, and kube-scheduler runs.
    pub(crate) fn real_node(mut self) -> Self {
        self.real_node = true;
        self
    }

    /// How much the API server records about requests: [`AuditLevel::Metadata`] by default.
    pub fn audit(mut self, level: AuditLevel) -> Self {
        self.audit = level;
        self
    }

    /// Whether a watch is recorded when it begins too: no by default. Its `ResponseComplete` comes
    /// only with its end.
    pub fn audit_starts(mut self, wanted: bool) -> Self {
        self.audit_starts = wanted;
        self
    }

    /// Adds a flag to kube-apiserver, such as `--max-requests-inflight=20`. It comes after the
    /// harness's own, and the last of two equal flags counts.
    pub fn api_server_arg(mut self, flag: impl Into<String>) -> Self {
        self.api_server_arguments.push(flag.into());
        self
    }

    /// Adds a flag to etcd, such as `--quota-backend-bytes=8589934592`.
    pub fn etcd_arg(mut self, flag: impl Into<String>) -> Self {
        self.etcd_arguments.push(flag.into());
        self
    }

    /// Whether the folder with logs, keys and data stays behind, even when the start fails: no by
    /// default.
    pub fn keep_files(mut self, wanted: bool) -> Self {
        self.keep_files = wanted;
        self
    }

    /// Starts the programs and waits until they are ready.
    ///
    /// Ready means: `/readyz` of the API server, the namespace `default` and, with
    /// kube-controller-manager, its ServiceAccount `default`; with nodes, a node that takes pods.
    ///
    /// # Errors
    /// When programs are missing and cannot be built, one ends, or is not ready after 60 seconds.
    /// The error shows the end of its log.
    pub async fn start(self) -> Result<ControlPlane, Error> {
        let mut needed = vec![Component::Etcd, Component::ApiServer, Component::Kubectl];
        if self.controller_manager || self.nodes {
            needed.push(Component::ControllerManager);
        }
        if self.nodes {
            needed.extend([Component::Scheduler, Component::Kwok]);
        }
        if self.real_node {
            needed.push(Component::Scheduler);
            needed.extend(Component::NODE);
        }
        let binaries = tokio::task::spawn_blocking(move || Binaries::find(&needed)).await;
        let binaries = binaries.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let mut attempt = 1;
        loop {
            match self.launch(&binaries).await {
                Err(error) if attempt < ATTEMPTS && port_was_taken(&error) => attempt += 1,
                result => return result,
            }
        }
    }

    async fn launch(&self, binaries: &Binaries) -> Result<ControlPlane, Error> {
        let control_plane = self.prepare(binaries).await?;
        control_plane.start_etcd().await?;
        control_plane.start_api_server().await?;
        if self.controller_manager || self.nodes {
            let kubeconfig = control_plane.kubeconfig(Component::ControllerManager);
            let arguments = arguments::controller_manager(control_plane.dir(), &kubeconfig);
            control_plane.launch(Component::ControllerManager, &arguments)?;
        }
        if self.nodes || self.real_node {
            let scheduler = arguments::scheduler(&control_plane.kubeconfig(Component::Scheduler));
            control_plane.launch(Component::Scheduler, &scheduler)?;
        }
        if self.nodes {
            start_nodes(&control_plane).await?;
        }
        if self.controller_manager || self.nodes {
            control_plane.service_account_ready("default", "default").await?;
        }
        if self.nodes {
            control_plane.node_ready(Component::Kwok).await?;
        }
        Ok(control_plane)
    }

    /// Everything but the processes.
    async fn prepare(&self, binaries: &Binaries) -> Result<ControlPlane, Error> {
        let folder = Folder::create()?;
        if self.keep_files {
            folder.keep();
        }
        let ports = free_ports()?;
        let url = format!("https://127.0.0.1:{}", ports.api_server);
        let authority = Authority::create(folder.path())?;
        let admin_kubeconfig = authority.user("admin", "kubernetes-admin", Some("system:masters"), &url)?;
        for (component, user, group) in [
            (Component::ControllerManager, "system:kube-controller-manager", None),
            (Component::Scheduler, "system:kube-scheduler", None),
            (Component::Kwok, "kwok", Some("system:masters")),
        ] {
            authority.user(component.name(), user, group, &url)?;
        }
        let mut api_server_arguments = Vec::new();
        if self.real_node {
            api_server_arguments = node::credentials(&authority, folder.path(), &url)?;
        }
        // Last, so that they count.
        api_server_arguments.extend_from_slice(&self.api_server_arguments);
        for (name, text) in
            [("audit-policy.json", &*audit::policy(self.audit, self.audit_starts)), ("stages.yaml", STAGES)]
        {
            let path = folder.path().join(name);
            fs::write(&path, text).map_err(Error::on("write", &path))?;
        }
        Ok(ControlPlane {
            processes: Mutex::new(BTreeMap::new()),
            admin: credentials::client(&admin_kubeconfig, true).await?,
            probe: credentials::client(&admin_kubeconfig, false).await?,
            binaries: binaries.clone(),
            ca_pem: authority.pem(),
            api_server_arguments: arguments::api_server(
                folder.path(),
                ports,
                self.audit != AuditLevel::None,
                &api_server_arguments,
            ),
            etcd_arguments: arguments::etcd(folder.path(), ports, &self.etcd_arguments),
            admin_kubeconfig,
            ports,
            url,
            folder,
        })
    }
}

async fn start_nodes(control_plane: &ControlPlane) -> Result<(), Error> {
    let kwok = control_plane.kubeconfig(Component::Kwok);
    let kwok = arguments::kwok(&kwok, &control_plane.dir().join("stages.yaml"));
    control_plane.launch(Component::Kwok, &kwok)?;

    let labels = json!({
        "kubernetes.io/hostname": NODE,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "type": "kwok",
    });
    let node: Node = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": labels},
    }))
    .unwrap_or_default();
    let nodes: Api<Node> = Api::all(control_plane.probe.clone());
    let created = nodes.create(&PostParams::default(), &node).await;
    created.map(drop).map_err(Error::request(format!("create the node {NODE}")))
}

/// Two free ports. Both are bound at once, so that they differ; that somebody else takes one
/// before its program does can happen, and is why a start has several attempts.
fn free_ports() -> Result<Ports, Error> {
    let listen = || TcpListener::bind("127.0.0.1:0").map_err(Error::Port);
    let (etcd, api_server) = (listen()?, listen()?);
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).map_err(Error::Port);
    Ok(Ports { etcd: port(&etcd)?, api_server: port(&api_server)? })
}

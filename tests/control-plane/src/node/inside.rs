//! The inner half: a node from nothing, in namespaces that [`super::run`] made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use image_archive::{Entry, Image};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::requirements::{busybox, cni_plugins, path};
use super::{NODE_ADDRESS, NODE_RANGE, Options, POD_RANGE};
use crate::arguments::SERVICE_ADDRESS;
use crate::credentials::ca_file;
use crate::process::{Process, TAIL, log_file, tail};
use crate::{Component, ControlPlane, Error, NODE};

const SOCKET: &str = "/run/containerd/containerd.sock";
const DNS_ADDRESS: &str = "10.0.0.10";
const PAUSE: &str = "localhost/pause:latest";
const BUSYBOX: &str = "busybox:latest";
const CONTAINERD: &str = "containerd";
/// Copies files instead of stacking file systems: slower, but it works on any, containers' too.
const SNAPSHOTTER: &str = "native";

/// A node that takes pods. Dropping it ends its programs; containers end with their namespace.
struct Node {
    plane: ControlPlane,
    _containerd: Process,
}

/// Starts the node, runs the command beside it, and returns the command's exit code.
///
/// # Errors
/// When a program ends, or a state does not come; the error shows the end of a log.
pub async fn enter(folder: &Path, options: &Options) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let node = Node::start(folder, options).await?;
    let kubeconfig = node.plane.admin_kubeconfig();
    eprintln!("node: ready after {:.1} s", started.elapsed().as_secs_f64());
    let Some((program, arguments)) = options.command.split_first() else {
        println!("It runs until Ctrl-C, in a network namespace of its own, which is entered so:");
        println!(
            "  nsenter --net --target $(pgrep -n -x kubelet) kubectl --kubeconfig {} get pods -A",
            kubeconfig.display()
        );
        return std::future::pending().await;
    };
    let status = Command::new(program)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .env("KUBECTL", node.plane.binary(Component::Kubectl)?)
        .stdin(Stdio::null())
        .status()
        .await
        .map_err(Error::on("start", Path::new(program)))?;
    if !status.success() {
        eprintln!("node: the command ended with {status}; with --keep the logs of the node stay");
    }
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

impl Node {
    async fn start(folder: &Path, options: &Options) -> Result<Self, Error> {
        network().await?;
        let containerd = containerd(folder).await?;
        let mut archives = own_images(folder)?;
        archives.extend(options.load.iter().cloned());
        for archive in &archives {
            let archive = archive.display().to_string();
            ctr(&["--namespace", "k8s.io", "images", "import", "--snapshotter", SNAPSHOTTER, &archive]).await?;
        }

        let plane = ControlPlane::builder().real_node().start().await?;
        plane.launch(Component::Kubelet, &kubelet(&plane, folder)?)?;
        plane.launch(Component::KubeProxy, &kube_proxy(&plane)?)?;
        plane.node_ready(Component::Kubelet).await?;
        plane
            .until(Component::KubeProxy, "the Service kubernetes answers", || async {
                TcpStream::connect((SERVICE_ADDRESS, 443)).await.map(drop).map_err(|error| error.to_string())
            })
            .await?;
        Ok(Self { plane, _containerd: containerd })
    }
}

/// An address and a default route, without which neither API server nor kubelet starts; nothing gets out.
async fn network() -> Result<(), Error> {
    for arguments in [
        "link set lo up",
        "link add node0 type bridge",
        &format!("address add {NODE_RANGE} dev node0"),
        "link set node0 up",
        "route add default dev node0",
    ] {
        setup("ip", &arguments.split(' ').collect::<Vec<_>>()).await?;
    }
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    fs::write(forward, "1").map_err(Error::on("write", forward))
}

async fn containerd(folder: &Path) -> Result<Process, Error> {
    let cni = folder.join("cni");
    fs::create_dir(&cni).map_err(Error::on("create", &cni))?;
    write(
        &cni.join("10-node.conflist"),
        &json!({
            "cniVersion": "0.4.0",
            "name": "node",
            "plugins": [{
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": true,
                // A pod that calls its own Service.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("cni-addresses"),
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        }),
    )?;
    let plugins = cni_plugins().ok_or_else(|| Error::Machine("the CNI plugins are missing".to_owned()))?;
    let config = folder.join("containerd.toml");
    // Strings of JSON are strings of TOML.
    let toml = format!(
        r#"version = 2
root = {root}
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Else runc dies where it may not lower the score.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{SNAPSHOTTER}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins}
conf_dir = {cni}
"#,
        root = json!(folder.join("containerd")),
        plugins = json!(plugins),
        cni = json!(cni),
    );
    fs::write(&config, toml).map_err(Error::on("write", &config))?;
    let program = super::requirements::find(CONTAINERD).unwrap_or_else(|| CONTAINERD.into());
    let mut process =
        Process::start(CONTAINERD, &program, &["--config".to_owned(), config.display().to_string()], folder)?;
    let deadline = Instant::now() + crate::DEADLINE;
    loop {
        process.running()?;
        let Err(error) = ctr(&["version"]).await else { return Ok(process) };
        if Instant::now() > deadline {
            let log = tail(&log_file(folder, CONTAINERD), TAIL);
            let state = "it answers ctr".to_owned();
            return Err(Error::NotReady { component: CONTAINERD, state, seen: error.to_string(), log });
        }
        tokio::time::sleep(crate::PAUSE).await;
    }
}

/// What holds a pod's namespaces, and a busybox for whatever a test wants to run. Neither comes from a registry.
fn own_images(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let (program, architecture) = busybox().ok_or_else(|| Error::Machine("busybox-static is missing".to_owned()))?;
    let binary = fs::read(&program).map_err(Error::on("read", &program))?;
    let listed = std::process::Command::new(&program).arg("--list").output().map_err(Error::on("run", &program))?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let links = listed.lines().filter(|name| *name != "busybox");
    let mut tools: BTreeMap<_, _> =
        links.map(|name| (format!("bin/{name}"), Entry::Link("busybox".to_owned()))).collect();
    tools.insert("bin/busybox".to_owned(), Entry::Program(binary.clone()));
    tools.insert("tmp".to_owned(), Entry::Scratch);

    let image = |reference: &str, entrypoint: &[&str], entries| Image {
        reference: reference.to_owned(),
        architecture: architecture.to_owned(),
        created: Timestamp::UNIX_EPOCH,
        entrypoint: entrypoint.iter().map(|part| (*part).to_owned()).collect(),
        user: String::new(),
        ports: Vec::new(),
        labels: BTreeMap::new(),
        entries,
    };
    // The name of the program tells busybox what to be.
    let sleep = [("sleep".to_owned(), Entry::Program(binary))].into();
    let mut archives = Vec::new();
    for (name, image) in
        [("pause", image(PAUSE, &["/sleep", "2147483647"], sleep)), ("busybox", image(BUSYBOX, &[], tools))]
    {
        let archive = folder.join(format!("{name}.tar"));
        image.write(&archive)?;
        archives.push(archive);
    }
    Ok(archives)
}

fn kubelet(plane: &ControlPlane, folder: &Path) -> Result<Vec<String>, Error> {
    let names = folder.join("resolv.conf");
    fs::write(&names, "").map_err(Error::on("write", &names))?;
    // The janitor of the folder removes cgroups of this name.
    let cgroup = folder.file_name().unwrap_or_default().to_string_lossy();
    let config = plane.dir().join("kubelet.json");
    write(
        &config,
        &json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": ca_file(plane.dir())},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "resolvConf": names,
            // As in real clusters, but nobody answers there.
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            // Whatever the machine is like: cgroups of either version, swap, a full disk.
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{cgroup}"),
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
            },
            "makeIPTablesUtilChains": false,
        }),
    )?;
    Ok(vec![
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", plane.kubeconfig(Component::Kubelet).display()),
        format!("--hostname-override={NODE}"),
        format!("--node-ip={NODE_ADDRESS}"),
    ])
}

fn kube_proxy(plane: &ControlPlane) -> Result<Vec<String>, Error> {
    let config = plane.dir().join("kube-proxy.json");
    write(
        &config,
        &json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": plane.kubeconfig(Component::KubeProxy)},
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": NODE,
            "mode": "nftables",
            // Settings of the machine's kernel, which a network namespace cannot change.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }),
    )?;
    Ok(vec![format!("--config={}", config.display())])
}

async fn ctr(arguments: &[&str]) -> Result<(), Error> {
    setup("ctr", &[&["--address", SOCKET], arguments].concat()).await
}

/// Runs a program that is to end with success.
async fn setup(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let output = Command::new(program).args(arguments).env("PATH", path()).stdin(Stdio::null()).output().await;
    let output = output.map_err(Error::on("run", Path::new(program)))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Setup { command: format!("{program} {}", arguments.join(" ")), stderr })
}

fn write(path: &Path, value: &Value) -> Result<(), Error> {
    fs::write(path, format!("{value:#}\n")).map_err(Error::on("write", path))
}

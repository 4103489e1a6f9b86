//! The command line of each program.

use std::path::Path;

use crate::audit;
use crate::credentials::ca_file;

/// The address of the Service `kubernetes`: the first of `--service-cluster-ip-range`.
pub(crate) const SERVICE_ADDRESS: &str = "10.0.0.1";

/// The ports of one control plane, on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    pub(crate) api_server: u16,
}

pub(crate) fn etcd(folder: &Path, ports: Ports, more: &[String]) -> Vec<String> {
    let url = format!("http://127.0.0.1:{}", ports.etcd);
    let mut arguments = vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        // A lone member talks to no peer, so that no known port is needed.
        "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    arguments.extend_from_slice(more);
    arguments
}

pub(crate) fn api_server(folder: &Path, ports: Ports, audit: bool, more: &[String]) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        "--bind-address=127.0.0.1".to_owned(),
        // Else it looks for an address of the machine, and a machine without network has none.
        "--advertise-address=127.0.0.1".to_owned(),
        // Endpoints must not be loopback addresses; nobody in here reads those of `kubernetes`.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={}", ports.api_server),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--client-ca-file={}", ca_file(folder).display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Else it waits a minute for watches that nobody ends.
        "--shutdown-watch-termination-grace-period=1s".to_owned(),
        "--profiling=false".to_owned(),
    ];
    if audit {
        arguments.push(format!("--audit-policy-file={}", file("audit-policy.json")));
        arguments.push(format!("--audit-log-path={}", audit::log_file(folder).display()));
        // In megabytes: never rotated, so that one file has it all.
        arguments.push("--audit-log-maxsize=1000000".to_owned());
    }
    arguments.extend_from_slice(more);
    arguments
}

pub(crate) fn controller_manager(folder: &Path, kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        // As in real clusters: what a controller does shows up under the controller's own name.
        "--use-service-account-credentials=true".to_owned(),
        format!("--root-ca-file={}", ca_file(folder).display()),
        format!("--controllers={}", CONTROLLERS.join(",")),
        // At the default of 20 requests a second its own start takes two seconds longer.
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=2000".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// Everything but storage, certificates, clouds and networks of nodes.
const CONTROLLERS: [&str; 22] = [
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "replicationcontroller-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
    "taint-eviction-controller",
    "ttl-after-finished-controller",
    "validatingadmissionpolicy-status-controller",
];

pub(crate) fn scheduler(kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=2000".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

/// Without `--server-address` and `--node-port`, kwok opens no port at all.
pub(crate) fn kwok(kubeconfig: &Path, stages: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--config={}", stages.display()),
        "--manage-all-nodes=true".to_owned(),
        "--node-ip=127.0.0.1".to_owned(),
        "--node-lease-duration-seconds=40".to_owned(),
    ]
}

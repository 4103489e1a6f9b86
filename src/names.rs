//! Every name that code and manifests must agree on.
//!
//! A test (`tests/offline/manifests.rs`) renders each overlay and holds it to this file.

/// Prefix of every annotation of ours: the guard lets our `ServiceAccount` change no other.
pub const ANNOTATION_PREFIX: &str = "gitlab-runner-webhook/";

/// kubectl's copy of a whole object, data included.
pub const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Name of the Namespace, `ServiceAccount`, Deployment, Service and webhook configurations,
/// and the value of [`LABEL_MANAGED_BY`] on what this program owns.
pub const APP: &str = "gitlab-runner-webhook";

/// The common label that says who manages an object.
///
/// Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/>.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Annotation on a clone that names its source as `<namespace>/<name>`.
pub const ANNOTATION_SOURCE: &str = "gitlab-runner-webhook/source";

/// Annotation on a clone, where Deployments are restarted by its content: the `resourceVersion` that the source had when
/// the clone got the content that it has.
pub const ANNOTATION_CONTENT: &str = "gitlab-runner-webhook/content";

/// Annotation on the pods of a Deployment that is restarted: [`ANNOTATION_CONTENT`] of the clones in its namespace, in
/// the order of the configuration, with a '.' between.
pub const ANNOTATION_RESTARTED_FOR: &str = "gitlab-runner-webhook/restarted-for";

/// Types of Secrets that Kubernetes knows and nothing acts on. A clone may have one of these.
///
/// Source: <https://kubernetes.io/docs/concepts/configuration/secret/#secret-types>.
pub const HARMLESS_TYPES: [&str; 6] = [
    "Opaque",
    "kubernetes.io/dockercfg",
    "kubernetes.io/dockerconfigjson",
    "kubernetes.io/basic-auth",
    "kubernetes.io/ssh-auth",
    "kubernetes.io/tls",
];

/// Domains, with those below them, whose other types are never cloned: a controller fills such a Secret, as
/// `kubernetes.io/service-account-token`, or acts on it, as `bootstrap.kubernetes.io/token` and `helm.sh/release.v1`.
pub const RESERVED_TYPES: [&str; 3] = ["kubernetes.io", "k8s.io", "helm.sh"];

/// Prefix of the labels that Kyverno's `generate` rules put on a clone.
pub const LABEL_PREFIX_KYVERNO: &str = "generate.kyverno.io/";

/// Label on a clone of Kyverno's that names its policy.
pub const LABEL_KYVERNO_POLICY: &str = "generate.kyverno.io/policy-name";
/// Label on a clone of Kyverno's that names the namespace of its policy; empty for a `ClusterPolicy`.
pub const LABEL_KYVERNO_POLICY_NAMESPACE: &str = "generate.kyverno.io/policy-namespace";
/// The policy of Big Bang's runner package, which this program replaces.
pub const KYVERNO_POLICY: &str = "sync-gitlab-runner-secret";

/// The label that the API server itself puts on every Namespace: its name.
pub const LABEL_NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Field manager of every write to a clone.
pub const FIELD_MANAGER_CLONE: &str = "gitlab-runner-webhook-clone";

/// Field manager of what `migrate` changes: a policy that is about to go, and the metadata of clones.
pub const FIELD_MANAGER_MIGRATE: &str = "gitlab-runner-webhook-migrate";

/// `User-Agent` of every request to the API server.
pub const USER_AGENT: &str = concat!("gitlab-runner-webhook/", env!("CARGO_PKG_VERSION"));

/// Where a pod finds the name of its namespace.
///
/// Source: <https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>.
pub const FILE_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Port of the HTTPS webhook server. 10250 because managed control planes let their API server
/// reach nodes on 443 and 10250 only.
pub const PORT_WEBHOOK: u16 = 10250;
/// Port of the plain server for probes and metrics.
pub const PORT_PROBES: u16 = 8080;

/// Path of the mutating webhook for pods ("inject").
pub const PATH_MUTATE_PODS: &str = "/mutate/pods";
/// Path of the mutating webhook for namespaces (warns, never changes anything).
pub const PATH_MUTATE_NAMESPACES: &str = "/mutate/namespaces";
/// Is the process there and answering? The same answer as [`PATH_READYZ`], for people and scripts.
pub const PATH_HEALTHZ: &str = "/healthz";
/// Does the process turn? Independent of API server and certificates.
pub const PATH_LIVEZ: &str = "/livez";
/// Is every part ready to serve?
pub const PATH_READYZ: &str = "/readyz";
/// Prometheus metrics, on the plain port only.
pub const PATH_METRICS: &str = "/metrics";

/// Name of the webhook that injects certificates into pods.
pub const WEBHOOK_INJECT: &str = "inject.pods.gitlab-runner-webhook";
/// Name of the webhook that warns when a runner namespace is created without a source.
pub const WEBHOOK_NAMESPACES: &str = "warn.namespaces.gitlab-runner-webhook";

/// Volume of the client's certificate and key in manager pods.
pub const VOLUME_CERTS: &str = "gitlab-runner-webhook-certs";
/// Where they are mounted.
pub const MOUNT_CLIENT: &str = "/etc/gitlab-runner-webhook/client";
/// Where the runner chart mounts `certsSecretName` in the manager pod.
pub const MOUNT_MANAGER_CERTS: &str = "/home/gitlab-runner/.gitlab-runner/certs";
/// Where GitLab's documentation tells users to mount certificates in job pods.
pub const MOUNT_JOB_CERTS: &str = "/etc/gitlab-runner/certs";
/// Key of the CA certificates in `certsSecretName`.
pub const KEY_CA: &str = "ca.crt";
/// Key of the client certificate in `certsSecretName`.
pub const KEY_TLS_CERT: &str = "tls.crt";
/// Key of the client key in `certsSecretName`.
pub const KEY_TLS_KEY: &str = "tls.key";

/// The ConfigMap with public data that runner pods mount: the trust bundle.
pub const CONFIGMAP_TRUST: &str = "gitlab-runner-webhook-trust";
/// Key of the public roots and the private CAs in the trust bundle. The private ones alone are under [`KEY_CA`].
pub const KEY_BUNDLE: &str = "bundle.crt";
/// Key of the same certificates as a trust store for the JVM.
pub const KEY_JAVA: &str = "truststore.jks";
/// Volume of the trust bundle in runner pods.
pub const VOLUME_TRUST: &str = "gitlab-runner-webhook-trust";
/// Where the trust bundle is mounted in runner pods; in job pods at [`MOUNT_JOB_CERTS`], too.
pub const MOUNT_TRUST: &str = "/etc/gitlab-runner-webhook/trust";
/// Field manager of every write to a trust bundle.
pub const FIELD_MANAGER_TRUST: &str = "gitlab-runner-webhook-trust";
/// Label on a pod or a namespace; with value `false`, nothing is injected.
pub const LABEL_INJECT: &str = "gitlab-runner-webhook/inject";
/// Path of the validating webhook for pods ("gate").
pub const PATH_VALIDATE_PODS: &str = "/validate/pods";
/// Name of the webhook that lets a pod in when its clones are there and current.
pub const WEBHOOK_GATE: &str = "gate.pods.gitlab-runner-webhook";

/// The `ValidatingAdmissionPolicies` that guard what RBAC cannot say, and their bindings: where our `ServiceAccount` may
/// write, and what of our webhook configurations.
pub const GUARDS: [&str; 2] = ["gitlab-runner-webhook-objects", "gitlab-runner-webhook-registration"];

/// The Secret with the serving CAs, in our own namespace, unless `--ca-secret` names another.
pub const SECRET_CA: &str = "gitlab-runner-webhook-ca";
/// Field manager of every write to the CA Secret.
pub const FIELD_MANAGER_CA: &str = "gitlab-runner-webhook-ca";
/// Field manager of `caBundle` in our webhook configurations. It owns nothing for longer than a moment.
pub const FIELD_MANAGER_CA_BUNDLE: &str = "gitlab-runner-webhook-ca-bundle";

/// Field manager of [`ANNOTATION_RESTARTED_FOR`]. It owns nothing else.
pub const FIELD_MANAGER_RESTART: &str = "gitlab-runner-webhook-restart";
/// Field manager of Events.
pub const FIELD_MANAGER_EVENT: &str = "gitlab-runner-webhook-event";

/// Name of the one Event about an object of this name, so that a right can be bound to it.
pub fn event(object: &str) -> String {
    // A name has at most 253 characters.
    let mut name = format!("{APP}.{object}");
    name.truncate(253);
    while name.ends_with(['.', '-']) {
        name.pop();
    }
    name
}

/// Prefix of every metric.
pub const METRIC_PREFIX: &str = "gitlab_runner_webhook";

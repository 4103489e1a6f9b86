//! Flags: what differs from one process to the next. Each has an environment variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use rustls::pki_types::ServerName;

use super::names::{ConfigurationName, NameError, NamespaceName, SecretName, ServiceName};
use crate::names;

/// Keeps GitLab Runner's token Secret and CA certificates where its pods need them.
///
/// Clones the Secret from GitLab's namespace into each runner namespace and keeps the clone equal,
/// and serves the admission webhook that injects CA certificates into runner pods.
#[derive(Clone, Debug, Parser)]
#[command(name = names::APP, version)]
pub struct Settings {
    /// Configuration file (YAML). Without it, the defaults apply.
    #[arg(long, value_name = "FILE", env = "GITLAB_RUNNER_WEBHOOK_CONFIG")]
    pub config: Option<PathBuf>,

    /// Kubeconfig file. Without it: the pod's service account, else ~/.kube/config.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Address of the HTTPS webhook server.
    #[arg(long, value_name = "ADDRESS", env = "GITLAB_RUNNER_WEBHOOK_LISTEN",
          default_value_t = SocketAddr::from(([0; 16], names::PORT_WEBHOOK)))]
    pub listen: SocketAddr,

    /// Address of the plain HTTP server for probes and metrics.
    #[arg(long, value_name = "ADDRESS", env = "GITLAB_RUNNER_WEBHOOK_PROBE_LISTEN",
          default_value_t = SocketAddr::from(([0; 16], names::PORT_PROBES)))]
    pub probe_listen: SocketAddr,

    /// Where the serving certificate comes from: this program's own CA, or files that somebody else writes.
    #[arg(long, value_enum, env = "GITLAB_RUNNER_WEBHOOK_TLS", default_value_t)]
    pub tls: TlsMode,

    /// With self-managed: a further DNS name or address in the serving certificate. Once for each.
    #[arg(long, value_name = "NAME", env = "GITLAB_RUNNER_WEBHOOK_TLS_SAN", value_delimiter = ',', value_parser = san)]
    pub tls_san: Vec<String>,

    /// With self-managed: Secret with the serving CA, shared by all replicas.
    #[arg(long, value_name = "NAME", env = "GITLAB_RUNNER_WEBHOOK_CA_SECRET", default_value = names::SECRET_CA)]
    pub ca_secret: SecretName,

    /// With self-managed: name of both webhook configurations, whose caBundle is kept.
    #[arg(long, value_name = "NAME", env = "GITLAB_RUNNER_WEBHOOK_WEBHOOK_CONFIGURATION", default_value = names::APP)]
    pub webhook_configuration: ConfigurationName,

    /// With self-managed: how long a CA lives: 300s, 12h, 365d. The next one is made after two thirds of that.
    #[arg(long, value_name = "DURATION", env = "GITLAB_RUNNER_WEBHOOK_CA_LIFETIME",
          default_value = "365d", value_parser = duration)]
    pub ca_lifetime: Duration,

    /// With self-managed: how long a serving certificate lives. It is renewed after two thirds of that.
    #[arg(long, value_name = "DURATION", env = "GITLAB_RUNNER_WEBHOOK_LEAF_LIFETIME",
          default_value = "7d", value_parser = duration)]
    pub leaf_lifetime: Duration,

    /// With self-managed: how long a new CA is in caBundle before it is used; every API server must have seen it.
    #[arg(long, value_name = "DURATION", env = "GITLAB_RUNNER_WEBHOOK_CA_PROPAGATION",
          default_value = "60s", value_parser = duration)]
    pub ca_propagation: Duration,

    /// With files: serving certificate chain (PEM). Read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "GITLAB_RUNNER_WEBHOOK_TLS_CERT",
        default_value = "/etc/gitlab-runner-webhook/tls/tls.crt"
    )]
    pub tls_cert: PathBuf,

    /// With files: private key of the serving certificate (PEM).
    #[arg(
        long,
        value_name = "FILE",
        env = "GITLAB_RUNNER_WEBHOOK_TLS_KEY",
        default_value = "/etc/gitlab-runner-webhook/tls/tls.key"
    )]
    pub tls_key: PathBuf,

    /// How often the files of --tls files and --client-ca are looked at.
    #[arg(long, value_name = "SECONDS", env = "GITLAB_RUNNER_WEBHOOK_TLS_RELOAD",
          default_value = "10", value_parser = seconds)]
    pub tls_reload: Duration,

    /// CA of the client certificates (PEM) without which nobody may call the webhook, for API servers that show one. Read
    /// again when it changes. Without it, whoever reaches the port may call.
    #[arg(long, value_name = "FILE", env = "GITLAB_RUNNER_WEBHOOK_CLIENT_CA")]
    pub client_ca: Option<PathBuf>,

    /// How long one watch lasts before it is opened anew; a silent one is noticed 5 s later.
    #[arg(long, value_name = "SECONDS", env = "GITLAB_RUNNER_WEBHOOK_WATCH_TIMEOUT",
          default_value = "60", value_parser = seconds)]
    pub watch_timeout: Duration,

    /// Namespace of the program itself. Without it: that of the pod's service account, else gitlab-runner-webhook.
    #[arg(long, value_name = "NAME", env = "GITLAB_RUNNER_WEBHOOK_NAMESPACE")]
    pub namespace: Option<NamespaceName>,

    /// Service through which the API server reaches the webhook.
    #[arg(long, value_name = "NAME", env = "GITLAB_RUNNER_WEBHOOK_SERVICE", default_value = names::APP)]
    pub service: ServiceName,

    /// Name of the pod, which Events give as their reporter.
    #[arg(long, value_name = "NAME", env = "GITLAB_RUNNER_WEBHOOK_POD_NAME")]
    pub pod_name: Option<String>,

    /// Label pod-template-hash of the pod, by which a replica knows its revision. Without it, it always writes.
    #[arg(long, value_name = "HASH", env = "GITLAB_RUNNER_WEBHOOK_POD_TEMPLATE_HASH")]
    pub pod_template_hash: Option<String>,

    /// How long an object of ours stays in a namespace that is not selected, unless this process saw it leave the
    /// selection. Longer than a rollout takes.
    #[arg(long, value_name = "SECONDS", env = "GITLAB_RUNNER_WEBHOOK_CLEANUP_DELAY",
          default_value = "120", value_parser = seconds)]
    pub cleanup_delay: Duration,

    /// How long reviews are still answered after SIGTERM; longer than a node takes to learn that the pod ends. 0 ends at once.
    #[arg(long, value_name = "SECONDS", env = "GITLAB_RUNNER_WEBHOOK_DRAIN",
          default_value = "20", value_parser = seconds_or_none)]
    pub drain: Duration,

    /// Format of log lines. `auto`: text on a terminal, JSON elsewhere.
    #[arg(long, value_enum, env = "GITLAB_RUNNER_WEBHOOK_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,

    /// Least severe level that is logged: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "GITLAB_RUNNER_WEBHOOK_LOG_LEVEL", default_value = "info")]
    pub log_level: tracing::Level,

    /// File with another level, followed while the process runs; while it is not there, --log-level counts.
    #[arg(long, value_name = "FILE", env = "GITLAB_RUNNER_WEBHOOK_LOG_LEVEL_FILE")]
    pub log_level_file: Option<PathBuf>,
}

/// Where the serving certificate comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// A CA of our own in a Secret, published in caBundle and rotated.
    #[default]
    SelfManaged,
    /// `--tls-cert` and `--tls-key`.
    Files,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A whole number with a unit. A certificate's life is hours and days, in tests seconds.
fn duration(value: &str) -> Result<Duration, String> {
    let expected = || "expected a whole number, 1 or more, with a unit: 90s, 10m, 12h, 365d".to_owned();
    let (number, unit) = value.split_at_checked(value.len().saturating_sub(1)).ok_or_else(expected)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    match number.parse::<u32>() {
        Ok(number) if number >= 1 => Ok(Duration::from_secs(u64::from(number) * unit)),
        _ => Err(expected()),
    }
}

/// An IP address, or a DNS name, lest a certificate cannot be issued.
fn san(value: &str) -> Result<String, String> {
    match ServerName::try_from(value) {
        Ok(_) => Ok(value.to_owned()),
        Err(_) => Err("expected a DNS name or an IP address".to_owned()),
    }
}

impl Settings {
    /// The namespace of the program itself.
    ///
    /// Kubernetes writes it beside the token of the pod's service account:
    /// <https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>.
    ///
    /// # Errors
    /// What is written there is no name.
    pub fn own_namespace(&self) -> Result<NamespaceName, NameError> {
        if let Some(namespace) = &self.namespace {
            return Ok(namespace.clone());
        }
        let written = std::fs::read_to_string(names::FILE_NAMESPACE);
        written.as_deref().map_or(names::APP, str::trim).parse()
    }
}

fn seconds_or_none(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<u32>().map(|seconds| Duration::from_secs(seconds.into()));
    seconds.map_err(|_| "expected a whole number of seconds".to_owned())
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<u32>() {
        Ok(seconds) if seconds >= 1 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("expected a whole number of seconds, 1 or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_parser_is_consistent_and_every_flag_has_an_environment_variable() {
        let command = Settings::command();
        command.clone().debug_assert();
        for argument in
            command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            assert!(argument.get_env().is_some(), "{}", argument.get_id());
        }
    }

    #[test]
    fn defaults() {
        let settings = Settings::try_parse_from(["x"]).unwrap();
        assert_eq!(settings.listen.to_string(), "[::]:10250");
        assert_eq!(settings.watch_timeout, Duration::from_mins(1));
    }

    #[test]
    fn lifetimes_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("12h", 43_200), ("365d", 31_536_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "s", "5", "0d", "-1d", "1.5h", "1w", "1 d", "99999999999d", "5ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_own_namespace_is_what_was_said_or_what_the_manifests_have() {
        let of = |arguments: &[&str]| Settings::try_parse_from(arguments).unwrap().own_namespace().unwrap();
        assert_eq!(of(&["x", "--namespace", "elsewhere"]).as_str(), "elsewhere");
        assert_eq!(of(&["x"]).as_str(), "gitlab-runner-webhook");
        assert!(Settings::try_parse_from(["x", "--namespace", "Else/where"]).is_err());
    }

    #[test]
    fn durations_are_whole_seconds() {
        for bad in ["0", "-1", "1.5", "1m", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
            assert_eq!(seconds_or_none(bad).is_err(), bad != "0", "{bad}");
        }
    }
}

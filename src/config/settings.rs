//! Flags: what differs from one process to the next. Each has an environment variable.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

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

    /// Serving certificate chain (PEM). Read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "GITLAB_RUNNER_WEBHOOK_TLS_CERT",
        default_value = "/etc/gitlab-runner-webhook/tls/tls.crt"
    )]
    pub tls_cert: PathBuf,

    /// Private key of the serving certificate (PEM).
    #[arg(
        long,
        value_name = "FILE",
        env = "GITLAB_RUNNER_WEBHOOK_TLS_KEY",
        default_value = "/etc/gitlab-runner-webhook/tls/tls.key"
    )]
    pub tls_key: PathBuf,

    /// How often the certificate files are looked at.
    #[arg(long, value_name = "SECONDS", env = "GITLAB_RUNNER_WEBHOOK_TLS_RELOAD",
          default_value = "10", value_parser = seconds)]
    pub tls_reload: Duration,

    /// How long one watch lasts before it is opened anew; a silent one is noticed 5 s later.
    #[arg(long, value_name = "SECONDS", env = "GITLAB_RUNNER_WEBHOOK_WATCH_TIMEOUT",
          default_value = "60", value_parser = seconds)]
    pub watch_timeout: Duration,

    /// Format of log lines. `auto`: text on a terminal, JSON elsewhere.
    #[arg(long, value_enum, env = "GITLAB_RUNNER_WEBHOOK_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,

    /// Least severe level that is logged: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", env = "GITLAB_RUNNER_WEBHOOK_LOG_LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
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
    fn durations_are_whole_seconds() {
        for bad in ["0", "-1", "1.5", "1m", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

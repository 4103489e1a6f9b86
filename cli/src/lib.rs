//! What the binary can be asked for: to serve, which is the default and done by crate `gitlab_runner_webhook`, or one of the
//! commands.
//!
//! | module | what it is |
//! |---|---|
//! | [`check`] | looks at an installation and says what is wrong with it |
//! | [`migrate`] | moves a cluster off the Kyverno policy; nothing else knows it |
//! | [`manifests`] | rights, guards and webhooks that follow from a configuration |
//! | [`drift`] | whether webhooks, guards and rights in a cluster follow from the configuration |

pub mod check;
pub mod drift;
mod installed;
mod json;
pub mod manifests;
pub mod migrate;
mod rollout;
mod terminal;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use gitlab_runner_webhook::{
    cluster::{ConnectError, connect_as_caller},
    config::Settings,
    names,
};
use kube::Client;

/// Keeps GitLab Runner's token Secret and CA certificates where its pods need them.
///
/// Without a command it serves: it clones the Secret into each runner namespace and keeps the clone equal to its
/// source, and answers the admission webhooks that let in and equip runner pods.
#[derive(Clone, Debug, Parser)]
#[command(name = names::APP, version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// How to serve, when there is no command.
    #[command(flatten)]
    pub settings: Settings,

    /// What to do instead.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// As whom a command asks the API server, and which.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// Kubeconfig file. Without it: KUBECONFIG, ~/.kube/config, else the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig. Without it: the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl Connection {
    /// A client, and the address of the API server. Each request ends within `deadline`.
    async fn connect(&self, deadline: Duration) -> Result<(Client, String), ConnectError> {
        connect_as_caller(self.kubeconfig.as_deref(), self.context.as_deref(), deadline).await
    }
}

/// What can be done instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at an installation and report what is wrong with it, the impact and the fix. Writes nothing.
    Check(check::Arguments),
    /// Write the manifests that follow from a configuration: rights, guard, webhooks.
    Manifests(manifests::Arguments),
    /// Move from the Kyverno policy to this program, with no moment without the clone.
    Migrate(Box<migrate::Arguments>),
}

impl Command {
    /// Does it, and gives the exit code.
    ///
    /// # Errors
    /// As that command has it.
    pub fn run(&self) -> anyhow::Result<u8> {
        match self {
            Self::Check(arguments) => check::run(arguments),
            Self::Manifests(arguments) => manifests::run(arguments).map(|()| 0),
            Self::Migrate(arguments) => migrate::run(arguments).map(|()| 0),
        }
    }

    /// The exit code of an error. Of `check`, 1 is for a cluster with a fault, so it is 2, as for bad usage.
    pub fn failure(&self) -> u8 {
        if matches!(self, Self::Check(_)) { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn without_a_command_it_serves_and_flags_are_as_ever() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["x", "--watch-timeout", "7"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.settings.watch_timeout.as_secs(), 7);
        assert!(Cli::try_parse_from(["x", "manifests"]).is_err(), "--config is needed");
        let cli = Cli::try_parse_from(["x", "manifests", "--config", "f"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Manifests(_))));
        let cli = Cli::try_parse_from(["x", "check", "--timeout", "1", "--output", "json"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Check(_))));
        assert!(Cli::try_parse_from(["x", "check", "--timeout", "0"]).is_err());
    }
}

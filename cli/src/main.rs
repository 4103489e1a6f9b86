//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use gitlab_runner_webhook::{
    config::Settings,
    run,
    telemetry::logs::{self, LogLevel},
};
use gitlab_runner_webhook_cli::{self as cli, Cli, Command};

/// Enough for a loop that waits and handlers that take microseconds, on a node of any size.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let Cli { settings, command } = Cli::parse();
    let level = logs::init(settings.log_format, settings.log_level);
    let outcome = match command {
        None => serve(settings, level).map(|()| ExitCode::SUCCESS),
        Some(Command::Check(arguments)) => return check(&arguments),
        Some(Command::Manifests(arguments)) => cli::manifests::run(&arguments).map(|()| ExitCode::SUCCESS),
        Some(Command::Migrate(arguments)) => cli::migrate::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// 2 is also what bad usage ends with: 1 is for a cluster with a fault.
fn check(arguments: &cli::check::Arguments) -> ExitCode {
    match cli::check::run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn serve(settings: Settings, level: LogLevel) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    if let Some(file) = settings.log_level_file.clone() {
        runtime.spawn(async move { level.follow(&file).await });
    }
    runtime.block_on(run::run(settings))
}

//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use gitlab_runner_webhook::{
    config::Settings,
    run,
    telemetry::logs::{self, LogLevel},
};
use gitlab_runner_webhook_cli::{Cli, Command};

/// Enough for a loop that waits and handlers that take microseconds, on a node of any size.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let Cli { settings, command } = Cli::parse();
    let level = logs::init(settings.log_format, settings.log_level);
    let failure = command.as_ref().map_or(1, Command::failure);
    let outcome = match command {
        None => serve(settings, level).map(|()| 0),
        Some(command) => command.run(),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        failure
    }))
}

fn serve(settings: Settings, level: LogLevel) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    if let Some(file) = settings.log_level_file.clone() {
        runtime.spawn(async move { level.follow(&file).await });
    }
    runtime.block_on(run::run(settings))
}

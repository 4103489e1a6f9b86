//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use gitlab_runner_webhook::{config::Settings, run, telemetry::logs};

/// Enough for a loop that waits and handlers that take microseconds, on a node of any size.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let settings = Settings::parse();
    logs::init(settings.log_format, settings.log_level);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    tracing::error!("{error:#}");
    ExitCode::FAILURE
}

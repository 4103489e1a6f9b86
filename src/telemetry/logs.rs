//! Logs: JSON in a cluster, text on a terminal.

use std::{
    fs,
    io::{ErrorKind, IsTerminal as _},
    path::Path,
    time::Duration,
};

use tracing::{Level, Subscriber, info, warn};
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::config::LogFormat;

/// How often the file with the level is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The level of the log while the process runs.
#[derive(Clone)]
pub struct LogLevel {
    handle: reload::Handle<Targets, Registry>,
    /// As it was given at start.
    usual: Level,
}

/// Starts logging to standard error. A second call has no effect.
pub fn init(format: LogFormat, level: Level) -> LogLevel {
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let (filter, handle) = reload::Layer::new(targets(level));
    let _ = tracing_subscriber::registry().with(lines(json).with_filter(filter)).try_init();
    LogLevel { handle, usual: level }
}

impl LogLevel {
    /// Follows what the file says, for ever: one word, such as `debug`. While it is not there, the level is the usual
    /// one. Kubelet writes the file from a ConfigMap, a minute or so after that was changed.
    pub async fn follow(self, file: &Path) {
        let mut known = None;
        loop {
            let found = match fs::read_to_string(file) {
                Ok(text) => Some(text.trim().to_owned()),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => Some(error.to_string()),
            };
            if found != known {
                self.take(found.as_deref(), file);
                known = found;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn take(&self, word: Option<&str>, file: &Path) {
        let Ok(level) = word.map_or(Ok(self.usual), str::parse::<Level>) else {
            warn!(file = %file.display(), "the log level stays: expected error, warn, info, debug or trace in the file");
            return;
        };
        let _ = self.handle.reload(targets(level));
        info!(log_level = %level, "log level");
    }
}

fn lines<S>(json: bool) -> Box<dyn tracing_subscriber::Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    if json {
        fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed()
    } else {
        fmt::layer().with_target(false).with_writer(std::io::stderr).boxed()
    }
}

/// Only our own lines follow the level. The kube client logs whole response bodies, Secrets too,
/// when one does not parse (`kube-client` 5.0 `client/mod.rs`, `request`), and its watcher logs
/// each failure that we report ourselves: at no level do they get a word.
fn targets(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::ERROR.min(level.into()))
        .with_target("gitlab_runner_webhook", level)
        .with_target("kube", LevelFilter::OFF)
        .with_target("kube_client", LevelFilter::OFF)
        .with_target("kube_core", LevelFilter::OFF)
        .with_target("kube_runtime", LevelFilter::OFF)
        .with_target("hyper", LevelFilter::OFF)
        .with_target("rustls", LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kube_client_is_silent_at_every_level() {
        for level in [Level::ERROR, Level::INFO, Level::TRACE] {
            let targets = targets(level);
            assert!(targets.would_enable("gitlab_runner_webhook::sync", &level));
            assert!(!targets.would_enable("kube_client::client", &Level::ERROR));
            assert!(!targets.would_enable("kube_runtime::watcher", &Level::WARN));
        }
    }
}

//! Logs: JSON in a cluster, text on a terminal.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::config::LogFormat;

/// Starts logging to standard error. A second call has no effect.
pub fn init(format: LogFormat, level: Level) {
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let layer = if json {
        fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed()
    } else {
        fmt::layer().with_target(false).with_writer(std::io::stderr).boxed()
    };
    let _ = tracing_subscriber::registry().with(layer.with_filter(targets(level))).try_init();
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

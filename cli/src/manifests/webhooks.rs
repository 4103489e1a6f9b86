//! The webhook configurations. PURE.

use gitlab_runner_webhook::{
    config::Config,
    names::{WEBHOOK_GATE, WEBHOOK_INJECT, WEBHOOK_NAMESPACES},
};

use super::{
    header, selectors,
    text::{cel_list, fill},
};

const INJECT: &str = include_str!("templates/webhook-inject.yaml");
const WARN: &str = include_str!("templates/webhook-warn.yaml");
const GATE: &str = include_str!("templates/webhook-gate.yaml");

pub(super) fn configurations(config: &Config) -> String {
    let clones = cel_list(config.clones.iter().map(|clone| clone.secret.as_str()));
    let list = |webhooks: &[(&str, &str)]| {
        list(webhooks.iter().flat_map(|(name, template)| {
            entries(config, name).into_iter().enumerate().map(|(index, namespaces)| {
                let values =
                    [("name", entry_name(name, index)), ("namespaces", namespaces), ("clones", clones.clone())];
                fill(template, &values)
            })
        }))
    };
    let mutating = [(WEBHOOK_INJECT, INJECT), (WEBHOOK_NAMESPACES, WARN)];
    let validating = [(WEBHOOK_GATE, GATE)];
    let values = [
        header(),
        ("mutating", list(if injects(config) { &mutating } else { &mutating[1..] })),
        ("validating", list(if gates(config) { &validating } else { &[] })),
    ];
    fill(include_str!("templates/webhooks.yaml"), &values)
}

/// The patch that makes inject and gate fail open.
pub(super) fn fail_open(config: &Config) -> String {
    let list = |wanted: bool, name: &str| {
        let entries = if wanted { 0..entries(config, name).len() } else { 0..0 };
        list(entries.map(|index| format!("  - name: {}\n    failurePolicy: Ignore\n", entry_name(name, index))))
    };
    let values = [
        header(),
        ("mutating", list(injects(config), WEBHOOK_INJECT)),
        ("validating", list(gates(config), WEBHOOK_GATE)),
    ];
    fill(include_str!("templates/fail-open-webhooks.yaml"), &values)
}

/// The namespaces of a webhook: certificates are injected in trust namespaces, too.
fn entries(config: &Config, webhook: &str) -> Vec<String> {
    let mut entries = selectors::entries(&config.runner_namespaces);
    if webhook == WEBHOOK_INJECT {
        entries.extend(selectors::entries(&config.trust_namespaces));
    }
    entries
}

fn injects(config: &Config) -> bool {
    config.inject.manager || config.inject.jobs || config.inject.services
}

fn gates(config: &Config) -> bool {
    !config.gate.give_up_after.is_zero()
}

/// The entries of one webhook: `inject.pods...`, `inject-2.pods...`, `inject-3.pods...`
fn entry_name(webhook: &str, index: usize) -> String {
    match webhook.split_once('.') {
        Some((what, rest)) if index > 0 => format!("{what}-{}.{rest}", index + 1),
        _ => webhook.to_owned(),
    }
}

/// A list under a key: its entries, each a block of its own. Written out when empty, so that an `apply` empties it.
fn list(entries: impl Iterator<Item = String>) -> String {
    let entries: String = entries.collect();
    if entries.is_empty() { " []".to_owned() } else { format!("\n{}", entries.trim_end_matches('\n')) }
}

//! The policy that binds writes to runner namespaces. PURE.

use std::collections::BTreeSet;

use super::{
    header, selectors,
    text::{cel_list, fill},
};
use crate::config::Config;

pub(super) fn policy(config: &Config) -> String {
    let sources: BTreeSet<_> = config.clones.iter().map(|clone| clone.from.as_str()).collect();
    let by_label = !config.runner_namespaces.selectors.is_empty();
    let labels = if by_label { include_str!("templates/guard-labels.yaml") } else { "" };
    let (deployments, annotation) = if config.restart.is_empty() {
        ("", "")
    } else {
        (include_str!("templates/guard-deployments.yaml"), include_str!("templates/guard-annotation.yaml"))
    };
    fill(
        include_str!("templates/guard.yaml"),
        &[
            header(),
            ("labels", labels.to_owned()),
            ("deployments", deployments.to_owned()),
            ("annotation", annotation.to_owned()),
            ("runner_namespaces", selectors::condition(&config.runner_namespaces)),
            ("sources", cel_list(sources)),
        ],
    )
}

//! From a configuration file to manifests: what is accepted can be rendered, and says the same again.

use gitlab_runner_webhook::config::Config;
use gitlab_runner_webhook_cli::manifests;
use serde_json::Value;

/// Reads these bytes as a configuration file.
pub fn check(bytes: &[u8]) {
    let Ok(yaml) = std::str::from_utf8(bytes) else { return };
    match Config::from_yaml(yaml) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(config) => {
            for file in manifests::render(&config, yaml) {
                if file.path == "config.yaml" {
                    continue;
                }
                for document in file.content.split("\n---\n").filter(|document| !is_blank(document)) {
                    let parsed: Result<Value, _> = serde_saphyr::from_str(document);
                    assert!(parsed.is_ok(), "{} is no YAML: {:?}\n{document}", file.path, parsed.err());
                }
            }
        }
    }
}

fn is_blank(document: &str) -> bool {
    document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

//! `gitlab-runner-webhook manifests`: what it writes where, and what it refuses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;
use test_support::{documents, repository};

use crate::BINARY;

const BY_LABEL: &str = "runnerNamespaces: {names: [], selectors: [{matchLabels: {runner: 'yes'}}]}\n";

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command for this configuration.
    fn run(&self, config: &str, output: Option<&Path>) -> Output {
        let file = self.path("my.yaml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(BINARY);
        command.env_clear().args(["manifests", "--config"]).arg(file);
        if let Some(output) = output {
            command.arg("--output").arg(output);
        }
        command.output().unwrap()
    }

    fn writes(&self, config: &str, output: &Path) {
        let answer = self.run(config, Some(output));
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        assert!(answer.stdout.is_empty() && answer.stderr.is_empty(), "{answer:?}");
    }

    fn refuses(&self, config: &str, output: Option<&Path>, words: &[&str]) {
        let answer = self.run(config, output);
        let text = String::from_utf8(answer.stderr).unwrap();
        assert_eq!(answer.status.code(), Some(1), "{text}");
        assert!(answer.stdout.is_empty());
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
    }
}

#[test]
fn it_prints_the_objects_or_writes_the_folder() {
    let fixture = Fixture::new();
    let printed = fixture.run("", None);
    assert!(printed.status.success());
    let kinds: Vec<_> = documents(&String::from_utf8(printed.stdout).unwrap())
        .iter()
        .map(|object| object["kind"].to_string())
        .collect();
    let expected = [
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    ];
    assert_eq!(kinds, expected.map(|kind| format!("{kind:?}")));

    let folder = fixture.path("new/folder");
    let config = fs::read_to_string(repository().join("manifests/generated/config.yaml")).unwrap();
    fixture.writes(&config, &folder);
    let same =
        Command::new("diff").arg("-r").arg(&folder).arg(repository().join("manifests/generated")).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
}

#[test]
fn a_folder_is_written_again_without_what_is_not_true_any_more() {
    let fixture = Fixture::new();
    let folder = fixture.path("generated");
    fixture.writes("", &folder);
    fs::write(folder.join("namespaced-rbac/mine.yaml"), "").unwrap();
    fixture.writes(BY_LABEL, &folder);
    assert!(!folder.join("namespaced-rbac/roles.yaml").exists(), "no Role can be where a label will be");
    assert!(folder.join("namespaced-rbac/mine.yaml").exists(), "what others put there stays");
    fs::remove_file(folder.join("namespaced-rbac/mine.yaml")).unwrap();
    fixture.writes("", &folder);
    fixture.writes(BY_LABEL, &folder);
    assert!(!folder.join("namespaced-rbac").exists());
    assert_eq!(fs::read_to_string(folder.join("config.yaml")).unwrap(), BY_LABEL);
}

#[test]
fn what_somebody_else_wrote_is_not_overwritten() {
    let fixture = Fixture::new();
    let folder = fixture.path("mine");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("kustomization.yaml"), "resources: [a.yaml]\n").unwrap();
    fixture.refuses("", Some(&folder), &["mine/kustomization.yaml", "--output"]);
    assert_eq!(fs::read_to_string(folder.join("kustomization.yaml")).unwrap(), "resources: [a.yaml]\n");
    assert!(!folder.join("rbac.yaml").exists());
    fixture.refuses("", Some(&fixture.path("my.yaml/below")), &["my.yaml/below", "--output"]);
}

#[test]
fn a_bad_configuration_is_told_as_the_server_tells_it() {
    let fixture = Fixture::new();
    let folder = fixture.path("generated");
    for (config, words) in [
        ("runnerNamespace: {}", ["my.yaml", "runnerNamespace"]),
        ("clones: [{secret: s, from: gitlab-runner}]", ["clones[0].from", "own clone"]),
        ("runnerNamespaces: {selectors: [{}]}", ["selectors[0]", "every namespace"]),
    ] {
        fixture.refuses(config, Some(&folder), &words);
    }
    assert!(!folder.exists());
    let usage = Command::new(BINARY).env_clear().arg("manifests").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&usage.stderr).contains("--config"));
}

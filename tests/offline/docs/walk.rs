//! What a page tells its reader to type works as it stands.

use std::{env, fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::Value;
use test_support::{
    Manifests,
    control_plane::{Binaries, Component},
    repository,
};

use crate::BINARY;
use crate::docs::page;

/// The shell block that follows a mark.
fn block(path: &str, mark: &str) -> String {
    let page = page::named(path);
    let (_, rest) = page
        .text
        .split_once(&format!("<!-- tested: {mark} -->\n```sh\n"))
        .unwrap_or_else(|| panic!("{path}: no shell block after the mark {mark:?}"));
    rest.split_once("\n```").unwrap().0.to_owned()
}

/// Runs it in a copy of the repository's manifests, with kubectl and our program on the search path.
fn run(script: &str, folder: &Path) {
    let binaries = Binaries::find(&[Component::Kubectl]).unwrap();
    let program = Path::new(BINARY);
    let tools = [binaries.path(Component::Kubectl).unwrap().parent().unwrap(), program.parent().unwrap()];
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(tools.map(Path::to_owned).into_iter().chain(env::split_paths(&path))).unwrap();
    symlink(repository().join("manifests"), folder.join("manifests")).unwrap();
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env("PATH", path)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn an_overlay_made_as_the_page_says_has_the_runner_namespaces_of_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    run(&block("docs/install.md", "own overlay"), folder.path());
    let objects = Manifests::build(&folder.path().join("my-cluster")).unwrap().objects;

    let role = find(&objects, "ClusterRole", "gitlab-runner-webhook").to_string();
    assert!(role.contains("\"registry-credentials\"") && role.contains("\"gitlab-gitlab-runner-secret\""), "{role}");
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let webhooks = find(&objects, kind, "gitlab-runner-webhook").to_string();
        assert!(
            webhooks.contains("\"gitlab-runner-gpu\"") && webhooks.contains("example.com/gitlab-runner"),
            "{webhooks}"
        );
        assert!(!webhooks.contains("caBundle"), "{webhooks}");
    }
    let deployment = find(&objects, "Deployment", "gitlab-runner-webhook");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap();
    assert!(image.starts_with("registry.example.com/gitlab-runner-webhook"), "{image}");
}

#[test]
fn no_page_that_is_applied_as_it_stands_sets_a_ca_bundle() {
    let objects = Manifests::render("overlays/default").objects;
    let registrations: Vec<_> = objects.iter().filter(|object| object.get("webhooks").is_some()).collect();
    assert_eq!(registrations.len(), 2);
    for object in registrations {
        assert!(!object.to_string().contains("caBundle"), "docs/install.md promises that none is rendered");
    }
    assert!(fs::read_to_string(repository().join("docs/install.md")).unwrap().contains("caBundle"));
}

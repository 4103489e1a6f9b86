//! The shipped manifests, rendered by kubectl as users render them.

use std::path::{Path, PathBuf};

use control_plane::ControlPlane;
use serde_json::{Value, json};

/// The objects of one rendered kustomization.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The objects, in the order in which they are applied.
    pub objects: Vec<Value>,
}

impl Manifests {
    /// Renders `manifests/<path>`.
    pub async fn render(plane: &ControlPlane, path: &str) -> Self {
        let folder = repository().join("manifests").join(path);
        let folder = folder.to_str().expect("a path of UTF-8");
        let yaml = plane.kubectl(&["kustomize", folder]).await.expect("kubectl renders the overlay");
        Self { objects: documents(&yaml) }
    }

    /// Without the objects of these kinds.
    #[must_use]
    pub fn without(mut self, kinds: &[&str]) -> Self {
        self.objects.retain(|object| !kinds.iter().any(|kind| object["kind"] == *kind));
        self
    }

    /// Points each webhook at the program on this loopback port and gives it the CA.
    ///
    /// This is all in which a test's installation differs from `overlays/local`.
    #[must_use]
    pub fn reached_at(self, port: u16, ca_pem: &str) -> Self {
        let mut manifests = self.reached_at_port(port);
        for webhook in manifests.webhooks() {
            webhook["clientConfig"]["caBundle"] =
                serde_json::to_value(k8s_openapi::ByteString(ca_pem.into())).expect("a string");
        }
        manifests
    }

    /// Points each webhook at the program on this loopback port; the CA is the program's own affair.
    #[must_use]
    pub fn reached_at_port(mut self, port: u16) -> Self {
        for webhook in self.webhooks() {
            let client = &mut webhook["clientConfig"];
            let url = client["url"].as_str().expect("overlays/local reaches the webhook at a URL");
            client["url"] = json!(url.replace("127.0.0.1:10250", &format!("127.0.0.1:{port}")));
        }
        self
    }

    /// Gives every webhook this failure policy.
    #[must_use]
    pub fn failing(mut self, policy: &str) -> Self {
        for webhook in self.webhooks() {
            webhook["failurePolicy"] = json!(policy);
        }
        self
    }

    /// Gives the shipped roles the names of another configuration: each rule stays name-bound.
    ///
    /// `secrets` replaces the cloned name, `namespaces` the runner namespaces; no namespaces means
    /// that they are found by label, which RBAC cannot bind to names.
    #[must_use]
    pub fn for_names(mut self, secrets: &[&str], namespaces: &[&str]) -> Self {
        for rule in self.objects.iter_mut().filter_map(|object| object.get_mut("rules")?.as_array_mut()).flatten() {
            let Some(names) = rule.get_mut("resourceNames") else { continue };
            if names == &json!(["gitlab-gitlab-runner-secret"]) {
                *names = json!(secrets);
            } else if names == &json!(["gitlab-runner"]) && namespaces.is_empty() {
                rule.as_object_mut().expect("a rule").remove("resourceNames");
            } else if names == &json!(["gitlab-runner"]) {
                *names = json!(namespaces);
            }
        }
        self
    }

    fn webhooks(&mut self) -> impl Iterator<Item = &mut Value> {
        self.objects.iter_mut().filter_map(|object| object.get_mut("webhooks")?.as_array_mut()).flatten()
    }

    /// Applies them, in order.
    pub async fn apply(&self, plane: &ControlPlane) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": self.objects});
        plane
            .kubectl_with_stdin(&["apply", "--server-side", "--field-manager=installer", "-f", "-"], &list.to_string())
            .await
            .expect("the manifests apply");
    }
}

/// The objects of a file under `tests/fixtures`.
///
/// # Panics
/// When there is no such file, or it is not YAML.
pub fn fixture(path: &str) -> Vec<Value> {
    let path = repository().join("tests/fixtures").join(path);
    let yaml = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    documents(&yaml)
}

/// The top of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("tests/support is in the repository")
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("\n---").map(str::trim).filter(|document| !document.is_empty());
    documents.map(|document| serde_saphyr::from_str(document).expect("rendered YAML parses")).collect()
}

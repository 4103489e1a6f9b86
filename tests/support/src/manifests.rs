//! The shipped manifests, rendered by kubectl as users render them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use control_plane::{Binaries, Component, ControlPlane};
use gitlab_runner_webhook::config::Config;
use gitlab_runner_webhook_cli::manifests;
use serde_json::{Value, json};

use crate::wait;

/// The objects of one rendered kustomization.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifests {
    /// The objects, in the order in which they are applied.
    pub objects: Vec<Value>,
}

impl Manifests {
    /// Renders `manifests/<path>`.
    pub fn render(path: &str) -> Self {
        Self::build(&repository().join("manifests").join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Renders a folder.
    ///
    /// # Errors
    /// What kustomize has against it.
    ///
    /// # Panics
    /// When there is no kubectl, and none can be built.
    pub fn build(folder: &Path) -> Result<Self, String> {
        let binaries = Binaries::find(&[Component::Kubectl]).unwrap_or_else(|error| panic!("{error}"));
        let mut kubectl = Command::new(binaries.path(Component::Kubectl).expect("kubectl, as asked for"));
        let output = kubectl.arg("kustomize").arg(folder).env_remove("KUBECONFIG").output().expect("kubectl runs");
        if output.status.success() {
            Ok(Self { objects: documents(&String::from_utf8_lossy(&output.stdout)) })
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Renders an overlay that lists these folders and components of `manifests/`.
    ///
    /// # Errors
    /// As [`Manifests::build`].
    ///
    /// # Panics
    /// When no folder can be made for it.
    pub fn combine(resources: &[&str], components: &[&str]) -> Result<Self, String> {
        // kustomize wants relative paths, and the temporary folder may be anywhere.
        let folder = std::env::temp_dir().join(format!("overlay-{}-{}", std::process::id(), wait::unique()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        std::os::unix::fs::symlink(repository().join("manifests"), folder.join("manifests")).expect("a link");
        let below = |paths: &[&str]| paths.iter().map(|path| format!("manifests/{path}")).collect::<Vec<_>>();
        let overlay = json!({"resources": below(resources), "components": below(components)});
        std::fs::write(folder.join("kustomization.yaml"), overlay.to_string()).expect("a file");
        let built = Self::build(&folder);
        let _ = std::fs::remove_dir_all(&folder);
        built
    }

    /// With what `gitlab-runner-webhook manifests` writes for this configuration, in the place of what is shipped.
    #[must_use]
    pub fn configured(mut self, yaml: &str) -> Self {
        let config = Config::from_yaml(yaml).expect("a configuration");
        for file in manifests::render(&config, yaml) {
            if !["rbac.yaml", "guard.yaml", "webhooks.yaml"].contains(&file.path) {
                continue;
            }
            for object in documents(&file.content) {
                let same = |there: &Value| {
                    there["kind"] == object["kind"] && there["metadata"]["name"] == object["metadata"]["name"]
                };
                self.objects.retain(|there| !same(there));
                self.objects.push(object);
            }
        }
        self
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
            let client = &webhook["clientConfig"];
            let path = match client["url"].as_str() {
                Some(url) => url.strip_prefix("https://127.0.0.1:10250").expect("a URL of overlays/local"),
                None => client["service"]["path"].as_str().expect("a Service"),
            };
            webhook["clientConfig"] = json!({"url": format!("https://127.0.0.1:{port}{path}")});
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
///
/// # Panics
/// When this crate is not in it.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("tests/support is in the repository")
}

/// The documents of a YAML file.
///
/// # Panics
/// When one does not parse.
pub fn documents(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("\n---").map(str::trim);
    let documents = documents.map(|document| serde_saphyr::from_str(document).expect("the YAML parses"));
    documents.filter(|document: &Value| !document.is_null()).collect()
}

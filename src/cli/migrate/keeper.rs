//! Who keeps the policy, and would bring it back: Helm, Flux, Argo CD. PURE.

use serde_json::Value;

use crate::config::PolicyName;

/// Who keeps the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keeper {
    /// What it is, for people.
    pub(super) what: String,
    /// Where the API server has the object that says whether it is suspended.
    pub(super) path: Option<String>,
    /// How it is kept from acting.
    stop: String,
    /// How it is let act again.
    resume: String,
    /// How the policy leaves what it keeps.
    value: String,
    /// Whether it does not act now.
    pub(super) suspended: bool,
}

/// Big Bang's value, and the chart's own.
const VALUE: &str = "autoRegister.enabled: false (Big Bang: addons.gitlabRunner.autoRegister.enabled: false) in the \
                     values of the gitlab-runner chart";

impl Keeper {
    /// Reads it from the policy's labels and annotations.
    pub(super) fn of(policy: &Value) -> Option<Self> {
        let word = |kind: &str, key: &str| policy.get("metadata")?.get(kind)?.get(key)?.as_str();
        let label = |key: &str| word("labels", key);
        let annotation = |key: &str| word("annotations", key);
        let flux = |toolkit: &str| {
            let name = label(&format!("{toolkit}.toolkit.fluxcd.io/name"))?;
            Some((name.to_owned(), label(&format!("{toolkit}.toolkit.fluxcd.io/namespace"))?.to_owned()))
        };
        let of_flux = |(name, namespace): (String, String), kind: &str, path: &str, value: &str| Self {
            what: format!("Flux, by {kind} {namespace}/{name}"),
            path: Some(format!("/apis/{path}/{name}").replace("NAMESPACE", &namespace)),
            stop: format!("flux suspend {} {name} --namespace {namespace}", kind.to_lowercase()),
            resume: format!("flux resume {} {name} --namespace {namespace}", kind.to_lowercase()),
            value: value.to_owned(),
            suspended: false,
        };
        if let Some(release) = flux("helm") {
            let path = "helm.toolkit.fluxcd.io/v2/namespaces/NAMESPACE/helmreleases";
            return Some(of_flux(release, "HelmRelease", path, &format!("set {VALUE}")));
        }
        if let Some(kustomization) = flux("kustomize") {
            let path = "kustomize.toolkit.fluxcd.io/v1/namespaces/NAMESPACE/kustomizations";
            return Some(of_flux(kustomization, "Kustomization", path, "take it out of its repository"));
        }
        let argo = annotation("argocd.argoproj.io/tracking-id").and_then(|id| id.split(':').next());
        if let Some(app) = argo.or_else(|| label("argocd.argoproj.io/instance")) {
            return Some(Self {
                what: format!("Argo CD, by Application {app}"),
                path: None,
                stop: format!("argocd app set {app} --sync-policy none, then give --force-managed"),
                resume: format!("argocd app set {app} --sync-policy automated"),
                value: format!("take it out of its repository; from a chart: set {VALUE}"),
                suspended: false,
            });
        }
        let release = annotation("meta.helm.sh/release-name");
        if release.is_none() && label("app.kubernetes.io/managed-by") != Some("Helm") {
            return None;
        }
        Some(Self {
            what: format!("Helm, by release {}", release.unwrap_or("of unknown name")),
            path: None,
            stop: "do not upgrade that release until this is done, and give --force-managed".to_owned(),
            resume: "upgrade the release".to_owned(),
            value: format!("set {VALUE}"),
            suspended: false,
        })
    }

    pub(super) fn refusal(&self, name: &PolicyName) -> String {
        format!(
            "ClusterPolicy {name} is kept by {}, which would bring it back. Do not let it delete the policy either: from Kyverno 1.19 \
             on the clones would go with it. Stop it first: {}. Try again. Then {}, and: {}. \
             --force-managed goes on without that",
            self.what, self.stop, self.value, self.resume
        )
    }

    pub(super) fn warning(&self, name: &PolicyName) -> String {
        let now = if self.suspended { "which is suspended" } else { "which may bring it back: --force-managed" };
        format!(
            "ClusterPolicy {name} is kept by {}, {now}. When this is done: {}, and only then: {}",
            self.what, self.value, self.resume
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_keeper_is_known_by_its_marks_and_named_with_the_way_out() {
        let helm = json!({"app.kubernetes.io/managed-by": "Helm"});
        let mut flux = helm.clone();
        flux["helm.toolkit.fluxcd.io/name"] = json!("gitlab-runner");
        flux["helm.toolkit.fluxcd.io/namespace"] = json!("bigbang");
        let kustomize =
            json!({"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"});
        let tracking = json!({"argocd.argoproj.io/tracking-id": "runners:kyverno.io/ClusterPolicy:/sync"});
        let table = [
            (flux, json!({}), ["HelmRelease bigbang/gitlab-runner", "flux suspend helmrelease", "addons.gitlabRunner"]),
            (kustomize, json!({}), ["Kustomization flux-system/apps", "flux suspend kustomization", "repository"]),
            (json!({}), tracking, ["Argo CD", "argocd app set runners", "--force-managed"]),
            (json!({"argocd.argoproj.io/instance": "x"}), json!({}), ["Application x", "automated", "repository"]),
            (
                helm,
                json!({"meta.helm.sh/release-name": "gitlab-runner"}),
                ["release gitlab-runner", "upgrade", "autoRegister.enabled"],
            ),
        ];
        for (labels, annotations, words) in table {
            let keeper = Keeper::of(&json!({"metadata": {"labels": labels, "annotations": annotations}})).unwrap();
            let refusal = keeper.refusal(&"p".parse().unwrap());
            for word in words {
                assert!(refusal.contains(word), "{word}: {refusal}");
            }
        }
        assert_eq!(Keeper::of(&json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "kubectl"}}})), None);
        assert_eq!(Keeper::of(&json!({"metadata": {"name": "p"}})), None);
    }
}

//! Who keeps the policy, and would bring it back: Helm, Flux, Argo CD. PURE.

use gitlab_runner_webhook::config::PolicyName;
use serde_json::Value;

use crate::json::text;

/// Who keeps the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManagedBy {
    /// What it is, for people.
    pub(super) what: String,
    /// Where the API server may have the object that says whether it is suspended, in each version of its kind.
    pub(super) paths: Vec<String>,
    /// How it is kept from acting.
    stop: String,
    /// How it is let act again.
    resume: String,
    /// How the policy leaves what it keeps.
    value: String,
    /// Whether it acts now.
    pub(super) state: State,
}

/// Whether somebody who keeps the policy acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does, or nobody can say.
    Acts,
    /// It does not.
    Suspended,
    /// The caller may not look, so it counts as one that acts.
    Unseen,
}

/// Big Bang's value, and the chart's own.
const VALUE: &str = "autoRegister.enabled: false (Big Bang: addons.gitlabRunner.autoRegister.enabled: false) in the \
                     values of the gitlab-runner chart";

impl ManagedBy {
    /// Reads it from the policy's labels and annotations.
    pub(super) fn of(policy: &Value) -> Option<Self> {
        let word = |kind: &str, key: &str| policy.get("metadata")?.get(kind)?.get(key)?.as_str();
        let label = |key: &str| word("labels", key);
        let annotation = |key: &str| word("annotations", key);
        let flux = |toolkit: &str| {
            let name = label(&format!("{toolkit}.toolkit.fluxcd.io/name"))?;
            Some((name.to_owned(), label(&format!("{toolkit}.toolkit.fluxcd.io/namespace"))?.to_owned()))
        };
        let of_flux = |(name, namespace): (String, String), kind: &str, group: &str, versions: &[&str], value: &str| {
            let word = kind.to_lowercase();
            let path = |version: &&str| {
                format!("/apis/{group}.toolkit.fluxcd.io/{version}/namespaces/{namespace}/{word}s/{name}")
            };
            Self {
                what: format!("Flux, by {kind} {namespace}/{name}"),
                paths: versions.iter().map(path).collect(),
                stop: format!("flux suspend {word} {name} --namespace {namespace}"),
                resume: format!("flux resume {word} {name} --namespace {namespace}"),
                value: value.to_owned(),
                state: State::Acts,
            }
        };
        if let Some(release) = flux("helm") {
            let value = format!("set {VALUE}, wait until this HelmRelease has that value");
            return Some(of_flux(release, "HelmRelease", "helm", &["v2", "v2beta2", "v2beta1"], &value));
        }
        if let Some(kustomization) = flux("kustomize") {
            let value = "take it out of its repository, wait until its source in the cluster has that revision";
            return Some(of_flux(kustomization, "Kustomization", "kustomize", &["v1", "v1beta2", "v1beta1"], value));
        }
        let release = annotation("meta.helm.sh/release-name");
        let argo = |app: &str, what: String| Self {
            what,
            paths: Vec::new(),
            stop: format!("argocd app set {app} --sync-policy none, then give --force-managed"),
            resume: format!("argocd app set {app} --sync-policy automated"),
            value: format!(
                "take it out of its repository (from a chart: set {VALUE}), wait until the Application has that revision"
            ),
            state: State::Acts,
        };
        let tracked = annotation("argocd.argoproj.io/tracking-id").and_then(|id| id.split(':').next());
        if let Some(app) = tracked.or_else(|| label("argocd.argoproj.io/instance")) {
            return Some(argo(app, format!("Argo CD, by Application {app}")));
        }
        // Argo CD's own mark by default up to 2.14, and a common label that others set, too: Helm's charts for one.
        if let Some(app) = label("app.kubernetes.io/instance") {
            if managers(policy).any(|manager| manager.starts_with("argocd-")) {
                return Some(argo(app, format!("Argo CD, by Application {app}")));
            }
            if release.is_none() {
                let what =
                    format!("whoever set its label app.kubernetes.io/instance, by default Argo CD, Application {app}");
                return Some(argo(app, what));
            }
        }
        if release.is_none() && label("app.kubernetes.io/managed-by") != Some("Helm") {
            return None;
        }
        Some(Self {
            what: format!("Helm, by release {}", release.unwrap_or("of unknown name")),
            paths: Vec::new(),
            stop: "do not upgrade that release until this is done, and give --force-managed".to_owned(),
            resume: "upgrade the release".to_owned(),
            value: format!("set {VALUE}"),
            state: State::Acts,
        })
    }

    pub(super) fn refusal(&self, name: &PolicyName) -> String {
        let unseen = match self.state {
            State::Unseen => " (whether it is suspended is not known: you may not get it)",
            State::Acts | State::Suspended => "",
        };
        format!(
            "ClusterPolicy {name} is kept by {}, which would bring it back{unseen}. Do not let it delete the policy either: from Kyverno 1.19 \
             on the clones would go with it. Stop it first: {}. Try again. Then {}, and only then: {}. \
             --force-managed goes on without that",
            self.what, self.stop, self.value, self.resume
        )
    }

    pub(super) fn warning(&self, name: &PolicyName) -> String {
        let now = match self.state {
            State::Suspended => "which is suspended",
            State::Acts | State::Unseen => "which may bring it back: --force-managed",
        };
        format!(
            "ClusterPolicy {name} is kept by {}, {now}. When this is done: {}, and only then: {}",
            self.what, self.value, self.resume
        )
    }
}

/// Who wrote a field of it.
fn managers(policy: &Value) -> impl Iterator<Item = &str> {
    let entries = policy.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().map(|entry| text(entry, "/manager"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Letting it act again before the value has arrived would bring the policy back, and Helm would delete it later.
    #[test]
    fn who_kept_it_acts_again_only_when_what_it_keeps_has_changed() {
        let labels = |toolkit: &str| {
            let key = |what: &str| format!("{toolkit}.toolkit.fluxcd.io/{what}");
            json!({"metadata": {"labels": {key("name"): "x", key("namespace"): "y"}}})
        };
        let argo = json!({"metadata": {"labels": {"argocd.argoproj.io/instance": "x"}}});
        let table = [
            (labels("helm"), ["enabled: false", "wait until this HelmRelease has that value", "flux resume"]),
            (labels("kustomize"), ["repository", "wait until its source in the cluster", "flux resume"]),
            (argo, ["repository", "wait until the Application", "--sync-policy automated"]),
        ];
        for (policy, order) in table {
            let managed_by = ManagedBy::of(&policy).unwrap();
            let name = "p".parse().unwrap();
            for said in [managed_by.refusal(&name), managed_by.warning(&name)] {
                let at: Vec<_> =
                    order.iter().map(|words| said.find(words).unwrap_or_else(|| panic!("{said}"))).collect();
                assert!(at.is_sorted() && said.contains("and only then: "), "{said}");
            }
        }
    }

    #[test]
    fn argo_cd_is_known_by_the_label_that_it_sets_by_default() {
        let policy = |annotations: Value, manager: &str| {
            let labels = json!({"app.kubernetes.io/instance": "runners", "app.kubernetes.io/managed-by": "Helm"});
            let managers = json!([{"manager": "kyverno", "operation": "Update"}, {"manager": manager}]);
            json!({"metadata": {"labels": labels, "annotations": annotations, "managedFields": managers}})
        };
        let helm = || json!({"meta.helm.sh/release-name": "gitlab-runner"});
        for (policy, words) in [
            (policy(helm(), "argocd-controller"), "kept by Argo CD, by Application runners"),
            (policy(helm(), "argocd-application-controller"), "kept by Argo CD, by Application runners"),
            (policy(json!({}), "argocd-controller"), "kept by Argo CD, by Application runners"),
            (policy(json!({}), "kubectl"), "by default Argo CD, Application runners"),
            (policy(helm(), "helm"), "kept by Helm, by release gitlab-runner"),
        ] {
            let refusal = ManagedBy::of(&policy).unwrap().refusal(&"p".parse().unwrap());
            assert!(refusal.contains(words), "{words}: {refusal}");
        }
    }

    #[test]
    fn flux_is_looked_for_in_each_version_that_it_had() {
        let labels = json!({"helm.toolkit.fluxcd.io/name": "x", "helm.toolkit.fluxcd.io/namespace": "y"});
        let mut managed_by = ManagedBy::of(&json!({"metadata": {"labels": labels}})).unwrap();
        let expected = ["v2", "v2beta2", "v2beta1"]
            .map(|version| format!("/apis/helm.toolkit.fluxcd.io/{version}/namespaces/y/helmreleases/x"));
        assert_eq!(managed_by.paths, expected);
        managed_by.state = State::Unseen;
        assert!(managed_by.refusal(&"p".parse().unwrap()).contains("you may not get it"));
    }

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
            let managed_by =
                ManagedBy::of(&json!({"metadata": {"labels": labels, "annotations": annotations}})).unwrap();
            let refusal = managed_by.refusal(&"p".parse().unwrap());
            for word in words {
                assert!(refusal.contains(word), "{word}: {refusal}");
            }
        }
        assert_eq!(ManagedBy::of(&json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "kubectl"}}})), None);
        assert_eq!(ManagedBy::of(&json!({"metadata": {"name": "p"}})), None);
    }
}

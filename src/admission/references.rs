//! Which Secrets a pod uses. PURE.

use std::collections::BTreeSet;

use super::pod_view::{PodView, VolumeView};

/// Names of the Secrets that a pod's volumes, variables and image pulls refer to.
///
/// `optional` references count, too: a pod that can start without the Secret is still to start with the current one.
pub(super) fn references<'a>(pod: &'a PodView<'_>) -> BTreeSet<&'a str> {
    let spec = &pod.spec;
    let volumes = spec.volumes.iter().flat_map(VolumeView::secrets).map(|secret| &*secret.name);
    let variables = pod.all_containers().flat_map(|container| {
        let env = container.env.iter().map(|variable| &*variable.value_from.secret_key_ref.name);
        env.chain(container.env_from.iter().map(|from| &*from.secret_ref.name))
    });
    let pulls = spec.image_pull_secrets.iter().map(|pull| &*pull.name);
    volumes.chain(variables).chain(pulls).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_to_use_a_secret_is_found() {
        let pod = json!({"spec": {
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume", "optional": true}},
                {"name": "b", "projected": {"sources": [
                    {"configMap": {"name": "map"}}, {"secret": {"name": "projected"}},
                ]}},
                {"name": "c", "configMap": {"name": "map"}},
            ],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "init-env-from"}}]}],
            "containers": [{
                "env": [
                    {"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                    {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "k"}}},
                    {"name": "Z", "value": "plain"},
                ],
                "envFrom": [{"configMapRef": {"name": "map"}}, {"secretRef": {"name": "env-from"}}],
            }],
            "imagePullSecrets": [{"name": "pull"}],
        }});
        let expected = ["volume", "projected", "init-env-from", "env", "env-from", "pull"];
        assert_eq!(references(&PodView::of(&pod).unwrap()), expected.into_iter().collect());
    }

    #[test]
    fn nothing_is_used_where_nothing_is_named() {
        for pod in [
            json!({}),
            json!({"spec": null}),
            json!({"spec": {"volumes": null, "containers": [{"env": null, "envFrom": [{"secretRef": null}]}]}}),
            json!({"spec": {"volumes": [{"projected": {"sources": null}}], "imagePullSecrets": [{"name": ""}]}}),
        ] {
            assert!(references(&PodView::of(&pod).unwrap()).is_empty(), "{pod}");
        }
    }
}

//! Which Secrets a pod uses. PURE.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::json::{at, items};

/// Names of the Secrets that a pod's volumes, variables and image pulls refer to.
///
/// `optional` references count, too: a pod that can start without the Secret is still to start with the current one.
pub(crate) fn references(pod: &Value) -> BTreeSet<&str> {
    let spec = at(pod, &["spec"]);
    let volumes = items(at(spec, &["volumes"])).flat_map(|volume| {
        let projected = items(at(volume, &["projected", "sources"])).map(|source| at(source, &["secret", "name"]));
        projected.chain([at(volume, &["secret", "secretName"])])
    });
    let containers = ["containers", "initContainers"].into_iter().flat_map(|kind| items(at(spec, &[kind])));
    let variables = containers.flat_map(|container| {
        let env = items(at(container, &["env"])).map(|env| at(env, &["valueFrom", "secretKeyRef", "name"]));
        env.chain(items(at(container, &["envFrom"])).map(|from| at(from, &["secretRef", "name"])))
    });
    let pulls = items(at(spec, &["imagePullSecrets"])).map(|pull| at(pull, &["name"]));
    volumes.chain(variables).chain(pulls).filter_map(Value::as_str).collect()
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
        assert_eq!(references(&pod), expected.into_iter().collect());
    }

    #[test]
    fn any_shape_will_do() {
        for pod in [
            json!(null),
            json!({"spec": null}),
            json!({"spec": {"volumes": null, "containers": [null, 1, {"env": "x", "envFrom": [null]}]}}),
            json!({"spec": {"volumes": [{"secret": "s"}, {"projected": {"sources": null}}], "imagePullSecrets": {}}}),
        ] {
            assert!(references(&pod).is_empty(), "{pod}");
        }
    }
}

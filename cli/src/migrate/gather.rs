//! What is there before anything is changed.

use std::{collections::BTreeSet, path::Path};

use gitlab_runner_webhook::{
    cluster::{Problem, Reason},
    config::{Config, NamespaceName, PolicyName},
    names::{APP, LABEL_KYVERNO_POLICY, LABEL_PREFIX_KYVERNO},
    run::read_config,
};
use serde_json::Value;

use super::{
    api::{Caller, View},
    managed_by::{ManagedBy, State},
    plan::{Found, Namespace, is_clone},
    steps::Steps,
};
use crate::{
    installed::{ConfigSource, Installed, Key},
    json::text,
};

/// Reads everything that the plan follows from.
pub(super) async fn gather(
    caller: &Caller,
    steps: &Steps,
    policy: Option<Value>,
    namespace: &NamespaceName,
    config: Option<&Path>,
) -> Result<Found, Problem> {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{APP}");
    let deployment = caller.get(&path, View::Whole).await?;
    let config = match (config, &deployment) {
        (Some(file), _) => read_config(file).map(|(config, _)| config).map_err(|error| format!("{error:#}")),
        (None, Some(deployment)) => running_config(caller, namespace, deployment).await?,
        // That it is not there is said anyway.
        (None, None) => Ok(Config::default()),
    };
    let mut managed_by = policy.as_ref().and_then(ManagedBy::of);
    if let Some(managed_by) = &mut managed_by {
        managed_by.state = state(caller, &managed_by.paths).await?;
    }
    let namespaces = caller.list("/api/v1/namespaces", View::Metadata, "").await?;
    let namespaces: Vec<_> = namespaces.iter().filter_map(read_namespace).collect();
    let mut left: BTreeSet<_> = steps.left().await?.into_iter().collect();
    if let (None, Ok(config)) = (&policy, &config) {
        let unnamed = unnamed(caller).await?.into_iter();
        left.extend(unnamed.filter(|(of, secret)| is_clone(config, &namespaces, of, secret)));
    }
    let generating = generating(caller, &steps.name).await?;
    let has_requests = !steps.update_requests().await?.is_empty();
    Ok(Found { policy, generating, namespaces, left, has_requests, deployment, config, managed_by })
}

/// Whether a `GeneratingPolicy` has this name; nothing when the caller may not know.
async fn generating(caller: &Caller, name: &PolicyName) -> Result<Option<bool>, Problem> {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let path = format!("/apis/policies.kyverno.io/{version}/generatingpolicies/{name}");
        match caller.get(&path, View::Metadata).await {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Some(true)),
            Err(problem) if problem.reason == Reason::Forbidden => return Ok(None),
            Err(problem) => return Err(problem),
        }
    }
    Ok(Some(false))
}

/// What Kyverno made by a rule that names something else by now: it has taken the policy's name off, and nothing more.
async fn unnamed(caller: &Caller) -> Result<Vec<(String, String)>, Problem> {
    let selector = format!("{LABEL_PREFIX_KYVERNO}trigger-kind,!{LABEL_KYVERNO_POLICY}");
    let secrets = caller.list("/api/v1/secrets", View::Metadata, &selector).await?;
    let name = |secret: &Value, pointer: &str| text(secret, pointer).to_owned();
    Ok(secrets.iter().map(|secret| (name(secret, "/metadata/namespace"), name(secret, "/metadata/name"))).collect())
}

/// Whether what keeps the policy acts, by the first of these versions that is served.
async fn state(caller: &Caller, paths: &[String]) -> Result<State, Problem> {
    for path in paths {
        match caller.get(path, View::Whole).await {
            Ok(None) => {}
            Ok(Some(object)) => {
                let suspended = object.pointer("/spec/suspend").and_then(Value::as_bool).unwrap_or_default();
                return Ok(if suspended { State::Suspended } else { State::Acts });
            }
            // Rights know no versions.
            Err(problem) if problem.reason == Reason::Forbidden => return Ok(State::Unseen),
            Err(problem) => return Err(problem),
        }
    }
    Ok(State::Acts)
}

/// The configuration that the Deployment mounts; the default one when it mounts none.
async fn running_config(
    caller: &Caller,
    namespace: &NamespaceName,
    deployment: &Value,
) -> Result<Result<Config, String>, Problem> {
    const OUT: &str = "name the file that it runs with: --config FILE";
    let Some(installed) = Installed::of(deployment) else { return Ok(Ok(Config::default())) };
    let Key { object: map, key } = match installed.config_source() {
        ConfigSource::Defaults => return Ok(Ok(Config::default())),
        ConfigSource::ConfigMap(key) => key,
        ConfigSource::File(file) => {
            return Ok(Err(format!("the configuration {file} of Deployment {APP} comes from no ConfigMap; {OUT}")));
        }
    };
    let there = caller.get(&format!("/api/v1/namespaces/{namespace}/configmaps/{map}"), View::Whole).await?;
    let yaml = there.as_ref().and_then(|there| there.get("data")?.get(&key)?.as_str());
    let Some(yaml) = yaml else {
        return Ok(Err(format!("ConfigMap {map}, which Deployment {APP} mounts, has no {key}; {OUT}")));
    };
    Ok(Config::from_yaml(yaml).map_err(|error| format!("ConfigMap {map}, key {key}: {error}; {OUT}")))
}

fn read_namespace(object: &Value) -> Option<Namespace> {
    let metadata = object.get("metadata")?;
    let labels = metadata.get("labels").cloned().unwrap_or_default();
    Some(Namespace {
        name: metadata.get("name")?.as_str()?.to_owned(),
        labels: serde_json::from_value(labels).unwrap_or_default(),
        terminating: metadata.get("deletionTimestamp").is_some(),
    })
}

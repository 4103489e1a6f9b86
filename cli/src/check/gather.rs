//! Gathers what is judged. Reads only; what cannot be read is noted as such.

use std::{collections::BTreeSet, future::Future};

use anyhow::Context as _;
use futures::{StreamExt as _, future::join_all, join, stream};
use gitlab_runner_webhook::{
    admission::LABEL_JOB,
    config::{Config, NamespaceName, NamespaceSelection, TlsMode},
    names::{APP, CONFIGMAP_TRUST, GUARDS, KEY_TLS_CERT, KYVERNO_POLICY, LABEL_INJECT, SECRET_CA},
    pki::{KEY_CURRENT_CERT, KEY_NEXT_CERT},
    run::read_config,
    sync::BundleState,
};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        },
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod, Secret, Service},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use serde::Serialize;
use serde_json::Value;

use super::{
    Arguments,
    bindings::rights,
    certificate::Certificate,
    facts::{CertsFacts, Facts, Guard, Presence, Refused, RunnerNamespace, SecretFacts, Seen, Serving, Unseen},
    manager::{Manager, jobs_namespace},
    reach::reach,
    reader::Reader,
};
use crate::{
    drift::Program,
    installed::{ConfigSource, Installed},
    rollout::Rollout,
};

/// At most so many runner namespaces are looked at at a time.
const PARALLEL: usize = 8;

/// Everything that is judged.
pub(super) async fn gather(reader: &Reader, arguments: &Arguments) -> anyhow::Result<Facts> {
    let namespace = arguments.namespace.clone();
    let deployment: Seen<Option<Deployment>> = reader.get(namespace.as_str(), APP).await;
    let installed = deployment.as_ref().ok().and_then(Option::as_ref).and_then(|found| Installed::of(&value(found)));
    let program = program(arguments, namespace, installed.as_ref())?;
    let (config_origin, config) = config(reader, arguments, &program, &deployment, installed.as_ref()).await?;
    // What does not depend on it is looked at in any case.
    let assumed = config.clone().unwrap_or_default();

    let sources = join_all(assumed.clones.iter().map(|spec| secret(reader, spec.from.as_str(), spec.secret.as_str())));
    let (sources, (namespaces, unlisted), rights, guards, kyverno) = join!(
        sources,
        namespaces(reader, &assumed),
        rights(reader, &program, &assumed),
        guards(reader),
        kyverno(reader),
    );
    let image = installed.as_ref().and_then(Installed::image);
    let serving =
        Box::pin(serving(reader, &program, installed.as_ref(), config.as_ref().ok(), &namespaces, image)).await;
    Ok(Facts {
        now: Timestamp::now(),
        program,
        deployment: deployment.map(|found| found.as_ref().map(|found| Rollout::of(&value(found)))),
        config_origin,
        config,
        sources,
        unlisted,
        namespaces,
        serving,
        rights,
        guards,
        kyverno,
    })
}

/// As JSON. Whatever the API server sent can be written again.
fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn program(arguments: &Arguments, namespace: NamespaceName, installed: Option<&Installed>) -> anyhow::Result<Program> {
    let setting = |flag: &str, otherwise: &str| {
        installed.and_then(|installed| installed.setting(flag)).unwrap_or_else(|| otherwise.to_owned())
    };
    let named = |given: Option<String>, flag: &str, otherwise: &str| given.unwrap_or_else(|| setting(flag, otherwise));
    let unusable = |flag: &str| format!("--{flag} of the Deployment cannot be used here; give --{flag} to the check");
    Ok(Program {
        namespace,
        service_account: installed.map_or_else(|| APP.to_owned(), |installed| installed.service_account.clone()),
        service: named(arguments.service.as_ref().map(ToString::to_string), "service", APP)
            .parse()
            .with_context(|| unusable("service"))?,
        webhook_configuration: named(
            arguments.webhook_configuration.as_ref().map(ToString::to_string),
            "webhook-configuration",
            APP,
        ),
        ca_secret: named(arguments.ca_secret.as_ref().map(ToString::to_string), "ca-secret", SECRET_CA)
            .parse()
            .with_context(|| unusable("ca-secret"))?,
        tls: if setting("tls", "self-managed") == "files" { TlsMode::Files } else { TlsMode::SelfManaged },
    })
}

/// The configuration that the program runs with.
async fn config(
    reader: &Reader,
    arguments: &Arguments,
    program: &Program,
    deployment: &Seen<Option<Deployment>>,
    installed: Option<&Installed>,
) -> anyhow::Result<(String, Result<Config, Refused>)> {
    if let Some(path) = &arguments.config {
        let (config, _) = read_config(path)?;
        return Ok((path.display().to_string(), Ok(config)));
    }
    let defaults = |why: &str| (format!("the defaults, {why}"), Ok(Config::default()));
    let Some(installed) = installed else {
        if let Err(unseen) = deployment {
            let refused = Refused::Unseen(Unseen(format!("the Deployment that mounts it: {unseen}")));
            return Ok(("--config is not given".to_owned(), Err(refused)));
        }
        return Ok(defaults("as there is no Deployment"));
    };
    let key = match installed.config_source() {
        ConfigSource::Defaults => return Ok(defaults("as the Deployment names no file")),
        ConfigSource::ConfigMap(key) => key,
        ConfigSource::File(path) => {
            let why = Unseen(format!("the Deployment reads {path}, which is from no ConfigMap; give it with --config"));
            return Ok((path, Err(Refused::Unseen(why))));
        }
    };
    let namespace = program.namespace.as_str();
    let origin = format!("ConfigMap {namespace}/{}", key.object);
    let found: Seen<Option<ConfigMap>> = reader.get(namespace, &key.object).await;
    let config = match found {
        Err(unseen) => Err(Refused::Unseen(unseen)),
        Ok(None) => Err(Refused::Missing("is not there, and the Deployment mounts it".to_owned())),
        Ok(Some(found)) => match found.data.as_ref().and_then(|data| data.get(&key.key)) {
            None => Err(Refused::Missing(format!("has no key {}, which the Deployment mounts", key.key))),
            Some(yaml) => Config::from_yaml(yaml).map_err(|error| Refused::Invalid(error.to_string())),
        },
    };
    Ok((origin, config))
}

async fn secret(reader: &Reader, namespace: &str, name: &str) -> Seen<Option<SecretFacts>> {
    let secret: Option<Secret> = reader.get(namespace, name).await?;
    Ok(secret.map(SecretFacts::new))
}

async fn namespaces(reader: &Reader, config: &Config) -> (Vec<RunnerNamespace>, Vec<Unseen>) {
    let (runners, unlisted) = selected(reader, &config.runner_namespaces).await;
    let (trust, further) = selected(reader, &config.trust_namespaces).await;
    let looks = runners.into_iter().map(|found| (found, false)).chain(trust.into_iter().map(|found| (found, true)));
    // One that is both is a runner namespace.
    let mut known = BTreeSet::new();
    let looks = looks.filter(|((name, ..), _)| known.insert(name.clone()));
    let looks = looks.map(|(found, is_of_trust)| runner_namespace(reader, config, found, is_of_trust));
    let looks: Vec<_> = looks.collect();
    let mut namespaces: Vec<_> = stream::iter(looks).buffer_unordered(PARALLEL).collect().await;
    namespaces.sort_by(|one: &RunnerNamespace, other| one.name.cmp(&other.name));
    (namespaces, unlisted.into_iter().chain(further).collect())
}

/// A namespace, whether it is there, and whether its label says that nothing is injected.
type FoundNamespace = (NamespaceName, Seen<Presence>, bool);

async fn selected(reader: &Reader, wanted: &NamespaceSelection) -> (Vec<FoundNamespace>, Vec<Unseen>) {
    let presence = |found: Option<Namespace>| match found {
        None => Presence::Absent,
        Some(found) if found.metadata.deletion_timestamp.is_some() => Presence::Terminating,
        Some(_) => Presence::Active,
    };
    let opted_out = |found: &Namespace| found.labels().get(LABEL_INJECT).is_some_and(|value| value == "false");
    let named = wanted.names.iter().map(async |name| {
        let found: Seen<Option<Namespace>> = reader.get_cluster(name.as_str()).await;
        let is_out = found.as_ref().is_ok_and(|found| found.as_ref().is_some_and(opted_out));
        (name.clone(), found.map(presence), is_out)
    });
    let listed = wanted.selectors.iter().map(async |selector| {
        let found: Seen<Vec<Namespace>> = reader.list_cluster(&selector.to_string()).await;
        found
    });
    let (mut all, listed) = join!(join_all(named), join_all(listed));
    let mut unlisted = Vec::new();
    for found in listed {
        match found {
            Err(unseen) => unlisted.push(unseen),
            Ok(found) => all.extend(found.into_iter().filter_map(|namespace| {
                let (name, is_out) = (namespace.name_any().parse().ok()?, opted_out(&namespace));
                Some((name, Ok(presence(Some(namespace))), is_out))
            })),
        }
    }
    (all, unlisted)
}

async fn runner_namespace(
    reader: &Reader,
    config: &Config,
    (name, presence, opted_out): FoundNamespace,
    is_of_trust: bool,
) -> RunnerNamespace {
    if matches!(presence, Ok(Presence::Absent)) {
        let (clones, certs, trust, managers) = (Vec::new(), Ok(None), Ok(None), Ok(Vec::new()));
        return RunnerNamespace { name, presence, opted_out, clones, certs, trust, managers };
    }
    let namespace = name.as_str();
    let clones = join_all(
        config.clones.iter().filter(|_| !is_of_trust).map(|spec| secret(reader, namespace, spec.secret.as_str())),
    );
    let trust = async {
        let map: Option<ConfigMap> = reader.get(namespace, CONFIGMAP_TRUST).await?;
        Ok(map.map(BundleState::from))
    };
    let (clones, certs, trust, managers) =
        join!(clones, certs(reader, config, namespace), trust, managers(reader, config, namespace));
    RunnerNamespace { name, presence, opted_out, clones, certs, trust, managers }
}

async fn certs(reader: &Reader, config: &Config, namespace: &str) -> Seen<Option<CertsFacts>> {
    let secret: Option<Secret> = reader.get(namespace, config.certs_secret_name.as_str()).await?;
    Ok(secret.map(|secret| CertsFacts::new(&secret, config.public_roots)))
}

/// Manager pods, or where there is none, what would make them. Job pods are left out where their label tells.
async fn managers(reader: &Reader, config: &Config, namespace: &str) -> Seen<Vec<Manager>> {
    let pods: Vec<Pod> = reader.list(Some(namespace), &format!("!{LABEL_JOB}")).await?;
    let alive = pods.iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
    });
    let mut managers: Vec<_> = alive.filter_map(|pod| Manager::of(&value(pod), config)).collect();
    if managers.is_empty() {
        let deployments: Vec<Deployment> = reader.list(Some(namespace), "").await?;
        managers = deployments.iter().filter_map(|deployment| Manager::of(&value(deployment), config)).collect();
    }
    for manager in &mut managers {
        let Some(name) = &manager.config_map else { continue };
        // Where it cannot be read, nothing is said of its jobs.
        let map: Seen<Option<ConfigMap>> = reader.get(namespace, name).await;
        let data = map.ok().flatten().and_then(|map| map.data).unwrap_or_default();
        let found = data.values().find_map(|toml| jobs_namespace(toml)).filter(|jobs| *jobs != namespace);
        manager.jobs_in = found.map(str::to_owned).or(manager.jobs_in.take());
    }
    Ok(managers)
}

async fn guards(reader: &Reader) -> Vec<Guard> {
    let guards = GUARDS.into_iter().map(async |name| {
        let (policy, binding) = join!(
            reader.get_cluster::<ValidatingAdmissionPolicy>(name),
            reader.get_cluster::<ValidatingAdmissionPolicyBinding>(name),
        );
        (name, policy.map(|found| found.as_ref().map(value)), binding.map(|found| found.as_ref().map(value)))
    });
    join_all(guards).await
}

async fn kyverno(reader: &Reader) -> Seen<bool> {
    reader.is_at(&format!("/apis/kyverno.io/v1/clusterpolicies/{KYVERNO_POLICY}")).await
}

async fn serving(
    reader: &Reader,
    program: &Program,
    installed: Option<&Installed>,
    config: Option<&Config>,
    namespaces: &[RunnerNamespace],
    image: Option<&str>,
) -> Serving {
    let name = program.webhook_configuration.as_str();
    let (from, certificates) = match program.tls {
        TlsMode::SelfManaged => {
            (program.ca_secret.to_string(), vec![KEY_CURRENT_CERT.to_owned(), KEY_NEXT_CERT.to_owned()])
        }
        TlsMode::Files => {
            let path = installed.and_then(|installed| installed.setting("tls-cert"));
            let path = path.unwrap_or_else(|| "/etc/gitlab-runner-webhook/tls/tls.crt".to_owned());
            let key = installed.and_then(|installed| installed.secret_of(&path));
            key.map_or_else(
                || ("gitlab-runner-webhook-tls".to_owned(), vec![KEY_TLS_CERT.to_owned()]),
                |key| (key.object, vec![key.key]),
            )
        }
    };
    let served = async {
        let secret: Option<Secret> = reader.get(program.namespace.as_str(), &from).await?;
        Ok(secret.map(|secret| {
            let data = secret.data.unwrap_or_default();
            let files = certificates.iter().filter_map(|key| data.get(key));
            files.map(|file| Certificate::all(&file.0)).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
        }))
    };
    let endpoints = endpoints(reader, program);
    let (mutating, validating, endpoints, served, reach) = join!(
        configuration(reader.get_cluster::<MutatingWebhookConfiguration>(name)),
        configuration(reader.get_cluster::<ValidatingWebhookConfiguration>(name)),
        endpoints,
        served,
        reach(reader, config, namespaces, image),
    );
    let certificates_from = format!("{}/{from}", program.namespace);
    let client_ca = installed.and_then(|installed| installed.setting("client-ca"));
    Serving { mutating, validating, endpoints, certificates: served, certificates_from, reach, client_ca }
}

async fn configuration<K: Serialize>(read: impl Future<Output = Seen<Option<K>>>) -> Seen<Option<Value>> {
    Ok(read.await?.as_ref().map(value))
}

async fn endpoints(reader: &Reader, program: &Program) -> Seen<Option<usize>> {
    let (namespace, service) = (program.namespace.as_str(), program.service.as_str());
    let Some(_): Option<Service> = reader.get(namespace, service).await? else { return Ok(None) };
    let labels = format!("kubernetes.io/service-name={service}");
    let slices: Vec<EndpointSlice> = reader.list(Some(namespace), &labels).await?;
    let ready = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| {
        // Unknown counts as ready: https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/.
        endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
    });
    Ok(Some(ready.flat_map(|endpoint| &endpoint.addresses).collect::<BTreeSet<_>>().len()))
}

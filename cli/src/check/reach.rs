//! Whether the API server reaches the program: a dry run of a pod, shaped as the runner's.

use gitlab_runner_webhook::{
    admission::LABEL_JOB,
    cluster::Reason,
    config::Config,
    names::{APP, VOLUME_CERTS, VOLUME_TRUST},
};
use serde_json::{Value, json};

use super::{
    facts::{Presence, Reach, RunnerNamespace},
    reader::{DryRun, Reader, unseen},
};
use crate::json::{at, items};

/// Tries it in the first runner namespace that is there. Nothing is stored. Without a configuration nobody knows which
/// namespaces these are.
pub(super) async fn reach(
    reader: &Reader,
    config: Option<&Config>,
    namespaces: &[RunnerNamespace],
    image: Option<&str>,
) -> Reach {
    let Some(config) = config else {
        return Reach::NotTried("the configuration, and so the runner namespaces, are not known");
    };
    let mut usable = namespaces.iter().filter(|there| there.presence == Ok(Presence::Active) && !there.opted_out);
    let Some(namespace) = usable.next() else {
        return Reach::NotTried("there is no runner namespace in which a pod could be");
    };
    if !(config.inject.manager || config.inject.jobs) {
        return Reach::NotTried(
            "the configuration injects nothing, so no answer would show that the program was asked",
        );
    }
    match reader.dry_run(namespace.name.as_str(), &pod(config, image)).await {
        Ok(answer) => judge(&answer),
        Err(problem) => Reach::Unseen(unseen(&problem)),
    }
}

/// A manager pod, or where those get nothing, a job pod; such as every policy lets in.
fn pod(config: &Config, image: Option<&str>) -> Value {
    let resources = json!({"cpu": "10m", "memory": "16Mi"});
    let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "privileged": false});
    let labels = if config.inject.manager { json!({}) } else { json!({LABEL_JOB: "check"}) };
    let command = if config.inject.manager { "/configmaps/entrypoint" } else { "true" };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": format!("{APP}-check-"), "labels": labels},
        "spec": {
            "automountServiceAccountToken": false,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "build",
                "image": image.unwrap_or(APP),
                "command": ["/bin/sh", command],
                "resources": {"requests": resources, "limits": resources},
                "securityContext": restricted,
            }],
        },
    })
}

/// What the answer shows.
fn judge(answer: &DryRun) -> Reach {
    if let Some(problem) = answer.refusal() {
        let is_ours = problem.message.contains(&format!(".{APP}\""));
        return match (is_ours, problem.reason) {
            (true, _) if problem.message.contains("failed calling webhook") => Reach::Failed(problem.message),
            (true, Reason::Denied | Reason::Throttled) => Reach::Answered("it turned the pod away"),
            _ => Reach::Unseen(unseen(&problem)),
        };
    }
    let is_injected =
        |volume: &Value| [VOLUME_CERTS, VOLUME_TRUST].iter().any(|name| at(volume, &["name"]).as_str() == Some(name));
    if items(at(&answer.body, &["spec", "volumes"])).any(is_injected) {
        Reach::Answered("a pod that was tried has the certificates")
    } else if answer.warnings.iter().any(|warning| warning.contains("no CA injected")) {
        Reach::Answered("it warned that there are no certificates for a pod that was tried")
    } else {
        Reach::Silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, body: Value, warnings: &[&str]) -> Reach {
        judge(&DryRun { code, body, warnings: warnings.iter().map(|warning| (*warning).to_owned()).collect() })
    }

    fn refused(code: u16, message: &str) -> Reach {
        answer(code, json!({"kind": "Status", "status": "Failure", "code": code, "message": message}), &[])
    }

    #[test]
    fn each_answer_shows_something() {
        let name = "inject.pods.gitlab-runner-webhook";
        let failed = format!("Internal error occurred: failed calling webhook \"{name}\": x509: unknown authority");
        assert_eq!(refused(500, &failed), Reach::Failed(failed.clone()));
        let denied = "admission webhook \"gate.pods.gitlab-runner-webhook\" denied the request: not there yet";
        assert!(matches!(refused(429, denied), Reach::Answered(_)));
        for other in [
            "pods is forbidden: User \"u\" cannot create resource \"pods\"",
            "admission webhook \"validate.kyverno.svc-fail\" denied the request: images",
        ] {
            assert!(matches!(refused(403, other), Reach::Unseen(_)), "{other}");
        }
        for (code, reason) in [(429, Reason::Throttled), (503, Reason::ServerError)] {
            let plain = answer(code, Value::Null, &[]);
            assert!(matches!(&plain, Reach::Unseen(why) if why.0.contains(reason.as_str())), "{plain:?}");
        }
        let pod = |volume: &str| json!({"kind": "Pod", "spec": {"volumes": [{"name": volume}]}});
        assert!(matches!(answer(201, pod(VOLUME_CERTS), &[]), Reach::Answered(_)));
        assert!(matches!(answer(201, pod(VOLUME_TRUST), &[]), Reach::Answered(_)));
        assert_eq!(answer(201, pod("token"), &["299 - \"something else\""]), Reach::Silent);
        let warning = "299 - \"no CA injected: Secret gitlab-runner/gitlab-runner-certs is missing\"";
        assert!(matches!(answer(201, pod("token"), &[warning]), Reach::Answered(_)));
    }
}

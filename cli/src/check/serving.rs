//! Whether the program runs, is registered, and is reached: Deployment, Service, webhook configurations, TLS. PURE.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gitlab_runner_webhook::{config::TlsMode, names::APP};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    certificate::{Age, Certificate, is_accepted},
    facts::{Facts, Reach, Seen},
    remediation::{self, APPLY},
    report::{Check, Finding, Level, counted},
};
use crate::{
    json::{at, items},
    rollout::Rollout,
};

const FAILS_CLOSED: &str = "Where admission fails closed, no pod is created in a runner namespace; where it fails open, \
                            pods come without certificates and without the gate. Clones are not kept either.";

const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![deployment(facts), endpoints(facts), reach(facts)];
    findings.extend(registration(facts));
    findings.extend(ca_bundles(facts));
    findings.extend(serving_ca(facts));
    findings.extend(callers(facts));
    findings
}

fn deployment(facts: &Facts) -> Finding {
    let namespace = &facts.program.namespace;
    let subject = format!("{namespace}/{APP}");
    let look = format!("kubectl describe pods -n {namespace} -l app.kubernetes.io/name={APP}");
    let problem = |found: &Rollout| found.problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
    match &facts.deployment {
        Err(unseen) => Finding::unseen(Check::Deployment, subject, unseen),
        Ok(None) => {
            Finding::fault(Check::Deployment, subject, "there is no such Deployment: the program is not installed")
                .impact(FAILS_CLOSED)
                .remediation(format!("{APPLY}\nIf it lives elsewhere: --namespace."))
        }
        Ok(Some(found)) if found.wanted == 0 => {
            Finding::fault(Check::Deployment, subject, "is scaled to 0: the program does not run")
                .impact(FAILS_CLOSED)
                .remediation(format!("kubectl scale deployment/{APP} -n {namespace} --replicas=2"))
        }
        Ok(Some(found)) if found.available == 0 => {
            let (wanted, problem) = (found.wanted, problem(found));
            let what = format!("none of {wanted} replicas is available: the program does not serve{problem}");
            Finding::fault(Check::Deployment, subject, what).impact(FAILS_CLOSED).remediation(look)
        }
        Ok(Some(found)) if found.available < found.wanted => {
            let what = format!("{} of {} replicas are available", found.available, found.wanted);
            Finding::warning(Check::Deployment, subject, what)
                .impact("One that is left serves alone: the next node that goes takes it along.")
                .remediation(look)
        }
        Ok(Some(found)) if found.updated < found.wanted => {
            let (updated, wanted, problem) = (found.updated, found.wanted, problem(found));
            let what = format!("{updated} of {wanted} replicas are of the latest version{problem}");
            Finding::warning(Check::Deployment, subject, what)
                .impact("Those of before serve on, with the configuration of before.")
                .remediation(format!("kubectl rollout status deployment/{APP} -n {namespace}\n{look}"))
        }
        Ok(Some(found)) if found.version.as_deref().is_some_and(|version| version != OWN_VERSION) => {
            let version = found.version.as_deref().unwrap_or_default();
            let what = format!("is of version {version}, and this check of {OWN_VERSION}");
            Finding::warning(Check::Deployment, subject, what)
                .impact("Rights, guards, webhooks and trust bundles are held to what the version of the check makes.")
                .remediation(format!("Run the check of version {version}, or install {OWN_VERSION}."))
        }
        Ok(Some(found)) => Finding::ok(
            Check::Deployment,
            subject,
            format!("{} of {} replicas available", found.available, found.wanted),
        ),
    }
}

fn endpoints(facts: &Facts) -> Finding {
    let (namespace, service) = (&facts.program.namespace, &facts.program.service);
    let subject = format!("{namespace}/{service}");
    let remediation =
        format!("kubectl get service,endpointslices -n {namespace}   # does its selector match the pods' labels?");
    match facts.serving.endpoints {
        Err(ref unseen) => Finding::unseen(Check::Endpoints, subject, unseen),
        Ok(None) => Finding::fault(Check::Endpoints, subject, "there is no such Service")
            .impact(FAILS_CLOSED)
            .remediation(APPLY),
        Ok(Some(0)) => Finding::fault(Check::Endpoints, subject, "the Service has no ready endpoint")
            .impact(FAILS_CLOSED)
            .remediation(remediation),
        Ok(Some(count)) => Finding::ok(Check::Endpoints, subject, format!("{count} ready")),
    }
}

fn reach(facts: &Facts) -> Finding {
    let subject = "from the API server";
    match &facts.serving.reach {
        Reach::Answered(how) => Finding::ok(Check::Reach, subject, format!("the program answers: {how}")),
        Reach::NotTried(why) => Finding::ok(Check::Reach, subject, format!("was not tried: {why}")),
        Reach::Unseen(unseen) => Finding::unseen(Check::Reach, subject, unseen)
            .impact("Only a dry run of a pod shows whether the API server reaches the program. It creates nothing.")
            .remediation(if unseen.0.contains("forbidden") {
                "It takes the right to create pods in a runner namespace: docs/check.md."
            } else {
                "What is in the way stands above; when it is gone, run the check again."
            }),
        Reach::Silent => Finding::fault(Check::Reach, subject, "a pod is let in, and the program left no trace on it")
            .impact("It was not asked, or could not be and fails open: pods come without certificates.")
            .remediation(format!(
                "kubectl logs -n kube-system -l component=kube-apiserver | grep {APP}   # \"failed calling webhook\" and why\n\
                 Is there a NetworkPolicy between the API server and port 10250 of the pods?"
            )),
        Reach::Failed(words) => {
            Finding::fault(Check::Reach, subject, format!("the program does not serve, or cannot be reached: {words}"))
                .impact(FAILS_CLOSED)
                .remediation(remedy(words, facts))
        }
    }
}

/// Client certificates are for those who can configure their API server: to do without is no fault.
fn callers(facts: &Facts) -> Option<Finding> {
    let Ok(Some(_)) = &facts.deployment else { return None };
    let what = match &facts.serving.client_ca {
        Some(file) => format!("must show a client certificate by the CAs in {file} (--client-ca)"),
        None => {
            "whoever reaches port 10250 is answered: client certificates (--client-ca) are not asked for".to_owned()
        }
    };
    Some(Finding::ok(Check::Callers, "of the webhooks", what))
}

/// By the API server's words.
fn remedy(words: &str, facts: &Facts) -> String {
    let namespace = &facts.program.namespace;
    let break_glass = "Until it serves again, this lets pods in without it; applying the manifests brings it back:\n\
                       kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration";
    let name = &facts.program.webhook_configuration;
    let what = if words.contains("certificate required") || words.contains("bad certificate") {
        let file = facts.serving.client_ca.as_deref().unwrap_or("--client-ca");
        format!(
            "The API server shows no client certificate that {file} accepts: configure it (--admission-control-config-file,\n\
             docs/security.md), or leave out --client-ca."
        )
    } else if words.contains("x509") {
        format!(
            "caBundle and the serving certificate do not belong together: see ca-bundle and serving-ca.\n\
                 {}   # publishes caBundle anew",
            remediation::restart(facts)
        )
    } else if words.contains("no endpoints") || words.contains("connection refused") {
        format!("Nobody listens: kubectl get pods -n {namespace}")
    } else {
        "Is there a NetworkPolicy, a service mesh or a firewall between the API server and port 10250 of the pods?"
            .to_owned()
    };
    format!("{what}\n{break_glass} {name}")
}

/// Both configurations as they were read, with their kinds.
fn configurations(facts: &Facts) -> [(&'static str, &Seen<Option<Value>>); 2] {
    [
        ("MutatingWebhookConfiguration", &facts.serving.mutating),
        ("ValidatingWebhookConfiguration", &facts.serving.validating),
    ]
}

fn registration(facts: &Facts) -> impl Iterator<Item = Finding> {
    configurations(facts).into_iter().map(|(kind, found)| {
        let subject = format!("{kind} {}", facts.program.webhook_configuration);
        match found {
            Err(unseen) => Finding::unseen(Check::Registration, subject, unseen),
            Ok(None) => {
                Finding::fault(Check::Registration, subject, "is not there: the API server does not ask the program")
                    .impact("Pods come without certificates, or without the gate. Clones are kept all the same.")
                    .remediation(APPLY)
            }
            Ok(Some(there)) => Finding::ok(
                Check::Registration,
                subject,
                format!("there, {}", counted(items(at(there, &["webhooks"])).count(), "webhook")),
            ),
        }
    })
}

/// The CA certificates of a webhook, or why there are none.
fn bundle(webhook: &Value) -> Result<Vec<Certificate>, String> {
    let text = at(webhook, &["clientConfig", "caBundle"]).as_str().unwrap_or_default();
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    let pem = STANDARD.decode(text).map_err(|_| "is not base64".to_owned())?;
    let certificates = Certificate::all(&pem).map_err(|error| format!("is of no use: {error}"))?;
    if certificates.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(certificates) }
}

/// One finding for each configuration: its webhooks share a `caBundle`.
fn ca_bundles(facts: &Facts) -> Vec<Finding> {
    let judged =
        configurations(facts).into_iter().filter_map(|(kind, found)| Some((kind, found.as_ref().ok()?.as_ref()?)));
    judged
        .map(|(kind, configuration)| {
            let subject = format!("{kind} {}", facts.program.webhook_configuration);
            let fault = |what: String| {
                Finding::fault(Check::CaBundle, subject.clone(), what)
                    .impact("The API server trusts no other CA: each call of the webhook fails with an x509 error.")
                    .remediation(restore(facts))
            };
            let mut shown = None;
            for webhook in items(at(configuration, &["webhooks"])) {
                let name = at(webhook, &["name"]).as_str().unwrap_or_default();
                let certificates = match bundle(webhook) {
                    Ok(certificates) => certificates,
                    Err(problem) => return fault(format!("caBundle of {name} {problem}")),
                };
                let valid = certificates.iter().filter(|ca| matches!(ca.age(facts.now), Age::Valid | Age::Late));
                let Some(last) = valid.max_by_key(|ca| ca.not_after) else {
                    let until = certificates.iter().map(|ca| ca.until(facts.now)).next().unwrap_or_default();
                    return fault(format!("no CA in caBundle of {name} is valid: {until}"));
                };
                if let Some(problem) = mismatch(facts, &certificates) {
                    return fault(format!("caBundle of {name} {problem}"));
                }
                shown = Some(format!("{}, valid {}", counted(certificates.len(), "CA"), last.until(facts.now)));
            }
            Finding::ok(Check::CaBundle, subject.clone(), shown.unwrap_or_else(|| "no webhook in it".to_owned()))
        })
        .collect()
}

/// What of the certificate that is served a `caBundle` would not accept.
fn mismatch(facts: &Facts, trusted: &[Certificate]) -> Option<String> {
    let Ok(Some(Ok(certificates))) = &facts.serving.certificates else { return None };
    let from = &facts.serving.certificates_from;
    match facts.program.tls {
        TlsMode::SelfManaged => {
            let current = certificates.first()?;
            let is_trusted = trusted.iter().any(|ca| ca.der == current.der);
            (!is_trusted).then(|| format!("lacks the CA of Secret {from}, by which the program issues its certificate"))
        }
        TlsMode::Files => {
            let host = format!("{}.{}.svc", facts.program.service, facts.program.namespace);
            // Go takes a certificate that is a root itself, whatever it says of being a CA.
            let is_root = certificates.first().is_some_and(|leaf| {
                let is_current = matches!(leaf.age(facts.now), Age::Valid | Age::Late);
                is_current && leaf.is_for(&host) && trusted.iter().any(|ca| ca.der == leaf.der)
            });
            let is_accepted = is_root || is_accepted(certificates, &host, trusted, facts.now);
            (!is_accepted).then(|| format!("does not accept the certificate of Secret {from} for {host}"))
        }
    }
}

fn restore(facts: &Facts) -> String {
    match facts.program.tls {
        TlsMode::SelfManaged => format!(
            "The program restores it within 2 s when it runs and may: see `deployment` and `rights`.\n{} | grep -i cabundle",
            remediation::logs(facts)
        ),
        TlsMode::Files => "Whoever issues the certificate sets caBundle: cert-manager's cainjector, or \
                           certs/issue.sh --force --kubectl"
            .to_owned(),
    }
}

fn serving_ca(facts: &Facts) -> Vec<Finding> {
    let subject = format!("Secret {}", facts.serving.certificates_from);
    let managed = facts.program.tls == TlsMode::SelfManaged;
    let certificates = match &facts.serving.certificates {
        Err(unseen) => return vec![without_the_secret(facts, subject, unseen.to_string())],
        Ok(None) => {
            return vec![
                Finding::fault(Check::ServingCa, subject, "is not there: nothing can be served by it")
                    .impact(FAILS_CLOSED)
                    .remediation(if managed { restart(facts) } else { renew().to_owned() }),
            ];
        }
        Ok(Some(Err(problem))) => {
            return vec![
                Finding::fault(Check::ServingCa, subject, format!("its certificate is of no use: {problem}"))
                    .impact("Nothing can be issued or served by it.")
                    .remediation(if managed { restart(facts) } else { renew().to_owned() }),
            ];
        }
        Ok(Some(Ok(certificates))) => certificates,
    };
    let Some(first) = certificates.first() else {
        let fault = Finding::fault(Check::ServingCa, subject, "holds no certificate").impact(FAILS_CLOSED);
        return vec![fault.remediation(if managed { restart(facts) } else { renew().to_owned() })];
    };
    let what = if managed { "serving CA" } else { "leaf" };
    let until = first.until(facts.now);
    let finding = |level: Level, told: String| Finding::new(Check::ServingCa, level, subject.clone(), told);
    let remediation = if managed { restart(facts) } else { renew().to_owned() };
    vec![match first.age(facts.now) {
        Age::Expired | Age::Early => finding(Level::Fault, format!("the {what} is not valid: {until}"))
            .impact("The API server refuses what is served by it.")
            .remediation(remediation),
        Age::Late => finding(Level::Warning, format!("the {what} is about to end: {until}"))
            .impact("It should have been renewed with a third of its life left.")
            .remediation(remediation),
        Age::Valid if managed => finding(
            Level::Ok,
            format!(
                "the serving CA is valid {until}; leaves are in the memory of each replica, `reach` shows that they are accepted"
            ),
        ),
        Age::Valid => finding(Level::Ok, format!("the leaf is valid {until}")),
    }]
}

/// `caBundle` tells when the CAs end, too.
fn without_the_secret(facts: &Facts, subject: String, why: String) -> Finding {
    let found = configurations(facts).into_iter().filter_map(|(_, found)| found.as_ref().ok()?.as_ref());
    let cas =
        found.flat_map(|found| items(at(found, &["webhooks"]))).filter_map(|webhook| bundle(webhook).ok()).flatten();
    let last = cas.filter(|ca| ca.age(facts.now) != Age::Early).max_by_key(|ca| ca.not_after);
    match last {
        None => Finding::unseen(Check::ServingCa, subject, why),
        Some(ca) => told_by_bundle(&ca, facts.now, &subject),
    }
}

fn told_by_bundle(ca: &Certificate, now: Timestamp, subject: &str) -> Finding {
    let told = format!("could not be seen; by caBundle the CA is valid {}", ca.until(now));
    match ca.age(now) {
        Age::Late => Finding::warning(Check::ServingCa, subject, told)
            .impact("It should have been renewed with a third of its life left.")
            .remediation("Look at the program's log."),
        // The check of caBundle says so.
        _ => Finding::ok(Check::ServingCa, subject, told),
    }
}

fn restart(facts: &Facts) -> String {
    format!(
        "The program makes and renews it by itself: why not, its log says.\n{}\n{}",
        remediation::logs(facts),
        remediation::restart(facts)
    )
}

fn renew() -> &'static str {
    "certs/issue.sh --force --kubectl   # or look at cert-manager's Certificate"
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;

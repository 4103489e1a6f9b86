//! `certsSecretName`: is it there, readable, of use for the runner's GitLab; and the trust bundle. PURE.

use gitlab_runner_webhook::{
    config::{Config, NamespaceName},
    names::{CONFIGMAP_TRUST, KEY_CA, MOUNT_MANAGER_CERTS, MOUNT_TRUST},
};

use super::{
    certificate::{Age, Certificate},
    facts::{CertsFacts, Facts, Presence, RunnerNamespace},
    manager::Manager,
    remediation::look_at_the_program,
    report::{Check, Finding, Level, counted},
};

const WITHOUT_CA: &str =
    "The runner, or its jobs, do not trust your GitLab: \"x509: certificate signed by unknown authority\".";

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let active = facts.namespaces.iter().filter(|namespace| namespace.presence == Ok(Presence::Active));
    active
        .flat_map(|namespace| {
            let mut findings = vec![certs(namespace, facts, config)];
            findings.extend(hosts(namespace, config));
            findings.extend(jobs_elsewhere(namespace, facts, config));
            findings.extend(bundle(namespace, facts, config));
            findings
        })
        .collect()
}

fn certs(namespace: &RunnerNamespace, facts: &Facts, config: &Config) -> Finding {
    let subject = format!("{}/{}", namespace.name, config.certs_secret_name);
    let found = match &namespace.certs {
        Err(unseen) => return Finding::unseen(Check::Certs, subject, unseen),
        Ok(None) => return absent(namespace, config, subject),
        Ok(Some(found)) => found,
    };
    let unreadable = found.files.iter().find_map(|(key, file)| Some((key, file.as_ref().err()?)));
    if let Some((key, problem)) = unreadable {
        return Finding::fault(Check::Certs, subject, format!("key {key} is of no use: {problem}"))
            .impact("The trust bundle stays as it was. PEM, DER and PKCS #7 are read; half a file is not.")
            .remediation(put(config, namespace, key));
    }
    if !found.certs().has_ca && found.state.bundle.problem().is_none() {
        return Finding::fault(Check::Certs, subject, "there is no CA certificate in it")
            .impact(WITHOUT_CA)
            .remediation(put(config, namespace, KEY_CA));
    }
    if let Some(problem) = found.state.bundle.problem() {
        return Finding::fault(Check::Certs, subject, problem)
            .impact(WITHOUT_CA)
            .remediation("Remove what is not needed.");
    }
    if let Some(warning) = unused(found, &subject, config) {
        return warning;
    }
    let ages = ages(found, facts, subject.clone(), namespace, config);
    match found.client.as_slice() {
        [one] if ages.level == Level::Ok => {
            Finding::warning(Check::Certs, subject, format!("has {one}, and not its other half"))
                .impact("A client certificate is given to the runner only with its key.")
                .remediation("Add the other of tls.crt and tls.key, or remove this one.")
        }
        _ => ages,
    }
}

/// What is in it and not used, or used by more than it should be.
fn unused(found: &CertsFacts, subject: &str, config: &Config) -> Option<Finding> {
    let warning = |what: String| Finding::warning(Check::Certs, subject.to_owned(), what);
    if let Some((_, remark)) = found.state.remark(&config.inject) {
        let finding = warning(remark).impact(
            "What is left out would keep programs from reading the rest; the runner hands its key to every job.",
        );
        return Some(finding.remediation(
            "Put a CA certificate that OpenSSL reads in its place; a client's certificate, and its key without a \
             passphrase, into tls.crt and tls.key.",
        ));
    }
    found.with_key.first().map(|key| {
        warning(format!("key {key} holds a private key beside the certificate"))
            .impact("Nobody gets it from this program; where the chart mounts the Secret, the manager pod sees it.")
            .remediation(format!("Take the private key out of {key}: no client needs the key of a CA."))
    })
}

/// Where `certsSecretName` is kept by hand: a clone would be restored.
fn home<'a>(config: &'a Config, namespace: &'a RunnerNamespace) -> &'a NamespaceName {
    let cloned = config.clones.iter().find(|spec| spec.secret == config.certs_secret_name);
    cloned.map_or(&namespace.name, |spec| &spec.from)
}

/// Puts a file into a key, and leaves all other keys as they are.
fn put(config: &Config, namespace: &RunnerNamespace, key: &str) -> String {
    format!(
        "kubectl patch secret {} -n {} --type=merge -p \\\n  \
         \"{{\\\"data\\\":{{\\\"{key}\\\":\\\"$(base64 < company-ca.pem | tr -d '\\n')\\\"}}}}\"",
        config.certs_secret_name,
        home(config, namespace)
    )
}

fn absent(namespace: &RunnerNamespace, config: &Config, subject: String) -> Finding {
    let (secret, home) = (&config.certs_secret_name, home(config, namespace));
    let make = format!("kubectl create secret generic {secret} -n {home} --from-file=ca.crt=company-ca.pem");
    let managers = || namespace.managers.iter().flatten();
    let mounts = |manager: &&Manager| manager.demands.contains_key(config.certs_secret_name.as_str());
    if let Some(manager) = managers().find(mounts) {
        return Finding::fault(Check::Certs, subject, format!("is not there, and {} mounts it", manager.shown))
            .impact(
                "The chart's volume custom-certs is not optional: a new pod stays in ContainerCreating until the Secret \
                 comes. Nor is a CA given to jobs.",
            )
            .remediation(make);
    }
    match managers().find_map(Manager::tls_host) {
        Some(host) => {
            Finding::warning(Check::Certs, subject, format!("is not there, and the runner calls https://{host}"))
                .impact(format!("{WITHOUT_CA} It is not needed where a public CA issued the certificate."))
                .remediation(make)
        }
        None => Finding::ok(Check::Certs, subject, "is not there; no runner here calls GitLab by https"),
    }
}

fn ages(found: &CertsFacts, facts: &Facts, subject: String, namespace: &RunnerNamespace, config: &Config) -> Finding {
    let put = |key: &str| put(config, namespace, key);
    let certificates: Vec<&Certificate> = found.certificates().collect();
    let of_age = |age: Age| certificates.iter().filter(move |each| each.age(facts.now) == age);
    let told = |each: &Certificate| format!("{}, valid {}", each.subject, each.until(facts.now));
    let expired = of_age(Age::Expired).next().or(of_age(Age::Early).next());
    match (expired, of_age(Age::Late).next()) {
        (Some(each), _) if of_age(Age::Valid).chain(of_age(Age::Late)).next().is_none() => {
            Finding::fault(Check::Certs, subject, format!("no certificate in it is valid: {}", told(each)))
                .impact(WITHOUT_CA)
                .remediation(put(KEY_CA))
        }
        (Some(each), _) => Finding::warning(Check::Certs, subject, format!("one in it is not valid: {}", told(each)))
            .impact("It does no harm beside its successor; if it is the one that your GitLab needs, TLS fails.")
            .remediation(format!("Take it out, or put its successor beside it:\n{}", put("successor.crt"))),
        (None, Some(each)) => Finding::warning(Check::Certs, subject, format!("one is about to end: {}", told(each)))
            .impact(WITHOUT_CA)
            .remediation(format!(
                "Put its successor beside it, in the same file or a further key:\n{}",
                put("successor.crt")
            )),
        (None, None) => {
            let keys: Vec<_> = found.files.keys().map(String::as_str).collect();
            let first = certificates.iter().min_by_key(|each| each.not_after);
            let until = first.map(|each| each.until(facts.now)).unwrap_or_default();
            let what = format!("{} in {}, valid {until}", counted(certificates.len(), "certificate"), keys.join(", "));
            Finding::ok(Check::Certs, subject, what)
        }
    }
}

/// Runners whose jobs are in a namespace without a trust bundle.
fn jobs_elsewhere(namespace: &RunnerNamespace, facts: &Facts, config: &Config) -> Option<Finding> {
    let managers = namespace.managers.iter().flatten();
    let (manager, jobs) = managers.into_iter().find_map(|manager| Some((manager, manager.jobs_in.as_deref()?)))?;
    let is_selected = facts.namespaces.iter().any(|other| other.name.as_str() == jobs);
    (config.inject.jobs && !is_selected).then(|| {
        Finding::warning(
            Check::TrustBundle,
            manager.shown.as_str(),
            format!("its jobs run in namespace {jobs}, without a trust bundle"),
        )
        .impact("Those jobs do not trust your CAs, and nobody tells them.")
        .remediation(format!(
            "Add it to trustNamespaces.names, apply the manifests of that configuration, and put the CAs there:\n\
                 kubectl create secret generic {} -n {jobs} --from-file=ca.crt=company-ca.pem",
            config.certs_secret_name
        ))
    })
}

/// Whether the runner knows the CAs. The certificate of GitLab itself is not fetched: whoever runs the check may not reach
/// what the runner reaches.
fn hosts(namespace: &RunnerNamespace, config: &Config) -> Vec<Finding> {
    let (Ok(Some(found)), Ok(managers)) = (&namespace.certs, &namespace.managers) else { return Vec::new() };
    if !found.certs().has_ca || found.files.values().any(Result::is_err) {
        return Vec::new();
    }
    managers.iter().map(|manager| host(manager, found, config, namespace)).collect()
}

fn host(manager: &Manager, found: &CertsFacts, config: &Config, namespace: &RunnerNamespace) -> Finding {
    let subject = manager.shown.as_str();
    let Some(host) = manager.tls_host() else {
        let url = manager.url.as_deref().unwrap_or("not set");
        return Finding::ok(Check::CertsHost, subject, format!("needs no CA: CI_SERVER_URL is {}", without_user(url)));
    };
    match manager.ca_file.as_deref() {
        Some(file) if file.starts_with(MOUNT_TRUST) => {}
        Some(file) => return own_file(manager, file, found),
        // What is injected into its pods, nobody sees on a Deployment.
        None if !manager.is_pod => return Finding::ok(Check::CertsHost, subject, "has no pod yet"),
        None => return no_ca(manager, host, found, config, namespace),
    }
    let is_ca = |each: &&Certificate| each.is_ca;
    let leaf = found.certificates().find(|each| !each.is_ca && !each.names.is_empty());
    if let Some(leaf) = leaf.filter(|leaf| !leaf.is_for(host) && found.certificates().find(is_ca).is_none()) {
        let names = leaf.names.join(", ");
        let what = format!("knows only the certificate of a server, for {names}, and CI_SERVER_URL names {host}");
        return Finding::fault(Check::CertsHost, subject, what)
            .impact(format!("It is no CA, so it is trusted for its own names only. {WITHOUT_CA}"))
            .remediation(format!("Put the CA that issued the certificate of {host} into key {KEY_CA}."));
    }
    let what =
        format!("trusts them for {host}; whether one of them issued GitLab's certificate cannot be seen from here");
    Finding::ok(Check::CertsHost, subject, what)
}

/// The runner hands the file of its variable to every job, as it is.
fn own_file(manager: &Manager, file: &str, found: &CertsFacts) -> Finding {
    let key = file.strip_prefix(MOUNT_MANAGER_CERTS).and_then(|rest| rest.strip_prefix('/'));
    if let Some(key) = key.filter(|key| found.with_key.iter().any(|with_key| with_key == key)) {
        let what = format!("hands key {key} of the Secret to every job, and a private key is in it");
        return Finding::fault(Check::CertsHost, manager.shown.as_str(), what)
            .impact("Whoever runs a job can read that key.")
            .remediation(format!(
                "Replace the key and its certificate, and leave CI_SERVER_TLS_CA_FILE out: it is injected.\n{}",
                manager.restart
            ));
    }
    Finding::ok(Check::CertsHost, manager.shown.as_str(), "has a CI_SERVER_TLS_CA_FILE of its own")
}

fn no_ca(manager: &Manager, host: &str, found: &CertsFacts, config: &Config, namespace: &RunnerNamespace) -> Finding {
    let what = format!("knows no CA for {host}: CI_SERVER_TLS_CA_FILE is not set");
    if config.inject.manager && !namespace.opted_out && !manager.opted_out {
        // It came before the certificates, or while the program was away.
        let remediation =
            format!("The variable is set when the pod is created: let it come anew.\n{}", manager.restart);
        return Finding::fault(Check::CertsHost, manager.shown.as_str(), what)
            .impact(WITHOUT_CA)
            .remediation(remediation);
    }
    let own = format!("{host}.crt");
    if found.files.contains_key(&own) {
        let what = format!("nothing is injected; mounted by the chart, the runner finds {own} itself, but not as root");
        return Finding::ok(Check::CertsHost, manager.shown.as_str(), what);
    }
    Finding::warning(Check::CertsHost, manager.shown.as_str(), what)
        .impact(format!("{WITHOUT_CA} It is not needed where a public CA issued the certificate."))
        .remediation(format!(
            "Let the CA be injected, or give it the name that the runner looks for:\n{}\n{}",
            put(config, namespace, &own),
            manager.restart
        ))
}

/// A URL may carry a password.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

fn bundle(namespace: &RunnerNamespace, facts: &Facts, config: &Config) -> Option<Finding> {
    let subject = format!("{}/{CONFIGMAP_TRUST}", namespace.name);
    let wanted = match (&namespace.certs, config.inject.jobs || config.inject.services || config.inject.manager) {
        (Ok(Some(found)), true) if found.state.bundle.is_some() => &found.state.bundle,
        _ => return None,
    };
    let fault = |what: &str| {
        Finding::fault(Check::TrustBundle, subject.clone(), what)
            .impact(
                "Runner pods mount it: without it, or with an old one, runner and jobs do not trust the CAs of today.",
            )
            .remediation(look_at_the_program(facts))
    };
    Some(match &namespace.trust {
        Err(unseen) => Finding::unseen(Check::TrustBundle, subject.clone(), unseen),
        Ok(None) => fault("is not there"),
        Ok(Some(there)) if !there.is_ours(&config.certs_secret_name) => fault("is not ours: it lacks our marks"),
        Ok(Some(there)) if !there.has_content_of(wanted) => fault("is not what follows from the certificates"),
        Ok(Some(_)) => Finding::ok(Check::TrustBundle, subject.clone(), "is what follows from the certificates"),
    })
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;

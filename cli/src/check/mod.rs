//! `gitlab-runner-webhook check`: is all as it should be, and if not, what is to be done?
//!
//! Reads the cluster as the caller, and writes nothing. What was gathered (`gather`, `reader`) is judged by pure
//! functions, one file for each group of checks; `report` tells it. `docs/check.md` is for users.

mod bindings;
mod certificate;
mod drift;
mod facts;
mod gather;
mod kyverno;
mod manager;
mod reach;
mod reader;
mod remediation;
pub mod report;
mod rights;
mod runner;
mod serving;
mod source;
#[cfg(test)]
mod testing;
mod trust;

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use gitlab_runner_webhook::{
    config::{ConfigurationName, NamespaceName, SecretName, ServiceName},
    names,
};

use self::{
    facts::{Facts, Refused},
    reader::Reader,
    report::{Check, Finding, Level, Report},
};
use crate::Connection;

/// What it is told.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// As whom the API server is asked, and which.
    #[command(flatten)]
    pub connection: Connection,

    /// Configuration file (YAML). Without it: the ConfigMap that the running Deployment mounts, else the defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Namespace of the program.
    #[arg(long, value_name = "NAME", default_value = names::APP)]
    pub namespace: NamespaceName,

    /// Service of the program. Without it: as the Deployment says.
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,

    /// Name of both webhook configurations. Without it: as the Deployment says.
    #[arg(long, value_name = "NAME")]
    pub webhook_configuration: Option<ConfigurationName>,

    /// Secret with the serving CA. Without it: as the Deployment says.
    #[arg(long, value_name = "NAME")]
    pub ca_secret: Option<SecretName>,

    /// How the findings are told.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,

    /// Longest wait for one answer of the API server.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    pub timeout: u8,
}

/// How the findings are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people; with colour on a terminal, unless `NO_COLOR` is set.
    #[default]
    Text,
    /// For scripts: docs/check.md has the schema.
    Json,
}

/// Looks, tells, and gives the exit code: 0 without a fault, 1 with one, 2 when too little could be seen.
///
/// # Errors
/// What was given cannot be used, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(look(arguments))?;
    let mut output = std::io::stdout();
    let text = match arguments.output {
        Output::Json => report.json(),
        Output::Text => {
            let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            report.text(output.is_terminal() && !is_plain)
        }
    };
    output.write_all(text.as_bytes()).context("standard output")?;
    Ok(report.exit_code())
}

async fn look(arguments: &Arguments) -> Result<Report> {
    let deadline = Duration::from_secs(arguments.timeout.into());
    // Each read has its own deadline; a dry run waits for webhooks, too.
    let (client, server) = arguments.connection.connect(deadline.max(reader::DRY_RUN)).await?;
    let reader = Reader::new(client, deadline);
    // Without it nothing can be seen, and once is enough to say so.
    let version = match reader.answers().await {
        Ok(version) => version,
        Err(unseen) => return Ok(Report::new(vec![unreachable(&server, &unseen)])),
    };
    let mut findings = vec![Finding::ok(Check::Cluster, server, format!("answers, {version}"))];
    findings.extend(judge(&gather::gather(&reader, arguments).await?));
    Ok(Report::new(findings))
}

fn unreachable(server: &str, unseen: &facts::Unseen) -> Finding {
    Finding::unseen(Check::Cluster, server, unseen)
        .impact("Nothing can be seen without the API server.")
        .remediation("kubectl version   # with the same kubeconfig; --kubeconfig and --context choose another cluster")
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let subject = facts.config_origin.as_str();
    let mut findings = serving::judge(facts);
    findings.push(kyverno::judge(facts));
    let remediation = format!(
        "kubectl get configmaps -n {}\n{}\nIts configMapGenerator makes it. Each field is in docs/configuration.md.",
        facts.program.namespace,
        remediation::APPLY
    );
    let fault = |what: String| {
        Finding::fault(Check::Configuration, subject, what)
            .impact("The program does not start with it. Nothing that depends on the configuration was looked at.")
            .remediation(remediation)
    };
    match &facts.config {
        Ok(config) => {
            findings.push(Finding::ok(Check::Configuration, subject, "can be read"));
            findings.extend(source::judge(facts, config));
            findings.extend(runner::judge(facts, config));
            findings.extend(trust::judge(facts, config));
            findings.extend(rights::judge(facts, config));
            findings.extend(drift::judge(facts, config));
        }
        Err(Refused::Invalid(problem)) => findings.push(fault(format!("cannot be used: {problem}"))),
        Err(Refused::Missing(problem)) => findings.push(fault(problem.clone())),
        Err(Refused::Unseen(unseen)) => findings.push(
            Finding::unseen(Check::Configuration, subject, unseen)
                .impact("Nothing that depends on the configuration was looked at.")
                .remediation(
                    "Give it with --config FILE, or run the check as somebody who may read it: docs/check.md.",
                ),
        ),
    }
    // That nothing asks the program is one fault, not two.
    let is_registered = !findings
        .iter()
        .any(|finding| matches!(finding.check, Check::Registration | Check::Webhooks) && finding.level == Level::Fault);
    findings.retain(|finding| {
        finding.check != Check::Reach || is_registered || facts.serving.reach != facts::Reach::Silent
    });
    findings
}

//! `gitlab-runner-webhook migrate`: from a Kyverno policy to this program, with no moment without the clone.
//!
//! While the policy lives, it and the program hold each clone in step, and the program writes none that is right. So:
//! the policy is *orphaned* (`synchronize: false`: it neither changes its clones back nor takes them with it), each clone
//! is taken from it by metadata alone, the running program marks it as its own, and only then the policy is deleted. In
//! between, the clone is what it was. The content of a Secret is compared here, and never written.

mod api;
mod gather;
mod managed_by;
mod plan;
mod policy;
mod preflight;
mod release;
mod report;
mod steps;

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use gitlab_runner_webhook::{
    cluster::Requests,
    config::{NamespaceName, PolicyName},
    names,
};
use kube::Client;

use self::{
    api::{Caller, View},
    plan::Plan,
    steps::Steps,
};
pub use self::{
    plan::{Step, Target},
    steps::StepError,
};
use crate::{Connection, installed::Installed, terminal::printable_lines};

/// What it is told.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// What the plan is made from.
    #[command(flatten)]
    pub options: Options,

    /// As whom the API server is asked, and which.
    #[command(flatten)]
    pub connection: Connection,

    /// Write the configuration that does what the policy does to this file. Without such a policy, that is an error.
    #[arg(long, value_name = "FILE")]
    pub output_config: Option<PathBuf>,

    /// Show the plan and change nothing. The API server is asked, by dry run, whether it would let each write through.
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask before anything is changed.
    #[arg(long)]
    pub yes: bool,
}

/// What the plan is made from.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Name of the `ClusterPolicy`.
    #[arg(long, value_name = "NAME", default_value = names::KYVERNO_POLICY)]
    pub policy: PolicyName,

    /// Namespace of the program.
    #[arg(long, value_name = "NAME", default_value = names::APP)]
    pub namespace: NamespaceName,

    /// Configuration that the program runs with. Without it: the one that its Deployment mounts.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Go on although Helm, Flux or Argo CD keeps the policy and may bring it back.
    #[arg(long)]
    pub force_managed: bool,

    /// How long each step waits for the program, or for the policy to go.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

fn seconds(value: &str) -> Result<Duration, String> {
    let whole = value.parse().ok().filter(|seconds| *seconds > 0);
    whole.map(Duration::from_secs).ok_or_else(|| "expected a whole number of seconds, 1 or more".to_owned())
}

/// A migration that was looked into: its plan, and what carries it out.
pub struct Migration {
    steps: Steps,
    plan: Plan,
}

impl Migration {
    /// Looks into it; changes nothing.
    ///
    /// # RBAC
    /// The caller's: `get` of the policy, the program's Deployment and `ConfigMap`, the sources and the clones, `list` of
    /// Namespaces, Secrets (metadata) and `UpdateRequests`; and for the dry run what the steps need, `patch` of policy
    /// and clones, `delete` of policy and `UpdateRequests`. Better with `get` of the `HelmRelease` or `Kustomization` that
    /// keeps the policy, without which it counts as one that acts, and of the `GeneratingPolicy` of the same name; and with
    /// `impersonate` of the program's `ServiceAccount`, by which the program is asked whether it may write.
    ///
    /// # Errors
    /// A request that failed.
    pub async fn prepare(client: Client, options: &Options) -> Result<Self, StepError> {
        let caller = Caller::new(client.clone());
        let policy = caller.get(&steps::policy_path(&options.policy), View::Whole).await?;
        let uid = policy.as_ref().and_then(|policy| policy.pointer("/metadata/uid")?.as_str().map(str::to_owned));
        let mut steps = Steps {
            caller: caller.clone(),
            requests: Requests::new(client),
            program: None,
            name: options.policy.clone(),
            uid,
            targets: Vec::new(),
            patience: options.timeout,
        };
        let found = gather::gather(&caller, &steps, policy, &options.namespace, options.config.as_deref()).await?;
        let mut plan = Plan::new(&options.policy, &found, options.force_managed);
        steps.targets.clone_from(&plan.targets);
        let account = found.deployment.as_ref().and_then(Installed::of).map(|installed| installed.service_account);
        steps.program = account.map(|account| format!("system:serviceaccount:{}:{account}", options.namespace));
        if plan.refusals.is_empty() && !plan.steps.is_empty() {
            let (refusals, notes) = steps.preflight().await?;
            plan.refusals.extend(refusals);
            plan.notes.extend(notes);
        }
        Ok(Self { steps, plan })
    }

    /// Why nothing is to be done; empty when all can be done.
    pub fn refusals(&self) -> &[String] {
        &self.plan.refusals
    }

    /// The steps, in order. None: there is nothing to do.
    pub fn steps(&self) -> &[Step] {
        if self.plan.refusals.is_empty() { &self.plan.steps } else { &[] }
    }

    /// The configuration that does what the policy does, when there is a policy that was understood.
    pub fn configuration(&self) -> Option<&str> {
        self.plan.configuration.as_deref()
    }

    /// All of it, for people.
    pub fn report(&self) -> String {
        report::report(&self.steps.name, &self.plan)
    }

    /// Carries out one step; says what was done.
    ///
    /// # Errors
    /// What kept it from its end. What is done stays done, and a repetition goes on from there.
    pub async fn carry_out(&self, step: &Step) -> Result<String, StepError> {
        self.steps.carry_out(step).await
    }
}

/// Shows the plan and, when told to, carries it out.
///
/// # Errors
/// It is refused, not confirmed, or a step failed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(migrate(arguments))
}

async fn migrate(arguments: &Arguments) -> Result<()> {
    let (client, _) = arguments.connection.connect(api::DEADLINE).await?;
    let migration = Migration::prepare(client, &arguments.options).await?;
    say(&migration.report())?;
    let Some(path) = &arguments.output_config else { return carry_out(arguments, &migration).await };
    if let Some(yaml) = migration.configuration() {
        fs::write(path, yaml)
            .with_context(|| format!("{} cannot be written; name another file with --output-config", path.display()))?;
        return carry_out(arguments, &migration).await;
    }
    // What there is to do is done all the same: the same command goes on where an earlier one stopped.
    let result = carry_out(arguments, &migration).await;
    let unwritten = || format!("{} was not written: there is no policy that it could be derived from", path.display());
    match result {
        Ok(()) => bail!("{}; leave --output-config out", unwritten()),
        Err(error) => Err(error.context(unwritten())),
    }
}

/// Carries out the whole plan, as far as that is told.
async fn carry_out(arguments: &Arguments, migration: &Migration) -> Result<()> {
    if !migration.refusals().is_empty() {
        bail!("refused: nothing was changed; the reasons are above");
    }
    if migration.steps().is_empty() {
        return Ok(());
    }
    if arguments.dry_run {
        return say("Dry run: nothing was changed.\n");
    }
    if !arguments.yes && !confirmed()? {
        bail!("not confirmed: nothing was changed");
    }
    for (index, step) in migration.steps().iter().enumerate() {
        let done = migration.carry_out(step).await.with_context(|| format!("step {}, {step}", index + 1))?;
        say(&format!("{}. {step}: {done}\n", index + 1))?;
    }
    say(
        "Done. Kyverno's label generate.kyverno.io/clone-source stays on the source: other policies may clone it, too.\n",
    )
}

fn confirmed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nobody can be asked here: give --yes, or --dry-run to see the plan only");
    }
    say("Go on? Only `yes` is taken for that: ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("standard input")?;
    Ok(answer.trim() == "yes")
}

/// The one place through which everything goes that came from the cluster.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(printable_lines(text).as_bytes()).and_then(|()| out.flush()).context("standard output")
}

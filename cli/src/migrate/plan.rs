//! From what was found to what is to be done, or why nothing is done. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use gitlab_runner_webhook::{
    config::{CloneSpec, Config, NamespaceName, PolicyName},
    names::{APP, LABEL_NAMESPACE_NAME},
};
use kube::core::{Expression, Selector, SelectorExt as _};
use serde_json::Value;

use super::{
    managed_by::{ManagedBy, State},
    policy::{Covered, Policy},
};
use crate::rollout::Rollout;

/// A Namespace, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespace {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) terminating: bool,
}

/// What was found before anything was changed.
#[derive(Debug)]
pub(super) struct Found {
    /// The policy's JSON, if there is one.
    pub(super) policy: Option<Value>,
    /// Whether a `GeneratingPolicy` of the same name is there; nothing when that could not be asked.
    pub(super) generating: Option<bool>,
    /// Every Namespace.
    pub(super) namespaces: Vec<Namespace>,
    /// Namespace and name of each Secret that says that this policy made it; without a policy, also of those that the
    /// configuration makes clones of and that Kyverno made for nobody any more.
    pub(super) left: BTreeSet<(String, String)>,
    /// Whether Kyverno still has something in hand for this policy.
    pub(super) has_requests: bool,
    /// The Deployment of the program, if there is one.
    pub(super) deployment: Option<Value>,
    /// The configuration that the program runs with, or why it is not known.
    pub(super) config: Result<Config, String>,
    /// Who would bring the policy back.
    pub(super) managed_by: Option<ManagedBy>,
}

/// One clone that is taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub(super) namespace: NamespaceName,
    pub(super) spec: CloneSpec,
}

/// One step. Each can be repeated, and be interrupted before, after and in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The policy stops acting on its clones, and will not take them with it.
    Orphan,
    /// What the policy still had in hand is dropped.
    DropRequests,
    /// This clone is taken from Kyverno, and the program makes it its own.
    TakeOver(Target),
    /// The policy is deleted.
    Remove,
    /// Every clone is the program's and equals its source, and the policy did not come back.
    Verify,
}

/// What is to be done, and what is in its way.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) targets: Vec<Target>,
    /// Why nothing is done; empty when it can be done.
    pub(super) refusals: Vec<String>,
    /// What a person should know.
    pub(super) notes: Vec<String>,
    /// The configuration that does what the policy does.
    pub(super) configuration: Option<String>,
    /// Whether Kyverno still acts on the clones.
    pub(super) synchronized: bool,
}

impl Plan {
    /// What follows from what was found.
    pub(super) fn new(name: &PolicyName, found: &Found, force_managed: bool) -> Self {
        let mut plan = Self::default();
        // It says the same on its clones as a ClusterPolicy, and would put its copy back.
        if found.generating == Some(true) {
            plan.refusals.push(format!(
                "a GeneratingPolicy {name} lives, and keeps the clones that carry its name; this command does not understand \
                 it. Keep Kyverno for it, or see to it that it and its clones part"
            ));
            return plan;
        }
        let policy = match found.policy.as_ref().map(Policy::read) {
            None if found.left.is_empty() && !found.has_requests => return plan,
            None => None,
            Some(Ok(policy)) => Some(policy),
            Some(Err(problems)) => {
                let refuse = |problem| {
                    format!(
                        "ClusterPolicy {name} does more than this program can: {problem}. Split it, or keep Kyverno for it"
                    )
                };
                plan.refusals.extend(problems.into_iter().map(refuse));
                return plan;
            }
        };
        if found.generating.is_none() {
            plan.notes.push(format!(
                "whether there is a GeneratingPolicy {name}, which would put the clones back, is not known: you may not get \
                 it"
            ));
        }
        plan.judge_policy(name, policy.as_ref(), found, force_managed);
        if let Some(problem) = not_ready(found.deployment.as_ref()) {
            plan.refusals.push(problem);
        }
        match &found.config {
            // What is not installed runs with no configuration.
            _ if found.deployment.is_none() => {}
            Ok(config) => plan.judge_config(policy.as_ref(), found, config),
            Err(problem) => plan.refusals.push(problem.clone()),
        }
        if plan.refusals.is_empty() {
            plan.steps.extend(policy.is_some().then_some(Step::Orphan));
            plan.steps.push(Step::DropRequests);
            plan.steps.extend(plan.targets.iter().cloned().map(Step::TakeOver));
            if policy.is_some() {
                plan.steps.extend([Step::Remove, Step::DropRequests]);
            }
            plan.steps.push(Step::Verify);
        }
        plan
    }

    fn judge_policy(&mut self, name: &PolicyName, policy: Option<&Policy>, found: &Found, force_managed: bool) {
        let Some(policy) = policy else {
            let left = if found.left.is_empty() {
                "what Kyverno still has in hand for it is dropped"
            } else {
                "the clones it left are taken over"
            };
            self.notes.push(format!("ClusterPolicy {name} is gone already; {left}"));
            return;
        };
        self.synchronized = policy.rules.iter().any(|rule| rule.synchronize);
        let yaml = policy.configuration(name);
        match Config::from_yaml(&yaml) {
            Ok(_) => self.configuration = Some(yaml),
            Err(error) => {
                self.refusals.push(format!("ClusterPolicy {name} does what no configuration can say: {error}"));
            }
        }
        match &found.managed_by {
            Some(managed_by) if managed_by.state == State::Suspended || force_managed => {
                self.notes.push(managed_by.warning(name));
            }
            Some(managed_by) => self.refusals.push(managed_by.refusal(name)),
            None => {}
        }
    }

    fn judge_config(&mut self, policy: Option<&Policy>, found: &Found, config: &Config) {
        const FIX: &str = "take over the configuration shown by this command, roll the program out, and try again";
        let mut specs = Vec::new();
        for cloned in policy.iter().flat_map(|policy| &policy.clones) {
            let same = |spec: &&CloneSpec| spec.secret.as_str() == cloned.secret && spec.from.as_str() == cloned.from;
            match config.clones.iter().find(same) {
                Some(spec) => specs.push(spec.clone()),
                None => self.refusals.push(format!(
                    "the running configuration does not clone Secret {} from namespace {}; {FIX}",
                    cloned.secret, cloned.from
                )),
            }
        }
        // Without the policy, what it left says what it cloned.
        let of_left = |spec: &&CloneSpec| found.left.iter().any(|(_, secret)| spec.secret.as_str() == secret);
        if policy.is_none() {
            specs.extend(config.clones.iter().filter(of_left).cloned());
        }
        let nothing = Covered::default();
        let covered = policy.map_or(&nothing, |policy| &policy.covered);
        for name in &covered.names {
            let there = found.namespaces.iter().find(|namespace| namespace.name == *name);
            let labels = there.map(|namespace| namespace.labels.clone()).unwrap_or_default();
            if !is_runner_namespace(config, name, &labels) && !specs.iter().any(|spec| spec.from.as_str() == name) {
                self.refusals.push(format!("the running configuration does not cover namespace {name}; {FIX}"));
            }
        }
        for labelled in &covered.selectors {
            if !config.runner_namespaces.selectors.iter().any(|ours| implies(&labelled.selector, ours)) {
                self.refusals.push(format!(
                    "the running configuration has no selector for namespaces with {}; {FIX}",
                    labelled.selector
                ));
            }
        }
        for namespace in found.namespaces.iter().filter(|namespace| !namespace.terminating) {
            let left: Vec<_> = found.left.iter().filter(|(of, _)| *of == namespace.name).collect();
            let is_covered = covered.has(&namespace.name, &namespace.labels);
            if !is_covered && left.is_empty() {
                continue;
            }
            let is_ours = is_runner_namespace(config, &namespace.name, &namespace.labels);
            for spec in specs.iter().filter(|spec| spec.from.as_str() != namespace.name) {
                let has_left = left.iter().any(|(_, secret)| spec.secret.as_str() == secret);
                if !is_ours && !covered.names.contains(&namespace.name) {
                    self.refusals.push(format!(
                        "the running configuration does not cover namespace {}, which has a clone of {}; {FIX}",
                        namespace.name, spec.secret
                    ));
                } else if let (true, Ok(name)) = (is_ours && (is_covered || has_left), namespace.name.parse()) {
                    self.targets.push(Target { namespace: name, spec: spec.clone() });
                }
            }
            for (_, secret) in left {
                if !specs.iter().any(|spec| spec.secret.as_str() == secret) {
                    self.refusals.push(format!(
                        "Secret {secret} in namespace {} is a clone of this policy, and the running configuration does \
                         not clone it; {FIX}",
                        namespace.name
                    ));
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Orphan => "orphan",
            Self::DropRequests => "drop-requests",
            Self::TakeOver(_) => "take-over",
            Self::Remove => "remove",
            Self::Verify => "verify",
        })
    }
}

/// Whether the configuration makes a clone of this Secret, in a namespace that stays.
pub(super) fn is_clone(config: &Config, namespaces: &[Namespace], namespace: &str, secret: &str) -> bool {
    let there = namespaces.iter().find(|there| there.name == namespace && !there.terminating);
    there.is_some_and(|there| is_runner_namespace(config, namespace, &there.labels))
        && config.clones.iter().any(|spec| spec.secret.as_str() == secret && spec.from.as_str() != namespace)
}

fn is_runner_namespace(config: &Config, name: &str, labels: &BTreeMap<String, String>) -> bool {
    config.runner_namespaces.names.contains(name)
        || config.runner_namespaces.selectors.iter().any(|selector| selector.matches(labels))
}

/// Whether everything that `theirs` selects is selected by `ours`, beside what no label ever selects.
fn implies(theirs: &Selector, ours: &Selector) -> bool {
    let normal = |selector: &Selector| -> Vec<Expression> {
        let expressions = selector.clone().into_iter();
        let never = |one: &Expression| matches!(one, Expression::NotIn(key, _) if key == LABEL_NAMESPACE_NAME);
        let equal = |one: Expression| match one {
            Expression::Equal(key, value) => Expression::In(key, BTreeSet::from([value])),
            one => one,
        };
        expressions.filter(|one| !never(one)).map(equal).collect()
    };
    let theirs = normal(theirs);
    normal(ours).iter().all(|our| {
        theirs.iter().any(|their| match (our, their) {
            (Expression::In(key, ours), Expression::In(of, theirs)) => key == of && theirs.is_subset(ours),
            (Expression::Exists(key), Expression::In(of, _)) => key == of,
            (our, their) => our == their,
        })
    })
}

fn not_ready(deployment: Option<&Value>) -> Option<String> {
    let Some(deployment) = deployment else {
        return Some(format!(
            "the program is not installed: no Deployment {APP}; install it with the configuration shown by this \
             command, or say where it is with --namespace"
        ));
    };
    let Rollout { wanted, total, available, updated, is_observed, .. } = Rollout::of(deployment);
    if wanted > 0 && is_observed && updated >= wanted && available >= wanted && total == updated {
        return None;
    }
    Some(format!(
        "the program is not ready: of {wanted} replicas of Deployment {APP}, {updated} are of the latest version and \
         {available} available; see `kubectl rollout status` and its log, and try again"
    ))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

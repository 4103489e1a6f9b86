//! The plan, for people. PURE.

use gitlab_runner_webhook::config::PolicyName;

use super::plan::{Plan, Step};

/// What is to be done, or why not.
pub(super) fn report(name: &PolicyName, plan: &Plan) -> String {
    let mut parts = Vec::new();
    if let Some(yaml) = &plan.configuration {
        parts.push(format!("Configuration that does what ClusterPolicy {name} does:\n\n{}\n", indented(yaml)));
    }
    for note in &plan.notes {
        parts.push(format!("Note: {note}.\n"));
    }
    for refusal in &plan.refusals {
        parts.push(format!("Refused: {refusal}.\n"));
    }
    if !plan.refusals.is_empty() {
        return parts.concat();
    }
    if plan.steps.is_empty() {
        return format!(
            "There is no ClusterPolicy {name}, no Secret that it left, and nothing that Kyverno has in hand for it: there is nothing to do.\n"
        );
    }
    parts.push("Plan:\n".to_owned());
    for (index, step) in plan.steps.iter().enumerate() {
        parts.push(format!("  {}. {step}: {}\n", index + 1, meaning(step, name, plan)));
    }
    parts.concat()
}

fn meaning(step: &Step, name: &PolicyName, plan: &Plan) -> String {
    match step {
        Step::Orphan if plan.synchronized => format!(
            "set `synchronize: false` in ClusterPolicy {name}, so that it neither changes its clones back nor takes them with it"
        ),
        Step::Orphan => format!("ClusterPolicy {name} has `synchronize: false` already"),
        Step::DropRequests => format!("delete the UpdateRequests that Kyverno still has for ClusterPolicy {name}"),
        Step::TakeOver(target) => format!(
            "take Kyverno's labels off Secret {} in namespace {}, and wait until the program has marked it",
            target.spec.secret, target.namespace
        ),
        Step::Remove => {
            format!("delete ClusterPolicy {name}, in the version that is orphaned, and wait until it is gone")
        }
        Step::Verify => "look at every clone again: the program's, and equal to its source".to_owned(),
    }
}

fn indented(text: &str) -> String {
    text.lines().flat_map(|line| ["  ", line, "\n"]).collect()
}

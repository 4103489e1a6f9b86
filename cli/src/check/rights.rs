//! What the `ServiceAccount` may do, beside what it needs. PURE.

use std::{collections::BTreeMap, fmt::Write as _};

use gitlab_runner_webhook::config::Config;

use super::{
    facts::{Facts, Grant},
    remediation::write_anew,
    report::{Check, Finding},
};
use crate::drift::{
    Named, Role,
    expected::roles,
    rights::{Needed, Right, expand, told, yaml},
};

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let subject = format!("ServiceAccount {}/{}", facts.program.namespace, facts.program.service_account);
    let rights = &facts.rights;
    let mut findings: Vec<_> =
        rights.unseen.iter().map(|unseen| Finding::unseen(Check::Rights, subject.clone(), unseen)).collect();
    let is_whole = findings.is_empty();
    let forms = roles(&facts.program, config);
    let given = given(&rights.grants);
    let all: Vec<_> = given.iter().map(|(_, right)| right.clone()).collect();
    let compared = forms.iter().map(|form| {
        let needed = Needed::of(form);
        let surplus: Vec<_> = given.iter().filter(|(_, right)| !needed.covers(right)).cloned().collect();
        (form, needed.missing(&all), surplus)
    });
    let best = compared.min_by_key(|(_, lacking, surplus)| lacking.len() + surplus.len());
    let Some((form, lacking, surplus)) = best else { return findings };
    // What could not be read may hold what seems to be missing.
    if is_whole {
        findings.extend(missing(&subject, &lacking, &rights.grants, facts));
    }
    findings.extend(excess(&subject, &surplus, &rights.grants, form));
    if findings.is_empty() {
        findings.push(Finding::ok(Check::Rights, subject, "each right that it needs, and no other"));
    }
    findings
}

/// Each right, and the index of the grant that gives it.
fn given(grants: &[Grant]) -> Vec<(usize, Right)> {
    let of_grant = |(index, grant): (usize, &Grant)| {
        let rules = grant.rules.as_deref().unwrap_or_default();
        expand(grant.binding.namespace.as_deref(), rules).map(|right| (index, right)).collect::<Vec<_>>()
    };
    grants.iter().enumerate().flat_map(of_grant).collect()
}

fn missing(subject: &str, missing: &[(Named, Right)], grants: &[Grant], facts: &Facts) -> Vec<Finding> {
    let mut of_role: BTreeMap<&Named, Vec<&Right>> = BTreeMap::new();
    for (role, right) in missing {
        of_role.entry(role).or_default().push(right);
    }
    let findings = of_role.into_iter().map(|(role, rights)| {
        let mut remediation = format!("These rules belong into {role}:\n{}", yaml(&rights));
        if !grants.iter().any(|grant| grant.role == *role) {
            let _ = write!(remediation, "\nand this binding beside it:\n{}", binding(role, facts));
        }
        let _ = write!(remediation, "\nAll of it at once:\n{}", write_anew());
        Finding::fault(Check::Rights, subject, format!("lacks {}", told(&rights)))
            .impact(
                "What it may not do it does not do: the clone's state, its log and metrics name the refused request.",
            )
            .remediation(remediation)
    });
    findings.collect()
}

fn excess(subject: &str, excess: &[(usize, Right)], grants: &[Grant], form: &[Role]) -> Vec<Finding> {
    let mut of_grant: BTreeMap<usize, Vec<&Right>> = BTreeMap::new();
    for (index, right) in excess {
        of_grant.entry(*index).or_default().push(right);
    }
    let findings = of_grant.into_iter().filter_map(|(index, rights)| {
        let Grant { binding, role, is_for_group, .. } = grants.get(index)?;
        let told = format!("may, without need, {}", told(&rights));
        if *is_for_group {
            let who = format!("{binding} gives them, by {role}, to every account of the namespace.");
            let finding = Finding::warning(Check::Rights, subject, told).impact(who);
            return Some(finding.remediation("If that is the platform's way, leave it: whoever runs it knows."));
        }
        let remediation = if form.iter().any(|ours| ours.named == *role) {
            format!("{role} is ours, and gives more than the configuration takes. Write it anew:\n{}", write_anew())
        } else {
            let flag = binding.namespace.as_ref().map(|namespace| format!(" -n {namespace}")).unwrap_or_default();
            let kind = binding.kind.to_ascii_lowercase();
            format!(
                "{binding} gives them, by {role}, and neither is ours. If nobody needs it:\n\
                 kubectl delete {kind}/{}{flag}",
                binding.name
            )
        };
        let why = "Whoever steals its token, or finds a hole in it, can do that, too.";
        Some(Finding::fault(Check::Rights, subject, told).impact(why).remediation(remediation))
    });
    findings.collect()
}

fn binding(role: &Named, facts: &Facts) -> String {
    let namespace = role.namespace.as_ref().map(|namespace| format!("\n  namespace: {namespace}")).unwrap_or_default();
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata:\n  name: {name}{namespace}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {name}}}\n\
         subjects:\n  - {{kind: ServiceAccount, name: {account}, namespace: {own}}}",
        kind = role.kind,
        name = role.name,
        account = facts.program.service_account,
        own = facts.program.namespace
    )
}

#[cfg(test)]
#[path = "rights_tests.rs"]
mod tests;

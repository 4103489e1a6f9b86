//! What the `ServiceAccount` may do, beside what it needs. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::{
    expected::{Role, roles},
    facts::{Facts, Grant, Named},
    report::{Check, Finding},
};
use crate::config::Config;

/// One verb on one thing. `None` in a field: all there are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// `None`: in every namespace, and outside of them.
    namespace: Option<String>,
    group: Option<String>,
    resource: Option<String>,
    /// `None`: whatever its name.
    name: Option<String>,
    verb: Option<String>,
}

impl Right {
    fn covers(&self, other: &Self) -> bool {
        let wide = |mine: &Option<String>, its: &Option<String>| mine.is_none() || mine == its;
        wide(&self.namespace, &other.namespace)
            && wide(&self.group, &other.group)
            && wide(&self.resource, &other.resource)
            && wide(&self.name, &other.name)
            && wide(&self.verb, &other.verb)
    }
}

/// What is wrong with one role.
#[derive(Debug, Default)]
struct Wrong {
    missing: Vec<(Named, Right)>,
    excess: Vec<(usize, Right)>,
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let subject = format!("ServiceAccount {}/{}", facts.program.namespace, facts.program.service_account);
    let rights = &facts.rights;
    let mut findings: Vec<_> =
        rights.unseen.iter().map(|unseen| Finding::unseen(Check::Rights, subject.clone(), unseen)).collect();
    let is_whole = findings.is_empty();
    let forms = roles(&facts.program, config);
    let compared = forms.iter().map(|form| compare(form, &rights.grants));
    let Some(wrong) = compared.min_by_key(|wrong| wrong.missing.len() + wrong.excess.len()) else { return findings };
    // What could not be read may hold what seems to be missing.
    if is_whole {
        findings.extend(missing(&subject, &wrong.missing, &rights.grants, facts));
    }
    findings.extend(excess(&subject, &wrong.excess, &rights.grants));
    if findings.is_empty() {
        findings.push(Finding::ok(Check::Rights, subject, "each right that it needs, and no other"));
    }
    findings
}

fn compare(form: &[Role], grants: &[Grant]) -> Wrong {
    let needed: Vec<(&Named, Right)> = form
        .iter()
        .flat_map(|role| expand(role.named.namespace.as_deref(), &role.rules).map(|right| (&role.named, right)))
        .collect();
    let given: Vec<(usize, Right)> = grants
        .iter()
        .enumerate()
        .flat_map(|(index, grant)| {
            let rules = grant.rules.as_deref().unwrap_or_default();
            expand(grant.binding.namespace.as_deref(), rules).map(move |right| (index, right))
        })
        .collect();
    let missing = needed.iter().filter(|(_, right)| !given.iter().any(|(_, given)| given.covers(right)));
    let excess = given.iter().filter(|(_, right)| !needed.iter().any(|(_, needed)| needed.covers(right)));
    Wrong {
        missing: missing.map(|(role, right)| ((*role).clone(), right.clone())).collect(),
        excess: excess.cloned().collect(),
    }
}

fn expand<'a>(namespace: Option<&'a str>, rules: &'a [PolicyRule]) -> impl Iterator<Item = Right> + use<'a> {
    rules.iter().flat_map(move |rule| {
        let groups = wide(rule.api_groups.as_deref());
        let names = match rule.resource_names.as_deref() {
            None | Some([]) => vec![None],
            Some(names) => names.iter().cloned().map(Some).collect(),
        };
        let urls = rule.non_resource_urls.iter().flatten().map(|url| (None, Some(format!("URL {url}")), None));
        let resources = wide(rule.resources.as_deref());
        let things = groups.into_iter().flat_map(move |group| {
            let names = names.clone();
            resources.clone().into_iter().flat_map(move |resource| {
                let (group, resource) = (group.clone(), resource);
                names.clone().into_iter().map(move |name| (group.clone(), resource.clone(), name))
            })
        });
        things.chain(urls).flat_map(move |(group, resource, name)| {
            wide(Some(&rule.verbs)).into_iter().map(move |verb| Right {
                namespace: namespace.map(str::to_owned),
                group: group.clone(),
                resource: resource.clone(),
                name: name.clone(),
                verb,
            })
        })
    })
}

/// `*` is everything.
fn wide(words: Option<&[String]>) -> Vec<Option<String>> {
    let words = words.unwrap_or_default();
    if words.iter().any(|word| word == "*") { vec![None] } else { words.iter().cloned().map(Some).collect() }
}

fn missing(subject: &str, missing: &[(Named, Right)], grants: &[Grant], facts: &Facts) -> Vec<Finding> {
    let mut of_role: BTreeMap<&Named, Vec<&Right>> = BTreeMap::new();
    for (role, right) in missing {
        of_role.entry(role).or_default().push(right);
    }
    let findings = of_role.into_iter().map(|(role, rights)| {
        let mut mend = format!("These rules belong into {role}:\n{}", yaml(&rights));
        if !grants.iter().any(|grant| grant.role == *role) {
            let _ = write!(mend, "\nand this binding beside it:\n{}", binding(role, facts));
        }
        mend += "\nAll of it at once: kubectl apply -k manifests/overlays/default, or\n\
                 gitlab-runner-webhook manifests --config config.yaml | kubectl apply --server-side -f -";
        Finding::fault(Check::Rights, subject, format!("lacks {}", told(&rights)))
            .because(
                "What it may not do it does not do: the clone's state, its log and metrics name the refused request.",
            )
            .mend(mend)
    });
    findings.collect()
}

fn excess(subject: &str, excess: &[(usize, Right)], grants: &[Grant]) -> Vec<Finding> {
    let mut of_grant: BTreeMap<usize, Vec<&Right>> = BTreeMap::new();
    for (index, right) in excess {
        of_grant.entry(*index).or_default().push(right);
    }
    let findings = of_grant.into_iter().filter_map(|(index, rights)| {
        let Grant { binding, role, .. } = grants.get(index)?;
        let flag = binding.namespace.as_ref().map(|namespace| format!(" -n {namespace}")).unwrap_or_default();
        let mend = format!(
            "{binding} gives them, by {role}. If it is not yours to give:\n\
             kubectl delete {}/{}{flag}\n\
             If the role is ours, take these rules out of it:\n{}",
            binding.kind.to_ascii_lowercase(),
            binding.name,
            yaml(&rights)
        );
        let finding = Finding::fault(Check::Rights, subject, format!("may, without need, {}", told(&rights)))
            .because("Whoever steals its token, or finds a hole in it, can do that, too.");
        Some(finding.mend(mend))
    });
    findings.collect()
}

/// `get and list secrets/x, patch configmaps/y in namespace z`.
fn told(rights: &[&Right]) -> String {
    let mut verbs: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for right in rights {
        let resource = right.resource.as_deref().unwrap_or("everything");
        let group = right.group.as_deref().filter(|group| !group.is_empty()).map(|group| format!(".{group}"));
        let name = right.name.as_deref().map(|name| format!("/{name}"));
        let namespace = right.namespace.as_deref().map(|namespace| format!(" in namespace {namespace}"));
        let thing = [Some(resource.to_owned()), group, name, namespace].into_iter().flatten().collect::<String>();
        verbs.entry(thing).or_default().push(right.verb.as_deref().unwrap_or("do anything to"));
    }
    let told: Vec<_> = verbs.into_iter().map(|(thing, verbs)| format!("{} {thing}", verbs.join("+"))).collect();
    told.join(", ")
}

fn yaml(rights: &[&Right]) -> String {
    let mut verbs: BTreeMap<(&str, &str, Option<&str>), BTreeSet<&str>> = BTreeMap::new();
    for right in rights {
        let key =
            (right.group.as_deref().unwrap_or("*"), right.resource.as_deref().unwrap_or("*"), right.name.as_deref());
        verbs.entry(key).or_default().insert(right.verb.as_deref().unwrap_or("*"));
    }
    let mut text = String::new();
    for ((group, resource, name), verbs) in verbs {
        let verbs = verbs.into_iter().map(|verb| format!("\"{verb}\"")).collect::<Vec<_>>().join(", ");
        let _ = write!(text, "  - apiGroups: [\"{group}\"]\n    resources: [\"{resource}\"]\n");
        if let Some(name) = name {
            let _ = writeln!(text, "    resourceNames: [\"{name}\"]");
        }
        let _ = writeln!(text, "    verbs: [{verbs}]");
    }
    text.trim_end().to_owned()
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

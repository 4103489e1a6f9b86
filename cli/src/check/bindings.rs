//! Gathers what the program's `ServiceAccount` is bound to.

use std::collections::{BTreeMap, BTreeSet};

use futures::{future::join_all, join};
use gitlab_runner_webhook::config::{Config, NamespaceName};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::ResourceExt as _;

use super::{
    facts::{Grant, Rights, Seen, Unseen},
    reader::Reader,
};
use crate::drift::{Named, Program};

/// What the bindings of the `ServiceAccount` give. Those of groups that every account of the cluster is in are the
/// cluster's affair.
pub(super) async fn rights(reader: &Reader, program: &Program, config: &Config) -> Rights {
    let (of_cluster, (of_namespaces, mut unseen)) =
        join!(reader.list_cluster::<ClusterRoleBinding>(""), role_bindings(reader, program, config));
    let of_cluster = of_cluster.unwrap_or_else(|problem| {
        unseen.push(problem);
        Vec::new()
    });
    let of_cluster = of_cluster.into_iter().filter_map(|binding| {
        let how = bound(binding.subjects.as_ref(), None, program)?;
        let named = Named { kind: "ClusterRoleBinding", namespace: None, name: binding.name_any() };
        Some((named, binding.role_ref, how))
    });
    let of_namespaces = of_namespaces.into_iter().filter_map(|binding| {
        let namespace = binding.namespace();
        let how = bound(binding.subjects.as_ref(), namespace.as_deref(), program)?;
        Some((Named { kind: "RoleBinding", namespace, name: binding.name_any() }, binding.role_ref, how))
    });
    let bindings: Vec<(Named, RoleRef, Bound)> = of_cluster.chain(of_namespaces).collect();

    let wanted: BTreeSet<Named> = bindings.iter().map(|(binding, role, _)| role_of(binding, role)).collect();
    let rules = join_all(wanted.into_iter().map(async |role| {
        let rules = rules(reader, &role).await;
        (role, rules)
    }));
    let mut rules: BTreeMap<Named, Seen<Option<Vec<PolicyRule>>>> = rules.await.into_iter().collect();
    unseen.extend(rules.values().filter_map(|found| found.as_ref().err().cloned()));
    rules.retain(|_, found| found.is_ok());
    let grants = bindings.into_iter().filter_map(|(binding, role, how)| {
        let role = role_of(&binding, &role);
        let rules = rules.get(&role)?.as_ref().ok()?.clone();
        Some(Grant { binding, role, rules, is_for_group: how == Bound::Group })
    });
    Rights { grants: grants.collect(), unseen }
}

/// Those of all namespaces, or where they cannot be listed, those where the program has something to do.
async fn role_bindings(reader: &Reader, program: &Program, config: &Config) -> (Vec<RoleBinding>, Vec<Unseen>) {
    let refused = match reader.list::<RoleBinding>(None, "").await {
        Ok(bindings) => return (bindings, Vec::new()),
        Err(unseen) => unseen,
    };
    let concerned: BTreeSet<&NamespaceName> = config
        .clones
        .iter()
        .map(|spec| &spec.from)
        .chain(config.with_trust().into_iter().flat_map(|selection| &selection.names))
        .chain([&program.namespace])
        .collect();
    let lists = concerned.into_iter().map(|namespace| reader.list::<RoleBinding>(Some(namespace.as_str()), ""));
    let bindings = join_all(lists).await.into_iter().filter_map(Result::ok).flatten().collect();
    (bindings, vec![refused])
}

/// How a binding gives to the `ServiceAccount`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// To it by name.
    Itself,
    /// To every account of its namespace.
    Group,
}

fn bound(subjects: Option<&Vec<Subject>>, namespace: Option<&str>, program: &Program) -> Option<Bound> {
    let own = program.namespace.as_str();
    let bounds = subjects.into_iter().flatten().filter_map(|subject| {
        let (is_it, how) = match subject.kind.as_str() {
            "ServiceAccount" => (
                subject.name == program.service_account && subject.namespace.as_deref().or(namespace) == Some(own),
                Bound::Itself,
            ),
            "User" => {
                (subject.name == format!("system:serviceaccount:{own}:{}", program.service_account), Bound::Itself)
            }
            "Group" => (subject.name == format!("system:serviceaccounts:{own}"), Bound::Group),
            _ => return None,
        };
        is_it.then_some(how)
    });
    bounds.min_by_key(|how| *how == Bound::Group)
}

fn role_of(binding: &Named, role: &RoleRef) -> Named {
    match role.kind.as_str() {
        "Role" => Named { kind: "Role", namespace: binding.namespace.clone(), name: role.name.clone() },
        _ => Named { kind: "ClusterRole", namespace: None, name: role.name.clone() },
    }
}

async fn rules(reader: &Reader, role: &Named) -> Seen<Option<Vec<PolicyRule>>> {
    Ok(match &role.namespace {
        Some(namespace) => reader.get::<Role>(namespace, &role.name).await?.map(|role| role.rules.unwrap_or_default()),
        None => reader.get_cluster::<ClusterRole>(&role.name).await?.map(|role| role.rules.unwrap_or_default()),
    })
}

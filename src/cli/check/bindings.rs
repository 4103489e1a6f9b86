//! Gathers what the program's `ServiceAccount` is bound to.

use std::collections::{BTreeMap, BTreeSet};

use futures::{future::join_all, join};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::ResourceExt as _;

use super::{
    facts::{Grant, Rights, Seen, Unseen},
    reader::Reader,
};
use crate::{
    agreement::{Named, Program},
    config::{Config, NamespaceName},
};

/// What the bindings of the `ServiceAccount` give. Those of groups that every account is in are the cluster's affair.
pub(super) async fn rights(reader: &Reader, program: &Program, config: &Config) -> Rights {
    let (of_cluster, (of_namespaces, mut unseen)) =
        join!(reader.list_cluster::<ClusterRoleBinding>(""), role_bindings(reader, program, config));
    let of_cluster = of_cluster.unwrap_or_else(|problem| {
        unseen.push(problem);
        Vec::new()
    });
    let of_cluster = of_cluster.into_iter().filter(|binding| is_bound(binding.subjects.as_ref(), None, program));
    let of_cluster = of_cluster.map(|binding| {
        let named = Named { kind: "ClusterRoleBinding", namespace: None, name: binding.name_any() };
        (named, binding.role_ref)
    });
    let of_namespaces = of_namespaces.into_iter().filter_map(|binding| {
        let namespace = binding.namespace();
        let is_bound = is_bound(binding.subjects.as_ref(), namespace.as_deref(), program);
        is_bound.then(|| (Named { kind: "RoleBinding", namespace, name: binding.name_any() }, binding.role_ref))
    });
    let bound: Vec<(Named, RoleRef)> = of_cluster.chain(of_namespaces).collect();

    let wanted: BTreeSet<Named> = bound.iter().map(|(binding, role)| role_of(binding, role)).collect();
    let rules = join_all(wanted.into_iter().map(async |role| {
        let rules = rules(reader, &role).await;
        (role, rules)
    }));
    let mut rules: BTreeMap<Named, Seen<Option<Vec<PolicyRule>>>> = rules.await.into_iter().collect();
    unseen.extend(rules.values().filter_map(|found| found.as_ref().err().cloned()));
    rules.retain(|_, found| found.is_ok());
    let grants = bound.into_iter().filter_map(|(binding, role)| {
        let role = role_of(&binding, &role);
        let rules = rules.get(&role)?.as_ref().ok()?.clone();
        Some(Grant { binding, role, rules })
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
        .chain(&config.runner_namespaces.names)
        .chain([&program.namespace])
        .collect();
    let lists = concerned.into_iter().map(|namespace| reader.list::<RoleBinding>(Some(namespace.as_str()), ""));
    let bindings = join_all(lists).await.into_iter().filter_map(Result::ok).flatten().collect();
    (bindings, vec![refused])
}

fn is_bound(subjects: Option<&Vec<Subject>>, namespace: Option<&str>, program: &Program) -> bool {
    let own = program.namespace.as_str();
    subjects.into_iter().flatten().any(|subject| match subject.kind.as_str() {
        "ServiceAccount" => {
            subject.name == program.service_account && subject.namespace.as_deref().or(namespace) == Some(own)
        }
        "User" => subject.name == format!("system:serviceaccount:{own}:{}", program.service_account),
        "Group" => subject.name == format!("system:serviceaccounts:{own}"),
        _ => false,
    })
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

//! Rights: what is granted beside what is needed. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::expected::{Named, Role};

/// One verb on one thing. `None` in a field: all there are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// `None`: in every namespace, and outside of them.
    pub namespace: Option<String>,
    /// Its API group.
    pub group: Option<String>,
    /// What it is on, in the plural.
    pub resource: Option<String>,
    /// `None`: whatever its name.
    pub name: Option<String>,
    /// What may be done.
    pub verb: Option<String>,
}

impl Right {
    /// Whether whoever has this may do the other, too.
    pub fn covers(&self, other: &Self) -> bool {
        let wide = |mine: &Option<String>, its: &Option<String>| mine.is_none() || mine == its;
        wide(&self.namespace, &other.namespace)
            && wide(&self.group, &other.group)
            && wide(&self.resource, &other.resource)
            && wide(&self.name, &other.name)
            && wide(&self.verb, &other.verb)
    }
}

/// The rights of some roles, each with the role that it belongs into.
#[derive(Debug)]
pub struct Needed(Vec<(Named, Right)>);

impl Needed {
    /// All that these roles give.
    pub fn of(form: &[Role]) -> Self {
        let rights = form.iter().flat_map(|role| {
            expand(role.named.namespace.as_deref(), &role.rules).map(|right| (role.named.clone(), right))
        });
        Self(rights.collect())
    }

    /// What of them is not given.
    pub fn missing(&self, given: &[Right]) -> Vec<(Named, Right)> {
        let is_given = |right: &Right| given.iter().any(|given| given.covers(right));
        self.0.iter().filter(|(_, right)| !is_given(right)).cloned().collect()
    }

    /// Whether a right is one of them, or less.
    pub fn covers(&self, right: &Right) -> bool {
        self.0.iter().any(|(_, needed)| needed.covers(right))
    }
}

/// Each right that rules give in a namespace; `None`: everywhere.
pub fn expand<'a>(namespace: Option<&'a str>, rules: &'a [PolicyRule]) -> impl Iterator<Item = Right> + use<'a> {
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

/// For people: `get+list secrets/x, patch configmaps/y in namespace z`.
pub fn told(rights: &[&Right]) -> String {
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

/// As rules of a role.
pub fn yaml(rights: &[&Right]) -> String {
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

//! A pod as an API server sends it, as far as decisions are made from it. PURE.
//!
//! An API server decodes an object into its type before it calls a webhook. So each field is absent, null, or of its type;
//! what is of another type comes from somebody else, and is refused. Unknown fields are skipped as they are read, and text is
//! borrowed where nothing in it is escaped: probes, resources and `managedFields` cost no memory. How many elements of lists
//! and maps are kept is bounded, because `{},` makes three bytes into a hundred, and a container into a kilobyte of answer.

mod elements;

use serde::Deserialize;

pub(super) use elements::{MAX_COST, optional, within_cost};

use elements::{Elements, IgnoredFields, Labels, ListElement, Text, nullable, object};

/// A Pod; of a Namespace, its metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) metadata: MetadataView<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) spec: PodSpecView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MetadataView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) generate_name: Text<'a>,
    #[serde(borrow)]
    pub(super) labels: Labels<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) annotations: AnnotationsView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AnnotationsView<'a> {
    /// On each job pod since GitLab Runner 15.9.
    #[serde(borrow, rename = "job.runner.gitlab.com/id")]
    pub(super) job: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpecView<'a> {
    #[serde(borrow)]
    pub(super) volumes: Elements<VolumeView<'a>>,
    #[serde(borrow)]
    pub(super) containers: Elements<ContainerView<'a>>,
    #[serde(borrow)]
    pub(super) init_containers: Elements<ContainerView<'a>>,
    #[serde(borrow)]
    pub(super) image_pull_secrets: Elements<NameView<'a>>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) os: NameView<'a>,
    #[serde(borrow)]
    pub(super) node_selector: Labels<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) affinity: AffinityView<'a>,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) image: Text<'a>,
    #[serde(borrow)]
    pub(super) command: Elements<Text<'a>>,
    #[serde(borrow)]
    pub(super) args: Elements<Text<'a>>,
    #[serde(borrow)]
    pub(super) env: Elements<VariableView<'a>>,
    #[serde(borrow)]
    pub(super) env_from: Elements<EnvFromView<'a>>,
    #[serde(borrow)]
    pub(super) volume_mounts: Elements<MountView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VariableView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) value: Text<'a>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) value_from: ValueFromView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ValueFromView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) secret_key_ref: NameView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EnvFromView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) secret_ref: NameView<'a>,
}

/// Something of which only the name counts; empty where it is not there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NameView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
}

/// Where a container has a volume.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct MountView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) mount_path: Text<'a>,
    #[serde(deserialize_with = "nullable")]
    pub(super) read_only: bool,
    #[serde(borrow)]
    pub(super) sub_path: Text<'a>,
    #[serde(borrow)]
    pub(super) sub_path_expr: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeView<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) secret: Option<FilesView<'a>>,
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) config_map: Option<FilesView<'a>>,
    #[serde(borrow, deserialize_with = "object")]
    pub(super) projected: ProjectedView<'a>,
    #[serde(deserialize_with = "optional")]
    pub(super) empty_dir: Option<IgnoredFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ProjectedView<'a> {
    #[serde(borrow)]
    pub(super) sources: Elements<ProjectedSourceView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ProjectedSourceView<'a> {
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) secret: Option<FilesView<'a>>,
    #[serde(borrow, deserialize_with = "optional")]
    pub(super) config_map: Option<FilesView<'a>>,
}

/// A Secret or ConfigMap of which keys are shown as files.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FilesView<'a> {
    /// A volume of a Secret has it in `secretName`.
    #[serde(borrow, alias = "secretName")]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) items: Elements<KeyView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyView<'a> {
    #[serde(borrow)]
    pub(super) key: Text<'a>,
    #[serde(borrow)]
    pub(super) path: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AffinityView<'a> {
    #[serde(borrow, deserialize_with = "object")]
    pub(super) node_affinity: NodeAffinityView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeAffinityView<'a> {
    #[serde(borrow, rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "object")]
    pub(super) required: NodeSelectorView<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeSelectorView<'a> {
    #[serde(borrow)]
    pub(super) node_selector_terms: Elements<NodeSelectorTermView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeSelectorTermView<'a> {
    #[serde(borrow)]
    pub(super) match_expressions: Elements<ExpressionView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExpressionView<'a> {
    #[serde(borrow)]
    pub(super) key: Text<'a>,
    #[serde(borrow)]
    pub(super) operator: Text<'a>,
    #[serde(borrow)]
    pub(super) values: Elements<Text<'a>>,
}

impl<'a> PodView<'a> {
    /// Reads an object that the API server stores.
    ///
    /// # Errors
    /// It is no pod, or has too many elements.
    pub fn of(object: &'a serde_json::Value) -> serde_json::Result<Self> {
        within_cost(|| elements::object(object)).0
    }

    /// Its ordinary containers.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerView<'a>> {
        self.spec.containers.iter()
    }

    /// These, and its init containers.
    pub(super) fn all_containers(&self) -> impl Iterator<Item = &ContainerView<'a>> {
        self.containers().chain(&self.spec.init_containers)
    }
}

impl<'a> VolumeView<'a> {
    /// The Secrets that it shows: directly, or among the sources of a projected volume.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &FilesView<'a>> {
        self.secret.iter().chain(self.projected.sources.iter().filter_map(|source| source.secret.as_ref()))
    }
}

impl<'a> ContainerView<'a> {
    /// Where it has volumes.
    pub fn mounts(&self) -> impl Iterator<Item = &MountView<'a>> {
        self.volume_mounts.iter()
    }
}

impl<'de: 'a, 'a> ListElement<'de> for ContainerView<'a> {
    /// Each may get a dozen additions.
    const COST: usize = 60;
}

impl<'de: 'a, 'a> ListElement<'de> for VolumeView<'a> {
    const COST: usize = 2;
}

impl<'de: 'a, 'a> ListElement<'de> for VariableView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for EnvFromView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for MountView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for NameView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for ProjectedSourceView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for KeyView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for NodeSelectorTermView<'a> {}
impl<'de: 'a, 'a> ListElement<'de> for ExpressionView<'a> {}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn containers(count: usize) -> Value {
        json!({"spec": {"containers": vec![json!({}); count]}})
    }

    #[test]
    fn what_costs_too_much_is_refused_and_told_from_another_type() {
        for (pod, is_read) in [
            (containers(MAX_COST / 60), true),
            (containers(MAX_COST / 60 + 1), false),
            (json!({"spec": {"containers": [{"env": vec![json!({}); MAX_COST - 60]}]}}), true),
            (json!({"spec": {"containers": [{"env": vec![json!({}); MAX_COST]}]}}), false),
            (json!({"spec": {"containers": [{"args": vec![""; MAX_COST]}]}}), false),
            (json!({"spec": {"containers": [{"ports": vec![json!({}); MAX_COST]}]}}), true),
            (json!({"spec": {"volumes": vec![json!({}); MAX_COST / 2 + 1]}}), false),
        ] {
            let (read, costs_too_much) = within_cost(|| object::<_, PodView<'_>>(&pod));
            assert_eq!((read.is_ok(), costs_too_much), (is_read, !is_read));
        }
        let (read, costs_too_much) = within_cost(|| object::<_, PodView<'_>>(&json!({"spec": []})).map(drop));
        assert!(read.is_err() && !costs_too_much);
    }
}

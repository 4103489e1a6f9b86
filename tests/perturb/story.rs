//! What happens to the program in a run, step by step.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use gitlab_runner_webhook::names::{ANNOTATION_SOURCE, APP, CONFIGMAP_TRUST, KEY_CA, LABEL_MANAGED_BY};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use test_support::{ServingCertificate, cluster::SECRET};

use crate::{
    arena::{Arena, Entries, Key, Slot, current},
    perturbation::{Perturbation, Perturber, Program, Stage},
    trace::{CERTS, Point},
    verdict::Outcome,
};

/// Far more than any step takes: the longest pause between attempts is 30 s.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the clone does when its source is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Story {
    Keep,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Install,
    Namespace,
    Source(usize),
    SourceGone,
    EditClone,
    StripClone,
    DeleteClone,
    Certs(usize),
    CertsGone,
    EditBundle,
    DeleteBundle,
    NamespaceGone,
}

const STEPS: [Step; 21] = [
    Step::Install,
    Step::Namespace,
    Step::Source(1),
    Step::Source(2),
    Step::EditClone,
    Step::DeleteClone,
    Step::StripClone,
    Step::Certs(1),
    Step::EditBundle,
    Step::Certs(2),
    Step::DeleteBundle,
    Step::SourceGone,
    Step::Source(3),
    Step::CertsGone,
    Step::Certs(3),
    Step::NamespaceGone,
    Step::Source(4),
    Step::Namespace,
    Step::Certs(4),
    Step::Source(5),
    Step::Certs(5),
];

/// What is to be there after a step: numbers of tokens and of CAs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expected {
    namespace: bool,
    source: Option<usize>,
    certs: Option<usize>,
    clone: Option<usize>,
}

impl Expected {
    fn after(mut self, step: Step, story: Story) -> Self {
        match step {
            Step::Namespace => self.namespace = true,
            Step::NamespaceGone => self = Self { source: self.source, ..Self::default() },
            Step::Source(token) => self.source = Some(token),
            Step::SourceGone => self.source = None,
            Step::Certs(number) => self.certs = Some(number),
            Step::CertsGone => self.certs = None,
            _ => {}
        }
        let kept = self.clone.filter(|_| story == Story::Keep);
        self.clone = self.source.or(kept).filter(|_| self.namespace);
        self
    }
}

/// Of what the story itself did: it counts as settled only once this was seen.
enum Seen {
    Revision(Key, u64),
    Deletion(Key, usize),
}

struct Run<'a> {
    arena: &'a Arena,
    slot: &'a Slot,
    story: Story,
    perturber: Arc<Perturber>,
    program: Arc<Program>,
}

/// Plays the story, perturbed or not.
///
/// # Errors
/// What did not come to be, and what was there instead.
pub async fn play(
    arena: &Arena,
    slot: &Slot,
    story: Story,
    perturbation: Option<Perturbation>,
) -> Result<(Outcome, Vec<Point>), String> {
    let on_source_deleted = if story == Story::Keep { "keep" } else { "delete" };
    let (_proxy, perturber, program) = arena.program(slot, perturbation, on_source_deleted).await;
    arena.cluster.create_namespace(&slot.source, &[]).await;
    let run = Run { arena, slot, story, perturber, program };
    let played = run.play().await;
    let outcome = match played {
        Ok(()) => {
            let (trace, was_perturbed) = (run.perturber.trace(), run.perturber.stage() == Stage::Over);
            let points = trace.points();
            Ok((Outcome::of(&arena.history, slot, trace, was_perturbed), points))
        }
        Err(problem) => Err(format!("{problem}\n{:#?}\n{}", run.perturber.trace().lines, run.program.log().await)),
    };
    run.program.kill().await;
    arena.clean(slot).await;
    outcome
}

impl Run<'_> {
    async fn play(&self) -> Result<(), String> {
        let mut expected = Expected::default();
        // The lists that were copied are read one whole step later.
        let mut copied_before = false;
        for step in STEPS {
            if copied_before && self.perturber.stage() == Stage::Copied {
                self.perturber.freeze().await;
            }
            copied_before = self.perturber.stage() == Stage::Copied;
            let seen = self.act(step).await;
            self.perturber.release().await;
            expected = expected.after(step, self.story);
            self.settle(step, &expected, seen).await?;
        }
        self.perturber.begun().await;
        self.perturber.quiet().await;
        if self.perturber.stage() == Stage::Copied {
            self.perturber.freeze().await;
        }
        if self.perturber.stage() != Stage::Awaited && self.perturber.stage() != Stage::Over {
            self.perturber.release().await;
            self.settle(Step::Install, &expected, None).await?;
        }
        Ok(())
    }

    async fn act(&self, step: Step) -> Option<Seen> {
        let (cluster, slot) = (&self.arena.cluster, self.slot);
        let revision = |key: Key, version: Option<String>| {
            version.and_then(|version| version.parse().ok()).map(|revision| Seen::Revision(key, revision))
        };
        match step {
            Step::Install => {
                self.program.start().await;
                self.program.ready().await;
                None
            }
            Step::Namespace => {
                self.arena.create_namespace(&slot.run).await;
                None
            }
            Step::NamespaceGone => {
                self.arena.delete_namespace(&slot.run).await;
                None
            }
            Step::Source(number) => {
                let data = token(number);
                let put = cluster.put_secret(&slot.source, SECRET, &[("runner-token", &data)]).await;
                revision(slot.source_key(), put.resource_version())
            }
            Step::SourceGone => {
                cluster.delete_secret(&slot.source, SECRET).await;
                None
            }
            Step::Certs(number) => {
                cluster.put_secret(&slot.run, CERTS, &[(KEY_CA, ca(number))]).await;
                None
            }
            Step::CertsGone => {
                cluster.delete_secret(&slot.run, CERTS).await;
                None
            }
            Step::EditClone => {
                let edit = json!({"stringData": {"runner-token": "an edited value", "more": "of an edit"}});
                revision(slot.clone_key(), self.edit::<Secret>(SECRET, &edit).await)
            }
            Step::StripClone => {
                let edit = json!({"metadata": {"labels": null, "annotations": null}});
                revision(slot.clone_key(), self.edit::<Secret>(SECRET, &edit).await)
            }
            Step::EditBundle => {
                let edit = json!({"metadata": {"labels": null}, "data": {KEY_CA: "an edited value"}});
                revision(slot.bundle_key(), self.edit::<ConfigMap>(CONFIGMAP_TRUST, &edit).await)
            }
            Step::DeleteClone => self.delete::<Secret>(SECRET, slot.clone_key()).await,
            Step::DeleteBundle => self.delete::<ConfigMap>(CONFIGMAP_TRUST, slot.bundle_key()).await,
        }
    }

    /// The new resource version; an object that is not there yet is not edited.
    async fn edit<K>(&self, name: &str, edit: &Value) -> Option<String>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.arena.cluster.admin.clone(), &self.slot.run);
        match api.patch(name, &PatchParams::default(), &Patch::Merge(edit)).await {
            Ok(edited) => edited.resource_version(),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{name} is edited: {error}"),
        }
    }

    async fn delete<K>(&self, name: &str, key: Key) -> Option<Seen>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.arena.cluster.admin.clone(), &self.slot.run);
        let before = self.arena.history.of(&key).len();
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Some(Seen::Deletion(key, before)),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{name} is deleted: {error}"),
        }
    }

    /// Waits until all is as expected, or until the story has to go on.
    async fn settle(&self, step: Step, expected: &Expected, seen: Option<Seen>) -> Result<(), String> {
        let settled = self.arena.history.until(|all| {
            let entries = |key: &Key| all.get(key).cloned().unwrap_or_default();
            let was_seen = match &seen {
                None => true,
                Some(Seen::Revision(key, revision)) => entries(key).iter().any(|entry| entry.revision >= *revision),
                Some(Seen::Deletion(key, from)) => entries(key).iter().skip(*from).any(|entry| entry.object.is_none()),
            };
            was_seen && self.is(expected, all)
        });
        tokio::select! {
            () = settled => Ok(()),
            () = self.perturber.blocking() => Ok(()),
            () = tokio::time::sleep(PATIENCE) => {
                let there = [self.slot.clone_key(), self.slot.bundle_key()].map(|key| {
                    let entries = self.arena.history.of(&key);
                    format!("{} {}: {}", key.0, key.2, current(&entries).map_or("absent".to_owned(), short))
                });
                let secs = PATIENCE.as_secs();
                Err(format!("{secs} s after {step:?}, {expected:?} is not so; there is {}", there.join("; ")))
            }
        }
    }

    fn is(&self, expected: &Expected, all: &BTreeMap<Key, Entries>) -> bool {
        let now = |key: Key| all.get(&key).and_then(current);
        let is = |object: Option<&Value>, number: Option<usize>, number_of: fn(&Value) -> Option<usize>| match (
            object, number,
        ) {
            (None, None) => true,
            (Some(object), Some(_)) => is_marked(object) && number_of(object) == number,
            _ => false,
        };
        is(now(self.slot.clone_key()), expected.clone, token_of)
            && is(now(self.slot.bundle_key()), expected.certs, ca_of)
    }
}

fn is_marked(object: &Value) -> bool {
    let metadata = &object["metadata"];
    metadata["labels"][LABEL_MANAGED_BY] == APP && metadata["annotations"][ANNOTATION_SOURCE].is_string()
}

/// An object without what it holds.
fn short(object: &Value) -> String {
    let number = token_of(object).or_else(|| ca_of(object));
    format!("number {number:?}, {}", object["metadata"])
}

/// The token of this number.
pub fn token(number: usize) -> String {
    format!("glrt-token-{number}")
}

/// Which token a Secret has.
pub fn token_of(secret: &Value) -> Option<usize> {
    let data = secret["data"].as_object().filter(|data| data.len() == 1)?;
    let value: ByteString = serde_json::from_value(data.get("runner-token")?.clone()).ok()?;
    std::str::from_utf8(&value.0).ok()?.strip_prefix("glrt-token-")?.parse().ok()
}

/// The CA of this number, in PEM; they count from 1.
fn ca(number: usize) -> &'static str {
    &CAS[number - 1]
}

static CAS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("perturb-{}", std::process::id()));
    let cas = (0..5).map(|_| ServingCertificate::issue(&folder).ca_pem).collect();
    let _ = std::fs::remove_dir_all(folder);
    cas
});

/// Which CA a trust bundle has.
pub fn ca_of(bundle: &Value) -> Option<usize> {
    let squeezed = |text: &str| text.split_whitespace().collect::<String>();
    let text = squeezed(bundle["data"][KEY_CA].as_str()?);
    CAS.iter().position(|ca| squeezed(ca) == text).map(|index| index + 1)
}

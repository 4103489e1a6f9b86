//! The steps, one at a time. Each looks at what is stored before it writes, so that it can be repeated and interrupted.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use gitlab_runner_webhook::{
    cluster::{Problem, Reason, Requests},
    config::PolicyName,
    names::{LABEL_KYVERNO_POLICY, LABEL_KYVERNO_POLICY_NAMESPACE, LABEL_NAMESPACE_NAME},
    sync::SecretState,
};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use super::{
    api::{Caller, Effect, PatchKind, View},
    plan::{Step, Target},
    release::release,
};
use crate::json::{label, text};

/// Pause between two looks at what somebody else is about to do.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a step did not come to its end. What is done stays done, and is right by itself.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A request failed.
    #[error("{0}; fix that and run the command again: it continues where it stopped")]
    Api(Problem),
    /// It is not the policy that the plan is for.
    #[error(
        "ClusterPolicy {0} was made anew since the plan: something brings it back; find out what, and run the command again"
    )]
    Replaced(String),
    /// It acts on its clones again.
    #[error(
        "ClusterPolicy {0} was set back to `synchronize: true` by something else, and was not deleted: from Kyverno 1.19 on that would \
         delete the clones. Stop whatever keeps it, and run the command again"
    )]
    SetBack(String),
    /// It made a clone in a place that the plan does not have.
    #[error("{0} was made by the policy since the plan; run the command again, which takes it over, too")]
    Late(String),
    /// Somebody else did not do its part in time.
    #[error("waited {seconds} s in vain: {what}; run the command again when that is fixed")]
    InVain {
        /// What was waited for, and what is there instead.
        what: String,
        /// For how long.
        seconds: u64,
    },
}

impl From<Problem> for StepError {
    fn from(problem: Problem) -> Self {
        Self::Api(problem)
    }
}

/// What carries the steps out.
#[derive(Clone)]
pub(super) struct Steps {
    pub(super) caller: Caller,
    pub(super) requests: Requests,
    /// The program, as RBAC names it; without one it is not installed.
    pub(super) program: Option<String>,
    pub(super) name: PolicyName,
    /// The policy of the plan; without one there was none.
    pub(super) uid: Option<String>,
    pub(super) targets: Vec<Target>,
    pub(super) patience: Duration,
}

/// Where a clone stands.
enum Standing {
    /// The program's own, and equal to its source.
    Ours,
    /// Something else, in words.
    NotYet(&'static str),
}

/// What became of a clone that was to be taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TakenOver {
    /// It is the program's own.
    Ours,
    /// It, or its namespace, is being deleted: nobody keeps it in step any more.
    Goes,
}

impl Steps {
    /// Carries out one step; says what was done.
    pub(super) async fn carry_out(&self, step: &Step) -> Result<String, StepError> {
        match step {
            Step::Orphan => self.orphan().await,
            Step::DropRequests => self.drop_requests().await,
            Step::TakeOver(target) => {
                let what = format!("Secret {} in namespace {}", target.spec.secret, target.namespace);
                Ok(match self.take_over(target).await? {
                    TakenOver::Ours => format!("{what} is the program's"),
                    TakenOver::Goes => format!("{what} is being deleted, and is left to that"),
                })
            }
            Step::Remove => self.remove().await,
            Step::Verify => self.verify().await,
        }
    }

    /// What this policy made, by its own labels, and nobody deletes: namespace and name.
    pub(super) async fn left(&self) -> Result<Vec<(String, String)>, Problem> {
        let selector = format!("{LABEL_KYVERNO_POLICY}={}", self.name);
        let secrets = self.caller.list("/api/v1/secrets", View::Metadata, &selector).await?;
        let namespaces = self.caller.list("/api/v1/namespaces", View::Metadata, "").await?;
        let going: BTreeSet<_> =
            namespaces.iter().filter(|there| goes(there)).map(|there| text(there, "/metadata/name")).collect();
        let metadata = secrets.iter().filter(|secret| !goes(secret)).filter_map(|secret| secret.get("metadata"));
        let of_policy = metadata.filter(|metadata| self.is_of_policy(metadata));
        Ok(of_policy
            .filter(|metadata| !going.contains(text(metadata, "/namespace")))
            .map(|metadata| (text(metadata, "/namespace").to_owned(), text(metadata, "/name").to_owned()))
            .collect())
    }

    pub(super) fn is_of_policy(&self, metadata: &Value) -> bool {
        label(metadata, LABEL_KYVERNO_POLICY) == self.name.as_str()
            && label(metadata, LABEL_KYVERNO_POLICY_NAMESPACE).is_empty()
    }

    async fn policy(&self) -> Result<Option<Value>, StepError> {
        let policy = self.caller.get(&policy_path(&self.name), View::Whole).await?;
        match (&policy, &self.uid) {
            (Some(policy), uid) if uid.as_deref() != Some(text(policy, "/metadata/uid")) => {
                Err(StepError::Replaced(self.name.to_string()))
            }
            _ => Ok(policy),
        }
    }

    async fn orphan(&self) -> Result<String, StepError> {
        let Some(policy) = self.policy().await? else { return Ok(format!("ClusterPolicy {} is gone", self.name)) };
        let Some(patch) = orphaned(&policy) else {
            return Ok(format!("ClusterPolicy {} was orphaned already", self.name));
        };
        self.caller.patch(&policy_path(&self.name), PatchKind::Json, &patch, Effect::Real).await?;
        Ok(format!("ClusterPolicy {} keeps its clones, and does nothing with them any more", self.name))
    }

    async fn drop_requests(&self) -> Result<String, StepError> {
        let requests = self.update_requests().await?;
        for request in &requests {
            self.caller.delete(&request_path(request), text(request, "/metadata/uid"), None, Effect::Real).await?;
        }
        Ok(format!("{} UpdateRequests dropped", requests.len()))
    }

    /// What Kyverno still has in hand for this policy. Since 1.19 that may be the deletion of clones by name.
    pub(super) async fn update_requests(&self) -> Result<Vec<Value>, Problem> {
        let selector = format!("{LABEL_KYVERNO_POLICY}={}", self.name);
        let list = async |version: &str| {
            let path = format!("/apis/kyverno.io/{version}/updaterequests");
            self.caller.list(&path, View::Whole, &selector).await
        };
        let mut found = list("v2").await?;
        if found.is_empty() {
            // Up to Kyverno 1.12.
            found = list("v1beta1").await?;
        }
        // Those of a GeneratingPolicy are `cel-generate`.
        let ours = |request: &Value| {
            text(request, "/spec/policy") == self.name.as_str() && text(request, "/spec/requestType") == "generate"
        };
        found.retain(ours);
        Ok(found)
    }

    async fn take_over(&self, target: &Target) -> Result<TakenOver, StepError> {
        let at = secret_path(target);
        let give_up = Instant::now() + self.patience;
        loop {
            let there = self.caller.get(&at, View::Metadata).await?;
            let patch = there.as_ref().and_then(|there| there.get("metadata")).and_then(release);
            let standing = match patch {
                Some(patch) => match self.caller.patch(&at, PatchKind::Merge, &patch, Effect::Real).await {
                    Err(problem) if !matches!(problem.reason, Reason::Conflict | Reason::NotFound) => {
                        return Err(problem.into());
                    }
                    // Looked at again at once: whatever happened in between is seen then.
                    _ => Standing::NotYet("Kyverno puts its labels back"),
                },
                None => self.standing(target).await?,
            };
            let Standing::NotYet(what) = standing else { return Ok(TakenOver::Ours) };
            if there.is_some_and(|there| goes(&there)) || self.namespace_goes(target).await? {
                return Ok(TakenOver::Goes);
            }
            if Instant::now() >= give_up {
                return Err(StepError::InVain {
                    what: format!(
                        "Secret {} in namespace {} becomes the program's, but {what}",
                        target.spec.secret, target.namespace
                    ),
                    seconds: self.patience.as_secs(),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All of the plan, and what the policy made since; says how many became the program's.
    async fn take_over_all(&self) -> Result<usize, StepError> {
        let mut targets = self.targets.clone();
        for (namespace, secret) in self.left().await? {
            let Ok(namespace) = namespace.parse() else { continue };
            let spec = self.targets.iter().map(|target| &target.spec).find(|spec| spec.secret.as_str() == secret);
            if let Some(spec) = spec
                && !targets.iter().any(|target| target.namespace == namespace && target.spec == *spec)
            {
                targets.push(Target { namespace, spec: spec.clone() });
            }
        }
        let mut ours = 0;
        for target in &targets {
            ours += usize::from(self.take_over(target).await? == TakenOver::Ours);
        }
        Ok(ours)
    }

    /// Whether the namespace is being deleted, or gone. By a list, for that right is there.
    async fn namespace_goes(&self, target: &Target) -> Result<bool, Problem> {
        let by_name = format!("{LABEL_NAMESPACE_NAME}={}", target.namespace);
        Ok(self.caller.list("/api/v1/namespaces", View::Metadata, &by_name).await?.iter().all(goes))
    }

    async fn standing(&self, target: &Target) -> Result<Standing, Problem> {
        let (Some(source), Some(clone)) = self.content(target).await? else {
            return Ok(Standing::NotYet("it, or its source, is missing"));
        };
        Ok(if clone.is_managed_by_kyverno() {
            Standing::NotYet("Kyverno puts its labels back")
        } else if !clone.has_content_of(&source) {
            Standing::NotYet("it differs from its source; the program's log says why")
        } else if !clone.has_marks_of(&target.spec) {
            Standing::NotYet("the program does not mark it; its log says why")
        } else {
            Standing::Ours
        })
    }

    /// Source and clone as stored now. Their data is compared, and goes no further.
    pub(super) async fn content(&self, target: &Target) -> Result<(Option<SecretState>, Option<SecretState>), Problem> {
        let name = target.spec.secret.as_str();
        let source: Option<Secret> = self.requests.get(&target.spec.from, name).await?;
        let clone: Option<Secret> = self.requests.get(&target.namespace, name).await?;
        Ok((source.map(SecretState::from), clone.map(SecretState::from)))
    }

    async fn remove(&self) -> Result<String, StepError> {
        // The second of two safeguards: what Kyverno does not know by label, it does not delete by label.
        self.take_over_all().await?;
        // Only now: taking over has a patience of its own.
        let give_up = Instant::now() + self.patience;
        while let Some(policy) = self.policy().await? {
            let mut asked = false;
            if !goes(&policy) {
                if orphaned(&policy).is_some() {
                    return Err(StepError::SetBack(self.name.to_string()));
                }
                let (uid, version) = (text(&policy, "/metadata/uid"), text(&policy, "/metadata/resourceVersion"));
                // The first: only the version that was seen to be orphaned is deleted.
                match self.caller.delete(&policy_path(&self.name), uid, Some(version), Effect::Real).await {
                    Ok(()) => asked = true,
                    Err(problem) if problem.reason == Reason::Conflict => {}
                    Err(problem) => return Err(problem.into()),
                }
            }
            // What was deleted in this very moment is looked at once more, however late it is.
            if !asked && Instant::now() >= give_up {
                return Err(StepError::InVain {
                    what: format!("ClusterPolicy {} goes; does it have a finalizer that nobody takes off?", self.name),
                    seconds: self.patience.as_secs(),
                });
            }
            if !asked {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(format!("ClusterPolicy {} is gone", self.name))
    }

    async fn verify(&self) -> Result<String, StepError> {
        let clones = self.take_over_all().await?;
        if let Some((namespace, secret)) = self.left().await?.into_iter().next() {
            return Err(StepError::Late(format!("Secret {secret} in namespace {namespace}")));
        }
        match self.caller.get(&policy_path(&self.name), View::Metadata).await? {
            Some(_) => Err(StepError::Replaced(self.name.to_string())),
            None => Ok(format!("{clones} clones are the program's and equal their source")),
        }
    }
}

/// The patch after which the policy leaves its clones alone, or nothing when it does already.
///
/// `synchronize: false` does both that is needed: from Kyverno 1.11 to 1.19 no clone is changed back, and none is
/// deleted with the policy. It can be changed in each of these versions, while `orphanDownstreamOnPolicyDelete` cannot
/// be changed in 1.12, and says nothing about clones before 1.19
/// (kyverno/kyverno: `pkg/policy/generate.go`, `pkg/validation/policy/generate.go`).
pub(super) fn orphaned(policy: &Value) -> Option<Value> {
    let rules = policy.pointer("/spec/rules").and_then(Value::as_array)?;
    let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": policy.pointer("/metadata/uid")})];
    for (index, rule) in rules.iter().enumerate() {
        if rule.pointer("/generate/synchronize").and_then(Value::as_bool).unwrap_or_default() {
            let at = format!("/spec/rules/{index}");
            patch.push(json!({"op": "test", "path": format!("{at}/name"), "value": rule.get("name")}));
            patch.push(json!({"op": "replace", "path": format!("{at}/generate/synchronize"), "value": false}));
        }
    }
    (patch.len() > 1).then(|| patch.into())
}

/// Where the API server has the policy.
pub(super) fn policy_path(name: &PolicyName) -> String {
    format!("/apis/kyverno.io/v1/clusterpolicies/{name}")
}

/// Whether it is being deleted.
fn goes(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

pub(super) fn secret_path(target: &Target) -> String {
    format!("/api/v1/namespaces/{}/secrets/{}", target.namespace, target.spec.secret)
}

pub(super) fn request_path(request: &Value) -> String {
    let version = text(request, "/apiVersion");
    let version = if version.is_empty() { "kyverno.io/v2" } else { version };
    let (namespace, name) = (text(request, "/metadata/namespace"), text(request, "/metadata/name"));
    format!("/apis/{version}/namespaces/{namespace}/updaterequests/{name}")
}

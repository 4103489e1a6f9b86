//! Whether it could be carried out, asked before anything is changed.

use serde_json::Value;

use super::{
    api::{Effect, PatchKind, View},
    json::{label, text},
    release::{also_removed, release},
    steps::{Steps, orphaned, policy_path, request_path, secret_path},
};
use crate::{
    cluster::{Problem, Reason},
    names::LABEL_KYVERNO_POLICY,
};

impl Steps {
    /// Whether the API server would let each write through, by dry run; and whether each clone is what it should be.
    /// Returns what is in the way, and what a person should know.
    pub(super) async fn prove(&self) -> Result<(Vec<String>, Vec<String>), Problem> {
        let (mut refusals, mut notes, mut odd) = (Vec::new(), Vec::new(), Vec::new());
        let mut tried = |result: Result<(), Problem>| match result {
            Ok(()) => Ok(()),
            // It changed since it was read; that is no refusal.
            Err(problem) if problem.reason == Reason::Conflict => Ok(()),
            Err(problem) if matches!(problem.reason, Reason::Forbidden | Reason::Denied | Reason::Invalid) => {
                refusals.push(format!(
                    "{problem} (asked as a dry run); get that right, or have whoever denies it step aside for as long as \
                     this takes (Kyverno's flag protectManagedResources is one)"
                ));
                Ok(())
            }
            Err(problem) => Err(problem),
        };
        let path = policy_path(&self.name);
        if let Some(policy) = self.caller.get(&path, View::Whole).await? {
            if let Some(patch) = orphaned(&policy) {
                tried(self.caller.patch(&path, PatchKind::Json, &patch, Effect::DryRun).await)?;
            }
            // Not by dry run: a mistake there would cost the clones.
            if !self.caller.may_delete("clusterpolicies", self.name.as_str()).await? {
                odd.push(format!("you may not delete ClusterPolicy {}; get that right first", self.name));
            }
        }
        for request in self.update_requests().await? {
            let path = request_path(&request);
            tried(self.caller.delete(&path, text(&request, "/metadata/uid"), None, Effect::DryRun).await)?;
        }
        for target in &self.targets {
            let what = format!("Secret {} in namespace {}", target.spec.secret, target.namespace);
            let Some(there) = self.caller.get(&secret_path(target), View::Metadata).await? else {
                odd.push(format!("{what} is not there, although the program runs; its log says why"));
                continue;
            };
            let metadata = there.get("metadata").unwrap_or(&Value::Null);
            if let Some(patch) = release(metadata) {
                if !self.is_of_policy(metadata) {
                    let other = label(metadata, LABEL_KYVERNO_POLICY);
                    odd.push(format!("{what} is a clone of policy {other:?}; move that one first: --policy {other}"));
                }
                tried(self.caller.patch(&secret_path(target), PatchKind::Merge, &patch, Effect::DryRun).await)?;
                let also: Vec<_> = also_removed(metadata).into_iter().collect();
                if !also.is_empty() {
                    notes.push(format!("{what} loses what Kyverno copied from the source: {}", also.join(", ")));
                }
            }
            if metadata.get("finalizers").is_some_and(|all| all.as_array().is_some_and(|all| !all.is_empty())) {
                notes.push(format!("{what} has finalizers, which Kyverno may have copied; they stay"));
            }
            match self.content(target).await? {
                (None, _) => odd.push(format!(
                    "the source {} is missing, so nobody can say whether the clones are right; bring it back",
                    target.spec.source()
                )),
                (Some(source), Some(clone)) if !clone.has_content_of(&source) => {
                    odd.push(format!("{what} differs from its source, although the program runs; its log says why"));
                }
                _ => {}
            }
        }
        refusals.extend(odd);
        Ok((refusals, notes))
    }
}

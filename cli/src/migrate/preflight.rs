//! Whether it could be carried out, asked before anything is changed.

use gitlab_runner_webhook::{
    cluster::{Problem, Reason},
    names::{ANNOTATION_SOURCE, APP, LABEL_KYVERNO_POLICY, LABEL_MANAGED_BY, LABEL_PREFIX_KYVERNO},
};
use serde_json::{Value, json};

use super::{
    api::{Caller, Effect, NamedObject, PatchKind, View},
    plan::Target,
    release::{KYVERNO, also_removed, release},
    steps::{Steps, orphaned, policy_path, request_path, secret_path},
};
use crate::json::{label, text};

/// What came to light.
#[derive(Default)]
struct Proof {
    /// What is in the way: a write that would not get through, and something that is not as it should be.
    refusals: Vec<String>,
    odd: Vec<String>,
    /// What a person should know.
    notes: Vec<String>,
    /// Whether nobody answers for a write, so that asking further is of no use.
    unanswered: bool,
}

impl Proof {
    /// What a write that was tried says.
    fn tried(&mut self, result: Result<(), Problem>) -> Result<(), Problem> {
        match result {
            Ok(()) => Ok(()),
            // It changed since it was read; that is no refusal.
            Err(problem) if problem.reason == Reason::Conflict => Ok(()),
            Err(problem) if matches!(problem.reason, Reason::Forbidden | Reason::Denied | Reason::Invalid) => {
                self.refusals.push(format!(
                    "{problem} (asked as a dry run); get that right, or have whoever denies it step aside for as long as \
                     this takes (Kyverno's flag protectManagedResources is one)"
                ));
                Ok(())
            }
            Err(problem) => Err(self.seen(problem)),
        }
    }

    /// Kyverno that is down holds up every write that its webhooks are asked about.
    fn seen(&mut self, problem: Problem) -> Problem {
        let of_webhook = problem.reason == Reason::ServerError && problem.message.contains("webhook");
        if of_webhook || problem.reason == Reason::Timeout {
            self.refusals.push(format!(
                "{problem} (asked as a dry run): an admission webhook does not answer; bring up what it belongs to (is it \
                 Kyverno?), or take its webhook configurations out"
            ));
            self.unanswered = true;
        }
        problem
    }
}

impl Steps {
    /// Whether the API server would let each write through, by dry run; and whether each clone is what it should be.
    /// Returns what is in the way, and what a person should know.
    pub(super) async fn preflight(&self) -> Result<(Vec<String>, Vec<String>), Problem> {
        let mut proof = Proof::default();
        match self.ask(&mut proof).await {
            // One is enough: each further one would wait as long.
            Err(_) if proof.unanswered => {}
            result => result?,
        }
        proof.refusals.extend(proof.odd);
        Ok((proof.refusals, proof.notes))
    }

    async fn ask(&self, proof: &mut Proof) -> Result<(), Problem> {
        let path = policy_path(&self.name);
        if let Some(policy) = self.caller.get(&path, View::Whole).await? {
            if let Some(patch) = orphaned(&policy) {
                proof.tried(self.caller.patch(&path, PatchKind::Json, &patch, Effect::DryRun).await)?;
            }
            // Not by dry run: a mistake there would cost the clones.
            let named = NamedObject {
                group: "kyverno.io",
                resource: "clusterpolicies",
                namespace: "",
                name: self.name.as_str(),
            };
            if !self.caller.may("delete", &named).await? {
                proof.odd.push(format!("you may not delete ClusterPolicy {}; get that right first", self.name));
            }
        }
        for request in self.update_requests().await? {
            let path = request_path(&request);
            proof.tried(self.caller.delete(&path, text(&request, "/metadata/uid"), None, Effect::DryRun).await)?;
        }
        let program = self.program(proof).await?;
        let of_kyverno = format!("{LABEL_MANAGED_BY}={KYVERNO}");
        let of_kyverno = self.caller.list("/api/v1/secrets", View::Metadata, &of_kyverno).await?;
        let of_kyverno: Vec<_> = of_kyverno.iter().filter_map(|secret| secret.get("metadata")).collect();
        for target in &self.targets {
            let what = format!("Secret {} in namespace {}", target.spec.secret, target.namespace);
            let Some(there) = self.caller.get(&secret_path(target), View::Metadata).await? else {
                proof.odd.push(format!("{what} is not there, although the program runs; its log says why"));
                continue;
            };
            let metadata = there.get("metadata").unwrap_or(&Value::Null);
            if let Some(patch) = release(metadata) {
                let other = label(metadata, LABEL_KYVERNO_POLICY);
                // Without a name it is no policy's any more: Kyverno takes the name off when a rule names another clone.
                if !other.is_empty() && !self.is_of_policy(metadata) {
                    proof
                        .odd
                        .push(format!("{what} is a clone of policy {other:?}; move that one first: --policy {other}"));
                }
                proof.tried(self.caller.patch(&secret_path(target), PatchKind::Merge, &patch, Effect::DryRun).await)?;
                if let Some(clone) = of_kyverno.iter().find(|clone| is_clone_of(clone, metadata)) {
                    proof.odd.push(format!(
                        "{what} is itself what policy {:?} clones Secret {} in namespace {} from, which would end with \
                         Kyverno's labels; have that policy clone from {}",
                        label(clone, LABEL_KYVERNO_POLICY),
                        text(clone, "/name"),
                        text(clone, "/namespace"),
                        target.spec.source()
                    ));
                }
                let also: Vec<_> = also_removed(metadata).into_iter().collect();
                if !also.is_empty() {
                    proof.notes.push(format!("{what} loses what Kyverno copied from the source: {}", also.join(", ")));
                }
            }
            if metadata.get("finalizers").is_some_and(|all| all.as_array().is_some_and(|all| !all.is_empty())) {
                proof.notes.push(format!("{what} has finalizers, which Kyverno may have copied; they stay"));
            }
            match self.content(target).await? {
                (None, _) => proof.odd.push(format!(
                    "the source {} is missing, so nobody can say whether the clones are right; bring it back",
                    target.spec.source()
                )),
                (Some(source), Some(clone)) if !clone.has_content_of(&source) => {
                    proof
                        .odd
                        .push(format!("{what} differs from its source, although the program runs; its log says why"));
                }
                _ => {}
            }
            if let Some(program) = &program {
                ask_program(program, target, proof).await?;
            }
        }
        Ok(())
    }

    /// What asks in the program's name, if the caller may do that.
    async fn program(&self, proof: &mut Proof) -> Result<Option<Caller>, Problem> {
        let Some(user) = &self.program else { return Ok(None) };
        let program = self.caller.instead_of(user);
        match program.who().await {
            Ok(who) if is_service_account(&who, user) => return Ok(Some(program)),
            // A kubeconfig with `as-groups` adds these, and with them rights that the program does not have.
            Ok(_) => {}
            Err(problem) if matches!(problem.reason, Reason::Forbidden | Reason::Denied) => {}
            Err(problem) => return Err(problem),
        }
        proof.notes.push(format!(
            "the program was not asked whether it may write the clones, for you may not impersonate {user}, or \
             your kubeconfig gives it groups: run `gitlab-runner-webhook check` first"
        ));
        Ok(None)
    }
}

/// Asks whether the program may write this clone, in its name. While Kyverno keeps the clone right, the program writes
/// nothing, so that nothing else shows whether rights and guard follow from its configuration.
async fn ask_program(program: &Caller, target: &Target, proof: &mut Proof) -> Result<(), Problem> {
    const OUT: &str =
        "write its manifests anew (`gitlab-runner-webhook manifests --config`), apply them, and try again";
    let secret = target.spec.secret.as_str();
    let what = format!("Secret {secret} in namespace {}", target.namespace);
    let marks = json!({"metadata": {
        "labels": {LABEL_MANAGED_BY: APP}, "annotations": {ANNOTATION_SOURCE: target.spec.source()},
    }});
    match program.patch(&secret_path(target), PatchKind::Merge, &marks, Effect::DryRun).await {
        Ok(()) => {}
        // What became of it is said anyway.
        Err(problem) if matches!(problem.reason, Reason::Conflict | Reason::NotFound) => {}
        Err(problem) if matches!(problem.reason, Reason::Forbidden | Reason::Denied | Reason::Invalid) => {
            proof.refusals.push(format!("the program may not write {what}: {problem} (asked as a dry run); {OUT}"));
            return Ok(());
        }
        Err(problem) => return Err(proof.seen(problem)),
    }
    // The verb that it writes an existing clone by. A dry run of that would take the content along.
    let named = NamedObject { group: "", resource: "secrets", namespace: target.namespace.as_str(), name: secret };
    if !program.may("update", &named).await? {
        proof.refusals.push(format!("the program may not write {what}: it has no right to update it; {OUT}"));
    }
    Ok(())
}

/// Whether it is this `ServiceAccount`, with the groups that it has by itself and no others.
fn is_service_account(who: &Value, user: &str) -> bool {
    // `system:serviceaccounts` and `system:serviceaccounts:NAMESPACE`.
    let ours = |group: &str| {
        group == "system:authenticated"
            || user.starts_with(&format!("{}:", group.replacen("serviceaccounts", "serviceaccount", 1)))
    };
    let groups = who.get("groups").and_then(Value::as_array);
    text(who, "/username") == user && groups.into_iter().flatten().all(|group| group.as_str().is_some_and(ours))
}

/// Whether Kyverno made the first of these, by its labels, from the second. Up to 1.10 it named it, later its uid.
fn is_clone_of(clone: &Value, source: &Value) -> bool {
    let says = |what: &str| label(clone, &format!("{LABEL_PREFIX_KYVERNO}source-{what}"));
    match says("uid") {
        "" => says("name") == text(source, "/name") && says("namespace") == text(source, "/namespace"),
        uid => uid == text(source, "/uid"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_that_does_not_answer_is_a_refusal_and_other_failures_are_errors() {
        let problem = |reason, message: &str| {
            let mut problem = Problem::timeout("patch x", std::time::Duration::from_secs(15));
            (problem.reason, problem.message) = (reason, message.to_owned());
            problem
        };
        let failed = "Internal error occurred: failed calling webhook \"x\": connection refused";
        for (problem, unanswered) in [
            (problem(Reason::ServerError, failed), true),
            (problem(Reason::Timeout, "no answer within 15 s"), true),
            (problem(Reason::ServerError, "etcdserver: no leader"), false),
            (problem(Reason::Unreachable, "connection refused"), false),
        ] {
            let mut proof = Proof::default();
            proof.tried(Err(problem.clone())).unwrap_err();
            assert_eq!((proof.unanswered, proof.refusals.len()), (unanswered, usize::from(unanswered)), "{problem}");
        }
    }

    #[test]
    fn groups_that_the_program_does_not_have_would_prove_nothing() {
        let user = "system:serviceaccount:ns:program";
        let own = ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"];
        assert!(is_service_account(&json!({"username": user, "groups": own}), user));
        for groups in [json!(["system:masters"]), json!(["system:authenticated", "system:serviceaccounts:other"])] {
            assert!(!is_service_account(&json!({"username": user, "groups": groups}), user), "{groups}");
        }
        assert!(!is_service_account(&json!({"username": "somebody", "groups": own}), user));
    }

    #[test]
    fn what_kyverno_cloned_names_its_source() {
        let source = json!({"name": "s", "namespace": "n", "uid": "1"});
        let clone = |labels: Value| json!({"name": "s", "namespace": "m", "labels": labels});
        for (labels, expected) in [
            (json!({"generate.kyverno.io/source-uid": "1"}), true),
            (json!({"generate.kyverno.io/source-uid": "2", "generate.kyverno.io/source-namespace": "n"}), false),
            (json!({"generate.kyverno.io/source-name": "s", "generate.kyverno.io/source-namespace": "n"}), true),
            (json!({"generate.kyverno.io/source-name": "s", "generate.kyverno.io/source-namespace": "m"}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_clone_of(&clone(labels.clone()), &source), expected, "{labels}");
        }
    }
}

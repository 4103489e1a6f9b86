//! The API server as the caller's kubeconfig reaches it: JSON by path, each request with a deadline.

use std::time::Duration;

use gitlab_runner_webhook::{
    cluster::{Problem, Reason, in_time},
    names,
};
use http::{
    Method, Request,
    header::{ACCEPT, CONTENT_TYPE},
};
use kube::Client;
use serde_json::{Value, json};

/// Longest wait for one answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// How often a request is made to an API server that asks for patience.
const ATTEMPTS: u32 = 6;
/// Objects in one page of a list.
const PAGE_SIZE: u32 = 500;

/// Whole objects, or their metadata only, so that no Secret's data comes here unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// All of it.
    Whole,
    /// `metadata`.
    Metadata,
}

/// Whether a write takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It does.
    Real,
    /// Authorisation, admission and validation are asked, nothing is stored.
    DryRun,
}

/// What kind of patch it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
}

/// An object that somebody may have a right to; without a namespace, a cluster's own.
pub(super) struct NamedObject<'a> {
    pub(super) group: &'a str,
    pub(super) resource: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// Requests in the caller's name, or by the caller in somebody else's.
#[derive(Clone)]
pub(super) struct Caller {
    client: Client,
    instead: Option<String>,
}

impl Caller {
    pub(super) fn new(client: Client) -> Self {
        Self { client, instead: None }
    }

    /// The same in the name of this user, for which the caller needs the right to impersonate it.
    ///
    /// A `ServiceAccount` has its groups by itself
    /// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>).
    pub(super) fn instead_of(&self, user: &str) -> Self {
        Self { client: self.client.clone(), instead: Some(user.to_owned()) }
    }

    /// An object, if it is there and its kind is known.
    pub(super) async fn get(&self, path: &str, view: View) -> Result<Option<Value>, Problem> {
        match self.send(Method::GET, path, &format!("get {}", short(path)), accept(view, ""), None).await {
            Ok(object) => Ok(Some(object)),
            Err(problem) if problem.reason == Reason::NotFound => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// The objects that a label selector finds; none when their kind is unknown.
    pub(super) async fn list(&self, path: &str, view: View, selector: &str) -> Result<Vec<Value>, Problem> {
        let tried = format!("list {}", short(path));
        let (mut items, mut next) = (Vec::new(), String::new());
        loop {
            let query = format!("{path}?limit={PAGE_SIZE}&labelSelector={selector}&continue={next}");
            let mut page = match self.send(Method::GET, &query, &tried, accept(view, "List"), None).await {
                Err(problem) if problem.reason == Reason::NotFound => return Ok(items),
                page => page?,
            };
            if let Some(found) = page.get_mut("items").and_then(Value::as_array_mut) {
                items.append(found);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => token.clone_into(&mut next),
                _ => return Ok(items),
            }
        }
    }

    /// Changes an object that is there.
    pub(super) async fn patch(
        &self,
        path: &str,
        kind: PatchKind,
        change: &Value,
        effect: Effect,
    ) -> Result<(), Problem> {
        let dry_run = if effect == Effect::DryRun { "&dryRun=All" } else { "" };
        let query = format!("{path}?fieldManager={}{dry_run}", names::FIELD_MANAGER_MIGRATE);
        let content = match kind {
            PatchKind::Json => "application/json-patch+json",
            PatchKind::Merge => "application/merge-patch+json",
        };
        let tried = format!("patch {}", short(path));
        self.send(Method::PATCH, &query, &tried, accept(View::Metadata, ""), Some((content, change))).await.map(drop)
    }

    /// Deletes exactly this object, in this version when one is given. One that is gone is fine.
    pub(super) async fn delete(
        &self,
        path: &str,
        uid: &str,
        resource_version: Option<&str>,
        effect: Effect,
    ) -> Result<(), Problem> {
        let preconditions = match resource_version {
            Some(version) => json!({"uid": uid, "resourceVersion": version}),
            None => json!({"uid": uid}),
        };
        // Beside a body, the API server reads no options from the query: told there, it would really delete.
        let dry_run: &[&str] = if effect == Effect::DryRun { &["All"] } else { &[] };
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions, "dryRun": dry_run,
        });
        let tried = format!("delete {}", short(path));
        let body = Some(("application/json", &options));
        match self.send(Method::DELETE, path, &tried, accept(View::Metadata, ""), body).await {
            Err(problem) if problem.reason == Reason::NotFound => Ok(()),
            result => result.map(drop),
        }
    }

    /// Whether this one may do something, by the API server's own review of its rights.
    pub(super) async fn may(&self, verb: &str, of: &NamedObject<'_>) -> Result<bool, Problem> {
        let NamedObject { group, resource, namespace, name } = of;
        let attributes =
            json!({"verb": verb, "group": group, "resource": resource, "namespace": namespace, "name": name});
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let tried = format!("ask for the right to {verb} {resource}/{name}");
        let body = Some(("application/json", &review));
        let answer = self.send(Method::POST, path, &tried, accept(View::Whole, ""), body).await?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or_default())
    }

    /// As whom the API server takes this one: `username` and `groups`.
    pub(super) async fn who(&self) -> Result<Value, Problem> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let tried = match &self.instead {
            Some(user) => format!("act for {user}"),
            None => "ask who this is".to_owned(),
        };
        let answer =
            self.send(Method::POST, path, &tried, accept(View::Whole, ""), Some(("application/json", &review))).await?;
        Ok(answer.pointer("/status/userInfo").cloned().unwrap_or_default())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        tried: &str,
        accept: String,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, Problem> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
        if let Some(user) = &self.instead {
            request = request.header("Impersonate-User", user);
        }
        let mut bytes = Vec::new();
        if let Some((content, body)) = body {
            request = request.header(CONTENT_TYPE, content);
            bytes = serde_json::to_vec(body).map_err(|error| Problem::unsent(tried, &error))?;
        }
        let request = request.body(bytes).map_err(|error| Problem::unsent(tried, &error))?;
        let mut attempts = 1;
        loop {
            match in_time(DEADLINE, tried, self.client.request(request.clone())).await {
                // It was not even begun: the API server is busy, or a new kind is on its way.
                Err(problem) if problem.reason == Reason::Throttled && attempts < ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(problem.retry_after.unwrap_or(Duration::from_secs(1))).await;
                }
                answer => return answer,
            }
        }
    }
}

fn accept(view: View, suffix: &str) -> String {
    match view {
        View::Whole => "application/json".to_owned(),
        View::Metadata => format!("application/json;as=PartialObjectMetadata{suffix};g=meta.k8s.io;v=v1"),
    }
}

/// A path without what people do not read.
fn short(path: &str) -> &str {
    path.trim_start_matches("/apis/").trim_start_matches("/api/v1/")
}

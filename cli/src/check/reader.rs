//! Reads of the API server for the check: each with a deadline, none that fails the whole.

use std::{fmt::Debug, time::Duration};

use gitlab_runner_webhook::cluster::{Problem, Reason, in_time};
use http::header::WARNING;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource,
    api::{ListParams, PostParams},
    client::Body,
    core::{NamespaceResourceScope, Status},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::facts::{Seen, Unseen};

/// At most so many objects are listed at once; more are read page by page.
const PAGE: u32 = 500;

/// How long a webhook may take at most: only then does the API server say that it did not answer.
pub(super) const DRY_RUN: Duration = Duration::from_secs(35);

/// What is asked of the API server, as the caller.
#[derive(Clone)]
pub(super) struct Reader {
    client: Client,
    deadline: Duration,
}

/// What came of a dry run.
pub(super) struct DryRun {
    /// Status code.
    pub(super) code: u16,
    /// The object as it would be, or a `Status`.
    pub(super) body: Value,
    /// What was said in passing.
    pub(super) warnings: Vec<String>,
}

/// What can be read.
pub(super) trait Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned> Object for K {}

impl Reader {
    pub(super) fn new(client: Client, deadline: Duration) -> Self {
        Self { client, deadline }
    }

    /// Whether there is an API server at all.
    pub(super) async fn answers(&self) -> Seen<String> {
        match in_time(self.deadline, "get /version".to_owned(), self.client.apiserver_version()).await {
            Ok(version) => Ok(version.git_version),
            Err(problem) if problem.reason == Reason::Forbidden => Ok("its version may not be seen".to_owned()),
            Err(problem) => Err(unseen(&problem)),
        }
    }

    /// An object in a namespace.
    pub(super) async fn get<K>(&self, namespace: &str, name: &str) -> Seen<Option<K>>
    where
        K: Object + Resource<Scope = NamespaceResourceScope>,
    {
        let tried = format!("get {}/{name} in namespace {namespace}", K::plural(&()));
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        in_time(self.deadline, tried, api.get_opt(name)).await.map_err(|problem| unseen(&problem))
    }

    /// An object in no namespace.
    pub(super) async fn get_cluster<K: Object>(&self, name: &str) -> Seen<Option<K>> {
        let api: Api<K> = Api::all(self.client.clone());
        in_time(self.deadline, format!("get {}/{name}", K::plural(&())), api.get_opt(name))
            .await
            .map_err(|problem| unseen(&problem))
    }

    /// Whether there is something at a path of the API: a kind that is not installed is not there, either.
    pub(super) async fn is_at(&self, path: &str) -> Seen<bool> {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(|error| Unseen(format!("get {path}: {error}")))?;
        match in_time(self.deadline, format!("get {path}"), self.client.request::<Value>(request)).await {
            Ok(_) => Ok(true),
            Err(problem) if problem.reason == Reason::NotFound => Ok(false),
            Err(problem) => Err(unseen(&problem)),
        }
    }

    /// Objects of a namespace, or with `None` of all.
    pub(super) async fn list<K>(&self, namespace: Option<&str>, labels: &str) -> Seen<Vec<K>>
    where
        K: Object + Resource<Scope = NamespaceResourceScope>,
    {
        let (api, place) = match namespace {
            Some(namespace) => (Api::namespaced(self.client.clone(), namespace), format!("in namespace {namespace}")),
            None => (Api::all(self.client.clone()), "in all namespaces".to_owned()),
        };
        self.list_all(&api, labels, &place).await
    }

    /// Objects in no namespace.
    pub(super) async fn list_cluster<K: Object>(&self, labels: &str) -> Seen<Vec<K>> {
        self.list_all(&Api::all(self.client.clone()), labels, "").await
    }

    async fn list_all<K: Object>(&self, api: &Api<K>, labels: &str, place: &str) -> Seen<Vec<K>> {
        let tried = format!("list {} {place}", K::plural(&()));
        let mut params = ListParams::default().labels(labels).limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = in_time(self.deadline, tried.trim_end().to_owned(), api.list(&params))
                .await
                .map_err(|problem| unseen(&problem))?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }

    /// What the API server would do with a pod. Nothing is stored.
    pub(super) async fn dry_run(&self, namespace: &str, pod: &Value) -> Result<DryRun, Problem> {
        let tried = format!("dry run of a pod in namespace {namespace}");
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let request = kube::core::Request::new(Pod::url_path(&(), Some(namespace)));
        let request = request.create(&params, pod.to_string().into_bytes());
        let request = request.map_err(|error| Problem::unsent(&tried, &error))?;
        in_time(self.deadline.max(DRY_RUN), tried, async {
            let answer = self.client.send(request.map(Body::from)).await?;
            let code = answer.status().as_u16();
            let warnings = answer.headers().get_all(WARNING).iter();
            let warnings = warnings.filter_map(|warning| Some(warning.to_str().ok()?.to_owned())).collect();
            let body = answer.into_body().collect_bytes().await?;
            let body = match serde_json::from_slice(&body) {
                Err(error) if code < 400 => return Err(kube::Error::SerdeError(error)),
                // A balancer, or fairness in the API server, says no in words of its own.
                body => body.unwrap_or_default(),
            };
            Ok(DryRun { code, body, warnings })
        })
        .await
    }
}

impl DryRun {
    /// The words of the refusal.
    pub(super) fn refusal(&self) -> Option<Problem> {
        if self.code < 400 {
            return None;
        }
        let status = serde_json::from_value(self.body.clone());
        let status = status.unwrap_or_else(|_| Status::failure("no reason was given", "").with_code(self.code));
        Some(Problem::from_status("dry run of a pod", &status))
    }
}

pub(super) fn unseen(problem: &Problem) -> Unseen {
    Unseen(problem.to_string())
}

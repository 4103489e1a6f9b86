//! The one writer of clones, and the quorum reads that go before its writes.

use std::{future::Future, time::Duration};

use http::{HeaderValue, Request, header::ACCEPT};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{PartialObjectMeta, SelectorExt as _},
};
use serde_json::json;

use super::{
    plan::Cause,
    secret::{Payload, SecretState, Source},
};
use crate::{
    cluster::{Problem, Reason},
    config::{CloneSpec, NamespaceName, RunnerNamespaces},
    names::{ANNOTATION_SOURCE, APP, FIELD_MANAGER_CLONE, LABEL_MANAGED_BY},
};

/// Longest wait for one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(10);
/// A resource version that no object has, for etcd's first write makes revision 2: an apply that carries it
/// creates what is absent, and is refused with a conflict when something is there (seen on 1.36.3).
const VERSION_OF_NOTHING: &str = "1";
/// The answer to a write would be the whole Secret; this asks for its metadata only.
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Reads sources and writes clones.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

impl Writer {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The source as it is stored now: a quorum read, never older than this call.
    pub async fn read_source(&self, spec: &CloneSpec) -> Result<Option<Source>, Problem> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), spec.from.as_str());
        let tried = what("get", spec, &spec.from);
        let secret = in_time(tried, api.get_opt(spec.secret.as_str())).await?;
        Ok(secret.map(Source::from))
    }

    /// Whether a namespace is a runner namespace now, by a quorum read of its labels.
    pub async fn is_selected(
        &self,
        runner_namespaces: &RunnerNamespaces,
        namespace: &NamespaceName,
    ) -> Result<bool, Problem> {
        if runner_namespaces.names.contains(namespace) {
            return Ok(true);
        }
        if runner_namespaces.selectors.is_empty() {
            return Ok(false);
        }
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let found = in_time(format!("get namespaces/{namespace}"), api.get_opt(namespace.as_str())).await?;
        let labels = found.and_then(|namespace| namespace.metadata.labels).unwrap_or_default();
        Ok(runner_namespaces.selectors.iter().any(|selector| selector.matches(&labels)))
    }

    /// Creates a clone where there is none; fails with a conflict where there is something.
    /// Server-side apply is the one way to create that RBAC can bind to a name.
    pub async fn create(&self, spec: &CloneSpec, namespace: &NamespaceName, payload: &Payload) -> Result<(), Problem> {
        let tried = what("create", spec, namespace);
        let mut labels = spec.labels.clone();
        labels.insert(LABEL_MANAGED_BY.to_owned(), APP.to_owned());
        let clone = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": spec.secret.as_str(),
                "resourceVersion": VERSION_OF_NOTHING,
                "labels": labels,
                "annotations": {ANNOTATION_SOURCE: spec.source()},
            },
            "type": payload.secret_type(),
            "data": payload.data(),
        });
        let params = PatchParams::apply(FIELD_MANAGER_CLONE).force();
        let request = requests(namespace).patch(spec.secret.as_str(), &params, &Patch::Apply(&clone));
        self.send(tried, request).await
    }

    /// Makes an existing Secret the clone: its content exactly the source's, its metadata as it was
    /// plus our marks. Fails with a conflict when it is not the version that was observed.
    pub async fn update(
        &self,
        spec: &CloneSpec,
        namespace: &NamespaceName,
        payload: &Payload,
        target: &SecretState,
        cause: Cause,
    ) -> Result<(), Problem> {
        let tried = what("update", spec, namespace);
        let mut metadata = target.metadata.clone();
        if cause == Cause::Marks || !target.is_kyvernos() {
            let labels = metadata.labels.get_or_insert_default();
            labels.extend(spec.labels.clone());
            labels.insert(LABEL_MANAGED_BY.to_owned(), APP.to_owned());
            metadata.annotations.get_or_insert_default().insert(ANNOTATION_SOURCE.to_owned(), spec.source());
        }
        let clone = Secret {
            metadata,
            type_: Some(payload.secret_type().to_owned()),
            data: Some(payload.data().clone()),
            immutable: target.immutable.then_some(true),
            string_data: None,
        };
        let body = serde_json::to_vec(&clone).map_err(|error| unbuilt(&tried, &error))?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER_CLONE.to_owned()), ..PostParams::default() };
        let request = requests(namespace).replace(spec.secret.as_str(), &params, body);
        self.send(tried, request).await
    }

    /// Deletes exactly the object, in exactly the version, that was observed.
    pub async fn delete(
        &self,
        spec: &CloneSpec,
        namespace: &NamespaceName,
        target: &SecretState,
    ) -> Result<(), Problem> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: target.metadata.uid.clone(),
            resource_version: target.metadata.resource_version.clone(),
        });
        let request = requests(namespace).delete(spec.secret.as_str(), &params);
        match self.send(what("delete", spec, namespace), request).await {
            Err(problem) if problem.reason == Reason::NotFound => Ok(()),
            result => result,
        }
    }

    async fn send(
        &self,
        tried: String,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(), Problem> {
        let mut request = request.map_err(|error| unbuilt(&tried, &error))?;
        request.headers_mut().insert(ACCEPT, METADATA_ONLY);
        in_time(tried, self.client.request_text(request)).await.map(drop)
    }
}

fn requests(namespace: &NamespaceName) -> kube::core::Request {
    kube::core::Request::new(Secret::url_path(&(), Some(namespace.as_str())))
}

fn what(verb: &str, spec: &CloneSpec, namespace: &NamespaceName) -> String {
    format!("{verb} secrets/{} in namespace {namespace}", spec.secret)
}

fn unbuilt(tried: &str, error: &dyn std::error::Error) -> Problem {
    Problem { tried: tried.to_owned(), reason: Reason::Invalid, message: error.to_string(), retry_after: None }
}

async fn in_time<T>(tried: String, call: impl Future<Output = kube::Result<T>>) -> Result<T, Problem> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Problem::new(tried, &error)),
        Err(_) => Err(Problem::timeout(tried, DEADLINE)),
    }
}

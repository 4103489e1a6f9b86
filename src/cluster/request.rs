//! Requests that somebody waits for: each with a deadline, each error with what was tried.

use std::{fmt::Debug, future::Future, time::Duration};

use http::{
    HeaderValue, Request,
    header::{ACCEPT, DATE},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{Timestamp, fmt::rfc2822},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions},
    client::Body,
    core::{NamespaceResourceScope, PartialObjectMeta},
};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{Problem, Reason};
use crate::config::NamespaceName;

/// Longest wait for one answer of the API server.
const DEADLINE: Duration = Duration::from_secs(10);
/// A resource version that no object has, for etcd's first write makes revision 2: an apply that carries it
/// creates what is absent, and is refused with a conflict when something is there (seen on 1.36.3).
const VERSION_OF_NOTHING: &str = "1";
/// The answer to a write would be the whole object; this asks for its metadata only.
const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Reads and writes of one object each, by name.
#[derive(Clone)]
pub struct Requests {
    client: Client,
    deadline: Duration,
}

/// Which version of which object a write may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
}

impl From<&ObjectMeta> for Version {
    fn from(metadata: &ObjectMeta) -> Self {
        Self { uid: metadata.uid.clone(), resource_version: metadata.resource_version.clone() }
    }
}

/// What is read and written.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}

impl Requests {
    /// Requests by this client, which must not retry by itself.
    pub fn new(client: Client) -> Self {
        Self { client, deadline: DEADLINE }
    }

    /// The same, with less patience.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// An object as it is stored now: a quorum read, never older than this call.
    pub async fn get<K: Object>(&self, namespace: &NamespaceName, name: &str) -> Result<Option<K>, Problem> {
        let tried = what::<K>("get", namespace, name);
        let request = requests::<K>(namespace).get(name, &GetParams::default());
        let request = request.map_err(|error| Problem::unsent(&tried, &error))?;
        // The text may be a Secret: it does not outlive its reading.
        let read = async {
            let text = Zeroizing::new(self.client.request_text(request).await?);
            serde_json::from_str(&text).map(Some).map_err(kube::Error::SerdeError)
        };
        match in_time(self.deadline, tried, read).await {
            Err(problem) if problem.reason == Reason::NotFound => Ok(None),
            answer => answer,
        }
    }

    /// A cluster-scoped object's labels and the like, as stored now.
    pub async fn get_cluster<K>(&self, name: &str) -> Result<Option<K>, Problem>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client.clone());
        in_time(self.deadline, format!("get {}/{name}", K::plural(&())), api.get_opt(name)).await
    }

    /// Creates an object where there is none; fails with a conflict where there is something.
    /// Only server-side apply can create under a rule with `resourceNames`: a POST carries no name.
    ///
    /// `object` is the JSON of what is to be owned.
    pub async fn create<K: Object>(
        &self,
        manager: &str,
        namespace: &NamespaceName,
        name: &str,
        mut object: serde_json::Value,
    ) -> Result<(), Problem> {
        identify::<K>(&mut object, name);
        if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), VERSION_OF_NOTHING.into());
        }
        self.send_apply(what::<K>("create", namespace, name), &requests::<K>(namespace), manager, name, &object).await
    }

    /// Replaces an object in the version that its metadata names; fails with a conflict when it is another.
    pub async fn replace<K: Object>(
        &self,
        manager: &str,
        namespace: &NamespaceName,
        name: &str,
        object: &K,
    ) -> Result<(), Problem> {
        let tried = what::<K>("update", namespace, name);
        let body = serde_json::to_vec(object).map_err(|error| Problem::unsent(&tried, &error))?;
        let params = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
        self.send(tried, requests::<K>(namespace).replace(name, &params, body)).await
    }

    /// Deletes exactly the object, in exactly the version, that was observed. One that is gone is fine.
    pub async fn delete<K: Object>(
        &self,
        namespace: &NamespaceName,
        name: &str,
        version: Version,
    ) -> Result<(), Problem> {
        let Version { uid, resource_version } = version;
        let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version });
        match self.send(what::<K>("delete", namespace, name), requests::<K>(namespace).delete(name, &params)).await {
            Err(problem) if problem.reason == Reason::NotFound => Ok(()),
            result => result,
        }
    }

    /// Applies an object, whether it is there or not; `object` is the JSON of what is to be owned.
    pub async fn apply<K: Object>(
        &self,
        manager: &str,
        namespace: &NamespaceName,
        name: &str,
        mut object: serde_json::Value,
    ) -> Result<(), Problem> {
        identify::<K>(&mut object, name);
        self.send_apply(what::<K>("apply", namespace, name), &requests::<K>(namespace), manager, name, &object).await
    }

    /// Applies fields to a cluster-scoped object that is there already; `object` is the JSON of what is to be owned.
    /// Gives its metadata.
    pub async fn apply_cluster<K>(
        &self,
        manager: &str,
        name: &str,
        mut object: serde_json::Value,
    ) -> Result<ObjectMeta, Problem>
    where
        K: Resource<DynamicType = ()>,
    {
        identify::<K>(&mut object, name);
        let (tried, requests) = (format!("apply {}/{name}", K::plural(&())), cluster_requests::<K>());
        let request = requests.patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(object));
        let answer = self.answer(tried.clone(), request).await?;
        let answer: Result<PartialObjectMeta<K>, _> = serde_json::from_str(&answer);
        answer.map(|object| object.metadata).map_err(|error| Problem::new(tried, &kube::Error::SerdeError(error)))
    }

    /// Changes a cluster-scoped object by a JSON patch.
    pub async fn patch_cluster<K>(&self, manager: &str, name: &str, patch: json_patch::Patch) -> Result<(), Problem>
    where
        K: Resource<DynamicType = ()>,
    {
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        let request = cluster_requests::<K>().patch(name, &params, &Patch::<()>::Json(patch));
        self.send(format!("patch {}/{name}", K::plural(&())), request).await
    }

    /// The time at the API server, in whole seconds: the `Date` of its answer to a read of this object, whether that
    /// is there or not.
    pub async fn time<K: Object>(&self, namespace: &NamespaceName, name: &str) -> Result<Timestamp, Problem> {
        let tried = format!("{} for the time", what::<K>("get", namespace, name));
        let request = requests::<K>(namespace).get(name, &GetParams::default());
        let mut request = request.map_err(|error| Problem::unsent(&tried, &error))?;
        request.headers_mut().insert(ACCEPT, METADATA_ONLY);
        let answer = in_time(self.deadline, tried.clone(), self.client.send(request.map(Body::from))).await?;
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| rfc2822::parse(date).ok()).map(|date| date.timestamp());
        date.ok_or_else(|| Problem {
            tried,
            reason: Reason::Unreadable,
            message: "the answer has no Date".to_owned(),
            retry_after: None,
        })
    }

    /// A forced server-side apply.
    async fn send_apply(
        &self,
        tried: String,
        requests: &kube::core::Request,
        manager: &str,
        name: &str,
        object: &serde_json::Value,
    ) -> Result<(), Problem> {
        let params = PatchParams::apply(manager).force();
        self.send(tried, requests.patch(name, &params, &Patch::Apply(object))).await
    }

    async fn send(
        &self,
        tried: String,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(), Problem> {
        self.answer(tried, request).await.map(drop)
    }

    async fn answer(
        &self,
        tried: String,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<String, Problem> {
        let mut request = request.map_err(|error| Problem::unsent(&tried, &error))?;
        request.headers_mut().insert(ACCEPT, METADATA_ONLY);
        in_time(self.deadline, tried, self.client.request_text(request)).await
    }
}

/// The answer to a call of the API server, or what went wrong with it, before the deadline is over.
pub async fn in_time<T>(
    deadline: Duration,
    tried: impl Into<String>,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Problem::new(tried, &error)),
        Err(_) => Err(Problem::timeout(tried, deadline)),
    }
}

/// Writes kind and name into the JSON of an object, as an apply wants them.
fn identify<K: Resource<DynamicType = ()>>(object: &mut serde_json::Value, name: &str) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.insert("apiVersion".to_owned(), K::api_version(&()).into());
    fields.insert("kind".to_owned(), K::kind(&()).into());
    let metadata = fields.entry("metadata").or_insert_with(|| serde_json::json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("name".to_owned(), name.into());
    }
}

fn requests<K: Object>(namespace: &NamespaceName) -> kube::core::Request {
    kube::core::Request::new(K::url_path(&(), Some(namespace.as_str())))
}

fn cluster_requests<K: Resource<DynamicType = ()>>() -> kube::core::Request {
    kube::core::Request::new(K::url_path(&(), None))
}

fn what<K: Object>(verb: &str, namespace: &NamespaceName, name: &str) -> String {
    format!("{verb} {}/{name} in namespace {namespace}", K::plural(&()))
}

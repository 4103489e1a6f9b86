//! What the API server records about requests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::Error;

/// How much the API server records about each request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditLevel {
    /// Nothing.
    None,
    /// Who did what to which object, and the answer's code.
    #[default]
    Metadata,
    /// That, and the object of the request.
    Request,
    /// That, and the object of the answer.
    RequestResponse,
}

/// One record of a request, from whomever: the harness and the control plane's own parts too.
///
/// Fields that the request does not have are empty. Meanings are those of `audit.k8s.io/v1`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Record")]
#[non_exhaustive]
pub struct AuditEvent {
    /// Identifies the request, through all its stages.
    pub id: String,
    /// `ResponseComplete`; `ResponseStarted` for watches with [`crate::Builder::audit_starts`];
    /// `Panic`.
    pub stage: String,
    /// `get`, `list`, `watch`, `create`, `patch`, …
    pub verb: String,
    /// The user, such as `system:serviceaccount:default:default`.
    pub user: String,
    /// The path and query of the request.
    pub uri: String,
    /// The plural name of the resource, such as `pods`.
    pub resource: String,
    /// Such as `status` or `token`.
    pub subresource: String,
    /// The namespace of the object.
    pub namespace: String,
    /// The name of the object; with `generateName` it is known only at higher levels.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// The client's `User-Agent`.
    pub user_agent: String,
    /// Such as `authorization.k8s.io/decision`, or what each webhook did.
    pub annotations: BTreeMap<String, String>,
    /// The object of the request, from [`AuditLevel::Request`] on.
    pub request_object: Option<Value>,
    /// The object of the answer, at [`AuditLevel::RequestResponse`].
    pub response_object: Option<Value>,
}

/// The record as the API server writes it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    #[serde(rename = "auditID")]
    id: String,
    stage: String,
    verb: String,
    user: User,
    #[serde(rename = "requestURI")]
    uri: String,
    object_ref: ObjectRef,
    response_status: ResponseStatus,
    user_agent: String,
    annotations: BTreeMap<String, String>,
    request_object: Option<Value>,
    response_object: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

impl From<Record> for AuditEvent {
    fn from(record: Record) -> Self {
        Self {
            id: record.id,
            stage: record.stage,
            verb: record.verb,
            user: record.user.username,
            uri: record.uri,
            resource: record.object_ref.resource,
            subresource: record.object_ref.subresource,
            namespace: record.object_ref.namespace,
            name: record.object_ref.name,
            code: record.response_status.code,
            user_agent: record.user_agent,
            annotations: record.annotations,
            request_object: record.request_object,
            response_object: record.response_object,
        }
    }
}

pub(crate) fn policy(level: AuditLevel, starts: bool) -> String {
    let mut omitted = vec!["RequestReceived"];
    if !starts {
        omitted.push("ResponseStarted");
    }
    let level = match level {
        AuditLevel::None => "None",
        AuditLevel::Metadata => "Metadata",
        AuditLevel::Request => "Request",
        AuditLevel::RequestResponse => "RequestResponse",
    };
    let rules = json!([{"level": level}]);
    json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": omitted, "rules": rules}).to_string()
}

pub(crate) fn log_file(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

/// Reads the log; a last line without its end is still being written and is left out.
pub(crate) fn events(log: &Path) -> Result<Vec<AuditEvent>, Error> {
    let text = match fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", log, error)),
    };
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let parsed = whole.lines().map(serde_json::from_str);
    parsed.collect::<Result<_, _>>().map_err(|error| Error::file("read the audit events in", log, error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_without_object() {
        let event: AuditEvent = serde_json::from_str(
            r#"{"auditID":"1","stage":"ResponseComplete","requestURI":"/version","verb":"get",
                "user":{"username":"u","groups":["g"]},"responseStatus":{"metadata":{},"code":200}}"#,
        )
        .expect("an event");
        assert_eq!((event.user.as_str(), event.code, event.resource.as_str()), ("u", 200, ""));
    }

    #[test]
    fn unfinished_line_is_left_out() {
        let log = std::env::temp_dir().join(format!("control-plane-audit-{}", std::process::id()));
        fs::write(&log, "{\"verb\":\"get\"}\n{\"verb\":\"li").expect("a log");
        let events = events(&log).expect("events");
        fs::remove_file(&log).expect("the log");
        assert_eq!(events.iter().map(|event| event.verb.as_str()).collect::<Vec<_>>(), ["get"]);
    }
}

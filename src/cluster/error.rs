//! What an error of the API means: a reason from a closed set, and words that are safe to log.

use std::{fmt, time::Duration};

use kube::{client::AuthError, core::Status};

/// Longest message of the API server that is passed on.
const MAX_MESSAGE: usize = 400;

/// Why a request failed. The same word is metric label, log field and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No connection, or it broke.
    Unreachable,
    /// No answer in time; whether the request took effect is unknown.
    Timeout,
    /// 401: the token is not accepted.
    Unauthorized,
    /// 403 by RBAC: a verb is missing.
    Forbidden,
    /// 403 by a `ResourceQuota`.
    Quota,
    /// 403 because the namespace is being deleted.
    NamespaceTerminating,
    /// 403 or 422 by an admission policy or another webhook.
    Denied,
    /// 404.
    NotFound,
    /// 409: it changed since it was read.
    Conflict,
    /// 410: the watch is too old.
    Expired,
    /// 413 or 422: the API server does not take it as it is.
    Invalid,
    /// 429.
    Throttled,
    /// Something else keeps undoing it, so it waits.
    Contended,
    /// 5xx.
    ServerError,
    /// An answer that cannot be understood.
    Unreadable,
}

impl Reason {
    /// The word for logs, metrics and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Quota => "quota",
            Self::NamespaceTerminating => "namespace-terminating",
            Self::Denied => "denied",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
            Self::Throttled => "throttled",
            Self::Contended => "contended",
            Self::ServerError => "server-error",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A failed request: what was tried, on what, why it failed, and when the server wants to be asked again.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What was tried on what, such as `update secrets/x in namespace y`.
    pub tried: String,
    /// Why it failed.
    pub reason: Reason,
    /// The API server's or the connection's words, without any part of a response body.
    pub message: String,
    /// `Retry-After`, when the API server gave one.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// Reads an error of the kube client.
    pub fn new(tried: impl Into<String>, error: &kube::Error) -> Self {
        let tried = tried.into();
        match error {
            kube::Error::Api(status) => Self::from_status(tried, status),
            // Its text may quote what did not parse, which may be a Secret.
            kube::Error::SerdeError(error) => Self {
                tried,
                reason: Reason::Unreadable,
                message: format!(
                    "the answer does not parse ({:?} at line {} column {})",
                    error.classify(),
                    error.line(),
                    error.column()
                ),
                retry_after: None,
            },
            error => Self { tried, reason: Reason::Unreachable, message: words(error), retry_after: None },
        }
    }

    /// Reads a `Status` of the API server.
    pub fn from_status(tried: impl Into<String>, status: &Status) -> Self {
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        Self {
            tried: tried.into(),
            reason: classify(status),
            message: cut(&status.message),
            retry_after: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
        }
    }

    /// A request that could not be built, and so was not sent.
    pub fn unsent(tried: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self { tried: tried.into(), reason: Reason::Invalid, message: error.to_string(), retry_after: None }
    }

    /// A write that waits, because something else keeps undoing it.
    pub fn contended(tried: impl Into<String>) -> Self {
        Self {
            tried: tried.into(),
            reason: Reason::Contended,
            message: "something else keeps changing it; repaired at most once a minute until that ends".to_owned(),
            retry_after: None,
        }
    }

    /// No answer within `limit`.
    pub fn timeout(tried: impl Into<String>, limit: Duration) -> Self {
        Self {
            tried: tried.into(),
            reason: Reason::Timeout,
            message: format!("no answer within {} s", limit.as_secs()),
            retry_after: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.tried, self.reason.as_str(), self.message)
    }
}

fn classify(status: &Status) -> Reason {
    let cause =
        |reason: &str| status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == reason);
    match status.code {
        401 => Reason::Unauthorized,
        403 if cause("NamespaceTerminating") => Reason::NamespaceTerminating,
        403 if status.message.contains("exceeded quota") => Reason::Quota,
        // The words of the RBAC authoriser; anything else with 403 or 422 came from admission.
        403 if status.message.contains(" cannot ") => Reason::Forbidden,
        403 => Reason::Denied,
        404 => Reason::NotFound,
        409 => Reason::Conflict,
        410 => Reason::Expired,
        422 if status.message.contains("denied request") => Reason::Denied,
        413 | 422 | 400 => Reason::Invalid,
        429 => Reason::Throttled,
        504 => Reason::Timeout,
        _ => Reason::ServerError,
    }
}

/// An error with its sources, for hyper and tower say the useful part last; without what a plugin printed, which may be
/// a token.
pub(super) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        if let Some(AuthError::AuthExecRun { .. } | AuthError::AuthExecParse(_)) = error.downcast_ref() {
            return "the exec plugin of the kubeconfig gave no credential that can be used; run it by hand".to_owned();
        }
        let next = error.to_string();
        if text.is_empty() {
            text = next;
        } else if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
    }
    cut(&text)
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(code: u16, message: &str, cause: &str) -> Status {
        let value = json!({
            "code": code,
            "message": message,
            "details": {"retryAfterSeconds": 3, "causes": [{"reason": cause}]},
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let rbac = "secrets \"s\" is forbidden: User \"u\" cannot update resource \"secrets\" in API group \"\"";
        let table = [
            (403, rbac, "", Reason::Forbidden),
            (403, "secrets \"s\" is forbidden: exceeded quota: q, requested: secrets=1", "", Reason::Quota),
            (403, "unable to create new content in namespace n", "NamespaceTerminating", Reason::NamespaceTerminating),
            (403, "admission webhook \"x\" denied the request: no", "", Reason::Denied),
            (422, "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", "", Reason::Denied),
            (422, "Secret \"s\" is invalid: type: field is immutable", "", Reason::Invalid),
            (409, "the object has been modified", "", Reason::Conflict),
            (429, "too many requests", "", Reason::Throttled),
            (500, "etcd", "", Reason::ServerError),
        ];
        for (code, message, cause, reason) in table {
            let problem = Problem::from_status("t", &status(code, message, cause));
            assert_eq!(problem.reason, reason, "{message}");
            assert_eq!(problem.retry_after, Some(Duration::from_secs(3)));
        }
    }

    #[test]
    fn an_answer_that_does_not_parse_is_not_quoted() {
        let error = serde_json::from_str::<u32>("\"canary\"").unwrap_err();
        assert!(error.to_string().contains("canary"));
        let problem = Problem::new("get secrets/s", &kube::Error::SerdeError(error));
        assert!(!format!("{problem} {problem:?}").contains("canary"), "{problem}");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"ä".repeat(500)).chars().count(), MAX_MESSAGE + 1);
    }
}

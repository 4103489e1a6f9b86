//! `AdmissionReview` v1, as it goes: what was decided, in bytes.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use json_patch::Patch;
use serde::Serialize;

use super::{
    error::ReviewError,
    review::{API_VERSION, KIND},
};
use crate::names::APP;

/// What is answered to a review.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// Whether the object is let in, and how.
    pub(crate) verdict: Verdict,
    /// Why, as a word of a closed set: metric label, log field and audit annotation.
    pub(crate) reason: &'static str,
    /// Shown to whoever sent the request.
    pub(crate) warnings: Vec<Warning>,
    /// More audit annotations; the API server puts the webhook's name in front of each key.
    pub(crate) audit: BTreeMap<&'static str, String>,
}

/// Whether an object is let in.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// As it is, when the patch is empty.
    Allow(Patch),
    /// Not let in.
    Deny(Denial),
}

/// A refusal in the form of a `metav1.Status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Denial {
    /// HTTP code of the user's request. The API server turns anything below 400 into 400.
    pub(crate) code: u16,
    /// One word for programs.
    pub(crate) reason: &'static str,
    /// For people, with the way out.
    pub(crate) message: String,
    /// Makes clients try again by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<RetryAfter>,
}

/// Becomes the HTTP header `Retry-After` (apiserver `responsewriters/writers.go`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RetryAfter {
    pub(crate) retry_after_seconds: u32,
}

impl Default for Verdict {
    fn default() -> Self {
        Self::Allow(Patch::default())
    }
}

impl Decision {
    /// The word for it in metrics and logs.
    pub(crate) fn word(&self) -> &'static str {
        match &self.verdict {
            Verdict::Allow(patch) if patch.is_empty() => "allowed",
            Verdict::Allow(_) => "patched",
            Verdict::Deny(_) => "denied",
        }
    }

    /// The body of the answer to the request with this uid, about an object of this kind and name: a `pod`, perhaps
    /// without a name.
    pub(crate) fn write(mut self, uid: &str, kind: &str, name: &str) -> Result<Vec<u8>, ReviewError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Review<'a> {
            api_version: &'static str,
            kind: &'static str,
            response: Response<'a>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Response<'a> {
            uid: &'a str,
            allowed: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            patch_type: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            patch: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            status: Option<Denial>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            warnings: Vec<String>,
            audit_annotations: BTreeMap<&'static str, String>,
        }

        self.audit.insert("reason", self.reason.to_owned());
        let (patch, status) = match self.verdict {
            Verdict::Allow(patch) if patch.is_empty() => (None, None),
            Verdict::Allow(patch) => (Some(serde_json::to_vec(&patch).map_err(|_| ReviewError::Answer)?), None),
            Verdict::Deny(denial) => (None, Some(denial)),
        };
        let response = Response {
            uid,
            allowed: status.is_none(),
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch: patch.map(|patch| STANDARD.encode(patch)),
            status,
            warnings: self.warnings.iter().map(|warning| warning.about(kind, name)).collect(),
            audit_annotations: self.audit,
        };
        serde_json::to_vec(&Review { api_version: API_VERSION, kind: KIND, response }).map_err(|_| ReviewError::Answer)
    }
}

/// A line that kubectl, Helm and GitLab Runner print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Warning(String);

impl Warning {
    /// The API server's documentation asks for at most 120 characters. It cuts after 256, of which the prefix takes some.
    const MAX: usize = 120;
    /// How much of it a name may take.
    const MAX_OF_NAME: usize = 100;

    /// Cuts what is too long.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.chars().count() <= Self::MAX {
            return Self(text);
        }
        Self(text.chars().take(Self::MAX - 1).chain(['…']).collect())
    }

    /// As it is sent: it ends in logs of whoever made the request, among those of other webhooks and about other objects.
    fn about(&self, kind: &str, name: &str) -> String {
        let name: String = name.chars().take(Self::MAX_OF_NAME).collect();
        format!("{APP}: {}: {self}", format!("{kind} {name}").trim_end())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(decision: Decision) -> Value {
        serde_json::from_slice(&decision.write("u1", "pod", "x").unwrap()).unwrap()
    }

    #[test]
    fn an_empty_patch_is_no_patch() {
        assert_eq!(
            answer(Decision { reason: "other-pod", ..Decision::default() }),
            json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "response": {"uid": "u1", "allowed": true, "auditAnnotations": {"reason": "other-pod"}},
            })
        );
    }

    #[test]
    fn a_patch_is_base64_and_has_a_type() {
        let patch: Patch = serde_json::from_value(json!([{"op": "add", "path": "/a", "value": 1}])).unwrap();
        let decision =
            Decision { verdict: Verdict::Allow(patch), warnings: vec![Warning::new("w")], ..Decision::default() };
        assert_eq!(decision.word(), "patched");
        let response = &answer(decision)["response"];
        assert_eq!(
            (&response["patchType"], &response["warnings"]),
            (&json!("JSONPatch"), &json!(["gitlab-runner-webhook: pod x: w"]))
        );
        let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&patch).unwrap(), json!([{"op": "add", "path": "/a", "value": 1}]));
    }

    #[test]
    fn a_denial_carries_what_makes_clients_try_again() {
        let denial = Denial {
            code: 429,
            reason: "TooManyRequests",
            message: "wait".to_owned(),
            details: Some(RetryAfter { retry_after_seconds: 1 }),
        };
        let decision = Decision { verdict: Verdict::Deny(denial), reason: "x", ..Decision::default() };
        assert_eq!(decision.word(), "denied");
        let response = &answer(decision)["response"];
        assert_eq!(response["allowed"], json!(false));
        assert_eq!(
            response["status"],
            json!({"code": 429, "reason": "TooManyRequests", "message": "wait", "details": {"retryAfterSeconds": 1}})
        );
    }

    #[test]
    fn warnings_are_cut_between_characters() {
        for (text, length) in [("ä".repeat(120), 120), ("ä".repeat(121), 120), ("a".to_owned(), 1)] {
            assert_eq!(Warning::new(text).to_string().chars().count(), length);
        }
    }
}

//! `AdmissionReview` v1: bytes in, bytes out.
//!
//! Only what is needed is read, so that later API servers may add fields.
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use json_patch::Patch;
use serde::{Deserialize, Serialize};

use super::{
    error::ReviewError,
    pod_view::{self, MAX_COST, PodView},
};

/// The only version that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Longest uid: one of an API server has 36 bytes.
const MAX_UID: usize = 128;

/// The part of a request that decisions are made from.
pub(crate) struct Request<'a> {
    pub(crate) uid: String,
    pub(crate) kind: GroupVersionKind,
    pub(crate) sub_resource: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) operation: String,
    pub(crate) dry_run: bool,
    pub(crate) object: PodView<'a>,
}

/// A request as it comes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    kind: GroupVersionKind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(borrow, default, deserialize_with = "pod_view::optional")]
    object: Option<PodView<'a>>,
}

/// The kind of the object under review.
#[derive(Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct GroupVersionKind {
    group: String,
    version: String,
    kind: String,
}

impl<'a> Request<'a> {
    /// Reads a review.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, ReviewError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Review<'a> {
            #[serde(default)]
            api_version: String,
            #[serde(default)]
            kind: String,
            #[serde(borrow)]
            request: Option<Wire<'a>>,
        }

        let (review, costs_too_much) = pod_view::within_cost(|| serde_json::from_slice::<Review<'_>>(body));
        let too_complex = ReviewError::TooComplex { limit: MAX_COST };
        let review = review.map_err(|error| if costs_too_much { too_complex } else { not_json(&error) })?;
        match (review.api_version.as_str(), review.kind.as_str()) {
            (API_VERSION, KIND) => {}
            ("admission.k8s.io/v1beta1", KIND) => return Err(ReviewError::Version),
            _ => return Err(ReviewError::Kind),
        }
        let request = review.request.ok_or(ReviewError::Missing { field: "request" })?;
        let required = [
            (request.uid.is_empty(), "request.uid"),
            (request.operation.is_empty(), "request.operation"),
            (request.kind.kind.is_empty(), "request.kind"),
        ];
        if let Some((_, field)) = required.into_iter().find(|(absent, _)| *absent) {
            return Err(ReviewError::Missing { field });
        }
        // It is answered with, and logged.
        if request.uid.len() > MAX_UID || !request.uid.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ReviewError::Uid { limit: MAX_UID });
        }
        let Wire { uid, kind, sub_resource, name, namespace, operation, dry_run, object } = request;
        let object = object.unwrap_or_default();
        Ok(Self { uid, kind, sub_resource, name, namespace, operation, dry_run, object })
    }

    /// Whether an object of this kind of the core API, itself and not a subresource, is being created.
    pub(crate) fn creates(&self, kind: &str) -> bool {
        self.operation == "CREATE"
            && self.sub_resource.is_empty()
            && (self.kind.group.as_str(), self.kind.version.as_str(), self.kind.kind.as_str()) == ("", "v1", kind)
    }

    /// The name, or the prefix of a name that the API server is still to make.
    pub(crate) fn display_name(&self) -> &str {
        if self.name.is_empty() { &self.object.metadata.generate_name } else { &self.name }
    }
}

/// Its text would repeat what was sent.
fn not_json(error: &serde_json::Error) -> ReviewError {
    ReviewError::Json {
        problem: match error.classify() {
            serde_json::error::Category::Io | serde_json::error::Category::Syntax => "bad syntax",
            serde_json::error::Category::Data => "a field of the wrong type",
            serde_json::error::Category::Eof => "it ends too early",
        },
        line: error.line(),
        column: error.column(),
    }
}

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

    /// The body of the answer to the request with this uid.
    pub(crate) fn write(mut self, uid: &str) -> Result<Vec<u8>, ReviewError> {
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
            warnings: Vec<Warning>,
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
            warnings: self.warnings,
            audit_annotations: self.audit,
        };
        serde_json::to_vec(&Review { api_version: API_VERSION, kind: KIND, response }).map_err(|_| ReviewError::Answer)
    }
}

/// A line that kubectl and Helm print.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Warning(String);

impl Warning {
    /// The API server's documentation asks for at most 120 characters.
    const MAX: usize = 120;

    /// Cuts what is too long.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.chars().count() <= Self::MAX {
            return Self(text);
        }
        Self(text.chars().take(Self::MAX - 1).chain(['…']).collect())
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

    /// Without an object, what is read borrows nothing.
    fn read(review: &Value) -> Result<Request<'static>, ReviewError> {
        let body = review.to_string();
        Request::read(body.as_bytes()).map(|request| Request { object: PodView::default(), ..request })
    }

    fn answer(decision: Decision) -> Value {
        serde_json::from_slice(&decision.write("u1").unwrap()).unwrap()
    }

    #[test]
    fn reads_what_it_needs_and_tolerates_the_rest() {
        let body = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "future": 1,
            "request": {
                "uid": "u1", "operation": "CREATE", "kind": {"group": "", "version": "v1", "kind": "Pod", "x": 1},
                "namespace": "n", "dryRun": true, "userInfo": {"username": "a"}, "future": {},
                "object": {"metadata": {"generateName": "p-"}, "spec": {"future": null, "volumes": null}},
            },
        })
        .to_string();
        let request = Request::read(body.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        assert!(request.creates("Pod") && !request.creates("Namespace"));
        assert_eq!((request.uid.as_str(), request.namespace.as_str(), request.display_name()), ("u1", "n", "p-"));
        assert!(!request.object.spec.volumes.is_there());
    }

    #[test]
    fn each_error_says_what_is_expected_and_repeats_nothing() {
        let request = json!({"uid": "u", "operation": "CREATE", "kind": {"version": "v1", "kind": "Pod"}});
        let without = |field: &str| {
            let mut request = request.clone();
            request.as_object_mut().unwrap().remove(field);
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string()
        };
        let table = [
            (String::new(), "not-json", "ends too early"),
            ("hunter2".to_owned(), "not-json", "bad syntax at line 1"),
            ("[]".to_owned(), "not-json", "AdmissionReview"),
            (
                json!({"apiVersion": "admission.k8s.io/v1", "kind": {"hunter2": 1}}).to_string(),
                "not-json",
                "wrong type",
            ),
            ("[".repeat(100_000), "not-json", "line 1"),
            ("{}".to_owned(), "kind", "admission.k8s.io/v1"),
            (json!({"apiVersion": "v1", "kind": "hunter2"}).to_string(), "kind", "AdmissionReview"),
            (
                json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}).to_string(),
                "version",
                "admissionReviewVersions: [v1]",
            ),
            (
                json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string(),
                "incomplete",
                "no request",
            ),
            (without("uid"), "incomplete", "request.uid"),
            (without("operation"), "incomplete", "request.operation"),
            (without("kind"), "incomplete", "request.kind"),
            (without("").replace(r#""uid":"u""#, r#""uid":"hunter2\n""#), "uid", "128 bytes"),
        ];
        for (body, reason, expects) in table {
            let Err(error) = Request::read(body.as_bytes()) else { panic!("{body}") };
            let text = error.to_string();
            assert_eq!((error.reason(), error.status()), (reason, 400), "{text}");
            assert!(text.contains(expects) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_subresource_is_not_the_pod() {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "operation": "CREATE", "kind": {"version": "v1", "kind": "Pod"}},
        });
        for (field, value) in [
            ("subResource", json!("ephemeralcontainers")),
            ("operation", json!("UPDATE")),
            ("kind", json!({"group": "apps", "version": "v1", "kind": "Pod"})),
        ] {
            let former = review["request"].get(field).cloned().unwrap_or(json!(""));
            review["request"][field] = value;
            assert!(!read(&review).is_ok_and(|request| request.creates("Pod")), "{field}");
            review["request"][field] = former;
        }
        assert!(read(&review).is_ok_and(|request| request.creates("Pod")));
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
        assert_eq!((&response["patchType"], &response["warnings"]), (&json!("JSONPatch"), &json!(["w"])));
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

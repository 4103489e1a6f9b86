//! `AdmissionReview` v1, as it comes: bytes in.
//!
//! Only what is needed is read, so that later API servers may add fields.
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

use serde::Deserialize;

use super::{
    error::ReviewError,
    pod_view::{self, MAX_COST, PodView},
};

/// The only version that is spoken.
pub(super) const API_VERSION: &str = "admission.k8s.io/v1";
pub(super) const KIND: &str = "AdmissionReview";
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Without an object, what is read borrows nothing.
    fn read(review: &Value) -> Result<Request<'static>, ReviewError> {
        let body = review.to_string();
        Request::read(body.as_bytes()).map(|request| Request { object: PodView::default(), ..request })
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
}

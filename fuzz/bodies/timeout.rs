//! The query of a review, `?timeout=5s` and whatever else a client writes there: it changes no answer.

use gitlab_runner_webhook::names::PATH_MUTATE_PODS;

use super::world::worlds;

const REVIEW: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u",
    "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "gitlab-runner", "operation": "CREATE",
    "object": {"metadata": {"name": "p"}, "spec": {"containers": []}}}}"#;

/// Sends a harmless review with these bytes as its query.
pub fn check(query: &[u8]) {
    let Ok(query) = std::str::from_utf8(query) else { return };
    let uri = format!("{PATH_MUTATE_PODS}?{query}");
    // What is no URI ends in the HTTP parser.
    if uri.parse::<http::Uri>().is_err() {
        return;
    }
    let world = &worlds()[0];
    let (plain, asked) = (world.post(PATH_MUTATE_PODS, REVIEW.into()), world.post(&uri, REVIEW.into()));
    assert_eq!(plain.code, 200);
    // A time-out that is over before it begins may be answered by an error of the server.
    assert!(asked.code == 200 && asked.text == plain.text || asked.code >= 500, "{}: {query:?}", asked.code);
}

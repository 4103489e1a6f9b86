//! From bytes to answer: whatever is sent to a webhook, what comes back is in order.
//!
//! A panic, a hang or an allocation without bounds is a finding by itself; the rest is asserted here. Each
//! input goes to each webhook, in each [`World`], through the router, as if hyper had read it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use gitlab_runner_webhook::names;

use super::world::{self, Answer, World, worlds};

/// Where reviews are sent.
const WEBHOOKS: [&str; 3] = [names::PATH_MUTATE_PODS, names::PATH_MUTATE_NAMESPACES, names::PATH_VALIDATE_PODS];

/// Sends these bytes as a review.
pub fn check(body: &[u8]) {
    // What a field that nobody reads holds need not be UTF-8, or a number that fits; and serde takes a list for a struct.
    let review: Option<Value> = serde_json::from_slice(body).ok();
    let review = review.filter(|review| review["request"].is_object());
    for world in worlds() {
        for webhook in WEBHOOKS {
            answer(world, webhook, body, review.as_ref());
        }
    }
}

fn answer(world: &World, webhook: &str, body: &[u8], review: Option<&Value>) {
    let Answer { code, text } = world.post(webhook, body.to_vec());
    let answer: Value = serde_json::from_slice(&text).expect("an answer is JSON");
    if code != 200 {
        refusal(world, code, &answer);
        return;
    }
    let response = &answer["response"];
    if let Some(review) = review {
        assert_eq!((&answer["apiVersion"], &answer["kind"]), (&review["apiVersion"], &review["kind"]));
        assert_eq!(response["uid"], review["request"]["uid"], "the answer is for another request");
    }
    assert!(response["auditAnnotations"]["reason"].is_string());
    for warning in response["warnings"].as_array().into_iter().flatten() {
        // Longer ones are cut by the API server, or dropped.
        assert!(warning.as_str().is_some_and(|text| text.chars().count() <= 256), "{warning}");
    }
    let denied = response["allowed"] == Value::Bool(false);
    assert_eq!(denied, !response["status"].is_null(), "a denial says why, and nothing else does");
    if let Some(patch) = response["patch"].as_str() {
        assert!(webhook == world::PATCHES && !denied && response["patchType"] == "JSONPatch");
        let patch = STANDARD.decode(patch).expect("a patch is base64");
        only_adds(&patch, response["auditAnnotations"]["pod"] == "job");
        if let Some(review) = review {
            fits(world, webhook, review, &patch);
        }
    }
}

/// What is said of a body that cannot be read is what was said of harmless ones: nothing of it is repeated.
fn refusal(world: &World, code: u16, status: &Value) {
    assert!([400, 413].contains(&code), "{code}");
    assert_eq!((&status["kind"], &status["status"]), (&"Status".into(), &"Failure".into()));
    let message = status["message"].as_str().expect("a Status has a message");
    assert!(world.refusals.contains(&world::without_numbers(message)), "not a known refusal: {message:?}");
}

fn only_adds(patch: &[u8], is_job: bool) {
    let operations: Value = serde_json::from_slice(patch).expect("a patch is JSON");
    let operations = operations.as_array().expect("a patch is a list");
    assert!(!operations.is_empty() && operations.iter().all(|operation| operation["op"] == "add"));
    if is_job {
        let text = String::from_utf8_lossy(patch);
        assert!(!text.contains("\"secret") && !text.contains("tls.key"), "a job pod gets public data only: {text}");
    }
}

/// A patch fits, removes and replaces nothing, and there is none the second time.
fn fits(world: &World, webhook: &str, review: &Value, patch: &[u8]) {
    let patch: json_patch::Patch = serde_json::from_slice(patch).expect("a patch is a JSON patch");
    let before = &review["request"]["object"];
    let mut after = before.clone();
    json_patch::patch(&mut after, &patch).expect("a patch fits its object");
    assert!(extends(before, &after), "something was removed or replaced");

    let mut again = review.clone();
    again["request"]["object"] = after;
    let Answer { code, text } = world.post(webhook, serde_json::to_vec(&again).expect("JSON"));
    let answer: Value = serde_json::from_slice(&text).expect("an answer is JSON");
    // The patch may have taken it over a limit.
    assert!(code == 413 || code == 200 && answer["response"]["patch"].is_null(), "the second time adds something");
}

/// Whether all that was there is there, in its place. `null` is what is not there.
fn extends(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Null, _) => true,
        (Value::Array(before), Value::Array(after)) => {
            before.len() <= after.len() && before.iter().zip(after).all(|(before, after)| extends(before, after))
        }
        (Value::Object(before), Value::Object(after)) => {
            before.iter().all(|(key, before)| after.get(key).is_some_and(|after| extends(before, after)))
        }
        (before, after) => before == after,
    }
}

//! Two programs that disagree, where nothing says which of them is the newer one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use test_support::{
    Cluster, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET},
    control_plane::ControlPlane,
    wait,
};
use tokio::time::{Duration, Instant, sleep_until};

use super::{BINARY, CERTS, TRUST, history::History};

const NAMESPACES: usize = 10;
const SELECTOR: &str = "runnerNamespaces: {names: [], selectors: [{matchLabels: {runner: 'yes'}}]}\n";

async fn disagreeing(minutes: u32) {
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(SELECTOR) }).await;
    let names: Vec<_> = (0..NAMESPACES).map(|number| format!("runner-{number}")).collect();
    for name in &names {
        cluster.create_namespace(name, &[("runner", "yes")]).await;
        cluster.put_secret(name, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
    }
    let history = History::of::<ConfigMap>(&cluster.admin, TRUST).await;
    let started = Instant::now();
    let one = cluster.tool(BINARY).await.config(SELECTOR).start().await;
    let other = cluster.tool(BINARY).await.config(&format!("{SELECTOR}certs: {{publicRoots: none}}")).start().await;
    let count = f64::from(u32::try_from(NAMESPACES).unwrap());
    for tool in [&one, &other] {
        tool.metric_is("gitlab_runner_webhook_trust_bundles{state=\"contended\"}", count).await;
    }
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), &names[0]);
    wait::until("an Event says so", async || {
        let event = events.get_opt(&format!("gitlab-runner-webhook.{TRUST}")).await.unwrap()?;
        (event.reason.as_deref() == Some("Contended")).then_some(())
    })
    .await;
    let counts = || -> BTreeMap<_, _> { names.iter().map(|name| (name, history.writes(name).all())).collect() };
    let first = counts();
    assert!(first.values().all(|writes| (4..=20).contains(writes)), "{first:?}");
    for minute in 1..=minutes {
        sleep_until(started + Duration::from_mins(1) * minute).await;
        let now = counts();
        let most = 20 + usize::try_from(minute).unwrap();
        assert!(now.values().all(|writes| *writes <= most), "after {minute} minutes: {now:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_that_disagree_brake_and_say_so() {
    disagreeing(0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour: make soak"]
async fn soak_two_programs_that_disagree_for_an_hour() {
    disagreeing(60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_edits_in_a_row_are_reverted_at_once_and_a_rotation_is_never_braked() {
    let cluster = Cluster::with_source(&[("runner-token", "0")]).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "0")]).await;
    let edit = async || {
        let edit = Patch::Merge(json!({"stringData": {"runner-token": "edited"}}));
        cluster.secrets(RUNNER_NAMESPACE).patch(SECRET, &PatchParams::default(), &edit).await.unwrap();
    };
    for _ in 0..20 {
        edit().await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "0")]).await;
    }
    tool.clones_in_state(SECRET, "contended", 1.0).await;
    edit().await;
    edit().await;
    // However contended: what is new is written.
    cluster.put_secret("gitlab", SECRET, &[("runner-token", "1")]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "1")]).await;
}

//! Our own certificates on a real API server: made from nothing, shared, restored, mended.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use gitlab_runner_webhook::{
    names::FIELD_MANAGER_CA_BUNDLE,
    pki::{KEY_CURRENT_CERT, KEY_CURRENT_KEY, KEY_NEXT_CERT, KEY_NEXT_KEY, KEY_PREVIOUS_CERTS},
};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use test_support::{
    Cluster, Setup, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    control_plane::ControlPlane,
    wait,
};

use crate::BINARY;

const NAMESPACE: &str = "gitlab-runner-webhook";
const CA_SECRET: &str = "gitlab-runner-webhook-ca";
const NAME: &str = "gitlab-runner-webhook";
const KINDS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
const USABLE: &str = "is usable";

/// The mission's cluster with its webhooks, which fail closed and know no CA, and a free port for the program.
struct Fixture {
    cluster: Cluster,
    port: u16,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup<'_>) -> Self {
        let cluster = Cluster::start_as(ControlPlane::builder(), setup).await;
        cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "t")]).await;
        cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
        let port = free_port();
        cluster.register_webhooks_without_ca(port, "Fail").await;
        Self { cluster, port }
    }

    async fn start(&self) -> Tool {
        let listen = format!("127.0.0.1:{}", self.port);
        self.cluster.tool(BINARY).await.self_managed().flag("--listen", &listen).start().await
    }

    /// Waits until the API server trusts what is served.
    async fn trusted(&self) {
        wait::until("a pod is let in", || async { self.cluster.try_pod().await.ok() }).await;
    }

    fn configurations(&self, kind: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::all_with(self.cluster.admin.clone(), &ApiResource::from_gvk(&kind))
    }

    /// Every caBundle there is.
    async fn ca_bundles(&self) -> Vec<String> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.cluster.admin.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.cluster.admin.clone());
        let mutating = mutating.get(NAME).await.unwrap().webhooks.unwrap().into_iter().map(|hook| hook.client_config);
        let validating =
            validating.get(NAME).await.unwrap().webhooks.unwrap().into_iter().map(|hook| hook.client_config);
        mutating.chain(validating).map(|client| text(client.ca_bundle.unwrap_or_default())).collect()
    }

    async fn ca_secret(&self) -> Option<Secret> {
        self.cluster.secret(NAMESPACE, CA_SECRET).await
    }

    /// Waits for the CA Secret to be in a state, and for every caBundle to be what it says.
    async fn settled(&self, what: &str, is_so: impl Fn(&BTreeMap<String, ByteString>) -> bool) -> Secret {
        wait::until(format!("the CA Secret {what}, and each caBundle is what it says"), || async {
            let secret = self.ca_secret().await.filter(|secret| secret.data.as_ref().is_some_and(&is_so))?;
            let expected = bundle_of(&secret);
            self.ca_bundles().await.iter().all(|bundle| *bundle == expected).then_some(secret)
        })
        .await
    }

    /// How often the program wrote each object with success, by the audit log.
    async fn writes(&self) -> HashMap<String, usize> {
        let mut writes = HashMap::new();
        for event in self.cluster.writes().await {
            if event.code < 300 {
                *writes.entry(format!("{}/{}/{}", event.resource, event.namespace, event.name)).or_default() += 1;
            }
        }
        writes
    }
}

fn text(bytes: ByteString) -> String {
    String::from_utf8(bytes.0).unwrap()
}

/// What the API server is to trust by this Secret.
fn bundle_of(secret: &Secret) -> String {
    let data = secret.data.as_ref().unwrap();
    let keys = [KEY_CURRENT_CERT, KEY_NEXT_CERT, KEY_PREVIOUS_CERTS];
    keys.into_iter().filter_map(|key| data.get(key)).map(|value| text(value.clone())).collect()
}

/// Certificate and key of somebody else's CA.
fn another_ca(is_ca: IsCa) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["another".to_owned()]).unwrap();
    params.is_ca = is_ca;
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_trusted_and_at_rest_no_write() {
    let fixture = Fixture::new().await;
    assert!(fixture.cluster.try_pod().await.is_err(), "fails closed");
    let tool = fixture.start().await;
    let secret = fixture.settled(USABLE, |data| data.contains_key(KEY_CURRENT_KEY)).await;
    assert_eq!(secret.labels()["app.kubernetes.io/managed-by"], NAME);
    assert_eq!(secret.data.as_ref().unwrap().len(), 2, "nothing but the current CA");
    fixture.trusted().await;

    // Nothing is owned, so that nothing is in the way of who applies the manifests.
    for kind in KINDS {
        wait::until(format!("{kind}: we own nothing"), async || {
            let object = fixture.configurations(kind).get(NAME).await.unwrap();
            let ours = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(FIELD_MANAGER_CA_BUNDLE);
            (!object.managed_fields().iter().any(ours)).then_some(())
        })
        .await;
    }

    // Another replica takes what is there; so does the same one started again.
    let before = fixture.writes().await;
    let second = fixture.cluster.tool(BINARY).await.self_managed().start().await;
    drop(tool);
    let first = fixture.start().await;
    fixture.trusted().await;
    assert_eq!(fixture.writes().await, before, "no write");
    assert_eq!(fixture.ca_secret().await.unwrap().resource_version(), secret.resource_version());

    let canary = text(secret.data.unwrap()[KEY_CURRENT_KEY].clone());
    for tool in [&first, &second] {
        assert_eq!(tool.get("/readyz").await.0, 200);
        let page = tool.get("/metrics").await.1;
        assert!(page.contains("ca_not_after_timestamp_seconds"));
        for line in canary.lines().filter(|line| !line.starts_with('-')) {
            assert!(!tool.log_text().contains(line) && !page.contains(line), "a key in log or metrics");
        }
    }
}

/// An apply that named them in another order would change theirs, and be refused by the guard.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_webhooks_each_has_its_ca_bundle_and_its_place() {
    let config =
        "runnerNamespaces: {names: [gitlab-runner], selectors: [{matchLabels: {a: b}}, {matchLabels: {c: d}}]}";
    let fixture = Fixture::with(Setup { config: Some(config) }).await;
    let order = async |kind| -> Vec<String> {
        let webhooks = fixture.configurations(kind).get(NAME).await.unwrap().data["webhooks"].clone();
        webhooks.as_array().unwrap().iter().map(|webhook| webhook["name"].to_string()).collect()
    };
    let before = [order(KINDS[0]).await, order(KINDS[1]).await];
    assert_eq!((before[0].len(), before[1].len()), (6, 3));
    let tool = fixture.cluster.tool(BINARY).await.self_managed().config(config);
    let _tool = tool.flag("--listen", &format!("127.0.0.1:{}", fixture.port)).start().await;
    fixture.settled(USABLE, |_| true).await;
    fixture.trusted().await;
    assert_eq!([order(KINDS[0]).await, order(KINDS[1]).await], before);
}

/// Overwrites each caBundle of one kind.
async fn overwrite(fixture: &Fixture, kind: &str, ca_bundle: &Value) {
    let api = fixture.configurations(kind);
    let object = api.get(NAME).await.unwrap();
    let webhooks = object.data["webhooks"].as_array().unwrap().len();
    let patch: Vec<_> = (0..webhooks)
        .map(|index| json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": ca_bundle}))
        .collect();
    let patch: json_patch::Patch = serde_json::from_value(json!(patch)).unwrap();
    api.patch(NAME, &PatchParams::default(), &Patch::<()>::Json(patch)).await.unwrap();
}

/// The configuration without what a change of caBundle changes.
async fn rest(fixture: &Fixture, kind: &str) -> Value {
    let mut object = serde_json::to_value(fixture.configurations(kind).get(NAME).await.unwrap()).unwrap();
    for key in ["managedFields", "resourceVersion", "generation"] {
        object["metadata"].as_object_mut().unwrap().remove(key);
    }
    for webhook in object["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    }
    object
}

async fn overwritten_again_and_again(rounds: usize, pause: Duration) -> Duration {
    let fixture = Fixture::new().await;
    let _tool = fixture.start().await;
    fixture.trusted().await;
    let before = [rest(&fixture, KINDS[0]).await, rest(&fixture, KINDS[1]).await];
    let secret = fixture.ca_secret().await.unwrap().resource_version();

    let (another, _) = another_ca(IsCa::Ca(BasicConstraints::Unconstrained));
    let base64 = |text: &str| serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap();
    let overwrites = [json!(""), base64("garbage"), base64(&another)];
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let began = Instant::now();
        for kind in KINDS {
            overwrite(&fixture, kind, &overwrites[round % overwrites.len()]).await;
        }
        fixture.settled(USABLE, |_| true).await;
        longest = longest.max(began.elapsed());
        fixture.trusted().await;
        tokio::time::sleep(pause).await;
    }
    for (kind, before) in KINDS.into_iter().zip(before) {
        assert_eq!(rest(&fixture, kind).await, before, "no other field was touched");
    }
    assert_eq!(fixture.ca_secret().await.unwrap().resource_version(), secret, "the CA is the same");
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_bundle_is_restored_whoever_overwrites_it_and_nothing_else_is_touched() {
    overwritten_again_and_again(6, Duration::ZERO).await;
}

/// Takes 2 min.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: two minutes"]
async fn soak_ca_bundle_overwritten_every_5_s_for_2_minutes() {
    let longest = overwritten_again_and_again(24, Duration::from_secs(5)).await;
    println!("caBundle overwritten 24 times, restored each time, after {} ms at most", longest.as_millis());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_ca_secret_is_mended_while_admission_goes_on() {
    broken_and_mended(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_ca_secret_is_mended_at_start() {
    broken_and_mended(true).await;
}

async fn broken_and_mended(at_start: bool) {
    let fixture = Fixture::new().await;
    let mut running = Some(fixture.start().await);
    let secret = fixture.settled(USABLE, |_| true).await;
    fixture.trusted().await;
    let good = secret.data.clone().unwrap();
    let (cert, key) = (text(good[KEY_CURRENT_CERT].clone()), text(good[KEY_CURRENT_KEY].clone()));
    let (foreign, foreign_key) = another_ca(IsCa::Ca(BasicConstraints::Unconstrained));
    let (no_ca, no_ca_key) = another_ca(IsCa::NoCa);
    let truncated = &cert[..cert.len() / 2];

    let table = [
        ("garbage", json!({KEY_CURRENT_CERT: "hunter2", KEY_CURRENT_KEY: "hunter2"}), Some("certificate")),
        ("truncated", json!({KEY_CURRENT_CERT: truncated, KEY_CURRENT_KEY: key}), Some("certificate")),
        ("emptied", json!({KEY_CURRENT_CERT: "", KEY_CURRENT_KEY: ""}), Some("certificate")),
        ("another key", json!({KEY_CURRENT_CERT: cert, KEY_CURRENT_KEY: foreign_key}), Some("mismatch")),
        ("no CA", json!({KEY_CURRENT_CERT: no_ca, KEY_CURRENT_KEY: no_ca_key}), Some("not-a-ca")),
        ("something else", json!({"password": "hunter2"}), Some("missing")),
        // A CA that can issue is used, whoever made it.
        ("another CA", json!({KEY_CURRENT_CERT: foreign, KEY_CURRENT_KEY: foreign_key}), None),
    ];
    for (what, data, state) in table {
        if at_start && let Some(tool) = running.take() {
            assert!(tool.stop().await.success(), "{what}");
        }
        let in_state = |tool: &Tool| tool.log_lines().iter().filter(|line| line["state"] == json!(state)).count();
        let before = running.as_ref().map(in_state).unwrap_or_default();
        let mut broken = fixture.ca_secret().await.unwrap();
        broken.data = None;
        broken.string_data = serde_json::from_value(data).unwrap();
        let broken = fixture.cluster.secrets(NAMESPACE).replace(CA_SECRET, &PostParams::default(), &broken).await;
        let broken = broken.unwrap();
        let tool = match running.take() {
            Some(tool) => tool,
            None => fixture.start().await,
        };
        let version = broken.resource_version();
        let mended = fixture
            .cluster
            .secret_that("is mended", NAMESPACE, CA_SECRET, |secret| {
                state.is_none() || secret.resource_version() != version
            })
            .await;
        if state.is_some() {
            wait::until(format!("{what}: the state is logged"), async || (in_state(&tool) > before).then_some(()))
                .await;
        }
        fixture.settled(USABLE, |data| data.contains_key(KEY_CURRENT_KEY)).await;
        fixture.trusted().await;
        let data = mended.data.unwrap();
        assert_eq!(data.contains_key("password"), what == "something else", "{what}: what is not ours stays");
        if state.is_none() {
            assert_eq!(text(data[KEY_CURRENT_CERT].clone()), foreign);
        }
        assert!(!tool.log_text().contains("hunter2"), "{what}");
        running = Some(tool);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_ca_secret_is_made_anew() {
    let fixture = Fixture::new().await;
    let _tool = fixture.start().await;
    fixture.trusted().await;
    fixture.cluster.delete_secret(NAMESPACE, CA_SECRET).await;
    fixture.settled(USABLE, |data| data.contains_key(KEY_CURRENT_KEY)).await;
    fixture.trusted().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_useless_part_beside_a_good_ca_is_tidied_away() {
    let fixture = Fixture::new().await;
    let _tool = fixture.start().await;
    fixture.trusted().await;
    let patch = json!({"stringData": {KEY_NEXT_CERT: "hunter2", KEY_NEXT_KEY: "hunter2"}});
    fixture.cluster.patch_secret(NAMESPACE, CA_SECRET, &patch).await;
    fixture.settled("is tidy", |data| !data.contains_key(KEY_NEXT_CERT)).await;
    fixture.trusted().await;
}

async fn started_at_once(rounds: usize) {
    let fixture = Fixture::new().await;
    let mut before = HashMap::new();
    for round in 0..rounds {
        let builder = fixture.cluster.tool(BINARY).await.self_managed();
        let tools = [builder.clone().spawn(), builder.clone().spawn(), builder.spawn()];
        for tool in &tools {
            tool.ready().await;
        }
        let secret = fixture.settled(USABLE, |data| data.contains_key(KEY_CURRENT_KEY)).await;
        assert_eq!(secret.data.as_ref().unwrap().len(), 2, "round {round}: one CA");
        for tool in tools {
            assert!(tool.stop().await.success());
        }
        let writes = fixture.writes().await;
        for (object, count) in &writes {
            let count = count - before.get(object).copied().unwrap_or_default();
            assert!(count <= 2, "round {round}: {object} was written {count} times");
        }
        before = writes;
        // As if it had never run.
        fixture.cluster.delete_secret(NAMESPACE, CA_SECRET).await;
        let clones = fixture.cluster.secrets(RUNNER_NAMESPACE);
        clones.delete(SECRET, &DeleteParams::default()).await.unwrap();
        for kind in KINDS {
            overwrite(&fixture, kind, &json!("")).await;
        }
    }
    assert!(fixture.cluster.secret(SOURCE_NAMESPACE, SECRET).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_started_at_once_make_one_ca_and_write_little() {
    started_at_once(3).await;
}

/// Takes some 3 min.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: three minutes"]
async fn soak_three_replicas_started_at_once_50_times() {
    started_at_once(50).await;
    println!("three replicas started at once 50 times: one CA, at most two writes for each object");
}

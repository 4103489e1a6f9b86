//! Our own certificates as time goes by: renewed and rotated under load, over stops of the process and wrong clocks.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use clap::Parser as _;
use gitlab_runner_webhook::{
    cluster,
    config::Settings,
    pki::{AuthorityId, Clock, KEY_CURRENT_CERT, Options, Rotation},
    server::Certificate,
    shutdown,
    telemetry::{health::Health, metrics::Metrics},
};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{Api, ResourceExt as _};
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use test_support::{
    Cluster, Load, Proxy, Replicas, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::{AuditLevel, ControlPlane},
    wait,
};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::{BINARY, mission::CERTS};

const NAMESPACE: &str = "gitlab-runner-webhook";
const CA_SECRET: &str = "gitlab-runner-webhook-ca";
const TOKEN: [(&str, &str); 1] = [("runner-token", "t")];
const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;

async fn cluster() -> Cluster {
    let builder = ControlPlane::builder().nodes(true).audit(AuditLevel::None);
    let cluster = Cluster::start_as(builder, Setup::default()).await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
    cluster
}

async fn ca_secret(cluster: &Cluster) -> Option<Secret> {
    cluster.secret(NAMESPACE, CA_SECRET).await
}

/// The CA by which leaves are issued.
async fn current_ca(cluster: &Cluster) -> Option<AuthorityId> {
    let data = ca_secret(cluster).await?.data?;
    let der = CertificateDer::from_pem_slice(&data.get(KEY_CURRENT_CERT)?.0).ok()?;
    Some(AuthorityId::of(&der))
}

/// What the API server trusts.
async fn ca_bundle(cluster: &Cluster) -> Vec<CertificateDer<'static>> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.admin.clone());
    let webhooks = api.get("gitlab-runner-webhook").await.unwrap().webhooks.unwrap();
    let bundle = webhooks[0].client_config.ca_bundle.clone().unwrap_or_default();
    CertificateDer::pem_slice_iter(&bundle.0).map(Result::unwrap).collect()
}

/// Two replicas under a load of pods while CAs come and go. Returns how many pods were let in.
async fn rotated(ca: &str, leaf: &str, propagation: &str, workers: usize, generations: usize) -> usize {
    let cluster = cluster().await;
    let replicas = Replicas::new(&cluster, Duration::ZERO).await;
    cluster.register_webhooks_without_ca(replicas.balancer.port, "Fail").await;
    let builder = cluster.tool(BINARY).await.self_managed().flag("--log-level", "info");
    let builder = builder.flag("--ca-lifetime", ca).flag("--leaf-lifetime", leaf).flag("--ca-propagation", propagation);
    let serving = [replicas.add(builder.clone()).await, replicas.add(builder).await];
    for replica in &serving {
        replicas.routed(replica).await;
    }
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    wait::until("pods are let in and injected", async || {
        let load = Load::start(&cluster, 4);
        wait::until("some are created", async || (load.created() + load.failed() >= 100).then_some(())).await;
        load.stop().await.1.is_empty().then_some(())
    })
    .await;

    let load = Load::start(&cluster, workers);
    let seen = Mutex::new(BTreeSet::new());
    wait::within(Duration::from_mins(30), format!("{generations} CAs"), async || {
        let current = current_ca(&cluster).await;
        assert_eq!(load.failures(), Vec::<String>::new());
        let mut seen = seen.lock().unwrap();
        seen.extend(current);
        (seen.len() >= generations).then_some(())
    })
    .await;
    // Until each replica serves by the last of them.
    let last = current_ca(&cluster).await.unwrap().to_string();
    for replica in &serving {
        replica
            .tool
            .logged("a leaf by the last CA", |line| {
                line["message"] == "new serving certificate" && line["ca"] == last.as_str()
            })
            .await;
    }
    load.more(100).await;
    let (created, failures) = load.stop().await;
    assert_eq!(failures, Vec::<String>::new());
    created
}

#[tokio::test(flavor = "multi_thread")]
async fn cas_and_leaves_are_renewed_under_load_and_no_pod_is_refused() {
    let created = rotated("20s", "5s", "3s", 4, 3).await;
    assert!(created > 200, "{created}");
}

/// Takes 17 min.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: fifteen minutes"]
async fn soak_leaves_of_60_s_and_cas_of_5_min_under_load_for_15_minutes() {
    let began = Instant::now();
    // Each CA issues for 215 s.
    let created = rotated("300s", "60s", "15s", 6, 6).await;
    let seconds = began.elapsed().as_secs();
    println!(
        "6 CAs of 5 min, leaves of 60 s: {created} pods in {seconds} s, {} a second, none refused",
        created as u64 / seconds
    );
}

/// The leaf that is served, if it is accepted now by who trusts this.
async fn handshake(port: u16, trusted: &[CertificateDer<'static>]) -> Result<CertificateDer<'static>, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_stopped_over_an_expiry_never_serves_an_expired_leaf() {
    let cluster = cluster().await;
    let builder = cluster.tool(BINARY).await.self_managed().flag("--ca-lifetime", "1h").flag("--leaf-lifetime", "3s");
    let tool = builder.start().await;
    let port = tool.webhook_port().await;
    let trusted: Vec<_> = {
        let secret = ca_secret(&cluster).await.unwrap().data.unwrap();
        CertificateDer::pem_slice_iter(&secret[KEY_CURRENT_CERT].0).map(Result::unwrap).collect()
    };
    for _ in 0..3 {
        let before = handshake(port, &trusted).await.unwrap();
        tool.signal("STOP").await;
        // The wall clock is what is tested: until the leaf has expired.
        wait::until("the leaf has expired", async || (!accepts(&trusted, &before, now(), "127.0.0.1")).then_some(()))
            .await;
        // The connection waits in the queue of the stopped process, and is the first thing that it sees.
        let waiting = tokio::spawn({
            let trusted = trusted.clone();
            async move { handshake(port, &trusted).await }
        });
        tool.signal("CONT").await;
        let after = waiting.await.unwrap().expect("a leaf that is valid");
        assert_ne!(before, after);
    }
}

/// Whether who trusts this accepts this leaf at that time, in seconds since 1970.
fn accepts(trusted: &[CertificateDer<'static>], leaf: &CertificateDer<'static>, second: i64, name: &str) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider())).build();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(second.try_into().unwrap()));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.is_ok_and(|verifier| verifier.verify_server_cert(leaf, &[], &name, &[], now).is_ok())
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// The rotation in this process, with clocks that can be set: its own, and that of the API server as a proxy tells it.
struct Clocks {
    cluster: Cluster,
    proxy: Proxy,
    own: Arc<AtomicI64>,
    certificate: Arc<Certificate>,
    _trigger: shutdown::ShutdownTrigger,
    _task: JoinHandle<()>,
}

impl Clocks {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        cluster.register_webhooks_without_ca(1, "Ignore").await;
        let client = cluster.plane.service_account_client(NAMESPACE, NAMESPACE).await.unwrap();
        let proxy = Proxy::start(client).await;
        let kubeconfig = cluster.plane.dir().join("proxy.kubeconfig");
        std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
        let clients = cluster::connect(Some(&kubeconfig)).await.unwrap();
        let settings = Settings::parse_from(["x", "--namespace", NAMESPACE]);
        let options = Options::new(&settings, NAMESPACE.parse().unwrap()).unwrap();

        let own = Arc::<AtomicI64>::default();
        let clock = Clock::new({
            let own = Arc::clone(&own);
            move || {
                let ahead = own.load(Ordering::Relaxed);
                let shift = Duration::from_secs(ahead.unsigned_abs());
                if ahead < 0 { SystemTime::now() - shift } else { SystemTime::now() + shift }
            }
        });
        let certificate = Certificate::new(Metrics::new());
        let rotation = Rotation::new(
            options,
            clock,
            &clients,
            Arc::clone(&certificate),
            &Health::new(),
            Metrics::new(),
            cluster::EventQueue::default(),
        );
        let (trigger, shutdown) = shutdown::channel();
        let task = tokio::spawn(rotation.run(shutdown));
        let clocks = Self { cluster, proxy, own, certificate, _trigger: trigger, _task: task };
        clocks.accepted(0).await;
        clocks
    }

    /// Waits until what is served is accepted by an API server whose clock is that far ahead.
    async fn accepted(&self, ahead: i64) {
        wait::until(format!("the leaf is accepted {ahead} s from now"), async || {
            self.is_accepted(ahead).await.then_some(())
        })
        .await;
    }

    async fn is_accepted(&self, ahead: i64) -> bool {
        let Some(key) = self.certificate.key() else { return false };
        let host = format!("gitlab-runner-webhook.{NAMESPACE}.svc");
        accepts(&ca_bundle(&self.cluster).await, &key.cert[0], now() + ahead, &host)
    }

    /// Waits until the rotation has asked for the time and gone by the answer.
    async fn looked(&self) {
        let asked = self.proxy.requests();
        wait::until("it asks for the time", async || (self.proxy.requests() > asked).then_some(())).await;
    }

    async fn version(&self) -> Option<String> {
        ca_secret(&self.cluster).await.unwrap().resource_version()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_of_our_own_changes_nothing() {
    let clocks = Clocks::new().await;
    let before = clocks.version().await;
    for ahead in [YEAR, -DAY, 0, -YEAR, 0] {
        clocks.own.store(ahead, Ordering::Relaxed);
        clocks.looked().await;
        assert!(clocks.is_accepted(0).await, "{ahead}");
    }
    assert_eq!(clocks.version().await, before, "the CA is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_clocks_of_the_cluster_are_set_what_is_served_is_valid_again_at_once() {
    let clocks = Clocks::new().await;
    let set = |ahead: i64| {
        clocks.proxy.set_clock(ahead);
        clocks.own.store(ahead, Ordering::Relaxed);
    };
    let first = clocks.version().await;
    set(-DAY);
    clocks.looked().await;
    assert!(clocks.is_accepted(-DAY).await, "what was issued today is valid yesterday");
    set(0);
    clocks.looked().await;
    assert_eq!(clocks.version().await, first);

    let mut longest = Duration::ZERO;
    for ahead in [YEAR, 0, 2 * YEAR, -YEAR] {
        let began = Instant::now();
        set(ahead);
        clocks.accepted(ahead).await;
        longest = longest.max(began.elapsed());
    }
    println!("clocks set by years: accepted again after {} ms at most", longest.as_millis());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_own_clock_has_to_do() {
    let clocks = Clocks::new().await;
    clocks.cluster.plane.stop_api_server().await;
    let before = clocks.certificate.key().unwrap();
    clocks.own.store(5 * DAY, Ordering::Relaxed);
    // Nobody can be asked, so the leaf is renewed by what is known; the CA in memory is enough for that.
    wait::until("a new leaf", async || (clocks.certificate.key().unwrap().cert != before.cert).then_some(())).await;
    clocks.cluster.plane.start_api_server().await.unwrap();
    clocks.own.store(0, Ordering::Relaxed);
    clocks.looked().await;
    clocks.accepted(0).await;
}

//! The CA variables for real: programs that people run in jobs, with the environment and the files that an injected
//! job container gets, against servers on loopback under a private CA and under one that stands for the public ones.
//!
//! A program that this machine lacks is reported and left out. Versions and outcomes: `--nocapture`.

#[path = "../fixtures/ca/tools.rs"]
mod tools;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, stream};
use gitlab_runner_webhook::{
    admission::{Admission, Webhook},
    cluster::Requests,
    config::{Config, PublicRoots},
    names::{CONFIGMAP_TRUST, KEY_BUNDLE, KEY_CA, MOUNT_TRUST, VOLUME_TRUST},
    snapshot::{SharedSnapshot, Snapshot},
    telemetry::metrics::Metrics,
    trust::{BundleFiles, Certs, bundle},
};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{ServerConfig, crypto::aws_lc_rs::default_provider};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use tools::{NODE, Tool, Variables};

/// No program here waits that long for an answer: when this is over, the server hangs up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where Debian's images have their public roots, and one of the folders in `SSL_CERT_DIR`.
const STORE_OF_IMAGE: &str = "/etc/ssl/certs";
/// What programs say of a certificate that they do not trust.
const COMPLAINTS: [&str; 7] = [
    "certificate verif",
    "certificate_verify_failed",
    "certificate problem",
    "unknown authority",
    "unable to verify",
    "unable to get local issuer",
    "self-signed",
];

/// An HTTPS server that remembers what it was asked. It stops when dropped.
struct Server {
    port: u16,
    ca_pem: String,
    asked: Arc<Mutex<BTreeSet<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// A server on 127.0.0.1 with a certificate of a new CA of this name.
    async fn start(name: &str) -> Self {
        let ca = CertifiedIssuer::self_signed(
            {
                let mut params = params(name, Vec::new());
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                params
            },
            KeyPair::generate().unwrap(),
        );
        let ca = ca.unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls_config(name, &ca)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<BTreeSet<String>>>::default();
        let mut tasks = JoinSet::new();
        let remembers = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(timeout(PATIENCE, answer(acceptor.clone(), stream, Arc::clone(&remembers))));
            }
        });
        Self { port, ca_pem: ca.pem(), asked, _tasks: tasks }
    }

    /// Whether a program gets as far as a request, or else refuses the certificate. Nothing else may go wrong.
    fn is_reached(&self, tool: &Tool, environment: &Variables) -> bool {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let token = format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed));
        let said = tool.get(self.port, &token, environment).to_lowercase();
        if self.asked.lock().unwrap().contains(&token) {
            return true;
        }
        assert!(COMPLAINTS.iter().any(|words| said.contains(words)), "{}, and not for the CA:\n{said}", tool.name);
        false
    }
}

/// Names differ from CA to CA, for programs look certificates up by them.
fn params(name: &str, hosts: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2049, 1, 1));
    params.use_authority_key_identifier_extension = true;
    params
}

fn tls_config(ca_name: &str, ca: &Issuer<'_, KeyPair>) -> ServerConfig {
    let mut leaf = params(&format!("server of {ca_name}"), vec!["127.0.0.1".to_owned(), "localhost".to_owned()]);
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, ca).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    builder.with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap()).unwrap()
}

/// Answers one request with a page that each program can read, or complain about; it has trusted us by then.
async fn answer(acceptor: TlsAcceptor, stream: TcpStream, asked: Arc<Mutex<BTreeSet<String>>>) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    asked.lock().unwrap().extend(head.split('/').nth(1).map(str::to_owned));
    let page = if head.contains("/info/refs") { format!("{}\trefs/heads/main\n", "a".repeat(40)) } else { "ok".into() };
    let length = page.len();
    let text = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n");
    let _ = stream.write_all((text + "Connection: close\r\n\r\n" + &page).as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A job container as far as programs in it notice.
struct Container {
    /// As the pod's author has them.
    variables: Variables,
    /// With those that the webhook adds.
    injected: Variables,
    trust: TempDir,
}

impl Container {
    /// Has a job pod of a recent runner reviewed, and does what kubelet would do with the result.
    async fn start(config: Config, private_ca: &str, public_ca: &str) -> Self {
        let secret = BTreeMap::from([(KEY_CA.to_owned(), ByteString(private_ca.into()))]);
        let mut files = bundle::build(Some(&secret), config.public_roots).unwrap().data().clone();
        let has_bundle = files.contains_key(KEY_BUNDLE);
        let trust = BundleFiles { has_bundle, has_hashes: files.keys().any(|key| key.ends_with(".0")) };
        let namespace = || "gitlab-runner".parse().unwrap();
        let snapshot = Snapshot {
            certs: BTreeMap::from([(namespace(), Certs::inspect(Some(&secret)))]),
            certs_loaded: true,
            trust: BTreeMap::from([(namespace(), trust)]),
            ..Snapshot::default()
        };
        let file = test_support::repository().join("tests/fixtures/pods/job-runner-19.4.json");
        let before: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let after = reviewed(config, snapshot, &before).await;
        let build = container(&after);
        let mounts = build["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["name"] == VOLUME_TRUST && mount["mountPath"] == MOUNT_TRUST));
        let volumes = after["spec"]["volumes"].as_array().unwrap();
        let shows = |volume: &Value| volume["name"] == VOLUME_TRUST && volume["configMap"]["name"] == CONFIGMAP_TRUST;
        assert!(volumes.iter().any(shows));

        // What stands for the public roots is not among those compiled in. This is all that differs from a cluster.
        files.entry(KEY_BUNDLE.to_owned()).and_modify(|bundle| bundle.push_str(public_ca));
        let this = Self {
            variables: variables(container(&before)),
            injected: variables(build),
            trust: as_kubelet_mounts(&files),
        };
        assert!(this.injected.len() > this.variables.len());
        this
    }

    /// The injected environment, with the folder where the mount would be.
    fn environment(&self) -> Variables {
        let here = self.trust.path().to_str().unwrap();
        let moved = |(name, value): (&String, &String)| (name.clone(), value.replace(MOUNT_TRUST, here));
        self.injected.iter().map(moved).collect()
    }
}

async fn reviewed(config: Config, snapshot: Snapshot, pod: &Value) -> Value {
    // An injection is decided from memory; nothing gets as far as a request to the API server.
    let _ = default_provider().install_default();
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let requests = Requests::new(kube::Client::try_from(nowhere).unwrap());
    let snapshot = SharedSnapshot::new(snapshot);
    let admission = Admission::new(Arc::new(config), snapshot, requests, Metrics::new());
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": "gitlab-runner", "operation": "CREATE", "object": pod,
    }});
    let answer = admission.answer(Webhook::MutatePods, Ok(review.to_string().into())).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let patch = STANDARD.decode(answer["response"]["patch"].as_str().expect("a patch")).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
    pod
}

fn container(pod: &Value) -> &Value {
    pod["spec"]["containers"].as_array().unwrap().iter().find(|container| container["name"] == "build").unwrap()
}

fn variables(container: &Value) -> Variables {
    let all = container["env"].as_array().unwrap().iter();
    all.map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry["value"].as_str().unwrap().to_owned())).collect()
}

/// Files in a folder of their own, to which `..data` points, and through which each key does.
fn as_kubelet_mounts(files: &BTreeMap<String, String>) -> TempDir {
    let folder = TempDir::new().unwrap();
    let version = "..2026_01_01_00_00_00.1";
    fs::create_dir(folder.path().join(version)).unwrap();
    symlink(version, folder.path().join("..data")).unwrap();
    for (key, value) in files {
        fs::write(folder.path().join(version).join(key), value).unwrap();
        symlink(Path::new("..data").join(key), folder.path().join(key)).unwrap();
    }
    folder
}

/// Runs a tool against both servers: whether it reaches the private one, and the public one.
type Outcome = (bool, bool);

struct Stage {
    private: Server,
    public: Server,
}

impl Stage {
    async fn set() -> Self {
        Self { private: Server::start("Private CA").await, public: Server::start("As good as public CA").await }
    }

    /// Runs each tool with an environment of its own.
    async fn play(
        self: &Arc<Self>,
        layout: &str,
        tools: &[&'static Tool],
        of: impl Fn(&Tool) -> Variables,
    ) -> Vec<Outcome> {
        let runs = tools.iter().map(|tool| {
            let (stage, tool, variables) = (Arc::clone(self), *tool, of(tool));
            let run = move || (stage.private.is_reached(tool, &variables), stage.public.is_reached(tool, &variables));
            async { spawn_blocking(run).await.unwrap() }
        });
        let at_once = available_parallelism().map_or(1, Into::into);
        let outcomes: Vec<Outcome> = stream::iter(runs).buffered(at_once).collect().await;
        for (tool, (private, public)) in tools.iter().zip(&outcomes) {
            eprintln!("{layout:<20} {:<10} private {private:<6} public {public}", tool.name);
        }
        outcomes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_are_reachable_with_the_bundle_and_only_with_it() {
    let stage = Arc::new(Stage::set().await);
    let mut config = Config::default();
    // Not among the defaults, for what the runner itself tells git.
    config.variables.replacing.push("GIT_SSL_CAINFO".to_owned());
    let container = Container::start(config, &stage.private.ca_pem, &stage.public.ca_pem).await;
    let tools: Vec<_> = spawn_blocking(Tool::all).await.unwrap().iter().collect();
    for tool in &tools {
        eprintln!("{:<10} {}", tool.name, tool.version);
    }
    assert!(tools.iter().any(|tool| ["curl", "openssl", "go"].contains(&tool.name)), "there is nothing to test with");

    for (tool, outcome) in tools.iter().zip(stage.play("no variables", &tools, |_| container.variables.clone()).await) {
        assert_eq!(outcome, (false, false), "{} trusts nobody of ours by itself", tool.name);
    }
    // Node has its own list of public roots, in which ours are not. Its variable adds to them.
    for (tool, outcome) in tools.iter().zip(stage.play("injected", &tools, |_| container.environment()).await) {
        assert_eq!(outcome, (true, tool.name != NODE), "{}", tool.name);
    }
    let ca = container.trust.path().join(KEY_CA).to_str().unwrap().to_owned();
    let replaced: Vec<_> = tools.iter().filter(|tool| !tool.replaced_by.is_empty()).copied().collect();
    let without_public = |tool: &Tool| {
        let mut variables = container.environment();
        for name in tool.replaced_by {
            assert!(variables.insert((*name).to_owned(), ca.clone()).is_some(), "{name} was injected");
        }
        variables
    };
    for (tool, outcome) in replaced.iter().zip(stage.play("private CA alone", &replaced, without_public).await) {
        assert_eq!(outcome, (true, false), "{}", tool.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_public_roots_the_private_ca_is_added_to_those_of_the_image() {
    let stage = Arc::new(Stage::set().await);
    let config = Config { public_roots: PublicRoots::None, ..Config::default() };
    let container = Container::start(config, &stage.private.ca_pem, &stage.public.ca_pem).await;
    let tools = spawn_blocking(Tool::all).await.unwrap().iter();
    let tools: Vec<_> = tools.filter(|tool| tool.reads_directories || tool.name == NODE).collect();

    // The image's folder has what stands for the public roots, under the names that OpenSSL looks for.
    let public = BTreeMap::from([(KEY_CA.to_owned(), ByteString(stage.public.ca_pem.clone().into()))]);
    let store = as_kubelet_mounts(bundle::build(Some(&public), PublicRoots::None).unwrap().data());
    let store = store.path().to_str().unwrap();

    let mut variables = container.variables.clone();
    variables.insert("SSL_CERT_DIR".to_owned(), store.to_owned());
    for (tool, outcome) in tools.iter().zip(stage.play("image's roots", &tools, |_| variables.clone()).await) {
        assert_eq!(outcome, (false, tool.name != NODE), "{}", tool.name);
    }
    let mut variables = container.environment();
    let directories = variables.get_mut("SSL_CERT_DIR").expect("it was injected");
    assert!(directories.split(':').any(|directory| directory == STORE_OF_IMAGE));
    *directories = directories.replace(STORE_OF_IMAGE, store);
    assert!(!variables.contains_key("SSL_CERT_FILE"));
    for (tool, outcome) in tools.iter().zip(stage.play("injected, no roots", &tools, |_| variables.clone()).await) {
        assert_eq!(outcome, (true, tool.name != NODE), "{}", tool.name);
    }
}

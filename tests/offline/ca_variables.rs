//! The CA variables for real: programs that people run in jobs, with the environment and the files that an injected
//! job container gets, in images of several layouts, against servers on loopback: under a private CA, under one that
//! stands for the public ones, and under one that only the image knows.
//!
//! A program that this machine lacks is reported and left out. `UPDATE_DOCS=1` writes what came of it into docs/trust.md.

#[path = "../fixtures/ca/tools.rs"]
mod tools;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
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
    names::{KEY_BUNDLE, KEY_CA, MOUNT_TRUST, VOLUME_TRUST},
    snapshot::{SharedSnapshot, Snapshot},
    telemetry::metrics::Metrics,
    trust::{Certs, bundle},
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

use tools::{Image, Tool, Variables};

/// No program here waits that long for an answer: when this is over, the server hangs up.
const PATIENCE: Duration = Duration::from_secs(20);
/// What programs say of a certificate that they do not trust.
const COMPLAINTS: [&str; 12] = [
    "certificate verif",
    "certificate_verify_failed",
    "certificate problem",
    "unknown authority",
    "unable to verify",
    "unable to get local issuer",
    "self-signed",
    "is not trusted",
    "unable to find valid certification path",
    "trustanchors parameter must be non-empty",
    // There is none at all.
    "error setting certificate",
    "error reading ca cert",
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
    fn is_reached(&self, tool: &Tool, image: &Image, environment: &Variables) -> bool {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let token = format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed));
        let said = tool.get(self.port, &token, image, environment).to_lowercase();
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
        let published = bundle::build(Some(&secret), config.public_roots).unwrap();
        let (mut files, mut binary, trust) = (published.data().clone(), published.binary().clone(), published.files());
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
        let volume = volumes.iter().find(|volume| volume["name"] == VOLUME_TRUST).unwrap();

        let bytes = |(key, text): (String, String)| (key, text.into_bytes());
        let raw = |(key, value): (String, ByteString)| (key, value.0);
        // What stands for the public roots is not among those compiled in. This is all that differs from a cluster.
        if let Some(bundle) = files.get_mut(KEY_BUNDLE) {
            bundle.push_str(public_ca);
            files.extend(hashed(public_ca));
            let both = BTreeMap::from([(KEY_CA.to_owned(), ByteString(format!("{private_ca}{public_ca}").into()))]);
            binary = bundle::build(Some(&both), PublicRoots::Builtin).unwrap().binary().clone();
        }
        let this = Self {
            variables: variables(container(&before)),
            injected: variables(build),
            trust: as_kubelet_mounts(
                volume,
                &files.into_iter().map(bytes).chain(binary.into_iter().map(raw)).collect(),
            ),
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

/// What a projected volume of a `ConfigMap` with these keys shows: files in a folder of their own, to which `..data` points,
/// and through which each of its entries does.
fn as_kubelet_mounts(volume: &Value, files: &BTreeMap<String, Vec<u8>>) -> TempDir {
    let folder = TempDir::new().unwrap();
    let version = folder.path().join("..2026_01_01_00_00_00.1");
    fs::create_dir(&version).unwrap();
    symlink(version.file_name().unwrap(), folder.path().join("..data")).unwrap();
    for source in volume["projected"]["sources"].as_array().unwrap() {
        let all = || files.keys().map(|key| (key.clone(), key.clone())).collect();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let items = source["configMap"]["items"].as_array();
        let items: Vec<(String, String)> = items
            .map_or_else(all, |items| items.iter().map(|item| (text(&item["key"]), text(&item["path"]))).collect());
        for (key, path) in items {
            // An optional key that is not there is left out.
            let Some(content) = files.get(&key) else { continue };
            fs::create_dir_all(version.join(&path).parent().unwrap()).unwrap();
            fs::write(version.join(path), content).unwrap();
        }
    }
    for entry in fs::read_dir(&version).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(Path::new("..data").join(&name), folder.path().join(name)).unwrap();
    }
    folder
}

/// A CA under the name that OpenSSL looks for.
fn hashed(ca: &str) -> BTreeMap<String, String> {
    let data = BTreeMap::from([(KEY_CA.to_owned(), ByteString(ca.into()))]);
    let built = bundle::build(Some(&data), PublicRoots::None).unwrap();
    built.data().iter().filter(|(key, _)| *key != KEY_CA).map(|(key, pem)| (key.clone(), pem.clone())).collect()
}

/// The certificates of images, as they are laid out in `/etc/ssl/certs`.
fn images(public: &str, own: &str) -> Vec<Image> {
    let file = [("ca-certificates.crt".to_owned(), format!("{public}{own}"))];
    let links = hashed(public).into_iter().chain(hashed(own));
    vec![
        Image::new("Debian", file.clone().into_iter().chain(links)),
        Image::new("bundle file only", file),
        Image::new("no certificates", []),
    ]
}

/// Whether a tool reaches the private server, the public one, and the one that only the image knows.
type Outcome = [bool; 3];

struct Stage {
    servers: [Server; 3],
    images: Vec<Image>,
    tools: Vec<&'static Tool>,
}

impl Stage {
    /// `None`: this machine lets nobody lay out an image.
    async fn set() -> Option<Arc<Self>> {
        let servers = [
            Server::start("Private CA").await,
            Server::start("Public CA").await,
            Server::start("CA of the image").await,
        ];
        let images = images(&servers[1].ca_pem, &servers[2].ca_pem);
        if !images[0].can_be_entered() {
            eprintln!("SKIPPED: no mount namespace can be made here");
            return None;
        }
        let tools: Vec<_> = spawn_blocking(Tool::all).await.unwrap().iter().collect();
        assert!(
            tools.iter().any(|tool| ["curl", "openssl", "go"].contains(&tool.name)),
            "there is nothing to test with"
        );
        Some(Arc::new(Self { servers, images, tools }))
    }

    async fn container(&self, public_roots: PublicRoots) -> Container {
        let config = Config { public_roots, ..Config::default() };
        Container::start(config, &self.servers[0].ca_pem, &self.servers[1].ca_pem).await
    }

    /// Runs each tool in each image. The outcomes, by tool and image.
    async fn play(self: &Arc<Self>, variables: &Variables) -> Vec<Vec<Outcome>> {
        let runs = (0..self.tools.len()).flat_map(|tool| (0..self.images.len()).map(move |image| (tool, image)));
        let runs = runs.map(|(tool, image)| {
            let (stage, variables) = (Arc::clone(self), variables.clone());
            let run = move || {
                let (tool, image) = (stage.tools[tool], &stage.images[image]);
                stage.servers.each_ref().map(|server| server.is_reached(tool, image, &variables))
            };
            async { spawn_blocking(run).await.unwrap() }
        });
        let at_once = available_parallelism().map_or(1, Into::into);
        let outcomes: Vec<Outcome> = stream::iter(runs).buffered(at_once).collect().await;
        outcomes.chunks(self.images.len()).map(<[Outcome]>::to_vec).collect()
    }
}

/// Whether each of these is reached, in the order private, public, image's own.
fn marks(outcome: Outcome) -> String {
    outcome.map(|is_reached| if is_reached { '✓' } else { '✗' }).iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_ca_is_added_to_what_the_image_trusts() {
    let Some(stage) = Stage::set().await else { return };
    let mut table = String::from("| program |");
    for image in &stage.images {
        let _ = write!(table, " {} |", image.name);
    }
    table += "\n|---|---|---|---|\n";
    for public_roots in [PublicRoots::Builtin, PublicRoots::None] {
        let container = stage.container(public_roots).await;
        let before = stage.play(&container.variables).await;
        let after = stage.play(&container.environment()).await;
        for ((tool, before), after) in stage.tools.iter().zip(before).zip(after) {
            let _ = write!(table, "| {} {} |", tool.name, tool.version);
            for ((image, before), after) in stage.images.iter().zip(before).zip(after) {
                let what =
                    format!("{}, {}, {public_roots:?}: {} -> {}", tool.name, image.name, marks(before), marks(after));
                let [private, public, own] = after;
                assert!(!before[0], "nobody trusts ours without us: {what}");
                assert!(public || !before[1], "public sites stay trusted: {what}");
                assert!(own || !before[2] || tool.may_lose_the_image(), "what the image trusts stays so: {what}");
                assert!(tool.reaches_private(image, public_roots).is_none_or(|reaches| private == reaches), "{what}");
                let _ = write!(table, " {} → {} |", marks(before), marks(after));
            }
            table += "\n";
        }
        if public_roots == PublicRoots::Builtin {
            eprintln!("{table}");
            docs_say(&table);
        }
    }
}

/// Versions are those of one machine, so the page is written and not compared.
fn docs_say(table: &str) {
    if std::env::var_os("UPDATE_DOCS").is_none() {
        return;
    }
    let page = test_support::repository().join("docs/trust.md");
    let text = fs::read_to_string(&page).unwrap();
    let (begin, end) = ("<!-- measured: programs -->\n", "<!-- end -->");
    let (head, rest) = text.split_once(begin).expect("a place for the table");
    let (_, tail) = rest.split_once(end).expect("its end");
    fs::write(&page, format!("{head}{begin}{table}{end}{tail}")).unwrap();
}

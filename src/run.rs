//! Puts the parts together: the one place that knows all modules.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{
    cluster::{self, Clients, EventQueue, EventWriter, Requests, RevisionWatch, Standing, Standings},
    config::{Config, NamespaceName, Settings, TlsMode},
    crypto, names,
    pki::{self, CertificateFiles, ConditionReporter, FileCertificate, Rotation},
    server::{AppState, Certificate, ClientCa, Server, bind, probe_router, webhook_router},
    shutdown,
    snapshot::SharedSnapshot,
    sync::Driver,
    telemetry::{health::Health, metrics::Metrics},
};

/// How long requests under way may take once nothing new is taken on: the longest time that an API server waits by
/// default. Drain and this together fit into the 60 s that the shipped pod has to terminate.
const FINISH: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT, and then for as long as a drain takes. A second signal ends it at once.
///
/// Everything that can be wrong with what the user gave is looked at before the first request to
/// the API server: on an error, nothing was written.
///
/// # Errors
/// What was given cannot be used, or a task ended that must not.
pub async fn run(settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    crypto::install();
    tracing::info!(module = "AWS-LC", fips = crypto::fips_mode()?, "cryptography");

    let config = settings.config.as_deref().map(read_config).transpose()?;
    let config = Arc::new(config.map_or_else(Config::default, |(config, _)| config));
    let namespace = settings.own_namespace()?;
    let metrics = Metrics::new();
    let health = Health::new();
    let snapshot = SharedSnapshot::default();

    let webhook_socket = bind(settings.listen, "--listen")?;
    let probe_socket = bind(settings.probe_listen, "--probe-listen")?;
    let (webhook_address, probe_address) = (webhook_socket.local_addr()?, probe_socket.local_addr()?);
    let certificate = Certificate::new(metrics.clone());
    let events = EventQueue::default();
    let certificate_source = match settings.tls {
        TlsMode::SelfManaged => CertificateSource::SelfManaged(pki::Options::new(&settings, namespace.clone())?),
        TlsMode::Files => {
            let files = CertificateFiles { cert: settings.tls_cert.clone(), key: settings.tls_key.clone() };
            let files = FileCertificate::load(files, Arc::clone(&certificate), metrics.clone())?;
            CertificateSource::Files(Box::new(files.telling(ConditionReporter::new(events.clone(), namespace.clone()))))
        }
    };
    let client_ca = settings.client_ca.clone().map(ClientCa::load).transpose()?;
    let clients = cluster::connect(settings.kubeconfig.as_deref()).await?;

    let (trigger, shutdown) = shutdown::channel();
    let (revisions, standings) = revisions(&settings, &clients, &namespace);
    let requests = Requests::new(clients.request.clone());
    let event_writer = EventWriter::new(events.clone(), requests.clone(), instance(&settings), standings.clone());
    let state = AppState::new(Arc::clone(&config), snapshot.clone(), requests, Arc::clone(&health), metrics.clone());
    let router = webhook_router(state.clone());
    let webhook = Server::https(webhook_socket, router, Arc::clone(&certificate), client_ca.clone(), metrics.clone())
        .context("no TLS")?;
    let traffic = webhook.traffic();
    let probes = Server::http(probe_socket, probe_router(state), metrics.clone());
    let (mut tasks, mut readers) = (Tasks::default(), JoinSet::new());
    if let Some(client_ca) = client_ca {
        readers.spawn(client_ca.keep_fresh(settings.tls_reload));
    }
    match certificate_source {
        CertificateSource::Files(files) => {
            readers.spawn(files.keep_fresh(settings.tls_reload));
        }
        CertificateSource::SelfManaged(options) => {
            let (clock, metrics, events) = (pki::Clock::system(), metrics.clone(), events.clone());
            let rotation = Rotation::new(options, clock, &clients, certificate, &health, metrics, events);
            let rotation = rotation.with_standings(standings.clone());
            tasks.spawn("certificate rotation", rotation.run(shutdown.clone()));
        }
    }
    tasks.spawn("events", event_writer.run(shutdown.clone()));
    if let Some(revisions) = revisions {
        tasks.spawn("revisions", revisions.run(shutdown.clone()));
    }
    let driver = Driver::new(config, &settings, &clients, &health, metrics, snapshot, events).with_standings(standings);
    tasks.spawn("sync", driver.run(shutdown.clone()));
    tasks.spawn("webhook server", webhook.serve(shutdown.clone(), FINISH));
    tasks.spawn("probe server", probes.serve(shutdown, FINISH));
    tracing::info!(server = "webhook", address = %webhook_address, "listening");
    tracing::info!(server = "probes", address = %probe_address, "listening");

    let outcome = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "asked to end; a second signal ends at once");
            health.gate("shutdown").fail(&format!("asked to end by {signal}"));
            // Sync goes on: reviews are answered by what it knows. That another replica writes, too, does no harm.
            tokio::select! {
                () = trigger.drain(settings.drain, || traffic.quiet_for()) => Ok(()),
                ended = tasks.ended() => Err(before_shutdown(&ended)),
                () = signals.again() => return Ok(()),
            }
        }
        ended = tasks.ended() => Err(before_shutdown(&ended)),
    };
    trigger.request();
    readers.abort_all();
    tokio::select! {
        () = tasks.all_ended() => {}
        () = signals.again() => return Ok(()),
    }
    tracing::info!("ended");
    outcome
}

/// How this process comes to its serving certificate.
enum CertificateSource {
    SelfManaged(pki::Options),
    Files(Box<FileCertificate>),
}

/// Whether this replica writes. Outside of a Deployment: always. In one: only if its revision is the active one.
fn revisions(settings: &Settings, clients: &Clients, namespace: &NamespaceName) -> (Option<RevisionWatch>, Standings) {
    // A pod without that label gets an empty variable.
    match settings.pod_template_hash.clone().filter(|hash| !hash.is_empty()) {
        Some(hash) => {
            let (watch, standings) =
                RevisionWatch::new(clients.watch.clone(), namespace.clone(), hash, settings.watch_timeout);
            (Some(watch), standings)
        }
        None => (None, Standings::fixed(Standing::Active)),
    }
}

/// Which replica this is, for who reads Events.
fn instance(settings: &Settings) -> String {
    settings.pod_name.clone().unwrap_or_else(|| names::APP.to_owned())
}

fn before_shutdown(ended: &str) -> anyhow::Error {
    anyhow!("task {ended} before shutdown; the process cannot go on")
}

/// Reads a configuration file; gives its text, too.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read_config(path: &Path) -> Result<(Config, String)> {
    let yaml = std::fs::read_to_string(path).with_context(|| {
        format!("configuration file {}: cannot be read; name a readable file with --config", path.display())
    })?;
    let config = Config::from_yaml(&yaml).with_context(|| format!("configuration file {}", path.display()))?;
    Ok((config, yaml))
}

/// Tasks that live as long as the process.
#[derive(Default)]
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Which task ended first, and how.
    async fn ended(&mut self) -> String {
        match self.0.join_next().await {
            Some(Ok(name)) => format!("{name:?} ended"),
            Some(Err(error)) => format!("died ({error})"),
            None => "list is empty".to_owned(),
        }
    }

    async fn all_ended(&mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// The two ways in which a process is asked to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let (Ok(terminate), Ok(interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            bail!("cannot listen for SIGTERM and SIGINT");
        };
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Somebody does not want to wait.
    async fn again(&mut self) {
        let signal = self.next().await;
        tracing::warn!(signal, "ending at once");
    }
}

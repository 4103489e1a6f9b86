//! The loop that keeps leaf, CA Secret and `caBundle` right: [`State`] says what is to be done next, and this does it.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream::SelectAll};
use k8s_openapi::jiff::Timestamp;
use tokio::time;
use tracing::{info, warn};

use super::{
    authority::Authority,
    clock::Clock,
    conditions::ConditionReporter,
    leaf_issuer::LeafIssuer,
    options::Options,
    plan::Stored,
    publish::CaBundlePublisher,
    registration::{Registration, WebhookKind},
    state::{Moment, NextAction, State, WrittenObject},
    store::{CaSecretStore, StoredSecret},
    watch_object::WatchObject,
};
use crate::{
    cluster::{Change, Clients, EventQueue, Problem, Requests, Standing, Standings, WatchHealth},
    server::Certificate,
    shutdown::Shutdown,
    telemetry::{
        health::{Health, ReadinessGate},
        metrics::{Metrics, WatchKind, WriteLabels},
    },
};

/// Certificates are looked at this often: by the wall clock, which may be set, and which a sleep does not follow.
const LOOK: Duration = Duration::from_secs(1);
/// Longest wait for an answer of the API server. Nothing else is done meanwhile, but handshakes go on.
const DEADLINE: Duration = Duration::from_secs(3);

/// Keeps the serving certificate, its CA and `caBundle` right, for ever.
pub struct Rotation {
    state: State,
    options: Options,
    clock: Arc<Clock>,
    watches: RotationWatches,
    store: CaSecretStore,
    /// The CA Secret as it was last seen: what is written, is written over that.
    seen: Option<Box<StoredSecret>>,
    publisher: CaBundlePublisher,
    certificate: Arc<Certificate>,
    standings: Standings,
    report: Report,
}

struct RotationWatches {
    events: SelectAll<Pin<Box<dyn Stream<Item = RotationEvent> + Send>>>,
    secret: WatchObject<Box<StoredSecret>>,
    mutating: WatchObject<Registration>,
    validating: WatchObject<Registration>,
}

/// A change, and of what.
enum RotationEvent {
    Secret(Change<Box<StoredSecret>>),
    Registration(WebhookKind, Change<Registration>),
}

/// What others are told.
struct Report {
    metrics: Metrics,
    conditions: ConditionReporter,
    serving: ReadinessGate,
    published: ReadinessGate,
    was_published: bool,
    /// The state of the Secret that was last logged.
    said: Option<&'static str>,
}

impl Rotation {
    /// Prepares the loop; nothing is sent before [`Rotation::run`].
    pub fn new(
        options: Options,
        clock: Clock,
        clients: &Clients,
        certificate: Arc<Certificate>,
        health: &Arc<Health>,
        metrics: Metrics,
        tell: EventQueue,
    ) -> Self {
        let requests = Requests::new(clients.request.clone()).within(DEADLINE);
        let store = CaSecretStore::new(requests.clone(), options.namespace.clone(), options.ca_secret.clone());
        let publisher = CaBundlePublisher::new(requests, options.webhook_configuration.to_string());
        let health_of = |kind, what: &str| WatchHealth::new(health, metrics.clone(), kind, what);
        let of_configuration =
            |kind| WatchObject::new(health_of(WatchKind::WebhookConfiguration, &publisher.object(kind)));
        let mut events = SelectAll::<Pin<Box<dyn Stream<Item = RotationEvent> + Send>>>::new();
        let (client, timeout) = (&clients.watch, options.watch_timeout);
        events.push(Box::pin(store.watch(client, timeout).map(|change| RotationEvent::Secret(change.map(Box::new)))));
        for kind in WebhookKind::ALL {
            let changes = publisher.watch(kind, client, timeout);
            events.push(Box::pin(changes.map(move |change| RotationEvent::Registration(kind, change))));
        }
        Self {
            state: State::new(options.clone()),
            watches: RotationWatches {
                events,
                secret: WatchObject::new(health_of(WatchKind::Secret, &store.what())),
                mutating: of_configuration(WebhookKind::Mutating),
                validating: of_configuration(WebhookKind::Validating),
            },
            report: Report {
                metrics,
                conditions: ConditionReporter::new(tell, options.namespace.clone()),
                serving: health.gate("serving certificate"),
                published: health.gate("caBundle"),
                was_published: false,
                said: None,
            },
            store,
            seen: None,
            publisher,
            certificate,
            clock: Arc::new(clock),
            standings: Standings::fixed(Standing::Active),
            options,
        }
    }

    /// The same, but it writes only as long as no newer revision of our Deployment has taken over.
    #[must_use]
    pub fn with_standings(self, standings: Standings) -> Self {
        Self { standings, ..self }
    }

    /// Runs until shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let soonest = self.state.next_due(Instant::now());
            tokio::select! {
                () = shutdown.requested() => break,
                Some(event) = self.watches.events.next() => self.take_in(event),
                () = until(soonest) => {}
                _ = look.tick() => {}
            }
            tokio::select! {
                () = shutdown.requested() => break,
                () = self.turn() => {}
            }
        }
    }

    fn take_in(&mut self, event: RotationEvent) {
        let now = Instant::now();
        match event {
            RotationEvent::Secret(change) => {
                if let Some(seen) = self.watches.secret.note(change) {
                    let stored = self.see(seen.into());
                    self.state.note_secret(stored, now);
                    self.report_secret();
                }
            }
            RotationEvent::Registration(kind, change) => {
                if matches!(change, Change::ListEnds) {
                    self.state.note_list(kind);
                }
                let watch = match kind {
                    WebhookKind::Mutating => &mut self.watches.mutating,
                    WebhookKind::Validating => &mut self.watches.validating,
                };
                let Some(found) = watch.note(change) else { return };
                let found: Option<_> = found.into();
                let state = if found.is_some() { "there" } else { "absent" };
                if self.state.note_registration(kind, found, now) {
                    let object = self.publisher.object(kind);
                    info!(object, state, "webhook configuration");
                }
            }
        }
    }

    /// Does what is to be done now, and says how things are. A write ends the turn: what it changed is seen as an event, and
    /// a slow API server must not keep events waiting.
    async fn turn(&mut self) {
        if !self.standings.is_superseded() {
            self.note_contended();
        }
        loop {
            let (now, is_in_doubt) = (self.now(), self.clock.is_in_doubt());
            match self.state.next_action(now, is_in_doubt, self.standings.is_superseded()) {
                Some(NextAction::AskForTime) => self.ask_for_time().await,
                Some(NextAction::Issue(issuer)) => self.issue(issuer),
                Some(NextAction::WriteSecret) => break self.write_secret().await,
                Some(NextAction::Publish) => break self.publish().await,
                None => break,
            }
        }
        let now = self.now();
        self.state.forget_what_is_right(now);
        self.report.show(&self.state, now);
    }

    /// Before anything is written: what is wrong now and has been written too often waits, because somebody else keeps
    /// changing it.
    fn note_contended(&mut self) {
        let names = |object| name(&self.store, &self.publisher, object);
        let contended = self.state.note_contended(self.now(), |object| match object {
            WrittenObject::Secret => Problem::contended(format!("update {}", names(object))),
            WrittenObject::CaBundle(_) => Problem::contended(format!("update caBundle of {}", names(object))),
        });
        for object in contended {
            self.warn(object);
        }
    }

    fn now(&self) -> Moment {
        Moment { instant: Instant::now(), time: self.clock.now() }
    }

    /// The API server's clock counts. Where it cannot be asked, this machine's has to do.
    async fn ask_for_time(&mut self) {
        let answer = self.store.time().await;
        if let Some(difference) = answer.as_ref().ok().and_then(|time: &Timestamp| self.clock.set(*time)) {
            let seconds = difference.as_secs();
            warn!(seconds, "this machine's clock is behind (or ahead of, if negative) the API server's, which counts");
        }
        self.state.note_time(answer.is_ok(), Instant::now());
    }

    fn issue(&mut self, issuer: Arc<Authority>) {
        let issuer = LeafIssuer { issuer, options: self.options.clone(), clock: Arc::clone(&self.clock) };
        match issuer.mint() {
            Ok(leaf) => {
                info!(ca = %leaf.issuer.id(), not_after = %leaf.validity.not_after, "new serving certificate");
                self.certificate.set(issuer.served(&leaf));
                self.state.note_issued(Some(leaf), Instant::now());
            }
            Err(error) => {
                warn!(%error, "no new serving certificate");
                self.state.note_issued(None, Instant::now());
            }
        }
    }

    async fn write_secret(&mut self) {
        // What is written now decides for every replica: it must not rest on a wrong clock.
        self.ask_for_time().await;
        let (keyring, cause) = match self.state.keyring(self.now()) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return,
            Err(error) => {
                self.state.note_no_ca(Instant::now());
                return warn!(%error, "no new serving CA");
            }
        };
        let result = self.store.write(&keyring, self.seen.as_deref()).await;
        let action = if self.seen.is_some() { "update" } else { "create" };
        if self.note_write(WrittenObject::Secret, action, result) {
            let (object, cause) = (self.store.object(), cause.as_str());
            info!(object, cause, ca = %keyring.current.id(), "CA Secret written");
        }
    }

    async fn publish(&mut self) {
        // The watch of the Secret may be behind that of the configurations: who publishes what it last saw may take
        // away the trust in a CA that another replica serves by.
        let read = self.store.get().await.map(|seen| self.see(seen.map(Box::new)));
        if self.state.note_read(read, Instant::now()) {
            self.warn(WrittenObject::Secret);
        }
        self.report_secret();
        let Some(ca_bundle) = self.state.ca_bundle() else { return };
        for (kind, registration) in self.state.due_to_publish(Instant::now()) {
            let result = self.publisher.publish(kind, &registration, &ca_bundle).await;
            if self.note_write(WrittenObject::CaBundle(kind), "update", result) {
                info!(object = self.publisher.object(kind), "caBundle written");
            }
        }
    }

    /// Counts and notes a write. Says whether it succeeded.
    fn note_write(&mut self, object: WrittenObject, action: &'static str, result: Result<(), Problem>) -> bool {
        let labels = WriteLabels {
            object: name(&self.store, &self.publisher, object),
            action,
            result: result.as_ref().map_or_else(|problem| problem.reason.as_str(), |()| "ok"),
        };
        self.report.metrics.writes.get_or_create(&labels).inc();
        match result {
            Ok(()) => {
                self.state.note_written(object, Instant::now());
                true
            }
            Err(problem) => {
                if self.state.note_not_written(object, problem, Instant::now()) {
                    self.warn(object);
                }
                false
            }
        }
    }

    /// Logs the problem with an object.
    fn warn(&self, object: WrittenObject) {
        let Some(problem) = self.state.problem_with(object) else { return };
        let object = name(&self.store, &self.publisher, object);
        warn!(object, reason = problem.reason.as_str(), detail = %problem, "certificates: not done, tried again");
    }

    /// Keeps the Secret as it is now, and returns what it says.
    fn see(&mut self, seen: Option<Box<StoredSecret>>) -> Stored {
        let stored = seen.as_ref().map_or(Stored::Absent, |seen| seen.read(&self.options.names));
        self.seen = seen;
        stored
    }

    fn report_secret(&mut self) {
        self.report.show_secret(&self.store.object(), self.state.stored());
    }
}

impl Report {
    fn show_secret(&mut self, object: &str, stored: &Stored) {
        let state = match stored {
            Stored::Unknown | Stored::Absent => "absent",
            Stored::Useless(error) => error.reason(),
            Stored::Keyring { .. } => "usable",
        };
        let is_news = self.said.replace(state) != Some(state);
        match stored {
            Stored::Keyring { keyring, .. } => {
                let (id, not_after) = (keyring.current.id(), keyring.current.validity().not_after);
                self.metrics.ca_not_after.set(not_after.as_second());
                if is_news {
                    info!(object, state, ca = %id, %not_after, "CA Secret state");
                }
            }
            Stored::Useless(error) if is_news => warn!(object, state, %error, "CA Secret state"),
            _ if is_news => info!(object, state, "CA Secret state"),
            _ => {}
        }
    }

    /// Says what is ready, and for what is not, why.
    fn show(&mut self, state: &State, now: Moment) {
        let problem = state.problem();
        self.conditions.note(problem.map(|problem| (problem.reason.as_str(), problem.to_string())));
        let problem = problem.map(ToString::to_string);
        if state.serves(now) {
            self.serving.set(true);
        } else {
            self.serving.fail(problem.as_deref().unwrap_or("none yet"));
        }
        // Who was trusted once stays ready: a caBundle that somebody overwrote is repaired sooner than endpoints change.
        if self.was_published {
            return;
        }
        self.was_published = state.is_published(now);
        if self.was_published {
            self.published.set(true);
        } else {
            self.published.fail(problem.as_deref().unwrap_or("not written yet"));
        }
    }
}

/// What an object is called in logs.
fn name(store: &CaSecretStore, publisher: &CaBundlePublisher, object: WrittenObject) -> String {
    match object {
        WrittenObject::Secret => store.object(),
        WrittenObject::CaBundle(kind) => publisher.object(kind),
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

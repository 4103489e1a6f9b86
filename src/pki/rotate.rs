//! The loop that keeps leaf, CA Secret and `caBundle` right.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream::SelectAll};
use tokio::time;
use tracing::{info, warn};

use super::{
    authority::{AuthorityId, Leaf},
    clock::Clock,
    conditions::ConditionReporter,
    leaf_issuer::LeafIssuer,
    options::Options,
    pause::Pause,
    plan::{self, CertificatesView, Stored},
    publish::{CaBundlePublisher, Publication, Registration, WebhookKind},
    store::{CaSecretStore, StoredSecret},
    watch_object::WatchObject,
};
use crate::{
    cluster::{Change, Clients, EventQueue, Problem, Reason, Requests, Standing, Standings, WatchHealth},
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
    options: Options,
    store: CaSecretStore,
    publisher: CaBundlePublisher,
    certificate: Arc<Certificate>,
    clock: Arc<Clock>,
    metrics: Metrics,
    events: SelectAll<Pin<Box<dyn Stream<Item = RotationEvent> + Send>>>,
    secret: WatchObject<Box<StoredSecret>>,
    mutating: Side,
    validating: Side,
    serving: ReadinessGate,
    published: ReadinessGate,
    /// The CA Secret as it was last seen, and what it says.
    seen: Option<Box<StoredSecret>>,
    stored: Stored,
    publication: Publication,
    leaf: Option<Leaf>,
    clock_pause: Pause,
    store_pause: Pause,
    was_published: bool,
    /// Whether the Secret was written, and the watch has not brought it yet.
    wrote: bool,
    /// Whether something else is to be in the Secret, as far as was seen when it could be written last.
    wants_secret: bool,
    /// What went wrong with each object, and has not gone right since.
    problems: BTreeMap<String, Problem>,
    conditions: ConditionReporter,
    standings: Standings,
    /// The state that was last logged.
    said: Option<&'static str>,
}

/// A change, and of what.
enum RotationEvent {
    Secret(Change<Box<StoredSecret>>),
    Registration(WebhookKind, Change<Registration>),
}

/// A webhook configuration: its watch, and when its `caBundle` may be written.
struct Side {
    watch: WatchObject<Registration>,
    pause: Pause,
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
        let watch = |kind, what: &str| WatchHealth::new(health, metrics.clone(), kind, what);
        let side = |kind| Side {
            watch: WatchObject::new(watch(WatchKind::WebhookConfiguration, &publisher.object(kind))),
            pause: Pause::default(),
        };
        let secret = WatchObject::new(watch(WatchKind::Secret, &store.what()));
        let (mutating, validating) = (side(WebhookKind::Mutating), side(WebhookKind::Validating));
        let mut events = SelectAll::<Pin<Box<dyn Stream<Item = RotationEvent> + Send>>>::new();
        let (client, timeout) = (&clients.watch, options.watch_timeout);
        events.push(Box::pin(store.watch(client, timeout).map(|change| RotationEvent::Secret(change.map(Box::new)))));
        for kind in [WebhookKind::Mutating, WebhookKind::Validating] {
            let changes = publisher.watch(kind, client, timeout);
            events.push(Box::pin(changes.map(move |change| RotationEvent::Registration(kind, change))));
        }
        Self {
            store,
            publisher,
            certificate,
            clock: Arc::new(clock),
            metrics,
            events,
            secret,
            mutating,
            validating,
            serving: health.gate("serving certificate"),
            published: health.gate("caBundle"),
            seen: None,
            stored: Stored::Unknown,
            publication: Publication::default(),
            leaf: None,
            clock_pause: Pause::default(),
            store_pause: Pause::default(),
            was_published: false,
            wrote: false,
            wants_secret: false,
            conditions: ConditionReporter::new(tell, options.namespace.clone()),
            problems: BTreeMap::new(),
            standings: Standings::fixed(Standing::Active),
            said: None,
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
            let soonest = self.next_due();
            tokio::select! {
                () = shutdown.requested() => break,
                Some(event) = self.events.next() => self.take_in(event),
                () = until(soonest) => {}
                _ = look.tick() => {}
            }
            tokio::select! {
                () = shutdown.requested() => break,
                () = self.turn() => {}
            }
        }
    }

    /// When the first pause ends that has not ended yet.
    fn next_due(&self) -> Option<Instant> {
        [&self.mutating.pause, &self.validating.pause, &self.store_pause].into_iter().filter_map(Pause::due).min()
    }

    fn side(&mut self, kind: WebhookKind) -> &mut Side {
        match kind {
            WebhookKind::Mutating => &mut self.mutating,
            WebhookKind::Validating => &mut self.validating,
        }
    }

    fn take_in(&mut self, event: RotationEvent) {
        match event {
            RotationEvent::Secret(change) => {
                if let Some(seen) = self.secret.note(change) {
                    self.read(seen.into());
                    self.store_pause.over();
                    let is_own = std::mem::take(&mut self.wrote);
                    self.mutating.pause.spread(is_own);
                    self.validating.pause.spread(is_own);
                }
            }
            RotationEvent::Registration(kind, change) => {
                // The API server is back: what failed meanwhile need not wait any longer.
                if matches!(change, Change::ListEnds) {
                    self.side(kind).pause.over();
                }
                let Some(found) = self.side(kind).watch.note(change) else { return };
                let found: Option<_> = found.into();
                let state = if found.is_some() { "there" } else { "absent" };
                if self.publication.set(kind, found, Instant::now()) {
                    let object = self.publisher.object(kind);
                    info!(object, state, "webhook configuration");
                }
                self.side(kind).pause.spread(false);
            }
        }
    }

    /// Takes in what the Secret holds now.
    fn read(&mut self, seen: Option<Box<StoredSecret>>) {
        self.stored = seen.as_ref().map_or(Stored::Absent, |seen| seen.read(&self.options.names));
        self.seen = seen;
        let object = self.store.object();
        let state = match &self.stored {
            Stored::Unknown | Stored::Absent => "absent",
            Stored::Useless(error) => error.reason(),
            Stored::Keyring { .. } => "usable",
        };
        let is_news = self.said.replace(state) != Some(state);
        match &self.stored {
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

    /// One look at everything, in the order in which it matters.
    async fn turn(&mut self) {
        if self.clock.is_in_doubt() && self.clock_pause.is_over() {
            self.ask_for_time().await;
        }
        self.issue();
        // A replica that is not ready yet may have to write what it needs for that; one that is superseded has had its turn.
        if self.standings.is_superseded() {
            return self.show();
        }
        if self.store_pause.is_over() {
            self.wants_secret = !matches!(self.with_view(plan::keyring), Ok(None));
            if self.wants_secret {
                self.write_secret().await;
            }
        } else if self.store_pause.is_braked() && !matches!(self.with_view(plan::keyring), Ok(None)) {
            let object = self.store.object();
            let problem = Problem::contended(format!("update {object}"));
            self.complain(object, problem);
        }
        self.publish().await;
        self.show();
    }

    /// The API server's clock counts. Where it cannot be asked, this machine's has to do.
    async fn ask_for_time(&mut self) {
        match self.store.time().await {
            Ok(now) => {
                self.clock_pause.over();
                if let Some(difference) = self.clock.set(now) {
                    let seconds = difference.as_secs();
                    warn!(
                        seconds,
                        "this machine's clock is behind (or ahead of, if negative) the API server's, which counts"
                    );
                }
            }
            Err(_) => self.clock_pause.after_failure(None),
        }
    }

    fn issue(&mut self) {
        let Some(issuer) = self.with_view(plan::issuer) else { return };
        let minter = LeafIssuer { issuer, options: self.options.clone(), clock: Arc::clone(&self.clock) };
        match minter.mint() {
            Ok(leaf) => {
                info!(ca = %leaf.issuer.id(), not_after = %leaf.validity.not_after, "new serving certificate");
                self.certificate.set(minter.served(&leaf));
                self.leaf = Some(leaf);
            }
            Err(error) => warn!(%error, "no new serving certificate"),
        }
    }

    async fn write_secret(&mut self) {
        // What is written now decides for every replica: it must not rest on a wrong clock.
        self.ask_for_time().await;
        let (keyring, cause) = match self.with_view(plan::keyring) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return,
            Err(error) => {
                self.store_pause.after_failure(None);
                return warn!(%error, "no new serving CA");
            }
        };
        let object = self.store.object();
        let result = self.store.write(&keyring, self.seen.as_deref()).await;
        let action = if self.seen.is_some() { "update" } else { "create" };
        self.count(object.clone(), action, &result);
        match result {
            Ok(()) => {
                self.store_pause.wrote();
                self.wrote = true;
                self.problems.remove(&object);
                let cause = cause.as_str();
                info!(object, cause, ca = %keyring.current.id(), "CA Secret written");
            }
            Err(problem) => {
                self.store_pause.after(&problem);
                self.complain(object, problem);
            }
        }
    }

    async fn publish(&mut self) {
        self.note_contended();
        if self.due_to_publish().is_empty() {
            return;
        }
        // The watch of the Secret may be behind that of the configurations: who publishes what it last saw may take
        // away the trust in a CA that another replica serves by.
        match self.store.get().await {
            Ok(seen) => {
                self.problems.remove(&self.store.object());
                self.read(seen.map(Box::new));
            }
            Err(problem) => {
                self.mutating.pause.after(&problem);
                self.validating.pause.after(&problem);
                return self.complain(self.store.object(), problem);
            }
        }
        let Stored::Keyring { keyring, .. } = &self.stored else { return };
        let ca_bundle = keyring.ca_bundle();
        for (kind, registration) in self.due_to_publish() {
            let object = self.publisher.object(kind);
            let result = self.publisher.publish(kind, &registration, &ca_bundle).await;
            self.count(object.clone(), "update", &result);
            match result {
                Ok(()) => {
                    self.side(kind).pause.wrote();
                    self.problems.remove(&object);
                    info!(object, "caBundle written");
                }
                Err(problem) => {
                    self.side(kind).pause.after(&problem);
                    self.complain(object, problem);
                }
            }
        }
    }

    /// Says which `caBundle` is wrong and stays so for now, because something else keeps changing it.
    fn note_contended(&mut self) {
        let Stored::Keyring { keyring, .. } = &self.stored else { return };
        let ca_bundle = keyring.ca_bundle();
        let kinds: Vec<_> = self.publication.differing(&ca_bundle).map(|(kind, _)| kind).collect();
        for kind in kinds {
            if self.side(kind).pause.is_braked() {
                let object = self.publisher.object(kind);
                let problem = Problem::contended(format!("update caBundle of {object}"));
                self.complain(object, problem);
            }
        }
    }

    /// The configurations whose `caBundle` is another than the Secret wants, and that may be written now.
    fn due_to_publish(&self) -> Vec<(WebhookKind, Registration)> {
        let Stored::Keyring { keyring, .. } = &self.stored else { return Vec::new() };
        let ca_bundle = keyring.ca_bundle();
        let differing = self.publication.differing(&ca_bundle);
        let is_due = |kind: WebhookKind| match kind {
            WebhookKind::Mutating => self.mutating.pause.is_over(),
            WebhookKind::Validating => self.validating.pause.is_over(),
        };
        differing.filter(|(kind, _)| is_due(*kind)).map(|(kind, seen)| (kind, seen.clone())).collect()
    }

    /// Says what is ready, and for what is not, why.
    fn show(&mut self) {
        let now = self.clock.now();
        self.forget_what_is_right();
        let problem = self.problems.values().next();
        self.conditions.note(problem.map(|problem| (problem.reason.as_str(), problem.to_string())));
        let problem = problem.map(ToString::to_string);
        let leaf = self.leaf.as_ref().filter(|leaf| leaf.validity.holds(now));
        match leaf {
            Some(_) => self.serving.set(true),
            None => self.serving.fail(problem.as_deref().unwrap_or("none yet")),
        }
        // Who was trusted once stays ready: a caBundle that somebody overwrote is repaired sooner than endpoints change.
        if !self.was_published {
            let is_trusted = leaf.is_some_and(|leaf| self.publication.trusted_since(leaf.issuer.id()).is_some());
            self.was_published = is_trusted || self.publication.is_unregistered();
            if self.was_published {
                self.published.set(true);
            } else {
                self.published.fail(problem.as_deref().unwrap_or("not written yet"));
            }
        }
    }

    /// What somebody else made right is no problem any more.
    fn forget_what_is_right(&mut self) {
        if self.problems.is_empty() {
            return;
        }
        let differing: Vec<_> = match &self.stored {
            Stored::Keyring { keyring, .. } => {
                let ca_bundle = keyring.ca_bundle();
                self.publication.differing(&ca_bundle).map(|(kind, _)| self.publisher.object(kind)).collect()
            }
            _ => Vec::new(),
        };
        let secret = self.store.object();
        let is_secret_wanted = self.wants_secret || !differing.is_empty();
        self.problems.retain(|object, _| if *object == secret { is_secret_wanted } else { differing.contains(object) });
    }

    fn with_view<T>(&self, decide: impl FnOnce(&CertificatesView<'_>) -> T) -> T {
        let is_trusted = |id: &AuthorityId| self.is_trusted(id);
        decide(&CertificatesView {
            now: self.clock.now(),
            lifetimes: self.options.lifetimes,
            stored: &self.stored,
            leaf: self.leaf.as_ref(),
            is_trusted: &is_trusted,
        })
    }

    /// Whether a leaf by this CA of the Secret would be accepted by every API server.
    fn is_trusted(&self, id: &AuthorityId) -> bool {
        let Stored::Keyring { keyring, .. } = &self.stored else { return false };
        let Some(authority) = keyring.issuers().find(|authority| authority.id() == id) else { return false };
        if self.publication.is_unregistered() {
            return true;
        }
        let since = self.publication.trusted_since(id);
        let has_spread = since.is_some_and(|since| since.elapsed() >= self.options.lifetimes.propagation);
        has_spread && self.publication.is_known() && {
            let now = self.clock.now();
            let leaf = authority.issue(&self.options.names, self.options.lifetimes.leaf, now);
            leaf.is_ok_and(|leaf| self.publication.accepts(&leaf, self.options.host(), now))
        }
    }

    fn count(&self, object: String, action: &'static str, result: &Result<(), Problem>) {
        let result = result.as_ref().map_or_else(|problem| problem.reason.as_str(), |()| "ok");
        self.metrics.writes.get_or_create(&WriteLabels { object, action, result }).inc();
    }

    /// Logs a problem with an object, once for each change of its words. That another replica was first is none.
    fn complain(&mut self, object: String, problem: Problem) {
        if problem.reason == Reason::Conflict {
            self.problems.remove(&object);
            return;
        }
        if self.problems.get(&object).map(ToString::to_string) != Some(problem.to_string()) {
            warn!(object, reason = problem.reason.as_str(), detail = %problem, "certificates: not done, tried again");
        }
        self.problems.insert(object, problem);
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

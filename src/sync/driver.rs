//! The sync loop: events in, looks and writes out. One task owns all state; writes run beside it.

use std::{future::Future, sync::Arc, time::Instant};

use futures::FutureExt as _;
use tokio::{task::JoinSet, time};

use super::{
    observe::{Observed, Subject, Target},
    plan::{Cause, CertsView, Plan, Rest, SourceView, Unwanted, plan, plan_trust},
    queue::{self, Order, Queue},
    restart::{self, Contents, Restarts},
    secret::{SecretState, Source},
    states::States,
    watches::{Event, Watches},
    write::Writer,
};
use crate::{
    cluster::{Clients, Events, Problem, Reason, Requests},
    config::{Config, NamespaceName, Settings},
    names::ANNOTATION_CONTENT,
    shutdown::Shutdown,
    snapshot::{self, SharedSnapshot, Snapshot},
    telemetry::{
        health::{BEAT_INTERVAL, Health},
        metrics::{Metrics, WriteLabels},
    },
    trust::Publisher,
};

/// Writes under way at once. More would only queue in the API server's priority and fairness.
const MAX_WRITES: usize = 24;
/// Events taken in before the clones are looked at.
const MAX_BATCH: usize = 256;

/// Keeps every clone equal to its source, for ever.
pub struct Driver {
    config: Arc<Config>,
    watches: Watches,
    writer: Writer,
    publisher: Publisher,
    health: Arc<Health>,
    metrics: Metrics,
    snapshot: SharedSnapshot,
    observed: Observed,
    queue: Queue,
    reads: Vec<Read>,
    work: JoinSet<Done>,
    writes: usize,
    states: States,
    contents: Contents,
    restarts: Option<Restarts>,
    /// Whether the snapshot is behind what is known here.
    stale: bool,
}

/// Quorum reads of one source.
#[derive(Default)]
struct Read {
    running: bool,
    /// The latest answer, and the latest mark when it was asked for.
    answer: Option<(u64, Option<Arc<Source>>)>,
    failures: u32,
    not_before: Option<Instant>,
    /// Clones that need a later read before they are written.
    waiting: Vec<Target>,
}

/// Something that ran beside the loop has ended.
enum Done {
    Read {
        clone: usize,
        mark: u64,
        result: Result<Option<Arc<Source>>, Problem>,
    },
    /// `Ok(false)`: it turned out that nothing was to be written.
    Write {
        target: Target,
        action: Action,
        result: Result<bool, Problem>,
    },
}

/// A write, as it is reported.
struct Action {
    name: &'static str,
    /// Resource version of the source whose content was written.
    version: Option<String>,
    /// Whether the clone had other content before.
    changes_content: bool,
    /// Names of the keys that a foreign Secret had.
    replaced_keys: Option<Vec<String>>,
}

impl Driver {
    /// Prepares the loop; nothing is sent before [`Driver::run`].
    pub fn new(
        config: Arc<Config>,
        settings: &Settings,
        clients: &Clients,
        health: &Arc<Health>,
        metrics: Metrics,
        snapshot: SharedSnapshot,
        events: Events,
    ) -> Self {
        let watches = Watches::new(&config, settings.watch_timeout, clients.watch.clone(), health, metrics.clone());
        let requests = Requests::new(clients.request.clone());
        let (contents, restarts) = restart::channel(Arc::clone(&config), requests.clone(), metrics.clone());
        let driver = Self {
            observed: Observed::new(watches.namespace_watches(), config.clones.len()),
            reads: config.clones.iter().map(|_| Read::default()).collect(),
            writer: Writer::new(requests.clone()),
            health: Arc::clone(health),
            queue: Queue::default(),
            work: JoinSet::new(),
            writes: 0,
            states: States::new(Arc::clone(&config), metrics.clone(), events),
            publisher: Publisher::new(requests.clone(), Arc::clone(&config)),
            stale: false,
            contents,
            restarts: Some(restarts),
            config,
            watches,
            metrics,
            snapshot,
        };
        driver.publish();
        driver
    }

    /// Runs until shutdown, then lets the writes under way end.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut beat = time::interval(BEAT_INTERVAL);
        // Ends with this loop.
        let mut beside = JoinSet::new();
        if let Some(restarts) = self.restarts.take() {
            beside.spawn(restarts.run());
        }
        loop {
            let due = self.next_due();
            tokio::select! {
                () = shutdown.requested() => break,
                event = self.watches.next() => self.take_in(event),
                Some(done) = self.work.join_next() => self.finish(done),
                () = until(due) => {}
                _ = beat.tick() => {}
            }
            self.health.beat();
            self.look();
            if std::mem::take(&mut self.stale) {
                self.publish();
            }
        }
        while self.work.join_next().await.is_some() {}
    }

    fn take_in(&mut self, first: Option<Event>) {
        let now = Instant::now();
        self.stale = true;
        let mut next = first;
        for _ in 0..MAX_BATCH {
            let Some(event) = next else { break };
            let targets = match event {
                Event::Namespace(watch, change) => self.observed.namespace(&self.config, watch, change),
                Event::Secret(clone, change) => self.observed.secret(&self.config, clone, change),
                Event::Certs(change) => self.observed.certs(change),
                Event::Bundle(change) => self.observed.bundle(change),
            };
            let mut targets: Vec<_> = targets.into_iter().collect();
            let order = if targets.len() > self.config.clones.len() + 1 { Order::Last } else { Order::First };
            // Replicas share a fan-out without talking: each begins elsewhere in the same order.
            targets.sort_unstable();
            let start = fastrand::usize(..targets.len().max(1));
            targets.rotate_left(start);
            for target in targets {
                self.queue.mark(target, order, now);
            }
            next = self.watches.next().now_or_never().flatten();
        }
    }

    /// Looks at every clone that was marked, as far as writes and reads allow.
    fn look(&mut self) {
        let now = Instant::now();
        while self.writes < MAX_WRITES
            && let Some((target, mark)) = self.queue.take(now)
        {
            self.look_at(target, mark);
        }
        for clone in 0..self.reads.len() {
            self.read_if_wanted(clone, now);
        }
        if self.queue.is_empty() {
            // Nothing is left to write: the content of the sources need not be held.
            for read in &mut self.reads {
                read.answer = None;
            }
        }
    }

    fn look_at(&mut self, target: Target, mark: u64) {
        match target.subject {
            Subject::Clone(clone) => self.look_at_clone(clone, target, mark),
            Subject::Trust => self.look_at_trust(target),
        }
    }

    fn look_at_clone(&mut self, clone: usize, target: Target, mark: u64) {
        let Some(spec) = self.config.clones.get(clone) else { return };
        let namespace = self.observed.namespace_of(&self.config, &target);
        let there = self.observed.target(clone, &target.namespace);
        let seen = plan(spec, self.observed.source(&self.config, clone), namespace, there);
        let decided = match seen {
            Plan::Rest(_) | Plan::Delete(Unwanted::NotSelected) => Some((seen, None)),
            _ => self.reads.get(clone).and_then(|read| read.answer.as_ref()).filter(|(at, _)| *at >= mark).map(
                |(_, source)| {
                    let view =
                        source.as_deref().map_or(SourceView::Missing, |source| SourceView::Present(&source.state));
                    (plan(spec, view, namespace, there), source.clone())
                },
            ),
        };
        if let Some((Plan::Rest(rest), _)) = decided {
            return self.rest(&target, &rest);
        }
        self.stale |= self.states.falls_out_of_step(&target, Instant::now());
        let Some((plan, source)) = decided else {
            if let Some(read) = self.reads.get_mut(clone) {
                read.waiting.push(target);
            }
            return;
        };
        let action = Action::of(&plan, source.as_deref(), there);
        let (config, writer, there) = (Arc::clone(&self.config), self.writer.clone(), there.cloned());
        let namespace = target.namespace.clone();
        self.begin(target, action, async move {
            let Some(spec) = config.clones.get(clone) else { return Ok(false) };
            let runner_namespaces = &config.runner_namespaces;
            writer.carry_out(&plan, spec, runner_namespaces, &namespace, source.as_deref(), there.as_ref()).await
        });
    }

    fn look_at_trust(&mut self, target: Target) {
        let namespace = self.observed.namespace_of(&self.config, &target);
        let there = self.observed.all_bundles().get(&target.namespace);
        let plan = plan_trust(&self.config.certs_secret_name, self.observed.certs_of(&target), namespace, there);
        if let Plan::Rest(rest) = plan {
            return self.rest(&target, &rest);
        }
        let (config, writer, publisher) = (Arc::clone(&self.config), self.writer.clone(), self.publisher.clone());
        let (action, there, namespace) = (Action::of(&plan, None, None), there.cloned(), target.namespace.clone());
        self.begin(target, action, async move {
            match (plan, there) {
                (Plan::Delete(Unwanted::NotSelected), _)
                    if writer.is_selected(&config.runner_namespaces, &namespace).await? =>
                {
                    Ok(false)
                }
                (Plan::Delete(_), Some(there)) => publisher.withdraw(&namespace, &there).await.map(|()| true),
                (_, there) => publisher.publish(&namespace, there.as_ref()).await,
            }
        });
    }

    fn begin(
        &mut self,
        target: Target,
        action: Action,
        work: impl Future<Output = Result<bool, Problem>> + Send + 'static,
    ) {
        self.queue.begin(&target);
        self.writes += 1;
        self.work.spawn(async move { Done::Write { target, action, result: work.await } });
    }

    fn read_if_wanted(&mut self, clone: usize, now: Instant) {
        let Some((read, spec)) = self.reads.get_mut(clone).zip(self.config.clones.get(clone)) else { return };
        if read.waiting.is_empty() || read.running || read.not_before.is_some_and(|due| due > now) {
            return;
        }
        read.running = true;
        let (mark, writer, spec) = (self.queue.latest_mark(), self.writer.clone(), spec.clone());
        self.work.spawn(async move {
            let result = writer.read_source(&spec).await.map(|source| source.map(Arc::new));
            Done::Read { clone, mark, result }
        });
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Read { clone, mark, result }) => self.finish_read(clone, mark, result),
            Ok(Done::Write { target, action, result }) => self.finish_write(&target, &action, result),
            // A panic in a write is a bug; the loop cannot say any more which clone it was.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }

    fn finish_read(&mut self, clone: usize, mark: u64, result: Result<Option<Arc<Source>>, Problem>) {
        let Some(read) = self.reads.get_mut(clone) else { return };
        read.running = false;
        let waiting = std::mem::take(&mut read.waiting);
        match result {
            Ok(source) => {
                (read.failures, read.not_before) = (0, None);
                read.answer = Some((mark, source));
            }
            Err(problem) => {
                let pause = queue::pause(read.failures).max(problem.retry_after.unwrap_or_default());
                read.failures = read.failures.saturating_add(1);
                read.not_before = Some(Instant::now() + pause);
                for target in &waiting {
                    self.set_state(target, problem.reason.as_str(), &problem.to_string());
                }
            }
        }
        for target in waiting {
            self.queue.put_back(target, Order::Last);
        }
    }

    fn finish_write(&mut self, target: &Target, action: &Action, result: Result<bool, Problem>) {
        self.writes -= 1;
        let now = Instant::now();
        let labels = WriteLabels {
            object: self.states.name(target).to_owned(),
            action: action.name,
            result: result.as_ref().map_or_else(|problem| problem.reason.as_str(), |_| "ok"),
        };
        if !matches!(result, Ok(false)) {
            self.metrics.writes.get_or_create(&labels).inc();
        }
        match result {
            Ok(false) => drop(self.queue.succeed(target, now)),
            Ok(true) => {
                let lag = self.queue.succeed(target, now).map(|since| now.saturating_duration_since(since));
                self.metrics.sync_lag.observe(lag.unwrap_or_default().as_secs_f64());
                let (object, namespace) = (self.states.name(target), target.namespace.as_str());
                let keys = action.replaced_keys.as_deref().map(|keys| keys.join(","));
                if let Some(keys) = keys {
                    tracing::warn!(object, namespace, keys, "a foreign Secret was replaced by the clone");
                }
                if matches!(target.subject, Subject::Clone(_)) && action.changes_content {
                    self.contents.wrote(&target.namespace);
                }
                let source_version = action.version.as_deref();
                tracing::info!(
                    object,
                    namespace,
                    action = action.name,
                    source_version,
                    lag_ms = millis(lag),
                    "written"
                );
                let fought = action.version.as_ref().is_some_and(|version| self.queue.wrote(target, version, now));
                if fought {
                    self.set_state(target, "fought-over", "something else keeps changing this clone");
                }
            }
            Err(problem) => {
                self.queue.fail(target, problem.retry_after, now);
                // The watch is about to bring the newer version; the next look settles it.
                if problem.reason == Reason::Conflict {
                    self.queue.meet(target);
                } else {
                    self.set_state(target, problem.reason.as_str(), &problem.to_string());
                }
            }
        }
    }

    fn set_state(&mut self, target: &Target, state: &'static str, detail: &str) {
        let uid = self.observed.uid(target);
        self.states.set(target, state, Some(detail), uid);
    }

    fn rest(&mut self, target: &Target, rest: &Rest) {
        // What has been done already in the middle of a fan-out was done by another replica.
        if self.writes > 0 {
            self.queue.meet(target);
        }
        self.queue.rest(target);
        let detail = match (rest, target.subject) {
            (Rest::Conflict, Subject::Clone(clone)) => {
                let there = self.observed.target(clone, &target.namespace);
                let keys = there.map(|there| there.keys.join(",")).unwrap_or_default();
                Some(format!("a Secret that is not ours, with keys {keys}, has the clone's name"))
            }
            (Rest::SourceTypeRefused, _) => Some("a Secret of the source's type must not be copied".to_owned()),
            (Rest::CertsUnusable, _) => match self.observed.certs_of(target) {
                CertsView::Present(certs) => certs.bundle.problem().map(ToOwned::to_owned),
                CertsView::NotLoaded | CertsView::Missing => None,
            },
            _ => None,
        };
        if matches!((rest, target.subject), (Rest::Synced, Subject::Clone(_))) {
            self.tell_content(&target.namespace);
        }
        let uid = self.observed.uid(target);
        self.stale |= self.states.rest(target, rest, detail.as_deref(), uid, Instant::now());
    }

    /// Which content the clones of a namespace have, for Deployments that are restarted by that.
    fn tell_content(&mut self, namespace: &NamespaceName) {
        if self.config.restart.is_empty() {
            return;
        }
        let version = |clone| {
            let annotations = self.observed.target(clone, namespace)?.metadata.annotations.as_ref()?;
            annotations.get(ANNOTATION_CONTENT).cloned()
        };
        let versions = (0..self.config.clones.len()).map(|clone| version(clone).unwrap_or_default()).collect();
        self.contents.are(namespace, versions);
    }

    fn publish(&self) {
        let view = |clone| match self.observed.source(&self.config, clone) {
            SourceView::NotLoaded => snapshot::SourceView::NotLoaded,
            SourceView::Missing => snapshot::SourceView::Missing,
            SourceView::Present(_) => snapshot::SourceView::Present,
        };
        let sources = self.config.clones.iter().enumerate();
        let certs = self.observed.all_certs();
        let bundles = self.observed.all_bundles().iter();
        let bundles = bundles.filter(|(_, bundle)| bundle.is_ours(&self.config.certs_secret_name));
        self.snapshot.store(Arc::new(Snapshot {
            sources: sources.map(|(clone, spec)| (spec.secret.clone(), (spec.from.clone(), view(clone)))).collect(),
            certs: certs
                .into_iter()
                .flatten()
                .map(|(namespace, state)| (namespace.clone(), state.certs.clone()))
                .collect(),
            certs_loaded: certs.is_some(),
            trust: bundles.map(|(namespace, bundle)| (namespace.clone(), bundle.trust)).collect(),
            namespaces: self.observed.all_namespaces(),
            clones_loaded: self.observed.clones_loaded(),
            out_of_step: self.states.out_of_step().clone(),
        }));
    }

    fn next_due(&self) -> Option<Instant> {
        let reads = self.reads.iter().filter(|read| !read.running && !read.waiting.is_empty());
        self.queue.next_due().into_iter().chain(reads.filter_map(|read| read.not_before)).min()
    }
}

impl Action {
    fn of(plan: &Plan, source: Option<&Source>, there: Option<&SecretState>) -> Self {
        let (name, cause) = match plan {
            Plan::Rest(_) => ("none", None),
            Plan::Create => ("create", None),
            Plan::Update(cause) => ("update", Some(*cause)),
            Plan::Replace(cause) => ("replace", Some(*cause)),
            Plan::Delete(_) => ("delete", None),
        };
        Self {
            name,
            changes_content: cause.is_some_and(|cause| cause != Cause::Marks),
            version: source.and_then(|source| source.state.metadata.resource_version.clone()),
            replaced_keys: there.filter(|_| cause == Some(Cause::Foreign)).map(|there| there.keys.clone()),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn millis(duration: Option<std::time::Duration>) -> u64 {
    duration.map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

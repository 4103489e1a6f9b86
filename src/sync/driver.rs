//! The sync loop: events in, looks and writes out. One task owns all state; writes run beside it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use futures::FutureExt as _;
use tokio::{task::JoinSet, time};

use super::{
    observe::{Observed, Target},
    plan::{Cause, Plan, Rest, SourceView, Unwanted, plan},
    queue::{self, Order, Queue},
    secret::{SecretState, Source},
    watches::{Event, Watches},
    write::Writer,
};
use crate::{
    cluster::{Clients, Problem, Reason},
    config::{Config, Settings},
    shutdown::Shutdown,
    snapshot::{self, SharedSnapshot, Snapshot},
    telemetry::{
        health::{BEAT_INTERVAL, Health},
        metrics::{CloneLabels, Metrics, WriteLabels},
    },
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
    health: Arc<Health>,
    metrics: Metrics,
    snapshot: SharedSnapshot,
    observed: Observed,
    queue: Queue,
    reads: Vec<Read>,
    work: JoinSet<Done>,
    writes: usize,
    states: HashMap<Target, &'static str>,
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
    ) -> Self {
        let watches = Watches::new(&config, settings.watch_timeout, clients.watch.clone(), health, metrics.clone());
        let driver = Self {
            observed: Observed::new(watches.namespace_watches(), config.clones.len()),
            reads: config.clones.iter().map(|_| Read::default()).collect(),
            writer: Writer::new(clients.request.clone()),
            health: Arc::clone(health),
            queue: Queue::default(),
            work: JoinSet::new(),
            writes: 0,
            states: HashMap::new(),
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
        }
        while self.work.join_next().await.is_some() {}
    }

    fn take_in(&mut self, first: Option<Event>) {
        let now = Instant::now();
        let mut publish = false;
        let mut next = first;
        for _ in 0..MAX_BATCH {
            let Some(event) = next else { break };
            let targets = match event {
                Event::Namespace(watch, change) => self.observed.namespace(&self.config, watch, change),
                Event::Secret(clone, change) => {
                    publish = true;
                    self.observed.secret(&self.config, clone, change)
                }
                Event::Certs(change) => {
                    publish = true;
                    self.observed.certs(change);
                    BTreeSet::new()
                }
            };
            let mut targets: Vec<_> = targets.into_iter().collect();
            let order = if targets.len() > self.config.clones.len() { Order::Last } else { Order::First };
            // Replicas that walk in different orders share a fan-out without talking.
            fastrand::shuffle(&mut targets);
            for target in targets {
                self.queue.mark(target, order, now);
            }
            next = self.watches.next().now_or_never().flatten();
        }
        if publish {
            self.publish();
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
        let Some(spec) = self.config.clones.get(target.clone) else { return };
        let namespace = self.observed.namespace_of(&self.config, &target);
        let there = self.observed.target(&target);
        let seen = plan(spec, self.observed.source(&self.config, target.clone), namespace, there);
        let decided = match seen {
            Plan::Rest(_) | Plan::Delete(Unwanted::NotSelected) => Some((seen, None)),
            _ => self.reads.get(target.clone).and_then(|read| read.answer.as_ref()).filter(|(at, _)| *at >= mark).map(
                |(_, source)| {
                    let view =
                        source.as_deref().map_or(SourceView::Missing, |source| SourceView::Present(&source.state));
                    (plan(spec, view, namespace, there), source.clone())
                },
            ),
        };
        match decided {
            None => {
                if let Some(read) = self.reads.get_mut(target.clone) {
                    read.waiting.push(target);
                }
            }
            Some((Plan::Rest(rest), _)) => {
                self.queue.rest(&target);
                self.rest(&target, &rest);
            }
            Some((plan, source)) => {
                let there = there.cloned();
                self.begin(target, plan, source, there);
            }
        }
    }

    fn begin(&mut self, target: Target, plan: Plan, source: Option<Arc<Source>>, there: Option<SecretState>) {
        let (config, writer) = (Arc::clone(&self.config), self.writer.clone());
        let action = Action::of(&plan, source.as_deref(), there.as_ref());
        self.queue.begin(&target);
        self.writes += 1;
        self.work.spawn(async move {
            let result = write(&config, &writer, &target, &plan, source, there).await;
            Done::Write { target, action, result }
        });
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
                    self.set_state(target, problem.reason.as_str(), Some(&problem.to_string()));
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
        let Some(spec) = self.config.clones.get(target.clone) else { return };
        let labels = WriteLabels {
            secret: spec.secret.to_string(),
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
                let (clone, namespace) = (spec.secret.as_str(), target.namespace.as_str());
                let keys = action.replaced_keys.as_deref().map(|keys| keys.join(","));
                if let Some(keys) = keys {
                    tracing::warn!(clone, namespace, keys, "a foreign Secret was replaced by the clone");
                }
                tracing::info!(clone, namespace, action = action.name, lag_ms = millis(lag), "clone written");
                let fought = action.version.as_ref().is_some_and(|version| self.queue.wrote(target, version, now));
                if fought {
                    self.set_state(target, "fought-over", Some("something else keeps changing this clone"));
                }
            }
            Err(problem) => {
                self.queue.fail(target, problem.retry_after, now);
                // The watch is about to bring the newer version; the next look settles it.
                if problem.reason != Reason::Conflict {
                    self.set_state(target, problem.reason.as_str(), Some(&problem.to_string()));
                }
            }
        }
    }

    fn rest(&mut self, target: &Target, rest: &Rest) {
        let keys = self.observed.target(target).map(|there| there.keys.join(",")).unwrap_or_default();
        let detail = match rest {
            Rest::Conflict => Some(format!("a Secret that is not ours, with keys {keys}, has the clone's name")),
            Rest::SourceTypeRefused => Some("a Secret of the source's type must not be copied".to_owned()),
            _ => None,
        };
        self.set_state(target, rest.reason(), detail.as_deref());
    }

    /// Notes the state of a clone; one log line for each change.
    fn set_state(&mut self, target: &Target, state: &'static str, detail: Option<&str>) {
        let Some(spec) = self.config.clones.get(target.clone) else { return };
        let former = if state == Rest::NotWanted.reason() {
            self.states.remove(target)
        } else {
            self.states.insert(target.clone(), state)
        };
        if former == Some(state) {
            return;
        }
        let gauge = |state| self.metrics.clones.get_or_create(&CloneLabels { secret: spec.secret.to_string(), state });
        if let Some(former) = former {
            gauge(former).dec();
        }
        if self.states.contains_key(target) {
            gauge(state).inc();
        }
        let (clone, namespace) = (spec.secret.as_str(), target.namespace.as_str());
        match detail {
            Some(detail) => tracing::warn!(clone, namespace, state, detail, "clone state"),
            None if former.is_some() => tracing::info!(clone, namespace, state, "clone state"),
            None => tracing::debug!(clone, namespace, state, "clone state"),
        }
    }

    fn publish(&self) {
        let view = |clone| match self.observed.source(&self.config, clone) {
            SourceView::NotLoaded => snapshot::SourceView::NotLoaded,
            SourceView::Missing => snapshot::SourceView::Missing,
            SourceView::Present(_) => snapshot::SourceView::Present,
        };
        let sources = self.config.clones.iter().enumerate();
        let certs = self.observed.all_certs();
        self.snapshot.store(Arc::new(Snapshot {
            sources: sources.map(|(clone, spec)| (spec.secret.clone(), (spec.from.clone(), view(clone)))).collect(),
            certs: certs.cloned().unwrap_or_default(),
            certs_loaded: certs.is_some(),
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
            version: source.and_then(|source| source.state.metadata.resource_version.clone()),
            replaced_keys: there.filter(|_| cause == Some(Cause::Foreign)).map(|there| there.keys.clone()),
        }
    }
}

/// Carries out a plan for one clone.
async fn write(
    config: &Config,
    writer: &Writer,
    target: &Target,
    plan: &Plan,
    source: Option<Arc<Source>>,
    there: Option<SecretState>,
) -> Result<bool, Problem> {
    let (Some(spec), namespace) = (config.clones.get(target.clone), &target.namespace) else { return Ok(false) };
    match (plan, source, there) {
        (Plan::Create, Some(source), _) => writer.create(spec, namespace, &source.payload).await?,
        (Plan::Update(cause), Some(source), Some(there)) => {
            writer.update(spec, namespace, &source.payload, &there, *cause).await?;
        }
        (Plan::Replace(_), Some(source), Some(there)) => {
            writer.delete(spec, namespace, &there).await?;
            writer.create(spec, namespace, &source.payload).await?;
        }
        // The clone may have come to us before its namespace did: ask before deleting.
        (Plan::Delete(Unwanted::NotSelected), _, Some(there)) => {
            if writer.is_selected(&config.runner_namespaces, namespace).await? {
                return Ok(false);
            }
            writer.delete(spec, namespace, &there).await?;
        }
        (Plan::Delete(_), _, Some(there)) => writer.delete(spec, namespace, &there).await?,
        _ => return Ok(false),
    }
    Ok(true)
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

//! The sync loop: events in, looks and writes out. One task owns all state; writes run beside it.

use std::{future::Future, sync::Arc, time::Instant};

use futures::FutureExt as _;
use tokio::{task::JoinSet, time};

use super::{
    action::Action,
    observe::{Observed, Subject, Target},
    permits::{Permit, Permits, Wanted},
    plan::{DeleteReason, NoAction, Plan, SourceView, UpdateReason, plan, plan_trust},
    queue::{Order, Queue},
    reread::{Both, Rereads},
    restart::{self, CloneContents, Restarts},
    secret::{SecretState, SourceSecret},
    source_reads::SourceReads,
    states::States,
    view,
    watches::{StoreEvent, Watches},
    write::Writer,
};
use crate::{
    brake::Rival,
    cluster::{Clients, EventQueue, Problem, Reason, Requests, Standing, Standings},
    config::{Config, Settings},
    shutdown::Shutdown,
    snapshot::{Doubts, SharedSnapshot},
    telemetry::{
        health::{BEAT_INTERVAL, Health},
        metrics::Metrics,
    },
    trust::{BundleState, Shown, TrustPublisher},
};

mod outcome;
mod rereading;

/// Writes under way at once. More would only queue in the API server's priority and fairness.
const MAX_WRITES: usize = 24;
/// Why a contended object is not what it should be.
const CONTENDED_DETAIL: &str = "something else keeps changing it; repaired at most once a minute until that ends";
/// Events taken in before the clones are looked at.
const MAX_BATCH: usize = 256;

/// Keeps every clone equal to its source, for ever.
pub struct Driver {
    config: Arc<Config>,
    watches: Watches,
    writer: Writer,
    publisher: TrustPublisher,
    health: Arc<Health>,
    metrics: Metrics,
    snapshot: SharedSnapshot,
    observed: Observed,
    queue: Queue,
    /// Of each clone's source.
    reads: Vec<SourceReads<Option<Arc<SourceSecret>>>>,
    /// Clones of which admission knows better than the watches.
    doubts: Doubts,
    rereads: Rereads,
    work: JoinSet<Done>,
    writes: usize,
    states: States,
    contents: CloneContents,
    restarts: Option<Restarts>,
    permits: Permits,
    standings: Standings,
    shown: Shown,
    /// Whether the snapshot is behind what is known here.
    stale: bool,
}

/// Something that ran beside the loop has ended.
enum Done {
    Read {
        clone: usize,
        mark: u64,
        result: Result<Option<Arc<SourceSecret>>, Problem>,
    },
    /// Source and clone, as they are stored.
    Reread {
        target: Target,
        result: Result<Box<Both>, Problem>,
    },
    /// `Ok(false)`: it turned out that nothing was to be written.
    Write {
        target: Target,
        action: Action,
        result: Result<bool, Problem>,
    },
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
        events: EventQueue,
    ) -> Self {
        let requests = Requests::new(clients.request.clone());
        let (timeout, client) = (settings.watch_timeout, &clients.watch);
        let watches = Watches::new(&config, timeout, client, &requests, health, metrics.clone());
        let (contents, restarts) = restart::channel(Arc::clone(&config), requests.clone(), metrics.clone());
        let mut driver = Self {
            observed: Observed::new(watches.namespace_watches(), config.clones.len()),
            reads: config.clones.iter().map(|_| SourceReads::default()).collect(),
            writer: Writer::new(requests.clone()),
            doubts: Doubts::default(),
            rereads: Rereads::default(),
            health: Arc::clone(health),
            queue: Queue::default(),
            work: JoinSet::new(),
            writes: 0,
            states: States::new(Arc::clone(&config), metrics.clone(), events),
            publisher: TrustPublisher::new(requests.clone(), Arc::clone(&config)),
            stale: false,
            shown: Shown::default(),
            contents,
            restarts: Some(restarts),
            permits: Permits::new(settings.cleanup_delay),
            standings: Standings::fixed(Standing::Active),
            config,
            watches,
            metrics,
            snapshot,
        };
        driver.publish();
        driver
    }

    /// The same, but it writes only as long as its revision of our Deployment is the one that does.
    #[must_use]
    pub fn with_standings(mut self, standings: Standings) -> Self {
        self.restarts = self.restarts.map(|restarts| restarts.with_standings(standings.clone()));
        self.standings = standings;
        self
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
                () = self.standings.changed() => self.change_standing(),
                () = self.doubts.raised() => self.take_doubts(),
                () = until(due) => {}
                _ = beat.tick() => {}
            }
            self.health.beat();
            self.reread();
            self.look();
            if std::mem::take(&mut self.stale) {
                self.publish();
            }
        }
        while self.work.join_next().await.is_some() {}
    }

    fn take_in(&mut self, first: Option<StoreEvent>) {
        let now = Instant::now();
        self.stale = true;
        let mut next = first;
        for _ in 0..MAX_BATCH {
            let Some(event) = next else { break };
            self.note_list(&event);
            let targets = match event {
                StoreEvent::Namespace(watch, change) => self.observed.namespace(&self.config, watch, change),
                StoreEvent::Secret(clone, change) => self.observed.secret(&self.config, clone, change),
                StoreEvent::Certs(change) => self.observed.certs(change),
                StoreEvent::Bundle(change) => self.observed.bundle(change),
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

    /// Another revision of our Deployment has taken over, or this one: everything is looked at anew.
    fn change_standing(&mut self) {
        self.stale = true;
        self.permits.forget_leftovers();
        self.contents.repeat();
        for target in self.observed.all_targets() {
            self.queue.mark(target, Order::Last, Instant::now());
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
        let is_read_awaited = self.reads.iter().any(SourceReads::is_awaited);
        if self.writes == 0 && !is_read_awaited && !self.queue.has_ready() {
            self.reads.iter_mut().for_each(SourceReads::forget);
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
        let seen_source = self.observed.source(&self.config, clone);
        let seen = plan(spec, seen_source, namespace, there);
        if let Plan::NoAction(why) = seen {
            return self.no_action(&target, &why);
        }
        let rival = self.rival(there.is_some_and(SecretState::is_last_by_us));
        let wanted = Wanted::of_clone(&seen, seen_source);
        if self.is_held(&target, &seen, &wanted, rival) {
            return;
        }
        let there = self.observed.target(clone, &target.namespace);
        let (Some(spec), Some(reads)) = (self.config.clones.get(clone), self.reads.get_mut(clone)) else { return };
        let (plan, source) = match (seen, reads.answer(mark)) {
            (seen @ Plan::Delete(DeleteReason::NotSelected | DeleteReason::Leftover), _) => (seen, None),
            (_, Some(source)) => (plan(spec, SourceView::of(source.as_deref()), namespace, there), source.clone()),
            (_, None) => return reads.wait(target),
        };
        if let Plan::NoAction(why) = plan {
            return self.no_action(&target, &why);
        }
        let read = Wanted::of_clone(&plan, SourceView::of(source.as_deref()));
        // The watch may be behind the read.
        if read != wanted && self.is_held(&target, &plan, &read, rival) {
            return;
        }
        let wanted = read;
        let there = self.observed.target(clone, &target.namespace);
        let action = Action::of_clone(&plan, source.as_deref(), there, wanted, rival);
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
        if let Plan::NoAction(why) = plan {
            return self.no_action(&target, &why);
        }
        let rival = self.rival(there.is_some_and(BundleState::is_last_by_us));
        let wanted = Wanted::of_trust(&plan, self.observed.certs_of(&target));
        if self.is_held(&target, &plan, &wanted, rival) {
            return;
        }
        let there = self.observed.all_bundles().get(&target.namespace);
        let (config, writer, publisher) = (Arc::clone(&self.config), self.writer.clone(), self.publisher.clone());
        let action = Action::of_trust(&plan, wanted, rival);
        let (there, namespace) = (there.cloned(), target.namespace.clone());
        self.begin(target, action, async move {
            match (plan, there) {
                (Plan::Delete(DeleteReason::NotSelected | DeleteReason::Leftover), _)
                    if writer.is_selected(&config.runner_namespaces, &namespace).await? =>
                {
                    Ok(false)
                }
                (Plan::Delete(DeleteReason::SourceDeleted), _) if !publisher.has_no_source(&namespace).await? => {
                    Ok(false)
                }
                (Plan::Delete(_), Some(there)) => publisher.withdraw(&namespace, &there).await.map(|()| true),
                (_, there) => publisher.publish(&namespace, there.as_ref()).await,
            }
        });
    }

    /// Where the revisions of our Deployment are known, another instance that writes is none of ours.
    fn rival(&self, is_last_by_us: bool) -> Rival {
        Rival::of(is_last_by_us && !self.standings.is_known())
    }

    /// Whether this is not written now: by this replica, or so soon. It has been put where it belongs then.
    fn is_held(&mut self, target: &Target, plan: &Plan, wanted: &Wanted, rival: Rival) -> bool {
        let now = Instant::now();
        // Without our marks it is what its source is all the same.
        self.stale |= match plan {
            Plan::Update(UpdateReason::Marks) => self.states.falls_in_step(target),
            _ => self.states.falls_out_of_step(target, now),
        };
        match self.permits.ask(self.standings.current(), target, plan, (wanted, rival), now) {
            Permit::Now => return false,
            Permit::Unknown => self.queue.done(target),
            Permit::OfOther => self.no_action(target, &NoAction::Standby),
            Permit::Later { due, is_contended } => {
                if is_contended {
                    self.set_state(target, Reason::Contended.as_str(), CONTENDED_DETAIL);
                } else {
                    let (object, namespace) = (self.states.name(target), target.namespace.as_str());
                    let seconds = due.saturating_duration_since(now).as_secs();
                    tracing::info!(
                        object,
                        namespace,
                        seconds,
                        "left over in a namespace that is not selected; deleted then"
                    );
                }
                self.queue.defer(target.clone(), due);
            }
        }
        true
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
        let Some((reads, spec)) = self.reads.get_mut(clone).zip(self.config.clones.get(clone)) else { return };
        if reads.begin(now) {
            let (mark, writer, spec) = (self.queue.latest_mark(), self.writer.clone(), spec.clone());
            self.work.spawn(async move {
                let result = writer.read_source(&spec).await.map(|source| source.map(Arc::new));
                Done::Read { clone, mark, result }
            });
        }
    }

    fn publish(&mut self) {
        let beside = view::Beside {
            out_of_step: self.states.out_of_step().clone(),
            doubts: self.doubts.clone(),
            contended: self.states.contended(),
            is_passive: !self.standings.is_active(),
        };
        let snapshot = view::snapshot(&self.config, &self.observed, &mut self.shown, beside);
        self.snapshot.publish(snapshot);
    }

    fn next_due(&self) -> Option<Instant> {
        let reads = self.reads.iter().filter_map(SourceReads::due);
        // With all writes under way nothing is taken from the queue, until one of them ends.
        let queue = self.queue.next_due().filter(|_| self.writes < MAX_WRITES);
        queue.into_iter().chain(self.rereads.next_due()).chain(reads).min()
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

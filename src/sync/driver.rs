//! The sync loop: events in, looks and writes out. One task owns all state; writes run beside it.

use std::{sync::Arc, time::Instant};

use futures::FutureExt as _;
use tokio::{task::JoinSet, time};

use super::{
    action::Action,
    clone::{Both, CloneWriter, SourceSecret},
    observe::{Observed, Target},
    permits::Permits,
    plan::WriteOutcome,
    queue::{Order, Queue},
    reread::Rereads,
    restart::{self, CloneContents, Restarts},
    source_reads::SourceReads,
    states::States,
    trust_bundle::{BundleWriter, Shown},
    view,
    watches::{StoreEvent, Watches},
};
use crate::{
    cluster::{Clients, EventQueue, Problem, Requests, Standing, Standings},
    config::{Config, Settings},
    shutdown::Shutdown,
    snapshot::{Doubts, SharedSnapshot},
    telemetry::{
        health::{BEAT_INTERVAL, Health},
        metrics::Metrics,
    },
};

mod outcome;
mod reconcile;
mod rereading;

/// Writes under way at once. More would only queue in the API server's priority and fairness.
const MAX_WRITES: usize = 24;
/// Why a contended object is not what it should be.
const CONTENDED_DETAIL: &str = "something else keeps changing it; repaired at most once a minute until that ends";
/// Events taken in before the clones are looked at.
const MAX_BATCH: usize = 256;

/// Keeps every clone equal to its source, for ever. This type owns all that sync knows; each part is a type of its own, so it
/// has many fields and little to do.
pub struct Driver {
    config: Arc<Config>,
    watches: Watches,
    clones: CloneWriter,
    bundles: BundleWriter,
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
    Write {
        target: Target,
        action: Action,
        result: Result<WriteOutcome, Problem>,
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
            observed: Observed::new(watches.namespace_watches(), config.clones.len())
                .with_trust_namespaces(config.trust_namespaces.names.len() + config.trust_namespaces.selectors.len()),
            reads: config.clones.iter().map(|_| SourceReads::default()).collect(),
            clones: CloneWriter::new(requests.clone(), Arc::clone(&config)),
            doubts: Doubts::default(),
            rereads: Rereads::default(),
            health: Arc::clone(health),
            queue: Queue::default(),
            work: JoinSet::new(),
            writes: 0,
            states: States::new(Arc::clone(&config), metrics.clone(), events),
            bundles: BundleWriter::new(requests.clone(), Arc::clone(&config)),
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

    fn read_if_wanted(&mut self, clone: usize, now: Instant) {
        let Some((reads, spec)) = self.reads.get_mut(clone).zip(self.config.clones.get(clone)) else { return };
        if reads.begin(now) {
            let (mark, writer, spec) = (self.queue.latest_mark(), self.clones.clone(), spec.clone());
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

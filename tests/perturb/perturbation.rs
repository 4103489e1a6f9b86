//! One thing that goes wrong at one point of a run.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use kube::Client;
use serde_json::{Value, json};
use test_support::{Call, Fate, Passage, Tap, Tool, ToolBuilder};
use tokio::sync::watch;

use crate::trace::{Object, Point, Trace, Watch};

/// No request for so long: the program has done what it can for now.
const QUIET: Duration = Duration::from_millis(100);

/// Far more than the last event of a story takes to come.
const COMES_LATE: Duration = Duration::from_secs(10);

/// What goes wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Perturbation {
    pub fault: Fault,
    pub at: Point,
}

/// "Later" is after the next step of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL before the write is stored; started again at once.
    CrashBefore,
    /// SIGKILL after the write was stored, before its answer; started again at once.
    CrashAfter,
    /// SIGKILL after the write was stored; started again later.
    DownAfter,
    /// The write is refused so.
    Refuse(u16, &'static str),
    /// The write is stored, and the answer is 504.
    CommitThenTimeout,
    /// The write is stored, and the connection breaks.
    CommitThenBreak,
    /// The connection breaks before the write is stored.
    BreakBefore,
    /// This event and all that follow on its watch come later.
    Hold,
    /// This event and all that follow on its watch never come; later, the watch lists again.
    Drop,
    /// The watch breaks before this event.
    Cut,
    /// SIGKILL before this event; started again later.
    DownAt,
    /// The lists are copied. After the next step of the story the program is started anew, reads these, and its watches
    /// begin there; later they catch up, that of this event last. Its gets are quorum reads, which no API server answers from a cache.
    Stale,
}

const AT_WRITES: [Fault; 11] = [
    Fault::CrashBefore,
    Fault::CrashAfter,
    Fault::DownAfter,
    Fault::Refuse(409, "Conflict"),
    Fault::Refuse(422, "Invalid"),
    Fault::Refuse(429, "TooManyRequests"),
    Fault::Refuse(500, "InternalError"),
    Fault::Refuse(504, "Timeout"),
    Fault::CommitThenTimeout,
    Fault::CommitThenBreak,
    Fault::BreakBefore,
];
const AT_EVENTS: [Fault; 5] = [Fault::Hold, Fault::Drop, Fault::Cut, Fault::DownAt, Fault::Stale];

/// Every perturbation of a run that had these points.
pub fn all(points: &[Point]) -> Vec<Perturbation> {
    let faults = |point: &Point| if matches!(point, Point::Write(..)) { &AT_WRITES[..] } else { &AT_EVENTS[..] };
    points.iter().flat_map(|at| faults(at).iter().map(|fault| Perturbation { fault: *fault, at: *at })).collect()
}

impl fmt::Display for Perturbation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::CrashBefore => write!(f, "crash-before-{}", self.at),
            Fault::CrashAfter => write!(f, "crash-after-{}", self.at),
            Fault::DownAfter => write!(f, "down-after-{}", self.at),
            Fault::Refuse(code, _) => write!(f, "answer-{code}-to-{}", self.at),
            Fault::CommitThenTimeout => write!(f, "commit-then-504-{}", self.at),
            Fault::CommitThenBreak => write!(f, "commit-then-break-{}", self.at),
            Fault::BreakBefore => write!(f, "break-before-{}", self.at),
            Fault::Hold => write!(f, "hold-{}", self.at),
            Fault::Drop => write!(f, "drop-{}", self.at),
            Fault::Cut => write!(f, "cut-before-{}", self.at),
            Fault::DownAt => write!(f, "down-at-{}", self.at),
            Fault::Stale => write!(f, "stale-from-{}", self.at),
        }
    }
}

/// The program, which can be killed and started again.
pub struct Program {
    builder: ToolBuilder,
    tool: tokio::sync::Mutex<Option<Tool>>,
}

impl Program {
    pub fn new(builder: ToolBuilder) -> Self {
        Self { builder, tool: tokio::sync::Mutex::default() }
    }

    pub async fn start(&self) {
        self.tool.lock().await.get_or_insert_with(|| self.builder.clone().spawn());
    }

    pub async fn kill(&self) {
        let tool = self.tool.lock().await.take();
        if let Some(tool) = tool {
            tool.kill().await;
        }
    }

    /// Waits until it is ready; returns the port of its webhooks.
    pub async fn ready(&self) -> u16 {
        let tool = self.tool.lock().await;
        let tool = tool.as_ref().expect("the program runs");
        tool.ready().await;
        tool.webhook_port().await
    }

    /// The end of its log.
    pub async fn log(&self) -> String {
        let tool = self.tool.lock().await;
        let lines = tool.as_ref().map(Tool::log_lines).unwrap_or_default();
        let end: Vec<_> = lines.iter().skip(lines.len().saturating_sub(12)).map(ToString::to_string).collect();
        end.join("\n")
    }
}

/// How far a perturbation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Awaited,
    /// The story has to go on for the run to go on.
    Blocking,
    /// The lists are copied.
    Copied,
    /// The program reads the copy.
    Frozen,
    /// All watches but that of the point have caught up.
    Thawing,
    Over,
}

/// Records a run, and perturbs it at most once.
pub struct Perturber {
    perturbation: Option<Perturbation>,
    namespaces: [String; 2],
    client: Client,
    program: Arc<Program>,
    trace: Mutex<Trace>,
    stage: watch::Sender<Stage>,
    /// Paths of the lists that were asked for, and what was copied of them.
    lists: Mutex<BTreeMap<String, Value>>,
    last_request: Mutex<Instant>,
}

impl Perturber {
    pub fn new(
        perturbation: Option<Perturbation>,
        namespaces: [String; 2],
        client: Client,
        program: Arc<Program>,
    ) -> Self {
        Self {
            perturbation,
            namespaces,
            client,
            program,
            trace: Mutex::default(),
            stage: watch::Sender::new(Stage::Awaited),
            lists: Mutex::default(),
            last_request: Mutex::new(Instant::now()),
        }
    }

    pub fn trace(&self) -> Trace {
        self.trace.lock().expect("the trace").clone()
    }

    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until the story has to go on.
    pub async fn blocking(&self) {
        let mut stage = self.stage.subscribe();
        stage.wait_for(|stage| *stage == Stage::Blocking).await.expect("the sender lives");
    }

    /// Waits until the perturbation has begun: its point may come a moment after the end of the story.
    pub async fn begun(&self) {
        let mut stage = self.stage.subscribe();
        if self.perturbation.is_some() {
            let begun = stage.wait_for(|stage| *stage != Stage::Awaited);
            let _ = tokio::time::timeout(COMES_LATE, begun).await;
        }
    }

    /// What is held back comes, what is down is started, what is stale catches up.
    pub async fn release(&self) {
        if self.stage() == Stage::Frozen {
            self.stage.send_replace(Stage::Thawing);
            *self.last_request.lock().expect("the time") = Instant::now();
            self.quiet().await;
        }
        if [Stage::Blocking, Stage::Thawing].contains(&self.stage()) {
            self.program.start().await;
            self.stage.send_replace(Stage::Over);
        }
    }

    /// Starts the program anew on the copy, and waits until it has done what follows from that.
    pub async fn freeze(&self) {
        self.program.kill().await;
        self.stage.send_replace(Stage::Frozen);
        self.program.start().await;
        self.program.ready().await;
        self.quiet().await;
    }

    /// Waits until the program asks for nothing more.
    pub async fn quiet(&self) {
        while self.last_request.lock().expect("the time").elapsed() < QUIET {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The fault of this point, the first time that it is asked for.
    fn fault(&self, point: Point) -> Option<Fault> {
        let fault = self.perturbation.filter(|perturbation| perturbation.at == point)?.fault;
        let stage = match fault {
            Fault::Hold | Fault::Drop => Stage::Blocking,
            Fault::Stale => Stage::Copied,
            // Once it is down; and a write has to be stored before.
            Fault::DownAt | Fault::DownAfter => return Some(fault),
            _ => Stage::Over,
        };
        self.stage.send_replace(stage);
        Some(fault)
    }

    /// Kills the program. In a task of its own: this one may end with the connection of whom it kills.
    async fn crash(&self, starts_again: bool) -> Fate {
        let (program, stage) = (Arc::clone(&self.program), self.stage.clone());
        let crash = tokio::spawn(async move {
            program.kill().await;
            if starts_again {
                program.start().await;
            } else {
                stage.send_replace(Stage::Blocking);
            }
        });
        crash.await.expect("the program is killed");
        Fate::Break
    }

    async fn copy_lists(&self) {
        let paths: Vec<_> = self.lists.lock().expect("the lists").keys().cloned().collect();
        for path in paths {
            let request = http::Request::get(&path).body(Vec::new()).expect("a request");
            let mut list: Value = self.client.request(request).await.expect("a list");
            let items = list["items"].as_array_mut().expect("a list");
            items.retain(|object| {
                let metadata = &object["metadata"];
                self.shows(metadata["namespace"].as_str().or(metadata["name"].as_str()).unwrap_or_default())
            });
            self.lists.lock().expect("the lists").insert(path, list);
        }
    }
}

impl Tap for Perturber {
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Fate> {
        Box::pin(async move {
            let is_watch = call.path.contains("watch=true");
            if !is_watch {
                *self.last_request.lock().expect("the time") = Instant::now();
            }
            if call.method == "GET" && !is_watch && Watch::of(&call.path).is_some() {
                let mut lists = self.lists.lock().expect("the lists");
                let copy = lists.entry(call.path.clone()).or_default();
                let frozen = self.stage() == Stage::Frozen && !copy.is_null();
                return if frozen { Fate::Answer(200, copy.clone()) } else { Fate::Pass };
            }
            let Some(object) = Object::written_by(call) else { return Fate::Pass };
            let point = self.trace.lock().expect("the trace").write(object, call);
            match self.fault(point) {
                Some(Fault::CrashBefore) => self.crash(true).await,
                Some(Fault::BreakBefore) => Fate::Break,
                Some(Fault::Refuse(code, reason)) => Fate::Answer(code, status(code, reason)),
                _ => Fate::Pass,
            }
        })
    }

    fn after<'a>(&'a self, call: &'a Call, _: u16) -> BoxFuture<'a, Fate> {
        Box::pin(async move {
            let Some(object) = Object::written_by(call) else { return Fate::Pass };
            let number = self.trace.lock().expect("the trace").writes.get(&object).copied().unwrap_or_default();
            let at = Point::Write(object, number);
            match self.perturbation.filter(|perturbation| perturbation.at == at).map(|perturbation| perturbation.fault)
            {
                Some(Fault::CrashAfter) => self.crash(true).await,
                Some(Fault::DownAfter) => self.crash(false).await,
                Some(Fault::CommitThenTimeout) => Fate::Answer(504, status(504, "Timeout")),
                Some(Fault::CommitThenBreak) => Fate::Break,
                _ => Fate::Pass,
            }
        })
    }

    fn event<'a>(&'a self, path: &'a str, event: &'a Value) -> BoxFuture<'a, Passage> {
        Box::pin(async move {
            let Some(watch) = Watch::of(path) else { return Passage::Pass };
            let kind = event["type"].as_str().unwrap_or_default();
            let point = self.trace.lock().expect("the trace").event(watch, kind);
            let fault = self.fault(point);
            match fault {
                Some(Fault::Cut) => return Passage::Cut,
                Some(Fault::DownAt) => _ = self.crash(false).await,
                Some(Fault::Stale) => self.copy_lists().await,
                _ => {}
            }
            let of_this_watch = self
                .perturbation
                .is_some_and(|perturbation| matches!(perturbation.at, Point::Event(other, _) if other == watch));
            let mut stage = self.stage.subscribe();
            let goes_on = |stage: &Stage| match stage {
                Stage::Blocking | Stage::Thawing => !of_this_watch,
                Stage::Frozen => false,
                _ => true,
            };
            stage.wait_for(goes_on).await.expect("the sender lives");
            if fault == Some(Fault::Drop) { Passage::Expire } else { Passage::Pass }
        })
    }

    fn shows(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|ours| ours == namespace)
    }
}

fn status(code: u16, reason: &str) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": "perturbed",
    });
    if code == 429 {
        status["details"] = json!({"retryAfterSeconds": 1});
    }
    status
}

//! One watch that never ends.
//!
//! It begins with what is stored, which comes as a stream of its own (an API server that cannot do that is asked for
//! pages), so that one object is held at a time. It goes on from where it was when the API server ends it, as it does
//! once a minute. It begins anew after a failure, such as a 410 or an API server that was away, when history went back
//! (etcd restored from an older backup, which a watch never tells), and when a read contradicts it.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::Stream;
use http::{HeaderValue, Request, header::ACCEPT_ENCODING};
use kube::api::{ListParams, WatchParams};
use serde_json::value::RawValue;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch as channel},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Change, Problem, Query, Reason,
    lines::Lines,
    raw::{Line, Page, Raw},
    watch_client::{WatchClient, WatchShared},
};
use crate::backoff;

/// Objects in one page, where lists do not come as a stream: each may be 1 MiB, and a page is held whole.
const PAGE_SIZE: u32 = 4;
/// Changes that wait for who reads them.
const WAITING: usize = 16;
/// Longest wait for the beginning of an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for the next object of a list.
const NEXT_OBJECT: Duration = Duration::from_secs(15);
/// How much longer than asked for a watch may last before its connection counts as dead.
const MARGIN: Duration = Duration::from_secs(5);
/// A watch that the API server ends earlier than this has failed.
const SHORTEST: Duration = Duration::from_millis(500);
/// First and longest pause between attempts. An API server that is ready is seen within the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// Attempts after which the pauses become long: what is refused so often is refused for good.
const PATIENT_AFTER: u32 = 30;
const PATIENT_PAUSE: Duration = Duration::from_secs(10);

/// Watches for ever, from now on. Objects that `decode` makes nothing of are passed over.
///
/// It runs in a task of its own: whoever reads it may be busy with something else, and other watches wait for their turn.
pub fn watch<T, D>(
    client: &WatchClient,
    query: Query,
    timeout: Duration,
    decode: D,
) -> impl Stream<Item = Change<T>> + Send + use<T, D>
where
    T: Send + 'static,
    D: FnMut(&Raw<'_>) -> serde_json::Result<Option<T>> + Send + 'static,
{
    let mut watch = Watch {
        client: client.client.clone(),
        shared: Arc::clone(&client.shared),
        rewinds: client.shared.history.rewinds.subscribe(),
        query,
        timeout,
        decode,
        version: None,
        source: None,
        failures: 0,
        outage: None,
        pause: Duration::ZERO,
        last_expiry: None,
        in_pages: false,
        was_listed: false,
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut task = JoinSet::new();
    task.spawn(async move { while sender.send(watch.next().await).await.is_ok() {} });
    futures::stream::unfold((receiver, task), |(mut receiver, mut task)| async {
        if let Some(change) = receiver.recv().await {
            return Some((change, (receiver, task)));
        }
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => None,
        }
    })
}

struct Watch<D> {
    client: kube::Client,
    shared: Arc<WatchShared>,
    rewinds: channel::Receiver<u64>,
    query: Query,
    timeout: Duration,
    decode: D,
    /// The `resourceVersion` to go on from; without one it begins with a list.
    version: Option<String>,
    source: Option<ChangeSource>,
    /// Failures in a row of a watch that could be opened, or was refused.
    failures: u32,
    /// The API server was away, and had been reached again so often then.
    outage: Option<u64>,
    /// What the API server wants to be left alone for.
    pause: Duration,
    /// When it last expired.
    last_expiry: Option<Instant>,
    /// The API server does not stream lists.
    in_pages: bool,
    /// A list in pages is complete, and what happened since is still to be asked for.
    was_listed: bool,
}

/// Where changes come from at the moment.
enum ChangeSource {
    Stream { lines: Lines, opened: Instant, list: Option<List> },
    Pages { items: VecDeque<Box<RawValue>>, next: Option<String>, version: Option<String>, list: List },
}

/// A list under way.
struct List {
    /// The latest revision known when it began.
    before: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<T, D: FnMut(&Raw<'_>) -> serde_json::Result<Option<T>>> Watch<D> {
    async fn next(&mut self) -> Change<T> {
        loop {
            let step = match &self.source {
                None => self.open().await,
                Some(ChangeSource::Stream { .. }) => self.follow().await,
                Some(ChangeSource::Pages { .. }) => self.turn_page().await,
            };
            match step {
                Ok(Some(change)) => return change,
                Ok(None) => {}
                Err(problem) => {
                    self.fail(&problem);
                    return Change::Failed(problem);
                }
            }
        }
    }

    /// Opens it, when its time has come.
    async fn open(&mut self) -> Result<Option<Change<T>>, Problem> {
        if self.failures > 0 || !self.pause.is_zero() {
            let is_patient = self.failures > PATIENT_AFTER && self.outage.is_none();
            let longest = if is_patient { PATIENT_PAUSE } else { PAUSE.1 };
            let own =
                if self.failures == 0 { Duration::ZERO } else { backoff::pause(self.failures - 1, PAUSE.0, longest) };
            sleep(own.max(std::mem::take(&mut self.pause))).await;
        }
        let shared = Arc::clone(&self.shared);
        let mut turn = None;
        if let Some(recoveries) = self.outage {
            let attempts = shared.turn.lock().await;
            // Else another watch has been through meanwhile: the API server is back.
            if shared.recoveries.load(Ordering::Acquire) == recoveries {
                sleep(backoff::pause(*attempts, PAUSE.0, PAUSE.1)).await;
                turn = Some(attempts);
            }
        }
        let result = self.send().await;
        let is_away = matches!(&result, Err(problem) if is_outage(problem.reason));
        if !is_away {
            self.outage = None;
        }
        if let Some(mut attempts) = turn {
            if is_away {
                *attempts = attempts.saturating_add(1);
            } else {
                *attempts = 0;
                shared.recoveries.fetch_add(1, Ordering::AcqRel);
            }
        }
        result
    }

    /// Asks for the watch, or for the list that it begins with.
    async fn send(&mut self) -> Result<Option<Change<T>>, Problem> {
        if self.query.begins_anew && !std::mem::take(&mut self.was_listed) {
            self.version = None;
        }
        let list = match &self.version {
            Some(_) => None,
            None => Some(self.begin_list().await),
        };
        if self.in_pages
            && let Some(list) = list
        {
            self.source =
                Some(ChangeSource::Pages { items: VecDeque::new(), next: Some(String::new()), version: None, list });
            return Ok(Some(Change::ListBegins));
        }
        let params = WatchParams {
            label_selector: self.query.labels.clone(),
            field_selector: self.query.fields.clone(),
            timeout: Some(u32::try_from(self.timeout.as_secs()).unwrap_or(u32::MAX)),
            bookmarks: true,
            send_initial_events: list.is_some(),
        };
        let requests = kube::core::Request::new(self.query.path.clone());
        let version = self.version.as_deref().unwrap_or_default();
        let request = if self.query.metadata_only {
            requests.watch_metadata(&params, version)
        } else {
            requests.watch(&params, version)
        };
        let tried = self.tried(list.is_some());
        let mut request: Request<Vec<u8>> = request.map_err(|error| Problem::unsent(&tried, &error))?;
        // From 1.37 on each event would be a gzip member of its own, of which the client reads the first.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let client = self.client.clone();
        match super::in_time(ANSWER, tried, client.request_stream(request)).await {
            Ok(reader) => {
                let begins = list.is_some();
                self.source = Some(ChangeSource::Stream { lines: Lines::new(reader), opened: Instant::now(), list });
                Ok(begins.then_some(Change::ListBegins))
            }
            Err(problem) if list.is_some() && problem.reason == Reason::Invalid => {
                tracing::debug!(what = self.query.what, detail = %problem, "lists do not come as a stream here");
                self.in_pages = true;
                Ok(None)
            }
            Err(problem) => Err(problem),
        }
    }

    async fn begin_list(&mut self) -> List {
        let lists = Arc::clone(&self.shared.lists);
        // It is never closed.
        let permit = if self.query.is_large { lists.acquire_owned().await.ok() } else { None };
        self.rewinds.mark_unchanged();
        List { before: self.shared.history.revision(), _permit: permit }
    }

    /// The next line of the stream.
    async fn follow(&mut self) -> Result<Option<Change<T>>, Problem> {
        let tried = self.tried(matches!(&self.source, Some(ChangeSource::Stream { list: Some(_), .. })));
        let Some(ChangeSource::Stream { lines, opened, list }) = &mut self.source else { return Ok(None) };
        let limit = if list.is_some() { NEXT_OBJECT } else { self.timeout + MARGIN };
        let line = tokio::select! {
            biased;
            _ = self.rewinds.changed() => None,
            () = self.query.doubt.notified(), if list.is_none() => None,
            line = timeout(limit, lines.next()) => Some(line),
        };
        let line = match line {
            None => {
                (self.source, self.version) = (None, None);
                return Ok(None);
            }
            Some(Ok(Ok(Some(line)))) => line,
            Some(Ok(Err(error))) if list.is_some() => return Err(broken(tried, error.to_string())),
            Some(Err(_)) if list.is_some() => return Err(Problem::timeout(tried, limit)),
            Some(Ok(Ok(None))) if list.is_some() => return Err(broken(tried, "the list was cut off".to_owned())),
            // Balancers cut what is quiet: that is a failure only if it cannot be opened again.
            Some(Err(_) | Ok(Ok(None) | Err(_))) => {
                self.failures = if opened.elapsed() < SHORTEST { self.failures.saturating_add(1) } else { 0 };
                self.source = None;
                return Ok(None);
            }
        };
        let line = Line::parse(line).map_err(|error| unreadable(&tried, error))?;
        if !matches!(line, Some(Line::Error(_)) | None) {
            self.failures = 0;
        }
        let change = match line {
            Some(Line::Applied(object)) => {
                let found = (self.decode)(&object).map_err(|error| unreadable(&tried, error))?;
                if list.is_some() {
                    return Ok(found.map(Change::Listed));
                }
                self.shared.history.saw(object.version().as_deref().unwrap_or_default());
                self.version = object.version();
                found.map(Change::Applied)
            }
            Some(Line::Deleted(object)) => {
                let found = (self.decode)(&object).map_err(|error| unreadable(&tried, error))?;
                self.shared.history.saw(object.version().as_deref().unwrap_or_default());
                self.version = object.version();
                found.map(Change::Deleted)
            }
            Some(Line::Bookmark { version, list_ends: true }) if list.is_some() => {
                let before = list.take().map_or(0, |list| list.before);
                self.list_ended(before, version);
                Some(Change::ListEnds)
            }
            Some(Line::Bookmark { version, .. }) => {
                if list.is_none() {
                    self.shared.history.saw(&version);
                    self.version = Some(version);
                }
                None
            }
            Some(Line::Error(status)) => return Err(Problem::from_status(tried, &status)),
            None => None,
        };
        Ok(change)
    }

    /// The next object of a list in pages, from the next page if there is none in this one.
    async fn turn_page(&mut self) -> Result<Option<Change<T>>, Problem> {
        let tried = self.tried(true);
        let Some(ChangeSource::Pages { items, next, version, list }) = &mut self.source else { return Ok(None) };
        if let Some(item) = items.pop_front() {
            let raw = Raw::parse(item.get()).map_err(|error| unreadable(&tried, error))?;
            let found = (self.decode)(&raw).map_err(|error| unreadable(&tried, error))?;
            return Ok(found.map(Change::Listed));
        }
        let Some(token) = next.take() else {
            let (before, version) = (list.before, version.take());
            let version = version.ok_or_else(|| broken(tried, "the list has no resourceVersion".to_owned()))?;
            self.list_ended(before, version);
            (self.source, self.was_listed) = (None, true);
            return Ok(Some(Change::ListEnds));
        };
        let params = ListParams {
            label_selector: self.query.labels.clone(),
            field_selector: self.query.fields.clone(),
            limit: Some(PAGE_SIZE),
            continue_token: Some(token).filter(|token| !token.is_empty()),
            ..ListParams::default()
        };
        let requests = kube::core::Request::new(self.query.path.clone());
        let request = if self.query.metadata_only { requests.list_metadata(&params) } else { requests.list(&params) };
        let request = request.map_err(|error| Problem::unsent(&tried, &error))?;
        let text = super::in_time(ANSWER, tried.clone(), self.client.request_text(request)).await?;
        let page: Page = serde_json::from_str(&text).map_err(|error| unreadable(&tried, error))?;
        *items = page.items.unwrap_or_default().into();
        *next = page.metadata.next.filter(|token| !token.is_empty());
        *version = page.metadata.resource_version.filter(|version| !version.is_empty());
        Ok(None)
    }

    fn list_ended(&mut self, before: u64, version: String) {
        self.failures = 0;
        if self.shared.history.read(before, &version) {
            tracing::warn!(
                what = self.query.what,
                version,
                before,
                "the API server's history went back, as after a restore of etcd from an older backup; listing everything anew"
            );
            self.rewinds.mark_unchanged();
        }
        self.version = Some(version);
    }

    fn fail(&mut self, problem: &Problem) {
        let was_open = self.source.take().is_some();
        self.pause = problem.retry_after.unwrap_or_default();
        // What is stored may be another history by the time that it works again.
        self.version = None;
        if problem.reason == Reason::Expired {
            // At once, but not again and again.
            if self.last_expiry.replace(Instant::now()).is_none_or(|last| last.elapsed() > PAUSE.1) {
                return;
            }
        }
        if is_outage(problem.reason) {
            self.outage = Some(self.shared.recoveries.load(Ordering::Acquire));
        }
        // An API server that is away is tried in turns, which have their own pauses.
        if was_open || !is_outage(problem.reason) {
            self.failures = self.failures.saturating_add(1);
        }
    }

    fn tried(&self, is_list: bool) -> String {
        format!("{} {}", if is_list { "list" } else { "watch" }, self.query.what)
    }
}

/// Whether it is the API server, or the way to it, and not this request.
fn is_outage(reason: Reason) -> bool {
    matches!(reason, Reason::Unreachable | Reason::Timeout | Reason::ServerError)
}

fn broken(tried: String, message: String) -> Problem {
    Problem { tried, reason: Reason::Unreachable, message, retry_after: None }
}

/// Without the text of the error, which may quote what did not parse.
fn unreadable(tried: &str, error: serde_json::Error) -> Problem {
    Problem::new(tried, &kube::Error::SerdeError(error))
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;

//! One watch that never ends: lists, follows, reconnects with back-off, re-lists after 410.

use std::{fmt::Debug, future, time::Duration};

use futures::{Stream, StreamExt};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

use super::Problem;
use crate::backoff;

/// Objects in one page of the first list. Small, since each may be 1 MiB and a page is held whole.
const PAGE_SIZE: u32 = 64;

/// What a watch tells. An object deleted while the watch was down is merely missing between
/// [`Change::ListBegins`] and [`Change::ListEnds`].
#[derive(Debug)]
pub enum Change<T> {
    /// A list begins: what is not listed until it ends is gone.
    ListBegins,
    /// An object of the list.
    Listed(T),
    /// The list is complete.
    ListEnds,
    /// An object was created or changed.
    Applied(T),
    /// An object was deleted; this was its last state.
    Deleted(T),
    /// The connection failed; it is tried again. What is known stays true until told otherwise.
    Failed(Problem),
}

impl<T> Change<T> {
    /// The same change of another view of the object.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Change<U> {
        match self {
            Self::ListBegins => Change::ListBegins,
            Self::Listed(object) => Change::Listed(convert(object)),
            Self::ListEnds => Change::ListEnds,
            Self::Applied(object) => Change::Applied(convert(object)),
            Self::Deleted(object) => Change::Deleted(convert(object)),
            Self::Failed(problem) => Change::Failed(problem),
        }
    }
}

/// Watches what `selector` selects, for ever. `what` names it in problems. Objects that `convert`
/// makes nothing of are passed over.
pub fn watch<K, T>(
    api: Api<K>,
    selector: watcher::Config,
    timeout: Duration,
    what: String,
    convert: impl Fn(K) -> Option<T>,
) -> impl Stream<Item = Change<T>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
    let config = selector.timeout(seconds).page_size(PAGE_SIZE);
    watcher::watcher(api, config)
        // A list begins with an event that says so before anything was asked: only a quiet minute counts as success.
        .backoff(ResetTimerBackoff::new(Reconnect::default(), Duration::from_mins(1)))
        .filter_map(move |event| {
            future::ready(match event {
                Ok(Event::Init) => Some(Change::ListBegins),
                Ok(Event::InitApply(object)) => convert(object).map(Change::Listed),
                Ok(Event::InitDone) => Some(Change::ListEnds),
                Ok(Event::Apply(object)) => convert(object).map(Change::Applied),
                Ok(Event::Delete(object)) => convert(object).map(Change::Deleted),
                Err(error) => Some(Change::Failed(problem(&what, &error))),
            })
        })
}

/// Pauses between attempts to reconnect.
#[derive(Default)]
struct Reconnect {
    attempts: u32,
}

impl Iterator for Reconnect {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = backoff::pause(self.attempts, Duration::from_millis(200), Duration::from_secs(10));
        self.attempts = self.attempts.saturating_add(1);
        Some(pause)
    }
}

impl Backoff for Reconnect {
    fn reset(&mut self) {
        self.attempts = 0;
    }
}

fn problem(what: &str, error: &watcher::Error) -> Problem {
    match error {
        watcher::Error::InitialListFailed(error) => Problem::new(format!("list {what}"), error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            Problem::new(format!("watch {what}"), error)
        }
        watcher::Error::WatchError(status) => Problem::from_status(format!("watch {what}"), status),
        watcher::Error::NoResourceVersion => Problem {
            tried: format!("watch {what}"),
            reason: super::Reason::Unreadable,
            message: "the answer has no resourceVersion".to_owned(),
            retry_after: None,
        },
    }
}

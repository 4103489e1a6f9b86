//! A watch of one name over all namespaces, of which only those that are selected are looked into.
//!
//! What lies elsewhere is another's: its text is dropped as it comes in, and costs neither memory nor a look. When its
//! namespace is selected later, it is read then.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    cluster::{Change, Problem, Reason},
    config::NamespaceName,
};

/// Until a read that failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// The namespaces that are looked into; none: that is not known yet.
pub type Selected = watch::Receiver<Option<Arc<BTreeSet<NamespaceName>>>>;

/// What was made of an object.
pub struct FilteredObject<T> {
    pub namespace: NamespaceName,
    pub state: T,
    /// Whether the store keeps it.
    pub is_kept: bool,
    /// Whether it was not looked into.
    pub is_unread: bool,
}

/// Passes on what a watch tells, for ever, and reads what nobody looked into once its namespace is selected.
pub async fn forward<T, E, R>(
    mut changes: impl Stream<Item = Change<FilteredObject<T>>> + Unpin,
    mut selected: Selected,
    read: impl Fn(NamespaceName) -> R,
    events: mpsc::Sender<E>,
    event: impl Fn(Change<(NamespaceName, T)>) -> E,
) where
    R: Future<Output = Result<Option<T>, Problem>>,
{
    // Not before it is known what is to be looked into.
    if selected.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let (mut unread, mut is_listing) = (BTreeSet::new(), false);
    // Those whose read failed lately, and until when none of them is read again.
    let (mut failed, mut retry) = (BTreeSet::new(), None::<Instant>);
    // Why the last read failed, which is said once.
    let mut failing = None::<Reason>;
    loop {
        let due = if is_listing { None } else { due(&unread, &failed, &mut selected) };
        let change = if let Some(namespace) = due {
            match read(namespace.clone()).await {
                Ok(state) => {
                    failing = None;
                    unread.remove(&namespace);
                    // One that is gone again is told by the watch, too.
                    let Some(state) = state else { continue };
                    Change::Applied((namespace, state))
                }
                Err(problem) => {
                    failed.insert(namespace);
                    retry.get_or_insert_with(|| Instant::now() + PAUSE);
                    if failing.replace(problem.reason) != Some(problem.reason) {
                        let (reason, detail) = (problem.reason.as_str(), problem.to_string());
                        tracing::warn!(
                            reason,
                            detail,
                            "what a newly selected namespace holds cannot be read; tried again"
                        );
                    }
                    continue;
                }
            }
        } else {
            tokio::select! {
                change = changes.next() => {
                    let Some(change) = change else { return };
                    match &change {
                        Change::ListBegins => (is_listing, unread) = (true, BTreeSet::new()),
                        Change::ListEnds | Change::Failed(_) => is_listing = false,
                        Change::Listed(view) | Change::Applied(view) if view.is_unread => {
                            unread.insert(view.namespace.clone());
                        }
                        Change::Listed(view) | Change::Applied(view) | Change::Deleted(view) => {
                            unread.remove(&view.namespace);
                        }
                    }
                    match passed_on(change) {
                        Some(change) => change,
                        None => continue,
                    }
                }
                selection = selected.changed() => {
                    if selection.is_err() {
                        return;
                    }
                    continue;
                }
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                    (failed, retry) = (BTreeSet::new(), None);
                    continue;
                }
            }
        };
        if events.send(event(change)).await.is_err() {
            return;
        }
    }
}

/// What the store is told: one that it does not keep is as good as deleted.
fn passed_on<T>(change: Change<FilteredObject<T>>) -> Option<Change<(NamespaceName, T)>> {
    Some(match change {
        Change::Listed(view) if !view.is_kept => return None,
        Change::Applied(view) if !view.is_kept => Change::Deleted((view.namespace, view.state)),
        change => change.map(|view| (view.namespace, view.state)),
    })
}

/// One that nobody looked into and that is to be looked into now.
fn due(
    unread: &BTreeSet<NamespaceName>,
    failed: &BTreeSet<NamespaceName>,
    selected: &mut Selected,
) -> Option<NamespaceName> {
    let selected = selected.borrow_and_update();
    let selected = selected.as_ref()?;
    // The fewer decide.
    if unread.len() <= selected.len() {
        unread.iter().find(|namespace| selected.contains(*namespace) && !failed.contains(*namespace)).cloned()
    } else {
        selected.iter().find(|namespace| unread.contains(*namespace) && !failed.contains(*namespace)).cloned()
    }
}

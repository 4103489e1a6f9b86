//! One call for all who ask for the same thing at the same time.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Mutex as Leader;

/// Calls by key. A result is shared by those who asked before its call began, never by one who asked later: what that one
/// needs may have happened in between.
#[derive(Debug)]
pub(crate) struct Singleflight<K: Eq + Hash, V>(Mutex<HashMap<K, Group<V>>>);

/// Those who wait for the result of one key, now.
#[derive(Debug)]
struct Group<V> {
    call: Arc<Call<V>>,
    waiters: usize,
}

#[derive(Debug)]
struct Call<V> {
    /// How many calls have begun.
    begun: AtomicU64,
    /// The number of the latest result, and the result. Whoever holds the lock calls.
    latest: Leader<Option<(u64, V)>>,
}

/// One who waits. However the waiting ends, the key is forgotten with the last one.
struct Waiter<'a, K: Eq + Hash, V> {
    calls: &'a Singleflight<K, V>,
    key: &'a K,
    call: Arc<Call<V>>,
}

impl<K: Eq + Hash, V> Default for Singleflight<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Singleflight<K, V> {
    /// Calls, or waits for one who is about to call.
    pub(crate) async fn run<F: Future<Output = V>>(&self, key: &K, call: impl FnOnce() -> F) -> V {
        let waiter = self.wait(key);
        // A result with this number or a later one is of a call that began after now.
        let wanted = waiter.call.begun.load(Ordering::Acquire) + 1;
        let mut latest = waiter.call.latest.lock().await;
        match &*latest {
            Some((number, result)) if *number >= wanted => result.clone(),
            _ => {
                let number = waiter.call.begun.fetch_add(1, Ordering::AcqRel) + 1;
                let result = call().await;
                *latest = Some((number, result.clone()));
                result
            }
        }
    }

    fn wait<'a>(&'a self, key: &'a K) -> Waiter<'a, K, V> {
        let mut groups = self.groups();
        let group = groups.entry(key.clone()).or_insert_with(|| Group {
            call: Arc::new(Call { begun: AtomicU64::new(0), latest: Leader::default() }),
            waiters: 0,
        });
        group.waiters += 1;
        Waiter { calls: self, key, call: Arc::clone(&group.call) }
    }
}

impl<K: Eq + Hash, V> Singleflight<K, V> {
    /// A panic while the lock was held leaves a map that is still whole.
    fn groups(&self) -> MutexGuard<'_, HashMap<K, Group<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V> Drop for Waiter<'_, K, V> {
    fn drop(&mut self) {
        let mut groups = self.calls.groups();
        if let Some(group) = groups.get_mut(self.key) {
            group.waiters -= 1;
            if group.waiters == 0 {
                groups.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::{FutureExt as _, future::join_all};
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_at_once_share_and_those_who_ask_later_do_not() {
        let calls = Singleflight::<u8, usize>::default();
        let asked = AtomicUsize::new(0);
        let (begun, go_on) = (Notify::new(), Notify::new());
        let first = calls.run(&1, || async {
            begun.notify_one();
            go_on.notified().await;
            asked.fetch_add(1, Ordering::SeqCst)
        });
        let others = async {
            begun.notified().await;
            // The first question is on its way: what these ask about may have happened since.
            let late = join_all((0..10).map(|_| calls.run(&1, || async { asked.fetch_add(1, Ordering::SeqCst) })));
            let let_go = async {
                tokio::task::yield_now().await;
                go_on.notify_one();
            };
            tokio::join!(late, let_go).0
        };
        let (first, late) = tokio::join!(first, others);
        assert_eq!(first, 0);
        assert_eq!(late, [1; 10], "ten shared one answer, and not the one begun before");
        assert!(calls.groups().is_empty(), "no key is kept");
    }

    /// On real threads, in no order of ours.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_result_is_of_a_call_that_began_before_it_was_asked_for() {
        let (calls, clock) = (Arc::new(Singleflight::<u8, u64>::default()), Arc::new(AtomicU64::new(0)));
        let made = Arc::new(AtomicUsize::new(0));
        let askers = (0..16_u64).map(|asker| {
            let (calls, clock, made) = (Arc::clone(&calls), Arc::clone(&clock), Arc::clone(&made));
            tokio::spawn(async move {
                for turn in 0..2_000 {
                    let asked = clock.fetch_add(1, Ordering::SeqCst);
                    let call = || async {
                        made.fetch_add(1, Ordering::SeqCst);
                        let began = clock.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        began
                    };
                    // Some give up halfway.
                    if (asker + turn) % 7 == 0 {
                        let _ = futures::poll!(std::pin::pin!(calls.run(&1, call)));
                    } else {
                        assert!(calls.run(&1, call).await > asked);
                    }
                }
            })
        });
        for asker in join_all(askers).await {
            asker.unwrap();
        }
        assert!(made.load(Ordering::SeqCst) < 16 * 2_000, "some shared");
        assert!(calls.groups().is_empty());
    }

    #[tokio::test]
    async fn one_who_gives_up_does_not_hold_up_the_others() {
        let calls = Singleflight::<u8, u8>::default();
        let stuck = calls.run(&1, std::future::pending);
        let impatient = tokio::time::timeout(std::time::Duration::from_millis(1), stuck);
        let (given_up, answer) = tokio::join!(impatient, calls.run(&1, || async { 7 }));
        assert!(given_up.is_err());
        assert_eq!(answer, 7);
    }

    #[tokio::test]
    async fn no_key_is_kept_of_one_who_gives_up() {
        let calls = Singleflight::<u32, u8>::default();
        for key in 0..1_000 {
            let given_up = calls.run(&key, std::future::pending).now_or_never();
            assert!(given_up.is_none() && calls.groups().is_empty());
        }
        let (first, second) = (calls.run(&1, std::future::pending), calls.run(&1, std::future::pending));
        tokio::pin!(first);
        assert!(futures::poll!(&mut first).is_pending());
        assert!(second.now_or_never().is_none());
        assert_eq!(calls.groups().len(), 1, "the other one still waits");
    }
}

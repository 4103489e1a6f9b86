//! One answer for all who asked before the question was put.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Mutex as Turn;

/// Questions by key. An answer is shared by those who asked before it was begun, never by one who asked
/// later: what that one needs may have happened in between.
#[derive(Debug)]
pub(crate) struct Flights<K, V>(Mutex<HashMap<K, Arc<Flight<V>>>>);

#[derive(Debug)]
struct Flight<V> {
    begun: AtomicU64,
    /// The number of the latest answer, and the answer. Whoever holds the lock asks.
    latest: Turn<Option<(u64, V)>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Flights<K, V> {
    /// Asks, or waits for one who is about to ask.
    pub(crate) async fn join<F: Future<Output = V>>(&self, key: &K, ask: impl FnOnce() -> F) -> V {
        let flight = Arc::clone(
            self.flights()
                .entry(key.clone())
                .or_insert_with(|| Arc::new(Flight { begun: AtomicU64::new(0), latest: Turn::default() })),
        );
        // An answer with this number or a later one was begun after now.
        let wanted = flight.begun.load(Ordering::Acquire) + 1;
        let mut latest = flight.latest.lock().await;
        let answer = match &*latest {
            Some((number, answer)) if *number >= wanted => answer.clone(),
            _ => {
                let number = flight.begun.fetch_add(1, Ordering::AcqRel) + 1;
                let answer = ask().await;
                *latest = Some((number, answer.clone()));
                answer
            }
        };
        drop(latest);
        let mut flights = self.flights();
        // Ours and the map's: nobody waits for another answer, so the key need not be kept.
        if Arc::strong_count(&flight) == 2 {
            flights.remove(key);
        }
        answer
    }

    /// A panic while the lock was held leaves a map that is still whole.
    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<Flight<V>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_at_once_share_and_those_who_ask_later_do_not() {
        let flights = Flights::<u8, usize>::default();
        let asked = AtomicUsize::new(0);
        let (begun, go_on) = (Notify::new(), Notify::new());
        let first = flights.join(&1, || async {
            begun.notify_one();
            go_on.notified().await;
            asked.fetch_add(1, Ordering::SeqCst)
        });
        let others = async {
            begun.notified().await;
            // The first question is on its way: what these ask about may have happened since.
            let late = join_all((0..10).map(|_| flights.join(&1, || async { asked.fetch_add(1, Ordering::SeqCst) })));
            let let_go = async {
                tokio::task::yield_now().await;
                go_on.notify_one();
            };
            tokio::join!(late, let_go).0
        };
        let (first, late) = tokio::join!(first, others);
        assert_eq!(first, 0);
        assert_eq!(late, [1; 10], "ten shared one answer, and not the one begun before");
        assert!(flights.flights().is_empty(), "no key is kept");
    }

    #[tokio::test]
    async fn one_who_gives_up_does_not_hold_up_the_others() {
        let flights = Flights::<u8, u8>::default();
        let stuck = flights.join(&1, std::future::pending);
        let impatient = tokio::time::timeout(std::time::Duration::from_millis(1), stuck);
        let (given_up, answer) = tokio::join!(impatient, flights.join(&1, || async { 7 }));
        assert!(given_up.is_err());
        assert_eq!(answer, 7);
    }
}

//! Waiting for a state instead of for a time.

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

/// Longest wait for a state. Far more than anything takes: reaching it is a failure, not slowness.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`]; says what was waited for.
pub async fn until<T, F, O>(what: impl Display, ask: F) -> T
where
    F: FnMut() -> O,
    O: Future<Output = Option<T>>,
{
    within(PATIENCE, what, ask).await
}

/// Like [`until`], with a patience of its own.
///
/// # Panics
/// When there is no answer in time.
pub async fn within<T, F, O>(patience: Duration, what: impl Display, mut ask: F) -> T
where
    F: FnMut() -> O,
    O: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < patience, "waited {} s in vain: {what}", patience.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A number that no other call in this process returns.
pub fn unique() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

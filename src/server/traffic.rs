//! Who is connected, and for how long nobody was.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The connections of one server.
#[derive(Debug)]
pub struct Traffic(Mutex<TrafficState>);

#[derive(Debug)]
struct TrafficState {
    open: usize,
    /// When the last connection began or ended.
    last: Instant,
}

/// One connection, until it is dropped.
pub(super) struct Open(Arc<Traffic>);

impl Traffic {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(TrafficState { open: 0, last: Instant::now() })))
    }

    pub(super) fn open(self: &Arc<Self>) -> Open {
        let mut state = self.state();
        (state.open, state.last) = (state.open + 1, Instant::now());
        Open(Arc::clone(self))
    }

    /// For how long nobody has been connected.
    pub fn quiet_for(&self) -> Duration {
        let state = self.state();
        if state.open > 0 { Duration::ZERO } else { state.last.elapsed() }
    }

    fn state(&self) -> MutexGuard<'_, TrafficState> {
        // Nothing in here panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.open, state.last) = (state.open.saturating_sub(1), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quiet_is_counted_from_the_end_of_the_last_connection() {
        let (traffic, second) = (Traffic::new(), Duration::from_secs(1));
        advance(second).await;
        assert_eq!(traffic.quiet_for(), second);
        let (first, last) = (traffic.open(), traffic.open());
        advance(second).await;
        drop(first);
        advance(second).await;
        assert_eq!(traffic.quiet_for(), Duration::ZERO);
        drop(last);
        advance(second).await;
        assert_eq!(traffic.quiet_for(), second);
    }
}

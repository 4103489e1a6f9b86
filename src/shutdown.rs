//! From serving to stopped: one signal that every task listens to.

use tokio::sync::watch;

/// Asks every task to end. Dropping it asks, too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// Heard by every task.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and what it triggers.
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Asks every task to end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns as soon as shutdown is requested; at once when it was.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which asks, too.
        let _ = self.0.wait_for(|requested| *requested).await;
    }
}

//! A watch of one object.

use crate::cluster::{Change, WatchHealth};

/// What is known of one object.
pub enum Presence<T> {
    /// It is there.
    There(T),
    /// It is not.
    Absent,
}

/// A watch of one object.
pub struct WatchObject<T> {
    health: WatchHealth,
    /// The object in a list that has not ended.
    listed: Option<T>,
}

impl<T> From<Presence<T>> for Option<T> {
    fn from(now: Presence<T>) -> Self {
        match now {
            Presence::There(object) => Some(object),
            Presence::Absent => None,
        }
    }
}

impl<T> WatchObject<T> {
    /// Nothing is known of the object yet.
    pub fn new(health: WatchHealth) -> Self {
        Self { health, listed: None }
    }

    /// Notes a change. The object as it is now, or that there is none; nothing while that is not known.
    pub fn note(&mut self, change: Change<T>) -> Option<Presence<T>> {
        self.health.note(&change);
        match change {
            Change::Failed(_) => return None,
            Change::ListBegins => self.listed = None,
            Change::Listed(object) => self.listed = Some(object),
            Change::ListEnds => return Some(self.listed.take().map_or(Presence::Absent, Presence::There)),
            Change::Applied(object) => return Some(Presence::There(object)),
            Change::Deleted(_) => return Some(Presence::Absent),
        }
        None
    }
}

//! Trouble with certificates, as an Event about the program's own Deployment.

use crate::{
    cluster::{EventQueue, EventRecord, Regarding},
    config::NamespaceName,
};

/// The reason of the Event that says that a trouble is over.
const OVER: &str = "certificates-ready";

/// What is wrong: a reason from a closed set, and a sentence without any data of a Secret.
pub type Problem = (&'static str, String);

/// Tells what is wrong with certificates, and when it no longer is.
pub struct Trouble {
    events: EventQueue,
    regarding: Regarding,
    told: Option<Problem>,
}

impl Trouble {
    /// Tells about the Deployment in this namespace, our own.
    pub fn new(events: EventQueue, namespace: NamespaceName) -> Self {
        Self { events, regarding: Regarding::own_deployment(namespace), told: None }
    }

    /// Notes what is wrong now; `None`: nothing.
    pub fn note(&mut self, problem: Option<Problem>) {
        if self.told == problem {
            return;
        }
        let (is_warning, reason, note) = match &problem {
            Some((reason, note)) => (true, *reason, note.clone()),
            None => (false, OVER, "nothing is wrong with the certificates any more".to_owned()),
        };
        self.events.tell(EventRecord { regarding: self.regarding.clone(), is_warning, reason, note });
        self.told = problem;
    }
}

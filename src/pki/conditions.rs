//! Problems with certificates, as an Event about the program's own Deployment.

use crate::{
    cluster::{EventQueue, EventRecord, Regarding},
    config::NamespaceName,
};

/// The reason of the Event that reports that a problem is gone.
const OVER: &str = "certificates-ready";

/// What is wrong: a reason from a closed set, and a sentence without any data of a Secret.
pub type Condition = (&'static str, String);

/// Reports what is wrong with certificates, and when it no longer is.
pub struct ConditionReporter {
    events: EventQueue,
    regarding: Regarding,
    reported: Option<Condition>,
}

impl ConditionReporter {
    /// Reports about the Deployment in this namespace, our own.
    pub fn new(events: EventQueue, namespace: NamespaceName) -> Self {
        Self { events, regarding: Regarding::own_deployment(namespace), reported: None }
    }

    /// Notes what is wrong now; `None`: nothing.
    pub fn note(&mut self, problem: Option<Condition>) {
        if self.reported == problem {
            return;
        }
        let (is_warning, reason, note) = match &problem {
            Some((reason, note)) => (true, *reason, note.clone()),
            None => (false, OVER, "nothing is wrong with the certificates any more".to_owned()),
        };
        self.events.tell(EventRecord { regarding: self.regarding.clone(), is_warning, reason, note });
        self.reported = problem;
    }
}

//! What the program did at the API server, as numbered points: each write of an object, each event of a watch.

use std::{collections::BTreeMap, fmt};

use gitlab_runner_webhook::names::CONFIGMAP_TRUST;
use test_support::{Call, cluster::SECRET};

pub const CERTS: &str = "gitlab-runner-certs";

/// An object that the program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Clone,
    Bundle,
}

/// A watch of the program. Those of several namespaces count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    Namespace,
    Secret,
    Certs,
    Bundle,
}

/// A place in a run, counted from 1. Counted by object and by watch, for only within those the order is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    Write(Object, usize),
    Event(Watch, usize),
}

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub writes: BTreeMap<Object, usize>,
    pub events: BTreeMap<Watch, usize>,
    pub lines: Vec<String>,
}

impl Object {
    /// The object that a request writes, if it is one of ours.
    pub fn written_by(call: &Call) -> Option<Self> {
        let path = call.path.split('?').next()?;
        let is_write = ["POST", "PUT", "PATCH", "DELETE"].contains(&call.method.as_str());
        match path.rsplit('/').next()? {
            name if is_write && name == SECRET => Some(Self::Clone),
            name if is_write && name == CONFIGMAP_TRUST => Some(Self::Bundle),
            _ => None,
        }
    }
}

impl Watch {
    /// The watch of this path.
    pub fn of(path: &str) -> Option<Self> {
        let is_for = |what: &str| path.contains(what);
        match path {
            _ if is_for("/namespaces?") => Some(Self::Namespace),
            _ if is_for("/configmaps?") && is_for(CONFIGMAP_TRUST) => Some(Self::Bundle),
            _ if is_for("/secrets?") && is_for(CERTS) => Some(Self::Certs),
            _ if is_for("/secrets?") && is_for(SECRET) => Some(Self::Secret),
            _ => None,
        }
    }
}

impl Trace {
    pub fn write(&mut self, object: Object, call: &Call) -> Point {
        let number = self.writes.entry(object).or_default();
        *number += 1;
        let point = Point::Write(object, *number);
        self.lines.push(format!("{point}: {}", call.method));
        point
    }

    pub fn event(&mut self, watch: Watch, kind: &str) -> Point {
        let number = self.events.entry(watch).or_default();
        *number += 1;
        let point = Point::Event(watch, *number);
        self.lines.push(format!("{point}: {kind}"));
        point
    }

    /// All points of this run.
    pub fn points(&self) -> Vec<Point> {
        let writes = self.writes.iter().flat_map(|(of, last)| (1..=*last).map(|number| Point::Write(*of, number)));
        let events = self.events.iter().flat_map(|(of, last)| (1..=*last).map(|number| Point::Event(*of, number)));
        writes.chain(events).collect()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(of, number) => write!(f, "{}-write-{number}", format!("{of:?}").to_lowercase()),
            Self::Event(of, number) => write!(f, "{}-event-{number}", format!("{of:?}").to_lowercase()),
        }
    }
}

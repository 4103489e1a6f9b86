//! Replicas, the CA Secret and `caBundle`, in every order: a CA is replaced, and no API server ever refuses a leaf.
//! Only for tests.
//!
//! Time goes in steps of the propagation time, of which a leaf lives three. In each, every replica has one turn, as
//! [`Rotation`](super::Rotation) has them: it sees the Secret and `caBundle`, issues, writes the Secret, reads it again, publishes. Whatever it sends lands
//! later than it was decided, and in between the others have theirs. An API server may still go by what was in `caBundle`
//! at the end of the step before.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;

use super::{
    authority::{Authority, AuthorityId, Leaf, plus},
    keyring::{Keyring, RetiredCa},
    plan::{CertificatesView, Lifetimes, Stored, issuer, keyring},
};
use crate::explore::explore;

const STEP: Duration = Duration::from_mins(1);
const LIFETIMES: Lifetimes = Lifetimes { ca: Duration::from_mins(12), leaf: Duration::from_mins(3), propagation: STEP };
/// When the CA that is made at the start has a third of its life left.
const DUE: u64 = 8;
/// By then the CA that is made at the start is replaced and forgotten, and its successor is not yet due.
const LAST_STEP: u64 = 15;

/// A CA, by number.
type Ca = usize;
/// A leaf: who issued it, and when.
type Issued = (Ca, u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ring {
    current: Ca,
    next: Option<Ca>,
    /// Until which second each is trusted.
    previous: Vec<(Ca, i64)>,
}

impl Ring {
    fn bundle(&self) -> Vec<Ca> {
        [self.current].into_iter().chain(self.next).chain(self.previous.iter().map(|(ca, _)| *ca)).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    Waits,
    Writes,
    Publishes,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    phase: Phase,
    leaf: Option<Issued>,
    /// The CAs of `caBundle` as it was last seen, and since which step.
    trusted_since: BTreeMap<Ca, u64>,
    /// Whether its leaf was accepted everywhere once. Before, on a cluster without any CA of ours, it serves as soon as
    /// `caBundle` is written, and an API server may be a moment behind.
    established: bool,
    /// What it is about to write, if the Secret is still this version.
    writes: Option<(Ring, u64)>,
    /// What it is about to publish.
    publishes: Option<Vec<Ca>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    step: u64,
    secret: Option<Ring>,
    version: u64,
    bundle: Vec<Ca>,
    /// What an API server may still go by.
    recent: BTreeSet<Vec<Ca>>,
    replicas: Vec<Replica>,
    /// How often something else may still happen.
    left: u8,
}

#[derive(Debug)]
#[expect(dead_code, reason = "what it holds is for who reads a way")]
enum Action {
    Step,
    Turn(usize),
    WriteLands(usize),
    PublicationLands(usize),
    SecretDeleted,
    Restart(usize),
}

/// The real CAs and leaves, each made once: the same place in the model has the same one.
#[derive(Default)]
struct Registry {
    cas: RefCell<Vec<Arc<Authority>>>,
    by_birth: RefCell<HashMap<(u64, usize), Ca>>,
    leaves: RefCell<HashMap<Issued, Leaf>>,
}

impl Registry {
    fn ca(&self, ca: Ca) -> Arc<Authority> {
        Arc::clone(&self.cas.borrow()[ca])
    }

    fn known(&self, id: &AuthorityId) -> Option<Ca> {
        self.cas.borrow().iter().position(|ca| ca.id() == id)
    }

    /// The number of a CA, which this replica has just made if it is new.
    fn number(&self, authority: &Arc<Authority>, born: (u64, usize)) -> Ca {
        self.known(authority.id()).unwrap_or_else(|| {
            *self.by_birth.borrow_mut().entry(born).or_insert_with(|| {
                self.cas.borrow_mut().push(Arc::clone(authority));
                self.cas.borrow().len() - 1
            })
        })
    }

    fn leaf(&self, issued: Issued) -> Leaf {
        let issue = || self.ca(issued.0).issue(&["webhook.svc".to_owned()], LIFETIMES.leaf, at(issued.1)).unwrap();
        self.leaves.borrow_mut().entry(issued).or_insert_with(issue).clone()
    }

    fn stored(&self, ring: Option<&Ring>) -> Stored {
        let Some(ring) = ring else { return Stored::Absent };
        let former = |(ca, until): &(Ca, i64)| RetiredCa {
            certificate: self.ca(*ca).certificate().to_vec(),
            until: Timestamp::from_second(*until).unwrap(),
        };
        let keyring = Keyring {
            current: self.ca(ring.current),
            next: ring.next.map(|ca| self.ca(ca)),
            previous: ring.previous.iter().map(former).collect(),
        };
        Stored::Keyring { keyring, tidy: true }
    }

    fn ring(&self, keyring: &Keyring, born: (u64, usize)) -> Ring {
        let former =
            |former: &RetiredCa| (self.known(&AuthorityId::of(&former.certificate)).unwrap(), former.until.as_second());
        Ring {
            current: self.number(&keyring.current, born),
            next: keyring.next.as_ref().map(|ca| self.number(ca, born)),
            previous: keyring.previous.iter().map(former).collect(),
        }
    }
}

fn at(step: u64) -> Timestamp {
    let start = Timestamp::from_second(1_800_000_000).unwrap();
    plus(start, STEP * u32::try_from(step).unwrap())
}

impl World {
    fn new(replicas: usize, left: u8) -> Self {
        let replica = Replica {
            phase: Phase::Waits,
            leaf: None,
            trusted_since: BTreeMap::new(),
            established: false,
            writes: None,
            publishes: None,
        };
        Self {
            step: 0,
            secret: None,
            version: 0,
            bundle: Vec::new(),
            recent: BTreeSet::from([Vec::new()]),
            replicas: vec![replica; replicas],
            left,
        }
    }

    fn successors(&self, registry: &Registry) -> Vec<(Action, Self)> {
        let mut found = Vec::new();
        if self.replicas.iter().all(|replica| replica.phase == Phase::Done) {
            if self.step < LAST_STEP {
                let mut next = self.clone();
                next.step += 1;
                next.recent = BTreeSet::from([next.bundle.clone()]);
                next.replicas.iter_mut().for_each(|replica| replica.phase = Phase::Waits);
                found.push((Action::Step, next));
            }
            // Who writes the Secret anew knows the CA that it serves by itself, and no other: while a CA is replaced, who
            // serves by the other one is refused until it has put that back. So the Secret is lost before.
            if self.left > 0 && self.step < DUE && self.replicas.iter().all(|replica| replica.leaf.is_some()) {
                found.push((
                    Action::SecretDeleted,
                    Self { secret: None, left: self.left - 1, ..self.clone() }.touched(),
                ));
            }
        }
        for index in 0..self.replicas.len() {
            let mut next = self.clone();
            let action = match self.replicas[index].phase {
                Phase::Waits => {
                    if self.left > 0 && self.replicas[index].leaf.is_some() {
                        let mut anew = Self { left: self.left - 1, ..self.clone() };
                        anew.replicas[index] = Self::new(1, 0).replicas.remove(0);
                        found.push((Action::Restart(index), anew));
                    }
                    next.turn(index, registry);
                    Action::Turn(index)
                }
                Phase::Writes => {
                    next.write_lands(index);
                    Action::WriteLands(index)
                }
                Phase::Publishes => {
                    next.publication_lands(index);
                    Action::PublicationLands(index)
                }
                Phase::Done => continue,
            };
            found.push((action, next));
        }
        found
    }

    fn touched(mut self) -> Self {
        self.version += 1;
        self
    }

    /// A replica sees what is stored, issues its leaf, and decides what it writes.
    fn turn(&mut self, index: usize, registry: &Registry) {
        let now = self.step;
        let (bundle, stored) = (self.bundle.clone(), registry.stored(self.secret.as_ref()));
        let ring = self.secret.clone();
        let replica = &mut self.replicas[index];
        replica.trusted_since.retain(|ca, _| bundle.contains(ca));
        for ca in bundle {
            replica.trusted_since.entry(ca).or_insert(now);
        }
        let since = replica.trusted_since.clone();
        // As Rotation::is_trusted: a CA of the Secret that has been in `caBundle` for as long as it takes to spread.
        let is_trusted = |id: &AuthorityId| {
            registry.known(id).is_some_and(|ca| {
                let is_issuer = ring.as_ref().is_some_and(|ring| ring.current == ca || ring.next == Some(ca));
                is_issuer && since.get(&ca).is_some_and(|since| *since < now)
            })
        };
        let leaf = replica.leaf.map(|issued| registry.leaf(issued));
        let view = CertificatesView {
            now: at(now),
            lifetimes: LIFETIMES,
            stored: &stored,
            leaf: leaf.as_ref(),
            is_trusted: &is_trusted,
        };
        let issued = issuer(&view).map(|ca| (registry.known(ca.id()).unwrap(), now));
        replica.leaf = issued.or(replica.leaf);
        let leaf = replica.leaf.map(|issued| registry.leaf(issued));
        let view = CertificatesView { leaf: leaf.as_ref(), ..view };
        let wanted = keyring(&view).unwrap().map(|(keyring, _)| registry.ring(&keyring, (now, index)));
        replica.writes = wanted.map(|ring| (ring, self.version));
        let spread = |(ca, _): Issued| replica.trusted_since.get(&ca).is_some_and(|since| *since < now);
        replica.established |= replica.leaf.is_some_and(spread);
        replica.phase = Phase::Writes;
    }

    /// The write of the Secret lands, if it is still what was seen; then the Secret is read, to be published.
    fn write_lands(&mut self, index: usize) {
        if let Some((ring, version)) = self.replicas[index].writes.take()
            && version == self.version
        {
            self.secret = Some(ring);
            self.version += 1;
        }
        let bundle = self.secret.as_ref().map(Ring::bundle).filter(|bundle| *bundle != self.bundle);
        self.replicas[index].publishes = bundle;
        self.replicas[index].phase = Phase::Publishes;
    }

    fn publication_lands(&mut self, index: usize) {
        if let Some(bundle) = self.replicas[index].publishes.take() {
            self.bundle = bundle;
            self.recent.insert(self.bundle.clone());
        }
        self.replicas[index].phase = Phase::Done;
    }

    /// Who was accepted is accepted on, by every API server, whichever `caBundle` that goes by.
    fn check(&self, registry: &Registry) -> Result<(), String> {
        for (index, replica) in self.replicas.iter().enumerate().filter(|(_, replica)| replica.established) {
            let issued = replica.leaf.ok_or_else(|| format!("replica {index} has lost its leaf"))?;
            // Its turn in this step is still to come.
            let now = if replica.phase == Phase::Waits { self.step - 1 } else { self.step };
            if !registry.leaf(issued).validity.holds(at(now)) {
                return Err(format!("the leaf of replica {index} has expired"));
            }
            if let Some(bundle) = self.recent.iter().find(|bundle| !bundle.contains(&issued.0)) {
                return Err(format!(
                    "an API server with {bundle:?} refuses replica {index}, which serves by {}",
                    issued.0
                ));
            }
        }
        Ok(())
    }
}

fn explore_all(replicas: usize, left: u8) {
    let registry = Registry::default();
    let explored =
        explore(World::new(replicas, left), |world| world.successors(&registry), |world| world.check(&registry));
    // In the end a CA serves, and none is trusted that has expired, as that of the start has.
    explored.always_leads_to(|world| {
        let is_valid = |ca: Ca| registry.ca(ca).validity().holds(at(LAST_STEP));
        world.step == LAST_STEP && world.secret.as_ref().is_some_and(|ring| ring.bundle().into_iter().all(is_valid))
    });
    println!("{replicas} replicas, {left} other happenings: {} states", explored.states.len());
}

#[test]
fn two_replicas_in_every_order_replace_a_ca_and_are_never_refused() {
    explore_all(2, 0);
}

#[test]
fn two_replicas_of_which_one_starts_anew_or_the_secret_is_lost_are_never_refused() {
    explore_all(2, 1);
}

#[test]
#[ignore = "soak: takes half a minute in a debug build"]
fn soak_three_replicas_in_every_order_replace_a_ca_and_are_never_refused() {
    explore_all(3, 0);
}

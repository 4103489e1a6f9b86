//! What the loop knows of certificates, and what it does next. PURE: the time is an argument.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use super::{
    authority::{Authority, AuthorityError, AuthorityId, Leaf},
    keyring::Keyring,
    options::Options,
    pause::Pause,
    plan::{self, CertificatesView, KeyringChange, Stored},
    registration::{Publication, Registration, WebhookKind},
};
use crate::cluster::{Problem, Reason};

/// Between two leaves, however short they live.
const LEAF_GAP: Duration = Duration::from_secs(1);

/// One moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For pauses.
    pub instant: Instant,
    /// As the API server has it: for certificates.
    pub time: Timestamp,
}

/// What the loop does next.
#[derive(Debug)]
pub enum NextAction {
    /// Asks the API server for its time: it is not known, or the clock of this machine was set.
    AskForTime,
    /// Issues a leaf by this CA, and serves by it.
    Issue(Arc<Authority>),
    /// Writes the CA Secret.
    WriteSecret,
    /// Writes `caBundle` where it is another than the Secret wants.
    Publish,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WrittenObject {
    /// The CA Secret.
    Secret,
    /// `caBundle` of this configuration.
    CaBundle(WebhookKind),
}

/// What the loop knows.
pub struct State {
    options: Options,
    /// What the CA Secret holds.
    stored: Stored,
    publication: Publication,
    leaf: Option<Leaf>,
    clock_pause: Pause,
    /// Leaves are issued no faster than this.
    next_issue: Option<Instant>,
    write_pauses: BTreeMap<WrittenObject, Pause>,
    /// Whether the Secret was written, and the watch has not brought it yet.
    wrote_secret: bool,
    /// What went wrong with each object, and has not gone right since.
    problems: BTreeMap<WrittenObject, Problem>,
}

impl State {
    /// Nothing is known yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            stored: Stored::Unknown,
            publication: Publication::default(),
            leaf: None,
            clock_pause: Pause::default(),
            next_issue: None,
            write_pauses: BTreeMap::new(),
            wrote_secret: false,
            problems: BTreeMap::new(),
        }
    }

    /// What is to be done now; `None`: nothing, before the next event, the next pause that ends, or the next certificate that
    /// is due. A replica of a superseded revision goes on serving, and writes nothing; one that is not ready yet may have to
    /// write what it needs for that.
    pub fn next_action(&self, now: Moment, is_time_in_doubt: bool, is_superseded: bool) -> Option<NextAction> {
        if is_time_in_doubt && self.clock_pause.is_over(now.instant) {
            return Some(NextAction::AskForTime);
        }
        if self.next_issue.is_none_or(|due| due <= now.instant)
            && let Some(issuer) = self.view(now, plan::issuer)
        {
            return Some(NextAction::Issue(issuer));
        }
        if is_superseded {
            return None;
        }
        if self.is_free(WrittenObject::Secret, now.instant) && self.is_secret_wanted(now) {
            return Some(NextAction::WriteSecret);
        }
        let is_due = |(kind, _)| self.is_free(WrittenObject::CaBundle(kind), now.instant);
        self.differing().into_iter().any(is_due).then_some(NextAction::Publish)
    }

    /// When the first pause ends that has not ended yet.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let issue = self.next_issue.filter(|due| *due > now);
        self.write_pauses.values().filter_map(|pause| pause.due(now)).chain(issue).min()
    }

    /// What the CA Secret is to hold instead, if it is to be written, and why.
    pub fn keyring(&self, now: Moment) -> Result<Option<(Keyring, KeyringChange)>, AuthorityError> {
        self.view(now, plan::keyring)
    }

    /// What API servers are to trust, if that is known.
    pub fn ca_bundle(&self) -> Option<String> {
        match &self.stored {
            Stored::Keyring { keyring, .. } => Some(keyring.ca_bundle()),
            _ => None,
        }
    }

    /// The configurations whose `caBundle` is another than the Secret wants, and that may be written now.
    pub fn due_to_publish(&self, now: Instant) -> Vec<(WebhookKind, Registration)> {
        let mut due = self.differing();
        due.retain(|(kind, _)| self.is_free(WrittenObject::CaBundle(*kind), now));
        due
    }

    /// The watch brought what the Secret holds.
    pub fn note_secret(&mut self, stored: Stored, now: Instant) {
        self.stored = stored;
        self.pause(WrittenObject::Secret, Pause::over);
        let is_own = std::mem::take(&mut self.wrote_secret);
        for kind in WebhookKind::ALL {
            self.pause(WrittenObject::CaBundle(kind), |pause| pause.spread(is_own, now));
        }
    }

    /// The API server lists a configuration again: what failed meanwhile need not wait any longer.
    pub fn note_list(&mut self, kind: WebhookKind) {
        self.pause(WrittenObject::CaBundle(kind), Pause::over);
    }

    /// The watch brought a configuration, or that there is none. Says whether it is news that it is there, or is not.
    pub fn note_registration(&mut self, kind: WebhookKind, found: Option<Registration>, now: Instant) -> bool {
        let is_news = self.publication.set(kind, found, now);
        self.pause(WrittenObject::CaBundle(kind), |pause| pause.spread(false, now));
        is_news
    }

    /// The API server said what time it is, or did not.
    pub fn note_time(&mut self, is_known: bool, now: Instant) {
        if is_known {
            self.clock_pause.over();
        } else {
            self.clock_pause.after_failure(None, now);
        }
    }

    /// A leaf was issued and is served, or none could be.
    pub fn note_issued(&mut self, leaf: Option<Leaf>, now: Instant) {
        self.next_issue = Some(now + LEAF_GAP);
        self.leaf = leaf.or(self.leaf.take());
    }

    /// No CA could be made.
    pub fn note_no_ca(&mut self, now: Instant) {
        self.pause(WrittenObject::Secret, |pause| pause.after_failure(None, now));
    }

    /// An object was written.
    pub fn note_written(&mut self, object: WrittenObject, now: Instant) {
        self.wrote_secret |= object == WrittenObject::Secret;
        self.problems.remove(&object);
        self.pause(object, |pause| pause.wrote(now));
    }

    /// An object could not be written. Says whether that is news. That another replica was first is no problem.
    pub fn note_not_written(&mut self, object: WrittenObject, problem: Problem, now: Instant) -> bool {
        self.pause(object, |pause| pause.after(&problem, now));
        self.complain(object, problem)
    }

    /// The Secret was read before `caBundle` is written, or could not be. Says whether a problem with it is news.
    pub fn note_read(&mut self, result: Result<Stored, Problem>, now: Instant) -> bool {
        match result {
            Ok(stored) => {
                self.problems.remove(&WrittenObject::Secret);
                self.stored = stored;
                false
            }
            Err(problem) => {
                for kind in WebhookKind::ALL {
                    self.pause(WrittenObject::CaBundle(kind), |pause| pause.after(&problem, now));
                }
                self.complain(WrittenObject::Secret, problem)
            }
        }
    }

    /// Objects that something else keeps changing, and that stay wrong for now. `problem` is what to say of each.
    pub fn note_contended(&mut self, now: Moment, problem: impl Fn(WrittenObject) -> Problem) -> Vec<WrittenObject> {
        let braked = self.write_pauses.iter().filter(|(_, pause)| pause.is_braked(now.instant));
        let braked = braked.map(|(object, _)| *object);
        let mut contended: Vec<_> = braked.filter(|object| self.is_wrong(*object, now)).collect();
        contended.retain(|object| self.complain(*object, problem(*object)));
        contended
    }

    /// Forgets what somebody else made right.
    pub fn forget_what_is_right(&mut self, now: Moment) {
        if self.problems.is_empty() {
            return;
        }
        let differing: Vec<_> = self.differing().into_iter().map(|(kind, _)| WrittenObject::CaBundle(kind)).collect();
        // A `caBundle` is written by what a read of the Secret shows.
        let is_secret_needed = !differing.is_empty() || self.is_secret_wanted(now);
        self.problems.retain(|object, _| match object {
            WrittenObject::Secret => is_secret_needed,
            WrittenObject::CaBundle(_) => differing.contains(object),
        });
    }

    /// The first problem that there is.
    pub fn problem(&self) -> Option<&Problem> {
        self.problems.values().next()
    }

    /// The problem with an object.
    pub fn problem_with(&self, object: WrittenObject) -> Option<&Problem> {
        self.problems.get(&object)
    }

    /// What the CA Secret holds.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Whether a leaf is served that holds.
    pub fn serves(&self, now: Moment) -> bool {
        self.valid_leaf(now).is_some()
    }

    /// Whether the CA of what is served is in every `caBundle`, or nobody calls us.
    pub fn is_published(&self, now: Moment) -> bool {
        let is_trusted = |leaf: &Leaf| self.publication.trusted_since(leaf.issuer.id()).is_some();
        self.valid_leaf(now).is_some_and(is_trusted) || self.publication.is_unregistered()
    }

    fn valid_leaf(&self, now: Moment) -> Option<&Leaf> {
        self.leaf.as_ref().filter(|leaf| leaf.validity.holds(now.time))
    }

    fn view<T>(&self, now: Moment, decide: impl FnOnce(&CertificatesView<'_>) -> T) -> T {
        decide(&CertificatesView {
            now: now.time,
            lifetimes: self.options.lifetimes,
            stored: &self.stored,
            leaf: self.leaf.as_ref(),
            is_trusted: &|id: &AuthorityId| self.is_trusted(id, now),
        })
    }

    /// Whether a leaf by this CA of the Secret would be accepted by every API server.
    fn is_trusted(&self, id: &AuthorityId, now: Moment) -> bool {
        let Stored::Keyring { keyring, .. } = &self.stored else { return false };
        let Some(authority) = keyring.issuers().find(|authority| authority.id() == id) else { return false };
        if self.publication.is_unregistered() {
            return true;
        }
        let lifetimes = self.options.lifetimes;
        let since = self.publication.trusted_since(id);
        let has_spread =
            since.is_some_and(|since| now.instant.saturating_duration_since(since) >= lifetimes.propagation);
        has_spread && self.publication.is_known() && {
            let leaf = authority.issue(&self.options.names, lifetimes.leaf, now.time);
            leaf.is_ok_and(|leaf| self.publication.accepts(&leaf, self.options.host(), now.time))
        }
    }

    fn is_wrong(&self, object: WrittenObject, now: Moment) -> bool {
        match object {
            WrittenObject::Secret => self.is_secret_wanted(now),
            WrittenObject::CaBundle(kind) => self.differing().iter().any(|(differs, _)| *differs == kind),
        }
    }

    fn is_secret_wanted(&self, now: Moment) -> bool {
        !matches!(self.keyring(now), Ok(None))
    }

    fn differing(&self) -> Vec<(WebhookKind, Registration)> {
        let Some(ca_bundle) = self.ca_bundle() else { return Vec::new() };
        self.publication.differing(&ca_bundle).map(|(kind, seen)| (kind, seen.clone())).collect()
    }

    fn is_free(&self, object: WrittenObject, now: Instant) -> bool {
        self.write_pauses.get(&object).is_none_or(|pause| pause.is_over(now))
    }

    fn pause(&mut self, object: WrittenObject, change: impl FnOnce(&mut Pause)) {
        change(self.write_pauses.entry(object).or_default());
    }

    /// Notes a problem; says whether its words are news.
    fn complain(&mut self, object: WrittenObject, problem: Problem) -> bool {
        if problem.reason == Reason::Conflict {
            self.problems.remove(&object);
            return false;
        }
        let former = self.problems.insert(object, problem).map(|former| former.to_string());
        former != self.problems.get(&object).map(ToString::to_string)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

use k8s_openapi::ByteString;

use super::*;
use crate::pki::plan::Lifetimes;

const LIFETIMES: Lifetimes =
    Lifetimes { ca: Duration::from_mins(5), leaf: Duration::from_mins(1), propagation: Duration::from_secs(15) };

/// A loop without an API server, and its two clocks.
struct Loop {
    state: State,
    now: Moment,
}

impl Loop {
    fn start() -> Self {
        let options = Options {
            names: vec!["gitlab-runner-webhook.gitlab-runner-webhook.svc".to_owned()],
            lifetimes: LIFETIMES,
            namespace: "gitlab-runner-webhook".parse().unwrap(),
            ca_secret: "gitlab-runner-webhook-ca".parse().unwrap(),
            webhook_configuration: "gitlab-runner-webhook".parse().unwrap(),
            watch_timeout: Duration::from_mins(5),
        };
        let time = Timestamp::from_second(1_800_000_000).unwrap();
        Self { state: State::new(options), now: Moment { instant: Instant::now(), time } }
    }

    fn pass(&mut self, duration: Duration) {
        self.now.instant += duration;
        self.now.time = self.now.time.saturating_add(duration).unwrap();
    }

    fn next(&self) -> &'static str {
        self.next_of(false)
    }

    fn next_of(&self, is_superseded: bool) -> &'static str {
        match self.state.next_action(self.now, false, is_superseded) {
            Some(NextAction::AskForTime) => "time",
            Some(NextAction::Issue(_)) => "issue",
            Some(NextAction::WriteSecret) => "secret",
            Some(NextAction::Publish) => "publish",
            None => "nothing",
        }
    }

    /// Makes the CA that is wanted, and has the watch bring it.
    fn write_secret(&mut self) {
        let (keyring, _) = self.state.keyring(self.now).unwrap().unwrap();
        self.state.note_written(WrittenObject::Secret, self.now.instant);
        self.state.note_secret(Stored::Keyring { keyring, tidy: true }, self.now.instant);
    }

    fn issue(&mut self) {
        let Some(NextAction::Issue(authority)) = self.state.next_action(self.now, false, false) else {
            panic!("no leaf")
        };
        let leaf = authority.issue(&self.state.options.names, LIFETIMES.leaf, self.now.time).unwrap();
        self.state.note_issued(Some(leaf), self.now.instant);
    }

    /// Has the watch bring one webhook configuration with this `caBundle`, and that the other is absent.
    fn register(&mut self, ca_bundle: &str) {
        let webhooks = [("inject".to_owned(), Some(ByteString(ca_bundle.into())))];
        let found = Registration::new(webhooks, &[], Some("1".to_owned()));
        self.state.note_registration(WebhookKind::Mutating, Some(found), self.now.instant);
        self.state.note_registration(WebhookKind::Validating, None, self.now.instant);
        self.pass(Duration::from_secs(1));
    }

    /// One that serves, and is trusted.
    fn settled() -> Self {
        let mut rotation = Self::start();
        rotation.state.note_secret(Stored::Absent, rotation.now.instant);
        rotation.write_secret();
        rotation.issue();
        rotation.register(&rotation.state.ca_bundle().unwrap());
        assert_eq!(rotation.next(), "nothing");
        rotation
    }
}

fn failed() -> Problem {
    Problem::timeout("update caBundle", Duration::ZERO)
}

#[test]
fn what_is_not_known_is_not_acted_upon_but_the_time_is_asked_for() {
    let mut rotation = Loop::start();
    assert_eq!(rotation.next(), "nothing");
    rotation.register("");
    assert_eq!(rotation.next(), "nothing", "the Secret may be there");
    let ask =
        |rotation: &Loop| matches!(rotation.state.next_action(rotation.now, true, true), Some(NextAction::AskForTime));
    assert!(ask(&rotation));
    rotation.state.note_time(false, rotation.now.instant);
    assert!(!ask(&rotation), "not without a pause");
    rotation.pass(Duration::from_secs(10));
    assert!(ask(&rotation));
}

#[test]
fn from_nothing_it_makes_a_ca_a_leaf_and_trust_in_this_order() {
    let mut rotation = Loop::start();
    rotation.register("");
    rotation.state.note_secret(Stored::Absent, rotation.now.instant);
    assert_eq!(rotation.next(), "secret");
    rotation.write_secret();
    assert_eq!(rotation.next(), "issue");
    assert!(!rotation.state.serves(rotation.now));
    rotation.issue();
    assert!(rotation.state.serves(rotation.now) && !rotation.state.is_published(rotation.now));
    assert_eq!(rotation.next(), "publish");
    assert_eq!(rotation.state.due_to_publish(rotation.now.instant).len(), 1);
    rotation.state.note_written(WrittenObject::CaBundle(WebhookKind::Mutating), rotation.now.instant);
    assert_eq!(rotation.next(), "nothing", "until the watch has brought it");
    rotation.register(&rotation.state.ca_bundle().unwrap());
    assert!(rotation.state.is_published(rotation.now));
    assert_eq!(rotation.next(), "nothing");
}

#[test]
fn without_a_registration_nobody_has_to_trust_it() {
    let mut rotation = Loop::start();
    rotation.state.note_secret(Stored::Absent, rotation.now.instant);
    rotation.write_secret();
    rotation.issue();
    assert!(!rotation.state.is_published(rotation.now), "not known yet");
    for kind in WebhookKind::ALL {
        rotation.state.note_registration(kind, None, rotation.now.instant);
    }
    assert!(rotation.state.is_published(rotation.now));
    assert_eq!(rotation.next(), "nothing");
}

#[test]
fn one_that_is_superseded_renews_its_leaf_and_writes_nothing() {
    let mut rotation = Loop::settled();
    rotation.register("overwritten");
    assert_eq!((rotation.next(), rotation.next_of(true)), ("publish", "nothing"));
    rotation.pass(Duration::from_secs(50));
    assert_eq!(rotation.next_of(true), "issue");
    rotation.state.note_issued(None, rotation.now.instant);
    assert_eq!(rotation.next_of(true), "nothing", "no leaf could be made: not again at once");
    rotation.pass(LEAF_GAP);
    assert_eq!(rotation.next_of(true), "issue");
}

#[test]
fn a_ca_is_replaced_step_by_step() {
    let mut rotation = Loop::settled();
    // A third of its life is left.
    rotation.pass(Duration::from_secs(200));
    rotation.issue();
    let former = rotation.state.ca_bundle().unwrap();
    assert_eq!(rotation.next(), "secret");
    rotation.write_secret();
    let both = rotation.state.ca_bundle().unwrap();
    assert!(both.len() > former.len() && both.starts_with(&former));
    rotation.pass(Duration::from_secs(1));
    assert_eq!(rotation.next(), "publish");
    rotation.register(&both);
    assert_eq!(rotation.next(), "nothing", "an API server may not have noticed yet");
    rotation.pass(LIFETIMES.propagation);
    assert_eq!(rotation.next(), "secret");
    rotation.write_secret();
    rotation.issue();
    rotation.pass(Duration::from_secs(1));
    assert_eq!(rotation.next(), "publish", "in another order");
}

#[test]
fn a_failure_pauses_is_news_once_and_is_forgotten_when_somebody_else_made_it_right() {
    let mut rotation = Loop::settled();
    let object = WrittenObject::CaBundle(WebhookKind::Mutating);
    rotation.register("overwritten");
    assert_eq!(rotation.next(), "publish");
    assert!(rotation.state.note_not_written(object, failed(), rotation.now.instant));
    assert_eq!(rotation.next(), "nothing", "a pause");
    let due = rotation.state.next_due(rotation.now.instant).unwrap();
    rotation.pass(due - rotation.now.instant);
    assert_eq!(rotation.next(), "publish");
    assert!(!rotation.state.note_not_written(object, failed(), rotation.now.instant), "the same words");
    rotation.state.forget_what_is_right(rotation.now);
    assert_eq!(rotation.state.problem().unwrap().reason, Reason::Timeout);
    rotation.register(&rotation.state.ca_bundle().unwrap());
    rotation.state.forget_what_is_right(rotation.now);
    assert!(rotation.state.problem().is_none());
}

#[test]
fn the_secret_cannot_be_read_so_nothing_is_published_and_that_is_said() {
    let mut rotation = Loop::settled();
    rotation.register("overwritten");
    assert!(rotation.state.note_read(Err(failed()), rotation.now.instant));
    rotation.state.forget_what_is_right(rotation.now);
    assert!(rotation.state.problem_with(WrittenObject::Secret).is_some(), "a caBundle waits for it");
    assert_eq!(rotation.next(), "nothing", "a pause");
}

#[test]
fn a_ca_bundle_that_something_keeps_changing_is_contended_and_that_is_news_once() {
    let mut rotation = Loop::settled();
    let object = WrittenObject::CaBundle(WebhookKind::Mutating);
    let contended =
        |rotation: &mut Loop| rotation.state.note_contended(rotation.now, |_| Problem::contended("update caBundle"));
    let mut writes = 0;
    while rotation.next() == "nothing" || rotation.next() == "publish" {
        rotation.register("overwritten");
        if rotation.next() != "publish" {
            break;
        }
        assert!(contended(&mut rotation).is_empty());
        rotation.state.note_written(object, rotation.now.instant);
        writes += 1;
    }
    assert!((20..=22).contains(&writes), "{writes} repairs at once");
    assert_eq!(contended(&mut rotation), [object]);
    assert!(contended(&mut rotation).is_empty());
    assert_eq!(rotation.state.problem().unwrap().reason, Reason::Contended);
}

use std::cell::Cell;

use proptest::{collection::vec, prelude::*};

use super::*;

const HOST: &str = "gitlab-runner-webhook.gitlab-runner-webhook.svc";
const LIFETIMES: Lifetimes =
    Lifetimes { ca: Duration::from_mins(5), leaf: Duration::from_mins(1), propagation: Duration::from_secs(15) };

fn names() -> Vec<String> {
    vec![HOST.to_owned()]
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap().saturating_add(Duration::from_secs(second)).unwrap()
}

fn ca(second: u64) -> Arc<Authority> {
    Authority::new(LIFETIMES.ca, at(second)).unwrap()
}

fn keyring_of(current: &Arc<Authority>, next: Option<&Arc<Authority>>) -> Stored {
    let keyring = Keyring { current: Arc::clone(current), next: next.map(Arc::clone), previous: Vec::new() };
    Stored::Keyring { keyring, tidy: true }
}

fn view<'a>(
    second: u64,
    stored: &'a Stored,
    leaf: Option<&'a Leaf>,
    trusted: &'a dyn Fn(&AuthorityId) -> bool,
) -> CertificatesView<'a> {
    CertificatesView { now: at(second), lifetimes: LIFETIMES, stored, leaf, is_trusted: trusted }
}

fn nothing(_: &AuthorityId) -> bool {
    false
}

fn all(_: &AuthorityId) -> bool {
    true
}

fn cause(view: &CertificatesView<'_>) -> Option<&'static str> {
    keyring(view).unwrap().map(|(_, cause)| cause.as_str())
}

#[test]
fn not_known_yet_is_neither_absent_nor_useless() {
    let view = view(0, &Stored::Unknown, None, &all);
    assert!(issuer(&view).is_none());
    assert_eq!(cause(&view), None);
}

#[test]
fn the_first_leaf_is_served_at_once() {
    let first = ca(0);
    let stored = keyring_of(&first, None);
    let view = view(0, &stored, None, &nothing);
    assert_eq!(issuer(&view).unwrap().id(), first.id());
    assert_eq!(cause(&view), None);
}

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life() {
    let first = ca(0);
    let stored = keyring_of(&first, None);
    let leaf = first.issue(&names(), LIFETIMES.leaf, at(0)).unwrap();
    assert!(issuer(&view(39, &stored, Some(&leaf), &all)).is_none());
    assert!(issuer(&view(40, &stored, Some(&leaf), &all)).is_some());
    assert!(issuer(&view(9_999, &keyring_of(&ca(9_999), None), Some(&leaf), &nothing)).is_some(), "expired: at once");
    // With the Secret deleted or broken, the CA in memory goes on.
    for lost in [Stored::Absent, Stored::Useless(AuthorityError::Missing)] {
        assert_eq!(issuer(&view(40, &lost, Some(&leaf), &all)).unwrap().id(), first.id());
    }
}

#[test]
fn a_leaf_that_ends_with_its_ca_is_not_renewed_for_nothing() {
    let first = ca(0);
    let stored = keyring_of(&first, None);
    let leaf = first.issue(&names(), LIFETIMES.leaf, at(280)).unwrap();
    assert!(leaf.due <= at(299));
    assert!(issuer(&view(299, &stored, Some(&leaf), &nothing)).is_none());
}

#[test]
fn a_ca_is_replaced_in_steps() {
    let first = ca(0);
    let leaf = first.issue(&names(), LIFETIMES.leaf, at(200)).unwrap();
    let stored = keyring_of(&first, None);
    assert_eq!(cause(&view(199, &stored, None, &nothing)), None);

    let (staged, why) = keyring(&view(200, &stored, Some(&leaf), &nothing)).unwrap().unwrap();
    assert_eq!((why.as_str(), staged.current.id()), ("due", first.id()));
    let next = Arc::clone(staged.next.as_ref().unwrap());
    assert!(staged.trusts(next.id()) && staged.trusts(first.id()), "both are trusted before anything changes");

    let stored = keyring_of(&first, Some(&next));
    assert_eq!(cause(&view(201, &stored, Some(&leaf), &nothing)), None, "not trusted everywhere yet");
    assert!(issuer(&view(201, &stored, Some(&leaf), &nothing)).is_none());

    let (swapped, why) = keyring(&view(220, &stored, Some(&leaf), &all)).unwrap().unwrap();
    assert_eq!((why.as_str(), swapped.current.id()), ("next-is-trusted", next.id()));
    assert!(swapped.next.is_none() && swapped.trusts(first.id()));
    let stored = Stored::Keyring { keyring: swapped, tidy: true };
    assert!(issuer(&view(221, &stored, Some(&leaf), &nothing)).is_none(), "another replica may see trust sooner");
    assert_eq!(issuer(&view(221, &stored, Some(&leaf), &all)).unwrap().id(), next.id());

    let leaf = next.issue(&names(), LIFETIMES.leaf, at(221)).unwrap();
    assert_eq!(cause(&view(220 + 60 + 14, &stored, Some(&leaf), &all)), None);
    let (done, why) = keyring(&view(220 + 60 + 15, &stored, Some(&leaf), &all)).unwrap().unwrap();
    assert_eq!((why.as_str(), done.previous.len()), ("former-retired", 0));
}

#[test]
fn a_secret_that_is_lost_broken_or_replaced_does_not_end_trust_in_what_is_served() {
    let (first, foreign) = (ca(0), ca(5));
    let leaf = first.issue(&names(), LIFETIMES.leaf, at(10)).unwrap();
    let replaced = keyring_of(&foreign, None);
    let table = [
        (&Stored::Absent, "absent"),
        (&Stored::Useless(AuthorityError::Mismatch), "useless"),
        (&replaced, "served-missing"),
    ];
    for (stored, expected) in table {
        let (keyring, why) = keyring(&view(11, stored, Some(&leaf), &nothing)).unwrap().unwrap();
        assert_eq!(why.as_str(), expected);
        assert!(keyring.trusts(first.id()), "{expected}");
        // Others may renew by it until the new one is trusted.
        assert_eq!(keyring.previous[0].until, at(11 + 60 + 15));
        // What was served goes on until the new CA is trusted.
        let stored = Stored::Keyring { keyring, tidy: true };
        assert!(issuer(&view(12, &stored, Some(&leaf), &nothing)).is_none());
        assert!(issuer(&view(12, &stored, Some(&leaf), &all)).is_some());
    }
}

#[test]
fn an_expired_ca_is_replaced_by_the_next_or_by_a_new_one() {
    let (first, next) = (ca(0), ca(290));
    let (fresh, why) = keyring(&view(300, &keyring_of(&first, None), None, &nothing)).unwrap().unwrap();
    assert_eq!(why.as_str(), "invalid");
    assert!(fresh.current.validity().holds(at(300)) && fresh.previous.is_empty());
    for trusted in [&all as &dyn Fn(&AuthorityId) -> bool, &nothing] {
        let (staged, _) = keyring(&view(300, &keyring_of(&first, Some(&next)), None, trusted)).unwrap().unwrap();
        assert_eq!(staged.current.id(), next.id());
        assert!(staged.next.is_none());
    }
    let (both, _) = keyring(&view(9_000, &keyring_of(&first, Some(&next)), None, &nothing)).unwrap().unwrap();
    assert!(both.current.validity().holds(at(9_000)), "both are expired");
}

#[test]
fn useless_parts_are_tidied_away() {
    let first = ca(0);
    let stored = Stored::Keyring { keyring: Keyring { current: first, next: None, previous: Vec::new() }, tidy: false };
    assert_eq!(cause(&view(1, &stored, None, &nothing)), Some("untidy"));
}

/// Replicas, a Secret and API servers as they really are: each sees the others late, and writes compare and swap.
struct World {
    second: u64,
    /// All versions of the Secret, the last one is stored.
    secret: Vec<Option<Keyring>>,
    /// All versions of `caBundle`, and when they were written.
    bundles: Vec<(u64, Vec<Vec<u8>>)>,
    replicas: Vec<Replica>,
}

#[derive(Default)]
struct Replica {
    /// The latest versions of the Secret and of `caBundle` that its watches brought.
    seen: (usize, usize),
    leaf: Option<Leaf>,
    /// When it first saw each CA in `caBundle`.
    trusted_since: Vec<(AuthorityId, u64)>,
    looked: u64,
}

impl World {
    fn new(replicas: usize) -> Self {
        let replicas = (0..replicas).map(|_| Replica::default()).collect();
        Self { second: 0, secret: vec![None], bundles: vec![(0, Vec::new())], replicas }
    }

    fn look(&mut self, index: usize, behind: (usize, usize)) {
        let second = self.second;
        let former = self.replicas[index].seen;
        let seen = self.secret.len().saturating_sub(1 + behind.0).max(former.0);
        let seen_bundle = self.bundles.len().saturating_sub(1 + behind.1).max(former.1);
        let stored = match &self.secret[seen] {
            None => Stored::Absent,
            Some(keyring) => Stored::Keyring { keyring: keyring.clone(), tidy: true },
        };
        let replica = &mut self.replicas[index];
        replica.seen = (seen, seen_bundle);
        replica.looked = second;
        let trusted: Vec<_> = self.bundles[seen_bundle].1.iter().map(|der| AuthorityId::of(der)).collect();
        replica.trusted_since.retain(|(id, _)| trusted.contains(id));
        for id in trusted {
            if !replica.trusted_since.iter().any(|(known, _)| *known == id) {
                replica.trusted_since.push((id, second));
            }
        }
        let since = replica.trusted_since.clone();
        let is_trusted = move |id: &AuthorityId| {
            since.iter().any(|(known, since)| known == id && second - since >= LIFETIMES.propagation.as_secs())
        };
        let leaf = replica.leaf.clone();
        let view = CertificatesView {
            now: at(second),
            lifetimes: LIFETIMES,
            stored: &stored,
            leaf: leaf.as_ref(),
            is_trusted: &is_trusted,
        };
        if let Some(issuer) = issuer(&view) {
            replica.leaf = Some(issuer.issue(&names(), LIFETIMES.leaf, at(second)).unwrap());
        }
        let view = CertificatesView { leaf: replica.leaf.as_ref(), ..view };
        if let Some((keyring, _)) = keyring(&view).unwrap() {
            // Compare and swap.
            if seen == self.secret.len() - 1 {
                self.secret.push(Some(keyring));
            }
        } else if let Some(Some(keyring)) = self.secret.last() {
            // A quorum read goes before each write of caBundle.
            let wanted = crate::pem::certificates(keyring.ca_bundle().as_bytes()).unwrap();
            if self.bundles[seen_bundle].1 != wanted {
                self.bundles.push((second, wanted));
            }
        }
    }

    /// An API server knows the latest `caBundle`, or one that was the latest up to `propagation` ago.
    fn assert_served_is_accepted(&self) {
        let horizon = self.second.saturating_sub(LIFETIMES.propagation.as_secs() - 1);
        for (index, (_, bundle)) in self.bundles.iter().enumerate() {
            let is_current = self.bundles.get(index + 1).is_none_or(|(replaced, _)| *replaced > horizon);
            if !is_current || bundle.is_empty() {
                continue;
            }
            for replica in &self.replicas {
                // One that was stopped for longer than a third of a leaf's life may wake up with an expired one.
                let Some(leaf) = &replica.leaf else { continue };
                if self.second - replica.looked > LIFETIMES.leaf.as_secs() / 3 {
                    continue;
                }
                assert!(
                    leaf.is_accepted(HOST, bundle, at(self.second)),
                    "second {}: caBundle {index} of {} does not accept {leaf:?}",
                    self.second,
                    self.bundles.len(),
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any order, any lag within bounds: whatever is served is accepted with any `caBundle` that an API server may
    /// still go by, through several generations of CAs.
    #[test]
    fn no_served_leaf_is_ever_refused(
        steps in vec((0_u64..8, 0_usize..3, 0_usize..2, 0_usize..2), 300),
    ) {
        let mut world = World::new(3);
        // The first CA is there and trusted: until then nobody is ready.
        for _ in 0..4 {
            for index in 0..3 {
                world.look(index, (0, 0));
            }
        }
        let (_, first) = world.bundles[1].clone();
        world.bundles[0].1 = first;
        let generations = Cell::new(0);
        for (passed, index, behind_secret, behind_bundle) in steps {
            world.second += passed;
            // Every replica looks at least every eight seconds; sometimes it sees what is no longer so.
            for other in 0..3 {
                if other == index || world.second - world.replicas[other].looked >= 8 {
                    world.look(other, if other == index { (behind_secret, behind_bundle) } else { (0, 0) });
                }
            }
            world.assert_served_is_accepted();
            generations.set(world.secret.len());
        }
        prop_assert!(generations.get() > 3, "CAs were replaced");
    }
}

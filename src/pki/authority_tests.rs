use rcgen::GeneralSubtree;

use super::*;

const HOST: &str = "gitlab-runner-webhook.gitlab-runner-webhook.svc";
const DAY: Duration = Duration::from_hours(24);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn now() -> Timestamp {
    at(1_800_000_000)
}

fn names() -> Vec<String> {
    vec![HOST.to_owned(), "127.0.0.1".to_owned()]
}

fn trusting(authority: &Authority) -> Vec<Vec<u8>> {
    vec![authority.certificate().to_vec()]
}

fn pem_of(authority: &Authority) -> (String, String) {
    let mut certificate = String::new();
    pem::append(&mut certificate, authority.certificate());
    (certificate, authority.key_pem())
}

/// A certificate that is not ours, as the file would hold it.
fn foreign(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_leaf_is_accepted_for_its_names_by_who_trusts_its_ca_and_by_nobody_else() {
    let (ca, other) = (Authority::new(DAY, now()).unwrap(), Authority::new(DAY, now()).unwrap());
    assert_ne!(ca.id(), other.id());
    let leaf = ca.issue(&names(), DAY, now()).unwrap();
    for (name, trusted, accepted) in [
        (HOST, trusting(&ca), true),
        ("127.0.0.1", trusting(&ca), true),
        (HOST, [trusting(&other), trusting(&ca)].concat(), true),
        (HOST, trusting(&other), false),
        (HOST, vec![], false),
        (HOST, vec![b"garbage".to_vec()], false),
        ("gitlab.example.com", trusting(&ca), false),
        ("", trusting(&ca), false),
    ] {
        assert_eq!(leaf.is_accepted(name, &trusted, now()), accepted, "{name}");
    }
}

#[test]
fn validity_begins_a_day_early_and_ends_no_later_than_the_cas() {
    let ca = Authority::new(DAY, now()).unwrap();
    let leaf = ca.issue(&names(), DAY / 2, now()).unwrap();
    let yesterday = minus(now(), SignedDuration::from_hours(24));
    assert!(leaf.validity.holds(yesterday) && ca.validity().holds(yesterday));
    assert!(leaf.is_accepted(HOST, &trusting(&ca), yesterday));
    assert_eq!(leaf.validity.not_after, plus(now(), DAY / 2));
    assert_eq!(leaf.due, plus(now(), DAY / 3), "after two thirds");
    assert!(!leaf.is_accepted(HOST, &trusting(&ca), plus(now(), DAY / 2 + Duration::from_secs(1))));

    let late = plus(now(), Duration::from_secs(86_400 - 9));
    let leaf = ca.issue(&names(), DAY, late).unwrap();
    assert_eq!(leaf.validity.not_after, ca.validity().not_after);
    assert_eq!(leaf.due, plus(late, Duration::from_secs(6)));
}

#[test]
fn a_ca_is_due_when_a_third_of_its_life_is_left() {
    let ca = Authority::new(DAY * 3, now()).unwrap();
    assert!(!ca.is_due(DAY * 3, now()));
    assert!(!ca.is_due(DAY * 3, plus(now(), Duration::from_secs(2 * 86_400 - 1))));
    assert!(ca.is_due(DAY * 3, plus(now(), DAY * 2)));
    assert!(ca.is_due(DAY * 365, now()), "made when lifetimes were shorter");
}

#[test]
fn reads_what_it_wrote() {
    let ca = Authority::new(DAY, now()).unwrap();
    let (certificate, key) = pem_of(&ca);
    let read = Authority::from_pem(certificate.as_bytes(), key.as_bytes(), &names()).unwrap();
    assert_eq!((read.id(), read.validity()), (ca.id(), ca.validity()));
    let leaf = read.issue(&names(), DAY, now()).unwrap();
    assert!(leaf.is_accepted(HOST, &trusting(&ca), now()), "the same key");
}

#[test]
fn anothers_ca_is_fine_when_it_can_issue() {
    let (certificate, key) = foreign(|_| {});
    Authority::from_pem(certificate.as_bytes(), key.as_bytes(), &names()).unwrap();
    let expired = foreign(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let expired = Authority::from_pem(expired.0.as_bytes(), expired.1.as_bytes(), &names()).unwrap();
    assert!(!expired.validity().holds(now()));
}

#[test]
fn whatever_cannot_issue_is_refused_with_a_reason_and_without_its_words() {
    let ca = Authority::new(DAY, now()).unwrap();
    let (certificate, key) = pem_of(&ca);
    let two = certificate.clone() + &certificate;
    let cut = certificate.get(..certificate.len() / 2).unwrap();
    let no_ca = foreign(|params| params.is_ca = IsCa::NoCa);
    let no_signing = foreign(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let elsewhere = foreign(|params| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("example.com".to_owned())];
        params.name_constraints = Some(rcgen::NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    });
    let table = [
        ("", key.as_str(), "certificate"),
        ("hunter2", &key, "certificate"),
        (cut, &key, "certificate"),
        (&two, &key, "certificate"),
        (&certificate, "", "key"),
        (&certificate, "hunter2", "key"),
        (&certificate, &certificate, "key"),
        (&certificate, &no_ca.1, "mismatch"),
        (&no_ca.0, &no_ca.1, "not-a-ca"),
        (&no_signing.0, &no_signing.1, "not-a-ca"),
        (&elsewhere.0, &elsewhere.1, "refused"),
    ];
    for (certificate, key, reason) in table {
        let error = Authority::from_pem(certificate.as_bytes(), key.as_bytes(), &names()).unwrap_err();
        assert_eq!(error.reason(), reason);
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn debug_shows_no_key() {
    let ca = Authority::new(DAY, now()).unwrap();
    let leaf = ca.issue(&names(), DAY, now()).unwrap();
    let text = format!("{ca:?} {leaf:?}");
    assert!(text.contains(&ca.id().to_string()) && !text.contains("PRIVATE") && !text.contains("key"), "{text}");
}

use std::time::Duration;

use super::*;

const LIFETIME: Duration = Duration::from_hours(24);

fn names() -> Vec<String> {
    vec!["gitlab-runner-webhook.gitlab-runner-webhook.svc".to_owned()]
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn authority() -> Arc<Authority> {
    Authority::new(LIFETIME, now()).unwrap()
}

fn stored(keyring: &Keyring) -> BTreeMap<String, ByteString> {
    let data = keyring.data().into_iter();
    data.filter_map(|(key, value)| Some((key.to_owned(), ByteString(value?.into_bytes())))).collect()
}

fn full() -> Keyring {
    let mut keyring = Keyring { current: authority(), next: Some(authority()), previous: Vec::new() };
    for seconds in [100, 200] {
        keyring.retire(authority().certificate(), Timestamp::from_second(1_800_000_000 + seconds).unwrap());
    }
    keyring
}

#[test]
fn reads_what_it_wrote() {
    for keyring in [full(), Keyring { current: authority(), next: None, previous: Vec::new() }] {
        let found = Keyring::read(&stored(&keyring), &names()).unwrap();
        assert_eq!(found.useless, Vec::<&str>::new());
        assert_eq!(found.keyring.ca_bundle(), keyring.ca_bundle());
        assert_eq!(found.keyring.previous, keyring.previous);
        assert_eq!(stored(&found.keyring), stored(&keyring));
    }
}

#[test]
fn all_of_it_is_trusted_and_the_bundle_holds_no_key() {
    let keyring = full();
    let bundle = keyring.ca_bundle();
    assert_eq!(pem::certificates(bundle.as_bytes()).unwrap().len(), 4);
    assert!(!bundle.contains("PRIVATE"));
    assert!(keyring.issuers().all(|authority| keyring.trusts(authority.id())));
    assert!(!keyring.trusts(authority().id()));
    assert!(!format!("{keyring:?}").contains("PRIVATE"));
}

#[test]
fn what_is_useless_is_named_and_what_is_not_is_used() {
    let keyring = full();
    for (key, value, useless) in [
        (KEY_NEXT_CERT, Some("garbage"), vec![KEY_NEXT_CERT, KEY_NEXT_KEY]),
        (KEY_NEXT_KEY, None, vec![KEY_NEXT_CERT]),
        (KEY_NEXT_CERT, None, vec![KEY_NEXT_KEY]),
        (KEY_PREVIOUS_CERTS, Some("garbage"), vec![KEY_PREVIOUS_CERTS]),
    ] {
        let mut data = stored(&keyring);
        match value {
            Some(value) => data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec())),
            None => data.remove(key),
        };
        let found = Keyring::read(&data, &names()).unwrap();
        assert_eq!(found.useless, useless, "{key}");
        assert_eq!(found.keyring.current.id(), keyring.current.id());
    }
    for key in [KEY_CURRENT_CERT, KEY_CURRENT_KEY] {
        let mut data = stored(&keyring);
        data.remove(key);
        assert_eq!(Keyring::read(&data, &names()).unwrap_err(), AuthorityError::Missing, "{key}");
    }
}

#[test]
fn a_former_ca_without_a_time_is_trusted_until_it_expires() {
    let keyring = full();
    let mut data = stored(&keyring);
    for until in [None, Some("yesterday\n"), Some("9999-01-01T00:00:00Z\n9999-01-01T00:00:00Z\n")] {
        match until {
            Some(until) => data.insert(KEY_PREVIOUS_UNTIL.to_owned(), ByteString(until.as_bytes().to_vec())),
            None => data.remove(KEY_PREVIOUS_UNTIL),
        };
        let found = Keyring::read(&data, &names()).unwrap();
        let not_after = now().saturating_add(LIFETIME).unwrap();
        assert!(found.keyring.previous.iter().all(|former| former.until == not_after), "{until:?}");
    }
}

#[test]
fn former_cas_are_not_hoarded() {
    let mut keyring = full();
    let last = authority();
    for authority in (0..9).map(|_| authority()).chain([Arc::clone(&last), Arc::clone(&last)]) {
        keyring.retire(authority.certificate(), now());
    }
    assert_eq!(keyring.previous.len(), MAX_PREVIOUS);
    assert!(keyring.trusts(last.id()));
}

#[test]
fn debug_names_each_ca_and_shows_no_key() {
    let keyring = full();
    let text = format!("{keyring:?}");
    let ids = keyring.issuers().map(|ca| ca.id().to_string());
    let former = keyring.previous.iter().map(|ca| AuthorityId::of(&ca.certificate).to_string());
    for id in ids.chain(former) {
        assert!(text.contains(&id), "{id} is not in {text}");
    }
    assert!(!text.contains("PRIVATE") && !text.contains("key"), "{text}");
}

//! Which trust bundles pods are given: those whose content followed from the certificates, as far as this process saw. PURE.
//!
//! Otherwise a client with the right to write the ConfigMap could have every job that starts before the repair trust its CA.

use std::collections::BTreeMap;

use super::state::BundleState;
use crate::{config::NamespaceName, digest::Digest, trust::CertsState};

/// Contents of one namespace that are remembered at most while none of them is stored: certificates changed so often
/// before the first of the bundles was written.
const MAX: usize = 4;

/// The content that is right in each namespace, by what was seen of the certificates.
#[derive(Debug, Default)]
pub struct Shown {
    /// The latest last. Those before it followed from former certificates, until the latest has been stored.
    right: BTreeMap<NamespaceName, Vec<Digest>>,
}

impl Shown {
    /// Takes in the certificates of all namespaces, as they are known now.
    pub fn note(&mut self, all: &BTreeMap<NamespaceName, CertsState>) {
        self.right.retain(|namespace, _| all.contains_key(namespace));
        for (namespace, certs) in all {
            let Some(wanted) = certs.bundle.digest() else { continue };
            let right = self.right.entry(namespace.clone()).or_default();
            if right.last() != Some(wanted) {
                right.retain(|former| former != wanted);
                right.push(wanted.clone());
                let surplus = right.len().saturating_sub(MAX);
                right.drain(..surplus);
            }
        }
    }

    /// What another revision published is right until what this process wants has been seen.
    pub fn adopt(&mut self, namespace: &NamespaceName, bundle: &BundleState) {
        let right = self.right.entry(namespace.clone()).or_default();
        if right.last() != Some(bundle.content()) {
            right.drain(..right.len().saturating_sub(1));
            right.insert(0, bundle.content().clone());
        }
    }

    /// Whether pods may be given a bundle. What followed from the certificates a moment ago is shown until what follows
    /// now has been seen, and never again. Where certificates cannot be read, it is the last that was right; where none
    /// was ever seen to be, because this process came later, the one that was found first.
    pub fn accepts(&mut self, namespace: &NamespaceName, bundle: &BundleState, certs: &CertsState) -> bool {
        let content = bundle.content();
        if certs.bundle.problem().is_some() {
            let right = self.right.entry(namespace.clone()).or_default();
            if right.is_empty() {
                right.push(content.clone());
            }
            return right.contains(content);
        }
        let Some(right) = self.right.get_mut(namespace).filter(|_| certs.bundle.is_some()) else { return false };
        if right.last() == Some(content) {
            right.drain(..right.len() - 1);
        }
        right.contains(content)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        ByteString,
        api::core::v1::{ConfigMap, Secret},
    };
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::{config::PublicRoots, trust::bundle};

    fn secret(value: &str) -> Secret {
        let data = BTreeMap::from([("ca.crt".to_owned(), ByteString(value.as_bytes().to_vec()))]);
        Secret { data: Some(data), ..Secret::default() }
    }

    /// Certificates, and the bundle that follows from them.
    fn pair() -> (CertsState, BundleState) {
        let key = KeyPair::generate().unwrap();
        let secret = secret(&CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem());
        let built = bundle::build(secret.data.as_ref(), PublicRoots::None).unwrap();
        let map = ConfigMap { data: Some(built.data().clone()), ..ConfigMap::default() };
        (CertsState::new(&secret, PublicRoots::None), map.into())
    }

    fn hostile() -> BundleState {
        let data = BTreeMap::from([("ca.crt".to_owned(), "hostile".to_owned())]);
        ConfigMap { data: Some(data), ..ConfigMap::default() }.into()
    }

    struct Cluster(Shown, NamespaceName);

    impl Cluster {
        fn new() -> Self {
            Self(Shown::default(), "n".parse().unwrap())
        }

        fn shows(&mut self, certs: &CertsState, bundle: &BundleState) -> bool {
            self.0.note(&BTreeMap::from([(self.1.clone(), certs.clone())]));
            self.0.accepts(&self.1, bundle, certs)
        }
    }

    #[test]
    fn what_another_revision_published_is_shown_until_this_one_has_written_its_own() {
        let namespace: NamespaceName = "n".parse().unwrap();
        let ((certs, own), (_, others), (_, hostile)) = (pair(), pair(), pair());
        let mut shown = Shown::default();
        shown.note(&BTreeMap::from([(namespace.clone(), certs.clone())]));
        assert!(!shown.accepts(&namespace, &others, &certs), "this one writes");
        shown.adopt(&namespace, &others);
        assert!(shown.accepts(&namespace, &others, &certs) && !shown.accepts(&namespace, &hostile, &certs));
        shown.note(&BTreeMap::from([(namespace.clone(), certs.clone())]));
        assert!(shown.accepts(&namespace, &others, &certs), "not written yet");
        assert!(shown.accepts(&namespace, &own, &certs) && !shown.accepts(&namespace, &others, &certs), "it is now");
    }

    #[test]
    fn only_what_follows_from_the_certificates_is_shown() {
        let (mut cluster, (certs, right), (_, another)) = (Cluster::new(), pair(), pair());
        for (bundle, expected) in [(&another, false), (&right, true), (&hostile(), false), (&right, true)] {
            assert_eq!(cluster.shows(&certs, bundle), expected);
        }
        assert!(!cluster.shows(&CertsState::new(&secret(""), PublicRoots::None), &right), "nothing to be trusted");
    }

    #[test]
    fn what_was_right_a_moment_ago_is_shown_until_its_successor_is_stored() {
        let (mut cluster, (certs, first), (later, second)) = (Cluster::new(), pair(), pair());
        assert!(cluster.shows(&certs, &first));
        assert!(cluster.shows(&later, &first), "not written anew yet");
        assert!(!cluster.shows(&later, &hostile()));
        assert!(cluster.shows(&later, &second));
        assert!(!cluster.shows(&later, &first), "a CA that was taken out stays out");
        // Changed twice before the first change was written, which another replica does only now.
        let ((third, of_third), (fourth, of_fourth)) = (pair(), pair());
        assert!(
            cluster.shows(&third, &second) && cluster.shows(&fourth, &of_third) && cluster.shows(&fourth, &of_fourth)
        );
    }

    #[test]
    fn while_certificates_cannot_be_read_the_last_right_one_is_shown() {
        let (mut cluster, (certs, right), (_, another)) = (Cluster::new(), pair(), pair());
        let unreadable = CertsState::new(&secret("garbage"), PublicRoots::None);
        assert!(cluster.shows(&certs, &right));
        assert!(cluster.shows(&unreadable, &right) && !cluster.shows(&unreadable, &hostile()));
        // A process that never saw them goes by what it finds first.
        let mut cluster = Cluster::new();
        assert!(cluster.shows(&unreadable, &another) && !cluster.shows(&unreadable, &hostile()));
        assert!(cluster.shows(&certs, &right) && !cluster.shows(&certs, &another));
    }
}

//! A certificate, as far as it is judged. PURE.

use core::net::IpAddr;

use gitlab_runner_webhook::{
    pem::{self, PemError},
    pki,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What is this close to its end is worth a word, unless its whole life is short.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A certificate. All of it is public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// As it is.
    pub der: Vec<u8>,
    /// Its subject, for people.
    pub subject: String,
    /// DNS names and addresses that it is for.
    pub names: Vec<String>,
    /// Whether it may issue others.
    pub is_ca: bool,
    /// From this moment on.
    pub not_before: Timestamp,
    /// Up to this moment.
    pub not_after: Timestamp,
}

/// Where a certificate is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Not valid yet.
    Early,
    /// Valid.
    Valid,
    /// Valid, but not for long: 30 days, and a sixth of its life, or less.
    Late,
    /// Not valid any more.
    Expired,
}

impl Certificate {
    /// The certificates of a PEM file.
    ///
    /// # Errors
    /// It is no such file.
    pub fn all(pem: &[u8]) -> Result<Vec<Self>, PemError> {
        Ok(Self::parsed(pem::certificates(pem)?))
    }

    /// Each of these, which are DER.
    pub fn parsed(certificates: Vec<Vec<u8>>) -> Vec<Self> {
        certificates.into_iter().filter_map(Self::of).collect()
    }

    fn of(der: Vec<u8>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let moment = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        Some(Self {
            subject: parsed.subject().to_string(),
            names: names.collect(),
            is_ca: parsed.is_ca(),
            not_before: moment(parsed.validity().not_before.timestamp()),
            not_after: moment(parsed.validity().not_after.timestamp()),
            der,
        })
    }

    /// Where it is in its life.
    pub fn age(&self, now: Timestamp) -> Age {
        let sixth = self.not_after.duration_since(self.not_before) / 6;
        match self.not_after.duration_since(now) {
            _ if now < self.not_before => Age::Early,
            left if left <= SignedDuration::ZERO => Age::Expired,
            left if left <= SOON && left <= sixth => Age::Late,
            _ => Age::Valid,
        }
    }

    /// Whether it is for this host, as its names say.
    pub fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| {
            let below = name.strip_prefix("*.").zip(host.split_once('.').map(|(_, rest)| rest));
            name.eq_ignore_ascii_case(host) || below.is_some_and(|(name, rest)| name.eq_ignore_ascii_case(rest))
        })
    }

    /// `until 2027-01-01 00:00 UTC, 38 days`.
    pub fn until(&self, now: Timestamp) -> String {
        let date = self.not_after.strftime("%Y-%m-%d %H:%M UTC");
        let left = self.not_after.duration_since(now);
        let (count, unit) = match (left.abs().as_hours() / 24, left.abs().as_hours()) {
            (2.., hours) => (hours / 24, "days"),
            (_, 2..) => (left.abs().as_hours(), "hours"),
            _ => (left.abs().as_mins(), "minutes"),
        };
        let which = if left.is_negative() { " ago" } else { "" };
        format!("until {date}, {count} {unit}{which}")
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Whether a client that trusts these CAs and no others accepts this chain for this name: what the API server does
/// with `caBundle`.
pub fn is_accepted(chain: &[Certificate], name: &str, trusted: &[Certificate], now: Timestamp) -> bool {
    let chain: Vec<_> = chain.iter().map(|each| CertificateDer::from(each.der.as_slice())).collect();
    pki::is_accepted(&chain, name, trusted.iter().map(|ca| ca.der.as_slice()), now)
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    pub(in crate::check) fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    /// A CA, or with names a leaf of its own making, valid from and to so many days from now.
    pub(in crate::check) fn pem(names: &[&str], days: (i64, i64)) -> String {
        let day = |days| OffsetDateTime::from_unix_timestamp(now().as_second() + days * 86_400).unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.not_before, params.not_after) = (day(days.0), day(days.1));
        if names.is_empty() {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn certificate(names: &[&str], days: (i64, i64)) -> Certificate {
        Certificate::all(pem(names, days).as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn ages() {
        for (days, age) in [
            ((1, 9), Age::Early),
            ((-1, 1), Age::Valid),
            ((-9, 1), Age::Late),
            ((-300, 29), Age::Late),
            ((-300, 40), Age::Valid),
            ((-9, -1), Age::Expired),
        ] {
            assert_eq!(certificate(&[], days).age(now()), age, "{days:?}");
        }
    }

    #[test]
    fn names() {
        let leaf = certificate(&["gitlab.example.com", "*.apps.example.com", "10.0.0.1"], (-1, 1));
        assert!(!leaf.is_ca && certificate(&[], (-1, 1)).is_ca);
        for host in ["gitlab.example.com", "GitLab.example.com", "a.apps.example.com", "10.0.0.1"] {
            assert!(leaf.is_for(host), "{host}");
        }
        for host in ["example.com", "a.b.apps.example.com", "apps.example.com", "10.0.0.2", ""] {
            assert!(!leaf.is_for(host), "{host}");
        }
    }

    #[test]
    fn times_for_people() {
        assert_eq!(certificate(&[], (-1, 38)).until(now()), "until 2026-07-09 00:00 UTC, 38 days");
        assert_eq!(certificate(&[], (-9, -3)).until(now()), "until 2026-05-29 00:00 UTC, 3 days ago");
    }

    #[test]
    fn a_leaf_is_accepted_by_its_ca_for_its_name() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = Certificate::all(params.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
        let leaf = CertificateParams::new(vec!["a.b.svc".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(params, key)).unwrap();
        let leaf = Certificate::all(leaf.pem().as_bytes()).unwrap();
        assert!(is_accepted(&leaf, "a.b.svc", &ca, now()));
        assert!(!is_accepted(&leaf, "other.b.svc", &ca, now()));
        assert!(!is_accepted(&leaf, "a.b.svc", &[certificate(&[], (-1, 1))], now()));
        assert!(!is_accepted(&[], "a.b.svc", &ca, now()));
    }
}

//! A CA, and the leaves it issues. PURE.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{crypto, names, pem};

/// How long before its issue each certificate begins to be valid: clocks differ, and one that is set back by a day
/// must not make what was issued this morning worthless.
const BACKDATED: SignedDuration = SignedDuration::from_hours(25);
/// Of its lifetime, the part after which a certificate is renewed is 2/3: one in this many is left.
const LEFT_FOR_RENEWAL: u32 = 3;

/// Names a CA certificate in logs, and tells CAs apart: the first half of its SHA-256.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityId(Box<str>);

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From this moment on.
    pub not_before: Timestamp,
    /// Up to and with this moment.
    pub not_after: Timestamp,
}

/// A CA with its key. Its `Debug` shows the id only.
pub struct Authority {
    id: AuthorityId,
    certificate: CertificateDer<'static>,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

/// A serving certificate with its key, and the CA that issued it.
#[derive(Clone)]
pub struct Leaf {
    /// For TLS.
    pub key: Arc<CertifiedKey>,
    /// When it is valid.
    pub validity: Validity,
    /// Who issued it, and can issue the next.
    pub issuer: Arc<Authority>,
    /// When it is to be replaced.
    pub due: Timestamp,
}

/// Why a CA cannot be used. Nothing of certificate or key is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Certificate or key is not there.
    #[error("certificate or key is missing")]
    Missing,
    /// Not exactly one PEM certificate.
    #[error("the certificate is not one PEM certificate")]
    Certificate,
    /// No PEM private key of a kind that can be used.
    #[error("the key is not a PEM private key that can be used")]
    Key,
    /// The key is another certificate's.
    #[error("the key is not that of the certificate")]
    Mismatch,
    /// The certificate is no CA's.
    #[error("the certificate is not that of a CA")]
    NotCa,
    /// It issues what would not be accepted: constrained names, a weak key, an unknown critical extension.
    #[error("what it issues would not be accepted")]
    Refused,
    /// The cryptographic library refused to make it.
    #[error("the cryptographic library cannot issue a certificate")]
    Library,
}

impl AuthorityError {
    /// The reason as log field.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Mismatch => "mismatch",
            Self::NotCa => "not-a-ca",
            Self::Refused => "refused",
            Self::Library => "library",
        }
    }
}

impl Validity {
    /// Whether it is valid at this moment.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

impl Authority {
    /// A new CA: ECDSA P-256, for nothing but leaves.
    ///
    /// # Errors
    /// When the cryptographic library has no random numbers, and the like.
    pub fn new(lifetime: Duration, now: Timestamp) -> Result<Arc<Self>, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Library)?;
        let mut params = params(Vec::new(), now, plus(now, lifetime))?;
        // Each CA has a name of its own, so that none is taken for another where several are trusted.
        params.distinguished_name.push(DnType::CommonName, format!("{} {now:.0}", names::APP));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|_| AuthorityError::Library)?;
        Self::from_parts(certificate.der().clone(), key).map(Arc::new)
    }

    /// Reads a CA from PEM, and proves that what it issues for these names would be accepted.
    ///
    /// # Errors
    /// When it is of no use, whatever the time.
    pub fn from_pem(certificate: &[u8], key: &[u8], names: &[String]) -> Result<Arc<Self>, AuthorityError> {
        let certificate = match pem::certificates(certificate).map_err(|_| AuthorityError::Certificate)?.as_slice() {
            [one] => CertificateDer::from(one.clone()),
            _ => return Err(AuthorityError::Certificate),
        };
        let key = std::str::from_utf8(key).ok().and_then(|key| KeyPair::from_pem(key).ok());
        let authority = Arc::new(Self::from_parts(certificate, key.ok_or(AuthorityError::Key)?)?);
        // At a moment when it is valid: whether it is now is another question.
        let now = plus(authority.validity.not_before, Duration::from_secs(1));
        let leaf = authority.issue(names, Duration::from_mins(1), now)?;
        let trusted = [authority.certificate.to_vec()];
        if names.iter().all(|name| leaf.is_accepted(name, &trusted, now)) {
            Ok(authority)
        } else {
            Err(AuthorityError::Refused)
        }
    }

    fn from_parts(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| AuthorityError::Certificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::Mismatch);
        }
        if !parsed.is_ca() || parsed.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(AuthorityError::NotCa);
        }
        let validity = validity(&parsed)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| AuthorityError::Certificate)?;
        Ok(Self { id: AuthorityId::of(&certificate), certificate, validity, issuer })
    }

    /// Issues a leaf for these DNS names and addresses. It ends no later than the CA.
    ///
    /// # Errors
    /// When the cryptographic library has no random numbers, and the like.
    pub fn issue(
        self: &Arc<Self>,
        names: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Leaf, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Library)?;
        let not_after = plus(now, lifetime).min(self.validity.not_after);
        let mut params = params(names.to_vec(), now, not_after)?;
        params.distinguished_name.push(DnType::CommonName, names::APP);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(|_| AuthorityError::Library)?;

        let validity = Validity { not_before: minus(now, BACKDATED), not_after };
        let secret = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = CertifiedKey::from_der(vec![certificate.der().clone()], secret, &crypto::provider());
        let key = Arc::new(key.map_err(|_| AuthorityError::Library)?);
        let left = not_after.duration_since(now) / LEFT_FOR_RENEWAL.cast_signed();
        Ok(Leaf { key, validity, issuer: Arc::clone(self), due: minus(not_after, left) })
    }

    /// Which CA this is.
    pub fn id(&self) -> &AuthorityId {
        &self.id
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The key in PEM: for the CA Secret, and for nothing else.
    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// When it is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether a CA of this lifetime is to be replaced: a third of it or less is left.
    pub fn is_due(&self, lifetime: Duration, now: Timestamp) -> bool {
        plus(now, lifetime / LEFT_FOR_RENEWAL) >= self.validity.not_after
    }
}

impl Leaf {
    /// Whether a client that trusts these CA certificates (DER), and no others, accepts it for this name: what the API
    /// server does with `caBundle`.
    pub fn is_accepted(&self, name: &str, trusted: &[Vec<u8>], now: Timestamp) -> bool {
        is_accepted(&self.key.cert, name, trusted.iter().map(Vec::as_slice), now)
    }
}

/// Whether a client that trusts these CA certificates (DER), and no others, accepts this chain for this name.
pub fn is_accepted<'a>(
    chain: &[CertificateDer<'_>],
    name: &str,
    trusted: impl Iterator<Item = &'a [u8]>,
    now: Timestamp,
) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.map(CertificateDer::from));
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto::provider()).build();
    let (Ok(verifier), Some((leaf, rest)), Ok(name), Ok(seconds)) =
        (verifier, chain.split_first(), ServerName::try_from(name), u64::try_from(now.as_second()))
    else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    verifier.verify_server_cert(leaf, rest, &name, &[], now).is_ok()
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("validity", &self.validity)
            .field("issuer", &self.issuer.id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("id", &self.id).field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl AuthorityId {
    /// Of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        let digest = digest(&SHA256, der);
        let mut text = String::with_capacity(32);
        for byte in digest.as_ref().iter().take(16) {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// When a certificate is valid.
pub(super) fn validity(certificate: &X509Certificate<'_>) -> Result<Validity, AuthorityError> {
    let moment = |seconds| Timestamp::from_second(seconds).map_err(|_| AuthorityError::Certificate);
    let validity = certificate.validity();
    Ok(Validity {
        not_before: moment(validity.not_before.timestamp())?,
        not_after: moment(validity.not_after.timestamp())?,
    })
}

/// A later moment, or the last one there is.
pub(super) fn plus(moment: Timestamp, duration: Duration) -> Timestamp {
    moment.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

fn minus(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.saturating_sub(duration).unwrap_or(Timestamp::MIN)
}

fn params(names: Vec<String>, now: Timestamp, not_after: Timestamp) -> Result<CertificateParams, AuthorityError> {
    let date = |moment: Timestamp| {
        OffsetDateTime::from_unix_timestamp(moment.as_second()).map_err(|_| AuthorityError::Library)
    };
    let mut params = CertificateParams::new(names).map_err(|_| AuthorityError::Library)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = date(minus(now, BACKDATED))?;
    params.not_after = date(not_after)?;
    Ok(params)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;

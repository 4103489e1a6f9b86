//! The other way to a serving certificate: PEM files that somebody else writes, such as cert-manager.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::digest::{Digest, SHA256, digest};
use k8s_openapi::jiff::Timestamp;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::conditions::{self, ConditionReporter};
use crate::{
    crypto,
    server::{Certificate, Served},
    telemetry::metrics::Metrics,
};

/// How soon files that do not fit together are looked at again: the writer may be between the two.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Where the serving certificate comes from.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// Certificate chain (PEM), leaf first: `--tls-cert`.
    pub cert: PathBuf,
    /// Private key (PEM): `--tls-key`.
    pub key: PathBuf,
}

/// Why the files cannot be used. Of their content, nothing is repeated.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file could not be read.
    #[error("cannot read {}: {source}; put a PEM file there or point {flag} at one", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// No certificate in the file.
    #[error("{} holds no readable PEM certificate; put the chain there, the leaf first", file.display())]
    NoCertificate {
        /// The file.
        file: PathBuf,
    },
    /// No private key in the file.
    #[error("{} holds no readable PEM private key; put the key of {} there", file.display(), cert.display())]
    NoKey {
        /// The file.
        file: PathBuf,
        /// The certificate that it should be the key of.
        cert: PathBuf,
    },
    /// A key of a kind that cannot be used.
    #[error("the key in {} cannot be used for TLS; expected ECDSA (P-256, P-384, P-521), Ed25519 or RSA", file.display())]
    UnusableKey {
        /// The file.
        file: PathBuf,
    },
    /// Each is fine, but not together.
    #[error("the key in {} is not that of the certificate in {}; write both files anew", key.display(), cert.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
}

impl CertificateError {
    /// The reason as log field.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::NoCertificate { .. } => "no-certificate",
            Self::NoKey { .. } => "no-key",
            Self::UnusableKey { .. } => "unusable-key",
            Self::Mismatch { .. } => "mismatch",
        }
    }
}

/// Serves what the files hold.
pub struct FileCertificate {
    files: CertificateFiles,
    certificate: Arc<Certificate>,
    /// What is served was made from this.
    loaded: Fingerprint,
    metrics: Metrics,
    conditions: Option<ConditionReporter>,
}

/// Tells contents apart without keeping the key.
type Fingerprint = [Option<Vec<u8>>; 2];

impl FileCertificate {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Names the file and the way out.
    pub fn load(
        files: CertificateFiles,
        certificate: Arc<Certificate>,
        metrics: Metrics,
    ) -> Result<Self, CertificateError> {
        let contents = FileContents::read(&files);
        let loaded = contents.fingerprint();
        certificate.set(contents.parse(&files)?);
        Ok(Self { files, certificate, loaded, metrics, conditions: None })
    }

    /// The same, with Events about files that cannot be used.
    #[must_use]
    pub fn telling(mut self, conditions: ConditionReporter) -> Self {
        self.conditions = Some(conditions);
        self
    }

    /// Looks at the files again and again, and serves what they hold once it can be used; until
    /// then, the former certificate. Never returns.
    pub async fn keep_fresh(mut self, interval: Duration) {
        let mut seen = SeenFiles { served: self.loaded.clone(), ..SeenFiles::default() };
        let mut pause = interval;
        loop {
            tokio::time::sleep(pause).await;
            let in_doubt = self.look(&mut seen);
            if let Some(conditions) = &mut self.conditions {
                conditions.note(seen.refused.as_ref().map(|(_, problem)| problem.clone()));
            }
            pause = if in_doubt { interval.min(SECOND_LOOK) } else { interval };
        }
    }

    /// One look at the files. Says whether it is too early to tell: contents are refused only when
    /// they are the same at the second look, because kubelet may replace them between two reads.
    fn look(&self, seen: &mut SeenFiles) -> bool {
        let contents = FileContents::read(&self.files);
        let found = contents.fingerprint();
        if found == seen.served {
            (seen.doubted, seen.refused) = (None, None);
            return false;
        }
        if seen.refused.as_ref().is_some_and(|(refused, _)| *refused == found) {
            return false;
        }
        match contents.parse(&self.files) {
            Ok(served) => {
                let not_after = Timestamp::from_second(served.not_after).unwrap_or(Timestamp::MAX);
                self.certificate.set(served);
                info!(file = %self.files.cert.display(), %not_after, "new serving certificate");
                *seen = SeenFiles { served: found, ..SeenFiles::default() };
                false
            }
            Err(error) if seen.doubted.as_ref() == Some(&found) => {
                self.metrics.certificate_reload_errors.inc();
                warn!(%error, reason = error.reason(), "the former serving certificate stays");
                let note = format!("{error}; the former serving certificate stays");
                (seen.doubted, seen.refused) = (None, Some((found, (error.reason(), note))));
                false
            }
            Err(_) => {
                seen.doubted = Some(found);
                true
            }
        }
    }
}

/// What was seen of the files so far.
#[derive(Default)]
struct SeenFiles {
    served: Fingerprint,
    /// Could not be used at the last look.
    doubted: Option<Fingerprint>,
    /// Could not be used, and that was said: why.
    refused: Option<(Fingerprint, conditions::Condition)>,
}

/// Both files as they were read.
struct FileContents {
    cert: std::io::Result<Vec<u8>>,
    key: std::io::Result<Vec<u8>>,
}

impl FileContents {
    /// Small files in memory (tmpfs): read in place.
    fn read(files: &CertificateFiles) -> Self {
        Self { cert: fs::read(&files.cert), key: fs::read(&files.key) }
    }

    fn fingerprint(&self) -> Fingerprint {
        let hash = |content: &std::io::Result<Vec<u8>>| {
            let hash: Option<Digest> = content.as_ref().ok().map(|content| digest(&SHA256, content));
            hash.map(|hash| hash.as_ref().to_vec())
        };
        [hash(&self.cert), hash(&self.key)]
    }

    fn parse(self, files: &CertificateFiles) -> Result<Served, CertificateError> {
        let (cert, key) = (files.cert.clone(), files.key.clone());
        let pem =
            self.cert.map_err(|source| CertificateError::Read { file: cert.clone(), flag: "--tls-cert", source })?;
        let secret =
            self.key.map_err(|source| CertificateError::Read { file: key.clone(), flag: "--tls-key", source })?;

        let no_certificate = || CertificateError::NoCertificate { file: cert.clone() };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| no_certificate())?;
        let leaf = chain.first().ok_or_else(no_certificate)?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| no_certificate())?;
        let not_after = leaf.validity().not_after.timestamp();

        let secret = PrivateKeyDer::from_pem_slice(&secret)
            .map_err(|_| CertificateError::NoKey { file: key.clone(), cert: cert.clone() })?;
        let certified = CertifiedKey::from_der(chain, secret, &crypto::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch { cert: cert.clone(), key: key.clone() },
            rustls::Error::InvalidCertificate(_) => no_certificate(),
            _ => CertificateError::UnusableKey { file: key.clone() },
        })?;
        Ok(Served { key: Arc::new(certified), not_after, successor: None })
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;

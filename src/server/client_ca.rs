//! Client certificates: with `--client-ca`, nobody but who shows one gets past the TLS handshake of the webhook port.
//!
//! The threat: where no `NetworkPolicy` is enforced, each CI job reaches that port. The API server shows a certificate only
//! if its own start-up configuration says so (`AdmissionConfiguration`, `kubeConfigFile` of the webhook plugins).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tracing::{info, warn};

use crate::{crypto, pem};

/// Why the file of `--client-ca` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// It could not be read.
    #[error("cannot read {}: {source}; put the CA of the API server's client certificates there, or leave out --client-ca", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not PEM, holds no certificate, or one that is of no use.
    #[error("{} holds no CA certificates that can be used; put the CA of the API server's client certificates there, in PEM", file.display())]
    NoCa {
        /// The file.
        file: PathBuf,
    },
}

/// Verifies client certificates by the CAs of a file, which may change.
pub struct ClientCa {
    file: PathBuf,
    /// What the file held at the start.
    loaded: Vec<u8>,
    verifier: ArcSwap<Arc<dyn ClientCertVerifier>>,
}

impl ClientCa {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// Names the file and the way out.
    pub fn load(file: PathBuf) -> Result<Arc<Self>, ClientCaError> {
        let loaded = read(&file)?;
        let verifier = ArcSwap::from_pointee(verifier(&file, &loaded)?);
        Ok(Arc::new(Self { file, loaded, verifier }))
    }

    /// Looks at the file again and again. While it cannot be used, the former CAs count. Never returns.
    pub async fn keep_fresh(self: Arc<Self>, interval: Duration) {
        let mut seen = Some(self.loaded.clone());
        loop {
            tokio::time::sleep(interval).await;
            let found = read(&self.file);
            if found.as_ref().ok() == seen.as_ref() {
                continue;
            }
            seen = found.as_ref().ok().cloned();
            match found.and_then(|found| verifier(&self.file, &found)) {
                Ok(verifier) => {
                    self.verifier.store(Arc::new(verifier));
                    info!(file = %self.file.display(), "new CA of client certificates");
                }
                Err(error) => warn!(%error, "the former CA of client certificates stays"),
            }
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, ClientCaError> {
    fs::read(file).map_err(|source| ClientCaError::Read { file: file.to_owned(), source })
}

fn verifier(file: &Path, content: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    let useless = || ClientCaError::NoCa { file: file.to_owned() };
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(content).map_err(|_| useless())? {
        roots.add(certificate.into()).map_err(|_| useless())?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto::provider()).build().map_err(|_| useless())
}

impl ClientCertVerifier for ClientCa {
    /// None: they might change. A client shows what it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier.load().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.load().supported_verify_schemes()
    }
}

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        assert!(ClientCa::load(file.clone()).unwrap_err().to_string().contains("or leave out --client-ca"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for content in ["", "hunter2", broken] {
            fs::write(&file, content).unwrap();
            let error = ClientCa::load(file.clone()).unwrap_err().to_string();
            assert!(error.contains(file.to_str().unwrap()) && error.contains("in PEM"), "{error}");
            assert!(!error.contains("hunter2"));
        }
    }
}

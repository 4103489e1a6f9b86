//! Certificates and files for tests.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

use super::CertificateFiles;

/// The name that certificates of tests are for.
pub(crate) const HOST: &str = "gitlab-runner-webhook.gitlab-runner-webhook.svc";

/// A self-signed certificate and its key.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) der: CertificateDer<'static>,
}

impl Pair {
    /// Expires at the start of this year.
    pub(crate) fn until(year: i32) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([HOST.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let cert = params.self_signed(&key).unwrap();
        Self { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }
}

/// A Secret volume as kubelet writes it: files are links into `..data`, which is a link itself.
pub(crate) struct SecretVolume {
    directory: TempDir,
    generation: u32,
}

impl SecretVolume {
    pub(crate) fn new(cert: &str, key: &str) -> Self {
        let mut volume = Self { directory: tempfile::tempdir().unwrap(), generation: 0 };
        volume.replace(cert, key);
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), volume.path(name)).unwrap();
        }
        volume
    }

    /// Swaps the content in one step, as kubelet does.
    pub(crate) fn replace(&mut self, cert: &str, key: &str) {
        self.generation += 1;
        let generation = format!("..{}", self.generation);
        fs::create_dir(self.path(&generation)).unwrap();
        fs::write(self.path(&generation).join("tls.crt"), cert).unwrap();
        fs::write(self.path(&generation).join("tls.key"), key).unwrap();
        symlink(generation, self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }

    pub(crate) fn files(&self) -> CertificateFiles {
        CertificateFiles { cert: self.path("tls.crt"), key: self.path("tls.key") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

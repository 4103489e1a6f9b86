//! The certificate authority of one control plane, its keys, and the kubeconfigs made from them.

use std::fs;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use serde_json::{Value, json};

use crate::Error;
use crate::arguments::SERVICE_ADDRESS;
use crate::node::NODE_ADDRESS;

/// What the serving certificate is valid for.
const SERVER_NAMES: [&str; 8] = [
    "127.0.0.1",
    "localhost",
    SERVICE_ADDRESS,
    NODE_ADDRESS,
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The authority, in memory; what it issued lies in the folder.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// Writes `ca.crt`, and a pair of files for `server` and `service-account` each.
    pub(crate) fn create(folder: &Path) -> Result<Self, Error> {
        let mut params = parameters("control-plane-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key("ca")?).map_err(refused("ca"))?;
        let authority = Self { issuer, folder: folder.to_owned() };
        write(&ca_file(folder), authority.pem())?;

        let mut params = CertificateParams::new(SERVER_NAMES.map(String::from)).map_err(refused("server"))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        authority.issue("server", params)?;
        let tokens = key("service-account")?;
        write(&folder.join("service-account.key"), tokens.serialize_pem())?;
        write(&folder.join("service-account.pub"), tokens.public_key_pem())?;
        Ok(authority)
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.as_ref().pem()
    }

    /// Writes `<name>.kubeconfig` for a user with a client certificate.
    pub(crate) fn user(&self, name: &str, user: &str, group: Option<&str>, url: &str) -> Result<PathBuf, Error> {
        let mut params = parameters(user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, params)?;
        let user = json!({
            "client-certificate": self.folder.join(format!("{name}.crt")),
            "client-key": self.folder.join(format!("{name}.key")),
        });
        write_kubeconfig(&self.folder, name, url, "default", &user)
    }

    fn issue(&self, name: &str, mut params: CertificateParams) -> Result<(), Error> {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2099, 1, 1);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = key(name)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(refused(name))?;
        write(&self.folder.join(format!("{name}.crt")), certificate.pem())?;
        write(&self.folder.join(format!("{name}.key")), key.serialize_pem())
    }
}

/// Writes a kubeconfig with one cluster, one user and one context, all called `name`. As JSON,
/// which every reader of kubeconfigs takes for the YAML that it is.
pub(crate) fn write_kubeconfig(
    folder: &Path,
    name: &str,
    url: &str,
    namespace: &str,
    user: &Value,
) -> Result<PathBuf, Error> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority": ca_file(folder)}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        "current-context": name,
    });
    let path = folder.join(format!("{name}.kubeconfig"));
    write(&path, format!("{config:#}\n"))?;
    Ok(path)
}

/// A client for a kubeconfig of ours; `retry` turns on the patience of kube with a busy server.
pub(crate) async fn client(kubeconfig: &Path, retry: bool) -> Result<Client, Error> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread was faster.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let failed = |reason: String| Error::Client { name: kubeconfig.display().to_string(), reason };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| failed(error.to_string()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| failed(error.to_string()))?;
    // The environment may name a proxy; loopback is not behind it.
    config.proxy_url = None;
    config.default_retry = retry;
    Client::try_from(config).map_err(|error| failed(error.to_string()))
}

pub(crate) fn ca_file(folder: &Path) -> PathBuf {
    folder.join("ca.crt")
}

fn parameters(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    params
}

fn key(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused(name))
}

fn refused(name: &str) -> impl FnOnce(rcgen::Error) -> Error {
    move |source| Error::Certificate { name: name.to_owned(), source }
}

fn write(path: &Path, text: String) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::on("write", path))
}

//! `--client-ca`: who shows no certificate is not heard, and the API server shows one.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use test_support::{
    Cluster, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::ControlPlane,
    wait,
};

use super::*;
use crate::BINARY;

/// A CA, and a client certificate by it, in PEM.
struct Clients {
    ca: String,
    certificate: String,
    key: String,
}

impl Clients {
    fn new(name: &str) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.distinguished_name.push(rcgen::DnType::CommonName, name);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
        Self { ca: ca_pem, certificate, key: key.serialize_pem() }
    }

    fn connector(&self, serving: &ServingCertificate) -> TlsConnector {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots(serving));
        TlsConnector::from(Arc::new(config.with_client_auth_cert(vec![certificate], key).unwrap()))
    }
}

/// What makes an API server show this certificate to every webhook.
fn admission_config(folder: &Path, clients: &Clients) -> String {
    let (kubeconfig, config) = (folder.join("webhooks.kubeconfig"), folder.join("admission.yaml"));
    for (name, content) in [("client.crt", &clients.certificate), ("client.key", &clients.key)] {
        fs::write(folder.join(name), content).unwrap();
    }
    let user = json!({"client-certificate": folder.join("client.crt"), "client-key": folder.join("client.key")});
    let users = json!({"apiVersion": "v1", "kind": "Config", "users": [{"name": "*", "user": user}]});
    fs::write(&kubeconfig, users.to_string()).unwrap();
    // As docs/security.md has it.
    let all = format!(
        "apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
  - name: MutatingAdmissionWebhook
    configuration: &webhooks
      apiVersion: apiserver.config.k8s.io/v1
      kind: WebhookAdmissionConfiguration
      kubeConfigFile: {}
  - name: ValidatingAdmissionWebhook
    configuration: *webhooks
",
        kubeconfig.display()
    );
    fs::write(&config, all).unwrap();
    config.to_str().unwrap().to_owned()
}

/// Whether a caller gets an answer. With TLS 1.3, who is refused learns of it after its own handshake.
async fn is_answered(server: SocketAddr, connector: &TlsConnector) -> bool {
    match connect_from(HONEST, server, connector).await {
        Ok(mut connection) => connection.try_post().await.is_some_and(|answer| is_allowed(&answer)),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_heard_without_a_client_certificate_but_the_api_server() {
    let _ = default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (clients, others) = (Clients::new("one"), Clients::new("another"));
    let admission = admission_config(folder.path(), &clients);
    let builder = ControlPlane::builder().api_server_arg(format!("--admission-control-config-file={admission}"));
    let cluster = Cluster::start_as(builder, Setup::default()).await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "the-token")]).await;
    let file = folder.path().join("clients.crt");
    fs::write(&file, &clients.ca).unwrap();
    let tool = cluster.tool(BINARY).await.flag("--client-ca", file.to_str().unwrap()).start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "the-token")]).await;
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    wait::until("the API server is answered", async || cluster.try_pod().await.ok()).await;

    let server: SocketAddr = tool.webhook_address().await.parse().unwrap();
    let [anonymous, known, stranger] = [
        connector(&cluster.certificate),
        clients.connector(&cluster.certificate),
        others.connector(&cluster.certificate),
    ];
    assert!(is_answered(server, &known).await);
    assert!(!is_answered(server, &anonymous).await && !is_answered(server, &stranger).await);
    assert_eq!(tool.get("/livez").await.0, 200, "probes show no certificate");

    // Whoever replaces the CA goes over both; a file that is of no use takes nobody's place.
    fs::write(&file, format!("{}{}", clients.ca, others.ca)).unwrap();
    wait::until("the other one is known", async || is_answered(server, &stranger).await.then_some(())).await;
    assert!(is_answered(server, &known).await && !is_answered(server, &anonymous).await);
    fs::write(&file, "no certificate").unwrap();
    tool.logged("the former CA stays", |line| line["message"] == "the former CA of client certificates stays").await;
    assert!(is_answered(server, &known).await && !is_answered(server, &anonymous).await);
    fs::write(&file, &others.ca).unwrap();
    wait::until("the first one is no longer known", async || (!is_answered(server, &known).await).then_some(())).await;
    assert!(is_answered(server, &stranger).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_shows_no_certificate_says_so() {
    let cluster = Cluster::with_source(&[("runner-token", "the-token")]).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
    let file = cluster.plane.dir().join("clients.crt");
    fs::write(&file, Clients::new("one").ca).unwrap();
    let tool = cluster.tool(BINARY).await.flag("--client-ca", file.to_str().unwrap()).start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "the-token")]).await;
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    // By these words, `check` knows what is the matter.
    wait::until("the API server is refused", async || {
        let refusal = cluster.try_pod().await.err()?.to_string();
        refusal.contains("certificate required").then_some(())
    })
    .await;
}

//! Whether what is installed follows from the configuration: webhooks, guards and rights.
//!
//! All three are written by `gitlab-runner-webhook manifests` and applied by somebody, later or never, so that each can
//! say something else than the configuration that the program runs with. `check` names every difference with its remediation.
//!
//! | file | what it is |
//! |---|---|
//! | `expected` | what is to be in the cluster. PURE |
//! | `differences` | webhooks and guards beside that. PURE |
//! | `rights` | rights beside that. PURE |

pub mod differences;
pub mod expected;
pub mod rights;

pub use expected::{Named, Role};

#[cfg(test)]
use clap::Parser as _;
use gitlab_runner_webhook::{
    config::{NamespaceName, SecretName, ServiceName, Settings, TlsMode},
    names::APP,
};

/// The program as it is installed.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its `ServiceAccount`.
    pub service_account: String,
    /// Its Service.
    pub service: ServiceName,
    /// The name of both webhook configurations.
    pub webhook_configuration: String,
    /// The Secret with its serving CA.
    pub ca_secret: SecretName,
    /// Where its serving certificate is from.
    pub tls: TlsMode,
}

impl Program {
    /// As these settings say, in this namespace.
    pub fn new(settings: &Settings, namespace: NamespaceName) -> Self {
        Self {
            namespace,
            service_account: APP.to_owned(),
            service: settings.service.clone(),
            webhook_configuration: settings.webhook_configuration.to_string(),
            ca_secret: settings.ca_secret.clone(),
            tls: settings.tls,
        }
    }

    /// As it is shipped.
    #[cfg(test)]
    #[allow(clippy::missing_panics_doc, reason = "for tests")]
    pub fn shipped() -> Self {
        let settings = Settings::try_parse_from([APP, "--namespace", APP]).unwrap();
        let namespace = settings.own_namespace().unwrap();
        Self::new(&settings, namespace)
    }
}

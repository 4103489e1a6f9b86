//! What the rotation is told, checked. PURE.

use std::time::Duration;

use super::plan::Lifetimes;
use crate::config::{ConfigurationName, NamespaceName, SecretName, Settings};

/// What the loop is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// DNS names and addresses of the leaf. By the first of them the API server calls.
    pub(super) names: Vec<String>,
    pub(super) lifetimes: Lifetimes,
    pub(super) namespace: NamespaceName,
    /// Name of the CA Secret.
    pub(super) ca_secret: SecretName,
    /// Name of both webhook configurations.
    pub(super) webhook_configuration: ConfigurationName,
    pub(super) watch_timeout: Duration,
}

/// Why the settings do not go together.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A CA must be able to become trusted within the last third of the life of the one before it.
    #[error("--ca-lifetime {ca:?} is too short: expected at least four times --ca-propagation {propagation:?}")]
    CaLifetime {
        /// `--ca-lifetime`.
        ca: Duration,
        /// `--ca-propagation`.
        propagation: Duration,
    },
    /// A leaf cannot outlive its CA.
    #[error("--leaf-lifetime {leaf:?} is too long: expected at most half of --ca-lifetime {ca:?}")]
    LeafLifetime {
        /// `--leaf-lifetime`.
        leaf: Duration,
        /// `--ca-lifetime`.
        ca: Duration,
    },
}

impl Options {
    /// Checks what was given. `namespace` is our own.
    ///
    /// # Errors
    /// Names the flag and what is expected.
    pub fn new(settings: &Settings, namespace: NamespaceName) -> Result<Self, OptionsError> {
        let lifetimes =
            Lifetimes { ca: settings.ca_lifetime, leaf: settings.leaf_lifetime, propagation: settings.ca_propagation };
        let Lifetimes { ca, leaf, propagation } = lifetimes;
        if ca < propagation * 4 {
            return Err(OptionsError::CaLifetime { ca, propagation });
        }
        if ca < leaf * 2 {
            return Err(OptionsError::LeafLifetime { leaf, ca });
        }
        let host = format!("{}.{namespace}.svc", settings.service);
        let cluster = format!("{host}.cluster.local");
        let names = [host, cluster].into_iter().chain(settings.tls_san.iter().cloned()).collect();
        Ok(Self {
            names,
            lifetimes,
            namespace,
            ca_secret: settings.ca_secret.clone(),
            webhook_configuration: settings.webhook_configuration.clone(),
            watch_timeout: settings.watch_timeout,
        })
    }

    /// The name by which the API server calls.
    pub(super) fn host(&self) -> &str {
        self.names.first().map(String::as_str).unwrap_or_default()
    }
}

//! Two clients: a patient one for watches, a prompt one for requests.

use std::{path::Path, time::Duration};

use http::{HeaderValue, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::{WatchClient, error::words as error_words};
use crate::{crypto, names};

/// Connections to one API server.
#[derive(Clone)]
pub struct Clients {
    /// For watches: no read time-out, the watch has its own.
    pub watch: WatchClient,
    /// For requests: short time-outs and no hidden retries; who asks decides when to ask again.
    pub request: Client,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {path}: {problem}; give a working file with --kubeconfig")]
    Kubeconfig {
        /// Path of the file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No kubeconfig was given, and the process does not run in a pod with a `ServiceAccount` token.
    #[error("no way to the API server: {0}; run in a cluster, or name a file with --kubeconfig")]
    NoConfiguration(String),
    /// The configuration is complete, but no client can be made of it.
    #[error("no client for {url}: {problem}")]
    Client {
        /// Address of the API server.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

/// Makes the clients, from a kubeconfig file, the pod's `ServiceAccount` or `~/.kube/config`, in this order.
///
/// No request is sent: an API server that is down is not an error here.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Clients, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => match Config::incluster() {
            Ok(config) => config,
            Err(_) => Config::infer().await.map_err(|error| ConnectError::NoConfiguration(error_words(&error)))?,
        },
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = None;
    let watch = WatchClient::new(client(config.clone())?);
    config.read_timeout = Some(Duration::from_secs(15));
    config.write_timeout = Some(Duration::from_secs(15));
    let request = client(config)?;
    Ok(Clients { watch, request })
}

/// A client of whoever runs a command, and the address of the API server: from the kubeconfig file, else `KUBECONFIG`,
/// else `~/.kube/config`, else the pod's `ServiceAccount`. Each request ends within `deadline`.
///
/// # Errors
/// Names the file or the context that cannot be used.
pub async fn connect_as_caller(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
    deadline: Duration,
) -> Result<(Client, String), ConnectError> {
    crypto::install();
    let file =
        kubeconfig.map_or_else(|| "from KUBECONFIG or ~/.kube/config".to_owned(), |path| path.display().to_string());
    let unusable = |problem: String| ConnectError::Kubeconfig { path: file.clone(), problem };
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let read = kubeconfig.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let mut config = match (read, Config::incluster()) {
        (Ok(read), _) => {
            Config::from_custom_kubeconfig(read, &options).await.map_err(|error| unusable(words(&error)))?
        }
        (Err(_), Ok(config)) if kubeconfig.is_none() && context.is_none() => config,
        (Err(error), _) => return Err(unusable(words(&error))),
    };
    config.connect_timeout = Some(deadline);
    config.read_timeout = Some(deadline);
    config.write_timeout = Some(deadline);
    let url = config.cluster_url.to_string();
    Ok((client(config)?, url))
}

async fn from_file(path: &Path) -> Result<Config, ConnectError> {
    let error = |problem: String| ConnectError::Kubeconfig { path: path.display().to_string(), problem };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| error(words(&e)))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|e| error(words(&e)))
}

/// What is wrong with a kubeconfig. A parser would quote the lines around it, tokens included.
fn words(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => {
            let line = error.location().map(|place| format!(", from line {} on", place.line())).unwrap_or_default();
            format!("it is no kubeconfig{line}")
        }
        error => error_words(error),
    }
}

/// A client that says who it is and hides no retries: who asks decides when to ask again.
fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(names::USER_AGENT)));
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| ConnectError::Client { url, problem: error_words(&error) })
}

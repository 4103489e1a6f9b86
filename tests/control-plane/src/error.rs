use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// What kept the control plane from doing what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Programs are missing and there is nothing to build them with.
    #[error(
        "building the control plane needs Go 1.26 or newer (found: {}): install it, or set KUBEBUILDER_ASSETS \
         to a folder that holds etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kwok and kubectl",
        found.trim()
    )]
    Go {
        /// The version, or why there is none.
        found: String,
    },

    /// `go build` failed.
    #[error("go build of {names} failed:\n{log}")]
    Build {
        /// The programs, with commas between them.
        names: String,
        /// The last lines that Go printed.
        log: String,
    },

    /// Something about a file, a folder or a program failed.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The operating system gave no free port.
    #[error("cannot find a free port on 127.0.0.1: {0}")]
    Port(#[source] io::Error),

    /// A certificate could not be issued.
    #[error("cannot issue the {name} certificate: {source}")]
    Certificate {
        /// Whose certificate.
        name: String,
        /// Why not.
        source: rcgen::Error,
    },

    /// A kubeconfig of our own could not be turned into a client.
    #[error("cannot make a client from the kubeconfig of {name}: {reason}")]
    Client {
        /// Whose client.
        name: String,
        /// Why not.
        reason: String,
    },

    /// A program ended that should run.
    #[error("{component} ended ({status}); its last lines:\n{log}")]
    Exited {
        /// The program.
        component: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The tail of its log.
        log: String,
    },

    /// A state did not come in time.
    #[error("{component}: gave up waiting until {state} (last seen: {seen}); its last lines:\n{log}")]
    NotReady {
        /// The program that should have brought it about.
        component: &'static str,
        /// The state.
        state: String,
        /// What was there instead.
        seen: String,
        /// The tail of the program's log.
        log: String,
    },

    /// The API server refused a request of the harness itself.
    #[error("cannot {action}: {source}")]
    Request {
        /// What was tried, on what.
        action: String,
        /// Why not.
        source: Box<kube::Error>,
    },

    /// kubectl ended with a code other than zero.
    #[error("kubectl {arguments} failed ({status}): {stderr}")]
    Kubectl {
        /// Its arguments, with spaces between them.
        arguments: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed to its standard error.
        stderr: String,
    },

    /// This machine cannot run a node; nothing was tried yet.
    #[error("this machine cannot run a node: {0}")]
    Machine(String),

    /// The folder for temporary files would not be seen by the node.
    #[error("a node mounts its own over {}: let TMPDIR name another folder", .0.display())]
    TemporaryFolder(PathBuf),

    /// A program that sets up the node ended with a code other than zero.
    #[error("{command} failed: {stderr}")]
    Setup {
        /// The program and its arguments.
        command: String,
        /// What it printed to its standard error.
        stderr: String,
    },

    /// An image of the node itself could not be written.
    #[error("cannot make an image for the node: {0}")]
    Image(#[from] image_archive::Error),

    /// A program was needed that this control plane was started without.
    #[error("{0} is not part of this control plane: ask for it in ControlPlane::builder()")]
    Absent(&'static str),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }

    /// For `map_err`: the same, with the error to come.
    pub(crate) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::file(action, path, source)
    }

    pub(crate) fn request(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Request { action: action.into(), source: Box::new(source) }
    }
}

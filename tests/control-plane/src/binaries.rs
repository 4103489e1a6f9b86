//! Finds the programs of the control plane, and builds the ones that are missing from Go modules.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;

/// The Kubernetes release that `go.mod` names; every program reports it as its version.
pub const KUBERNETES_VERSION: &str = "1.36.3";

const MODULE: &str = env!("CARGO_MANIFEST_DIR");
const ASSETS: &str = "KUBEBUILDER_ASSETS";
const OLDEST_GO: (u32, u32) = (1, 26);

/// One program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The store behind the API server.
    Etcd,
    /// `kube-apiserver`.
    ApiServer,
    /// `kube-controller-manager`.
    ControllerManager,
    /// `kube-scheduler`.
    Scheduler,
    /// Plays the kubelet for nodes that do not exist.
    Kwok,
    /// The client; it never runs in the background and so has no log.
    Kubectl,
    /// Runs the pods of a node: a node.
    Kubelet,
    /// Makes Services work on a node: a node.
    KubeProxy,
}

impl Component {
    /// What a control plane on loopback consists of, in the order in which the programs start.
    pub const CONTROL_PLANE: [Self; 6] =
        [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler, Self::Kwok, Self::Kubectl];

    /// What only a node with real containers needs; built when first asked for.
    pub const NODE: [Self; 2] = [Self::Kubelet, Self::KubeProxy];

    /// The program's file name, which is its name in logs and messages too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
            Self::Kubectl => "kubectl",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// The Go package, as listed under `tool` in go.mod.
    const fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Scheduler => "k8s.io/kubernetes/cmd/kube-scheduler",
            Self::Kwok => "sigs.k8s.io/kwok/cmd/kwok",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Kubelet => "k8s.io/kubernetes/cmd/kubelet",
            Self::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
        }
    }

    /// What `go build` calls its output: the last part of the path that is not a major version.
    const fn go_output(self) -> &'static str {
        match self {
            Self::Etcd => "server",
            other => other.name(),
        }
    }
}

/// Where each program lies.
#[derive(Clone, Debug)]
pub struct Binaries {
    paths: BTreeMap<Component, PathBuf>,
}

impl Binaries {
    /// Finds `needed`, and builds what is not there yet.
    ///
    /// Programs in the folder that `KUBEBUILDER_ASSETS` names come first. The others are built
    /// from the Go module of this crate into `control-plane/` of cargo's target folder, once for
    /// each state of go.mod, go.sum and Go. That blocks for some ten minutes the first time;
    /// processes that ask at the same time wait for the one that builds.
    ///
    /// # Errors
    /// When Go is missing or too old, or the build fails.
    pub fn find(needed: &[Component]) -> Result<Self, Error> {
        let assets = std::env::var_os(ASSETS).filter(|folder| !folder.is_empty());
        let mut paths = present(needed, assets.as_deref().map(Path::new));
        let missing: Vec<_> = needed.iter().copied().filter(|c| !paths.contains_key(c)).collect();
        if !missing.is_empty() {
            let mut wanted = missing.clone();
            if assets.is_none() {
                // One wait instead of two: without assets the whole set is needed sooner or later.
                wanted.extend(Component::CONTROL_PLANE);
                wanted.sort_unstable();
                wanted.dedup();
            }
            let folder = Toolchain::detect()?.built(&wanted)?;
            paths.extend(present(&missing, Some(&folder)));
        }
        Ok(Self { paths })
    }

    /// The program's file, if it was asked for.
    pub fn path(&self, component: Component) -> Option<&Path> {
        self.paths.get(&component).map(PathBuf::as_path)
    }

    /// The folders that hold the programs: one, unless `KUBEBUILDER_ASSETS` holds only a part.
    pub fn folders(&self) -> Vec<&Path> {
        let mut folders: Vec<_> = self.paths.values().filter_map(|path| path.parent()).collect();
        folders.sort_unstable();
        folders.dedup();
        folders
    }
}

fn present(needed: &[Component], folder: Option<&Path>) -> BTreeMap<Component, PathBuf> {
    let Some(folder) = folder else { return BTreeMap::new() };
    let paths = needed.iter().map(|component| (*component, folder.join(component.name())));
    paths.filter(|(_, path)| path.is_file()).collect()
}

/// The Go installation, and the folder for what it builds.
struct Toolchain {
    cache: PathBuf,
}

impl Toolchain {
    fn detect() -> Result<Self, Error> {
        let output = go().args(["env", "GOVERSION", "GOHOSTOS", "GOHOSTARCH"]).output();
        let output = output.map_err(|error| Error::Go { found: error.to_string() })?;
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || !recent_enough(&found) {
            let found =
                if found.trim().is_empty() { String::from_utf8_lossy(&output.stderr).into_owned() } else { found };
            let found = found.lines().next().unwrap_or("no version").to_owned();
            return Err(Error::Go { found });
        }
        let mut hash = Fnv::new();
        for file in ["go.mod", "go.sum"] {
            let path = Path::new(MODULE).join(file);
            hash.add(&fs::read(&path).map_err(|error| Error::file("read", &path, error))?);
        }
        hash.add(found.as_bytes());
        hash.add(ldflags().as_bytes());
        Ok(Self { cache: target_folder().join("control-plane").join(hash.hex()) })
    }

    /// The folder with all of `wanted` in it, built now if need be.
    fn built(&self, wanted: &[Component]) -> Result<PathBuf, Error> {
        let missing = || -> Vec<Component> {
            let there = present(wanted, Some(&self.cache));
            wanted.iter().copied().filter(|c| !there.contains_key(c)).collect()
        };
        if missing().is_empty() {
            return Ok(self.cache.clone());
        }
        let cannot = |what, path: &Path| {
            let path = path.to_owned();
            move |error| Error::file(what, &path, error)
        };
        fs::create_dir_all(&self.cache).map_err(cannot("create the folder", &self.cache))?;
        // Released when the file is closed, however this process ends.
        let _lock = locked(&self.cache.join(".lock"))?;
        let missing = missing();
        if missing.is_empty() {
            return Ok(self.cache.clone());
        }

        // Beside its destination, so that the rename cannot cross file systems.
        let fresh = self.cache.join(".fresh");
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir(&fresh).map_err(cannot("create the folder", &fresh))?;
        build(&missing, &fresh)?;
        for component in missing {
            let path = self.cache.join(component.name());
            fs::rename(fresh.join(component.go_output()), &path).map_err(cannot("create", &path))?;
        }
        let _ = fs::remove_dir_all(&fresh);
        Ok(self.cache.clone())
    }
}

fn locked(path: &Path) -> Result<File, Error> {
    let failed = |error| Error::file("lock", path, error);
    let file = File::create(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("control-plane: waiting for another process that builds {}", path.with_file_name("").display());
            file.lock().map_err(failed)?;
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    Ok(file)
}

fn build(components: &[Component], output: &Path) -> Result<(), Error> {
    let names: Vec<_> = components.iter().map(|component| component.name()).collect();
    eprintln!(
        "control-plane: building {} of Kubernetes {KUBERNETES_VERSION} from Go modules, some ten minutes, once",
        names.join(", ")
    );
    let mut command = go();
    // -mod, -buildvcs: whatever GOFLAGS says, go.mod stays as it is and git is not asked.
    command.args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false"]);
    command.arg(format!("-ldflags={}", ldflags())).arg("-o").arg(output);
    command.args(components.iter().map(|component| component.package()));
    let done = command.output().map_err(|error| Error::Go { found: error.to_string() })?;
    if done.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&done.stderr);
    let log: Vec<_> = log.lines().filter(|line| !line.starts_with("go: downloading")).collect();
    let log = log[log.len().saturating_sub(20)..].join("\n");
    Err(Error::Build { names: names.join(", "), log })
}

/// `go` in the module, building for this machine even if the caller cross-compiles.
fn go() -> Command {
    let mut command = Command::new("go");
    command.current_dir(MODULE).stdin(Stdio::null());
    command.env("CGO_ENABLED", "0").env("GOWORK", "off").env_remove("GOOS").env_remove("GOARCH");
    command
}

fn ldflags() -> String {
    let mut parts = KUBERNETES_VERSION.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let version = "-X k8s.io/component-base/version";
    format!("-s -w {version}.gitVersion=v{KUBERNETES_VERSION} {version}.gitMajor={major} {version}.gitMinor={minor}")
}

/// Reads `go1.26.8`, `go1.26rc1` and the like; something unreadable is a development version.
fn recent_enough(version: &str) -> bool {
    let Some(numbers) = version.trim().strip_prefix("go") else { return version.contains("devel") };
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST_GO
}

/// Cargo's target folder, as far as the environment tells.
fn target_folder() -> PathBuf {
    let workspace = Path::new(MODULE).ancestors().nth(2).unwrap_or(Path::new(MODULE));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target)
}

/// FNV-1a, 64 bits: the same on every platform and with every compiler, unlike std's hasher.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_MOD: &str = include_str!("../go.mod");

    #[test]
    fn version_is_that_of_go_mod() {
        assert!(GO_MOD.contains(&format!("k8s.io/kubernetes v{KUBERNETES_VERSION}")));
    }

    #[test]
    fn oldest_go_is_that_of_go_mod() {
        assert!(GO_MOD.contains(&format!("\ngo {}.{}", OLDEST_GO.0, OLDEST_GO.1)));
        assert!(crate::Error::Go { found: String::new() }.to_string().contains("Go 1.26"));
    }

    #[test]
    fn tools_are_those_of_go_mod() {
        let (_, tools) = GO_MOD.split_once("tool (\n").expect("a tool block");
        let (tools, _) = tools.split_once(")").expect("its end");
        let mut listed: Vec<_> = tools.lines().map(str::trim).collect();
        let all = Component::CONTROL_PLANE.iter().chain(&Component::NODE);
        let mut known: Vec<_> = all.map(|component| component.package()).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
    }

    #[test]
    fn go_versions() {
        for (version, accepted) in [
            ("go1.26.8", true),
            ("go1.26rc1", true),
            ("go2.0", true),
            ("go1.25.9", false),
            ("go1.9", false),
            ("", false),
        ] {
            assert_eq!(recent_enough(version), accepted, "{version}");
        }
    }

    #[test]
    fn known_hash() {
        let mut hash = Fnv::new();
        hash.add(b"foobar");
        assert_eq!(hash.hex(), "85944171f73967e8");
    }
}

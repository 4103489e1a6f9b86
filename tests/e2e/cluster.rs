//! kubectl, and waiting for what it shows.

use std::{
    env,
    ffi::OsString,
    io::Write as _,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use gitlab_runner_webhook::names;
use serde_json::Value;

/// Longest wait for a state. Far more than anything takes: reaching it is a failure, not slowness.
const PATIENCE: Duration = Duration::from_mins(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// A cluster, as kubectl sees it.
pub struct Cluster {
    kubectl: OsString,
    /// Name and tag of the program's image, if not the one that the manifests name.
    pub image: Option<String>,
    /// An image with a shell, for the pods of GitLab Runner.
    pub busybox: String,
}

/// What kubectl said.
pub struct Said {
    /// Objects, or what happened to them.
    pub out: String,
    /// Warnings of the API server among others.
    pub err: String,
}

impl Cluster {
    /// The cluster of `KUBECONFIG`, and no other: never one that happens to be in `~/.kube/config`.
    pub fn from_environment() -> Result<Self> {
        let named = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        if named("KUBECONFIG").is_none() {
            bail!("KUBECONFIG names no cluster; `make e2e` starts one");
        }
        Ok(Self {
            kubectl: env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()),
            image: named("E2E_IMAGE"),
            busybox: named("E2E_BUSYBOX_IMAGE").unwrap_or_else(|| "busybox".to_owned()),
        })
    }

    /// Runs kubectl; an error when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_reads(arguments, "").map(|said| said.out)
    }

    /// The same, with something to read.
    pub fn kubectl_reads(&self, arguments: &[&str], stdin: &str) -> Result<Said> {
        let mut child = Command::new(&self.kubectl)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.kubectl.display()))?;
        // It reads all before it says anything, so this cannot wait for ever.
        child.stdin.take().context("its input")?.write_all(stdin.as_bytes())?;
        let output = child.wait_with_output()?;
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if !output.status.success() {
            bail!("kubectl {} failed: {}", arguments.join(" "), err.trim());
        }
        Ok(Said { out, err })
    }

    /// Creates or changes objects; what the API server warns of is in the answer.
    pub fn apply(&self, objects: &[Value]) -> Result<Said> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl_reads(&["apply", "--server-side", "--filename", "-"], &list.to_string())
    }

    /// One object, if it is there. Namespaces have no namespace: "".
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>> {
        let out = self.kubectl(&["get", "--namespace", namespace, kind, name, "--ignore-not-found", "-o", "json"])?;
        if out.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&out)?)) }
    }

    /// The objects of a kind in a namespace.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let selector = format!("--selector={selector}");
        let out = self.kubectl(&["get", "--namespace", namespace, kind, &selector, "-o", "json"])?;
        let mut list: Value = serde_json::from_str(&out)?;
        Ok(list.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default())
    }

    /// Everything that the containers of a pod have printed.
    pub fn logs(&self, namespace: &str, pod: &str) -> Result<String> {
        self.kubectl(&["logs", "--namespace", namespace, pod, "--all-containers", "--tail=-1"])
    }

    /// Shows, after a failure, what a person would look at first.
    pub fn explain(&self) {
        for arguments in [
            &["get", "pods", "--all-namespaces", "-o", "wide"] as &[&str],
            &["get", "events", "--all-namespaces", "--field-selector=type!=Normal", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "--namespace",
                names::APP,
                "--selector",
                "app.kubernetes.io/name=gitlab-runner-webhook",
                "--tail=40",
            ],
        ] {
            let said = self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
            let lines: Vec<_> = said.lines().collect();
            eprintln!("kubectl {}", arguments.join(" "));
            for line in lines.iter().skip(lines.len().saturating_sub(60)) {
                eprintln!("{line}");
            }
            eprintln!();
        }
    }
}

/// Looks again and again until there is something to see.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let seen = look();
        if let Ok(Some(seen)) = seen {
            return Ok(seen);
        }
        if started.elapsed() > PATIENCE {
            let seen = seen.err().map(|error| format!(" (last error: {error:#})")).unwrap_or_default();
            bail!("waited {} s in vain: {what}{seen}", PATIENCE.as_secs());
        }
        sleep(PAUSE);
    }
}

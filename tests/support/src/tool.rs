//! The program as a child process: started, listened to, stopped.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{ServingCertificate, canary, wait};

/// The program, not started yet.
#[derive(Clone, Debug)]
pub struct ToolBuilder {
    binary: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
    config: Option<String>,
}

/// The running program. Killed when dropped, and when the process that started it is killed.
pub struct Tool {
    child: Child,
    // After the child, so that it is dropped later.
    _watchdog: Watchdog,
    log: Log,
    /// When the process was started.
    pub started: Instant,
}

/// Kills the program when this process ends without a word; its pipe closes then.
struct Watchdog(std::process::Child);

/// Its log lines so far, each parsed.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Value>>>);

impl ToolBuilder {
    pub(crate) fn new(binary: &str, kubeconfig: &Path, certificate: &ServingCertificate, folder: &Path) -> Self {
        let path = |path: &Path| path.to_str().expect("a path of UTF-8").to_owned();
        let arguments = [
            ("--kubeconfig", path(kubeconfig)),
            ("--tls", "files".to_owned()),
            ("--tls-cert", path(&certificate.cert_path())),
            ("--tls-key", path(&certificate.key_path())),
            ("--tls-reload", "1".to_owned()),
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--probe-listen", "127.0.0.1:0".to_owned()),
            ("--log-format", "json".to_owned()),
            ("--log-level", "debug".to_owned()),
            // Whoever tests how it ends says so.
            ("--drain", "0".to_owned()),
        ];
        Self {
            binary: binary.into(),
            arguments: arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect(),
            folder: folder.to_owned(),
            config: None,
        }
    }

    /// With this configuration file.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        self.config = Some(yaml.to_owned());
        self
    }

    /// With one more flag, which wins over an earlier one of the same name.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self = self.without(flag);
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    fn without(mut self, flag: &str) -> Self {
        if let Some(at) = self.arguments.iter().position(|argument| argument == flag) {
            self.arguments.drain(at..at + 2);
        }
        self
    }

    /// With a serving certificate of its own making, for loopback, too.
    #[must_use]
    pub fn self_managed(mut self) -> Self {
        for flag in ["--tls", "--tls-cert", "--tls-key", "--tls-reload"] {
            self = self.without(flag);
        }
        self.flag("--tls-san", "127.0.0.1")
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Tool {
        let tool = self.spawn();
        tool.ready().await;
        tool
    }

    /// Starts it.
    ///
    /// # Panics
    /// When the binary cannot be run.
    pub fn spawn(mut self) -> Tool {
        if let Some(yaml) = &self.config {
            let path = self.folder.join(format!("config-{}.yaml", wait::unique()));
            std::fs::write(&path, yaml).expect("the configuration file can be written");
            self.arguments.extend(["--config".to_owned(), path.to_str().expect("UTF-8").to_owned()]);
        }
        let started = Instant::now();
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        let log = Log::default();
        let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        tokio::spawn(log.clone().collect(lines));
        let watchdog = Watchdog::new(child.id().expect("the program runs"));
        Tool { child, _watchdog: watchdog, log, started }
    }
}

impl Tool {
    /// Waits until `/readyz` says so; returns when it was first seen.
    pub async fn ready(&self) -> Instant {
        let address = self.probe_address().await;
        self.until("it is ready", || async { (get(&address, "/readyz").await?.0 == 200).then(Instant::now) }).await
    }

    /// The address of the HTTPS server.
    pub async fn webhook_address(&self) -> String {
        self.address("webhook").await
    }

    /// The port of the HTTPS server.
    ///
    /// # Panics
    /// When the address has no port.
    pub async fn webhook_port(&self) -> u16 {
        let address = self.webhook_address().await;
        address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    /// The address of the plain server.
    pub async fn probe_address(&self) -> String {
        self.address("probes").await
    }

    /// Status and body of a path on the plain server.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(&self.probe_address().await, path).await.expect("an answer")
    }

    /// The value of a metric, given with its labels as the page has it.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, page) = self.get("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))?;
        line.parse().ok()
    }

    /// Waits until a metric, given with its labels as the page has it, has this value.
    pub async fn metric_is(&self, name: &str, value: f64) {
        let page = async || (self.metric(name).await == Some(value)).then_some(());
        self.until(&format!("{name} is {value}"), page).await;
    }

    /// Waits until that many clones of a Secret are in this state.
    pub async fn clones_in_state(&self, secret: &str, state: &str, count: f64) {
        let gauge = format!("gitlab_runner_webhook_clones{{secret=\"{secret}\",state=\"{state}\"}}");
        self.metric_is(&gauge, count).await;
    }

    /// Waits for a log line of which something is true, and returns it.
    pub async fn logged(&self, what: &str, is_true: impl Fn(&Value) -> bool) -> Value {
        self.until(&format!("it logs {what}"), || async { self.log_lines().into_iter().find(|line| is_true(line)) })
            .await
    }

    /// Everything it logged so far.
    pub fn log_lines(&self) -> Vec<Value> {
        self.log.0.lock().expect("the log").clone()
    }

    /// Everything it logged so far, as text.
    pub fn log_text(&self) -> String {
        self.log_lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the program runs")
    }

    /// Resident memory in bytes.
    ///
    /// # Panics
    /// Where there is no /proc.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most memory that was resident at once since the start, in bytes.
    ///
    /// # Panics
    /// Where there is no /proc.
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The part of it that is its own, not pages of its file, of which a debug build has several times more.
    ///
    /// # Panics
    /// Where there is no /proc.
    pub fn own_bytes(&self) -> u64 {
        self.memory("RssAnon:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Asks it to end, as kubelet does, and waits.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal("TERM").await;
        self.ended().await
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub async fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        // The shell's own kill: not every machine has a program of that name.
        let kill = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid]).status().await;
        assert!(kill.expect("sh runs").success());
    }

    /// Ends it without a word, as a crash does.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the program is killed");
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn ended(&mut self) -> ExitStatus {
        match tokio::time::timeout(wait::PATIENCE, self.child.wait()).await {
            Ok(status) => status.expect("a status"),
            Err(_) => panic!("the program does not end; its log:\n{}", self.log_text()),
        }
    }

    async fn address(&self, server: &str) -> String {
        let line = self.logged("its addresses", |line| line["server"] == server && line["address"].is_string()).await;
        line["address"].as_str().expect("a string").to_owned()
    }

    async fn until<T, O: Future<Output = Option<T>>>(&self, what: &str, mut ask: impl FnMut() -> O) -> T {
        let give_up = Instant::now() + wait::PATIENCE + Duration::from_secs(15);
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(Instant::now() < give_up, "waited in vain: {what}; its log:\n{}", self.log_text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Tool {
    /// In every test: what it logged holds nothing of any Secret.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            canary::assert_absent("the log", &self.log_text());
        }
    }
}

impl Watchdog {
    fn new(pid: u32) -> Self {
        let watchdog = std::process::Command::new("sh")
            .args(["-c", "read -r word || kill -KILL \"$1\"", "sh", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal must not reach it.
            .process_group(0)
            .spawn();
        Self(watchdog.expect("sh runs"))
    }
}

impl Drop for Watchdog {
    /// The word keeps it from killing whoever has the process id by now.
    fn drop(&mut self) {
        if let Some(input) = &mut self.0.stdin {
            let _ = input.write_all(b"done\n");
        }
        let _ = self.0.wait();
    }
}

impl Log {
    async fn collect(self, mut lines: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>) {
        while let Ok(Some(line)) = lines.next_line().await {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            self.0.lock().expect("the log").push(line);
        }
    }
}

/// One request over plain HTTP/1.0, which needs no client.
async fn get(address: &str, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

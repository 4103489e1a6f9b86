//! Bad input: one clear error that names the thing, exit code 1, nothing asked of the API server.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;
use test_support::ServingCertificate;

use crate::BINARY;

struct Fixture {
    folder: TempDir,
    /// Nobody listens here: a request would fail, and the test would see it waiting for ever.
    kubeconfig: String,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        ServingCertificate::issue(&folder.path().join("tls"));
        let kubeconfig = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": "https://127.0.0.1:1"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "users": [{"name": "x", "user": {}}]}"#;
        Self { folder, kubeconfig: kubeconfig.to_owned() }
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs with good flags, changed by these.
    fn run(&self, changed: &[(&str, &str)]) -> Output {
        let (cert, key) = (self.path("tls/tls.crt"), self.path("tls/tls.key"));
        let kubeconfig = self.write("kubeconfig", &self.kubeconfig);
        let mut flags = vec![
            ("--kubeconfig", kubeconfig.as_str()),
            ("--listen", "127.0.0.1:0"),
            ("--probe-listen", "127.0.0.1:0"),
            ("--tls", "files"),
            ("--tls-cert", &cert),
            ("--tls-key", &key),
            ("--log-format", "text"),
        ];
        for (flag, value) in changed {
            flags.retain(|(name, _)| name != flag);
            flags.push((flag, value));
        }
        let mut command = Command::new("timeout");
        command.args(["20", BINARY]).env_clear();
        for (flag, value) in flags {
            command.args([flag, value]);
        }
        command.output().unwrap()
    }

    /// Runs and expects one line of error with all of these in it.
    fn refuses(&self, changed: &[(&str, &str)], words: &[&str]) -> String {
        let output = self.run(changed);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{changed:?}: {text}");
        assert_eq!(text.lines().filter(|line| line.contains("ERROR")).count(), 1, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
        text
    }
}

#[test]
fn a_bad_configuration_file() {
    let fixture = Fixture::new();
    let missing = fixture.path("nowhere.yaml");
    fixture.refuses(&[("--config", &missing)], &[&missing, "cannot be read", "--config"]);
    for (yaml, words) in [
        ("runnerNamespace: {}", ["config.yaml", "runnerNamespace"]),
        ("runnerNamespaces: {names: [Git_Lab]}", ["Git_Lab", "lower-case"]),
        ("clones: [{secret: s, from: gitlab-runner}]", ["clones[0].from", "own clone"]),
        ("clones: [", ["config.yaml", "line"]),
    ] {
        let path = fixture.write("config.yaml", yaml);
        fixture.refuses(&[("--config", &path)], &words);
    }
}

#[test]
fn a_kubeconfig_that_does_not_work() {
    let fixture = Fixture::new();
    let missing = fixture.path("no-kubeconfig");
    fixture.refuses(&[("--kubeconfig", &missing)], &[&missing, "--kubeconfig"]);
    let garbage = fixture.write("garbage", "\u{1}: [");
    fixture.refuses(&[("--kubeconfig", &garbage)], &[&garbage]);
    // Parsers quote what they do not understand, and plugins print what nobody else may see.
    let users = "users: [{name: x, user: {token: canary, token: canary}}]";
    let twice = fixture.write("twice", &format!("apiVersion: v1\nkind: Config\n{users}\n"));
    let said = fixture.refuses(&[("--kubeconfig", &twice)], &[&twice, "it is no kubeconfig, from line"]);
    assert!(!said.contains("canary"), "{said}");
    for script in ["echo canary", "echo canary; exit 1"] {
        let exec = format!(
            "{{\"exec\": {{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"command\": \"sh\", \"args\": [\"-c\", \"{script}\"], \"interactiveMode\": \"Never\"}}}}"
        );
        let plugin = fixture.write("plugin", &fixture.kubeconfig.replace("\"user\": {}", &format!("\"user\": {exec}")));
        let said = fixture.refuses(&[("--kubeconfig", &plugin)], &["exec plugin"]);
        assert!(!said.contains("canary"), "{said}");
    }
    let empty = fixture.write("empty", "{}");
    fixture.refuses(&[("--kubeconfig", &empty)], &[&empty]);
    let context = fixture
        .write("context", &fixture.kubeconfig.replace("\"current-context\": \"x\"", "\"current-context\": \"y\""));
    fixture.refuses(&[("--kubeconfig", &context)], &[&context, "y"]);
}

#[test]
fn a_busy_port() {
    let fixture = Fixture::new();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    fixture.refuses(&[("--listen", &address)], &[&address, "already in use", "--listen"]);
    fixture.refuses(&[("--probe-listen", &address)], &[&address, "already in use", "--probe-listen"]);
}

#[test]
fn a_certificate_that_does_not_fit() {
    let fixture = Fixture::new();
    ServingCertificate::issue(&fixture.folder.path().join("other"));
    let other = fixture.path("other/tls.key");
    fixture.refuses(&[("--tls-key", &other)], &["tls/tls.crt", "other/tls.key"]);
    let missing = fixture.path("tls/none.crt");
    fixture.refuses(&[("--tls-cert", &missing)], &[&missing]);
    let not_pem = fixture.write("not.pem", "hello");
    fixture.refuses(&[("--tls-cert", &not_pem)], &[&not_pem]);
    fixture.refuses(&[("--tls-key", &not_pem)], &[&not_pem]);
    let key = fs::read_to_string(Path::new(&fixture.path("tls/tls.key"))).unwrap();
    let secret_part = key.lines().nth(1).unwrap();
    let output = fixture.run(&[("--tls-cert", &fixture.path("tls/tls.key"))]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains(secret_part), "no key in an error");
}

#[test]
fn a_bad_flag() {
    let output = Fixture::new().run(&[("--watch-timeout", "soon")]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("--watch-timeout") && text.contains("whole number of seconds"), "{text}");
}

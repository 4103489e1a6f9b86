//! What `certs/issue.sh` issues, what it tells kubectl, and that its patches fit the manifests.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gitlab_runner_webhook::names;
use serde_json::json;
use test_support::{Manifests, repository};

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn stdout_of(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A folder that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn issue(out: &Path) -> Command {
    let mut command = Command::new(repository().join("certs/issue.sh"));
    command.arg("--out").arg(out).env_remove("KUBECTL");
    command
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments);
    command
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

const ISSUED: [&str; 5] = ["ca-bundle-mutating.yaml", "ca-bundle-validating.yaml", "ca.crt", "tls.crt", "tls.key"];

#[test]
fn an_issued_certificate_is_valid_for_the_service_and_what_else_was_asked_for() {
    let scratch = Scratch::new("issue");
    let out = scratch.0.join("new/folder");
    stdout_of(issue(&out).args(["--san", "127.0.0.1", "--san", "webhook.example.com"]));
    assert_eq!(
        names_in(&out),
        BTreeSet::from(ISSUED.map(str::to_owned)),
        "and neither a CA key nor a temporary folder"
    );

    let service = format!("{0}.{0}.svc", names::APP);
    for identity in [
        ["-verify_hostname", &service],
        ["-verify_hostname", &format!("{service}.cluster.local")],
        ["-verify_hostname", "webhook.example.com"],
        ["-verify_ip", "127.0.0.1"],
    ] {
        let mut verify = openssl(&["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]);
        stdout_of(verify.arg(out.join("ca.crt")).args(identity).arg(out.join("tls.crt")));
    }
    let mut verify = openssl(&["verify", "-verify_hostname", "example.com", "-CAfile"]);
    assert!(!run(verify.arg(out.join("ca.crt")).arg(out.join("tls.crt"))).status.success(), "a name nobody asked for");

    let public_key = stdout_of(openssl(&["pkey", "-pubout", "-in"]).arg(out.join("tls.key")));
    assert_eq!(public_key, stdout_of(openssl(&["x509", "-pubkey", "-noout", "-in"]).arg(out.join("tls.crt"))));
    let leaf = stdout_of(openssl(&["x509", "-noout", "-text", "-in"]).arg(out.join("tls.crt")));
    for part in ["prime256v1", "CA:FALSE", "TLS Web Server Authentication"] {
        assert!(leaf.contains(part), "{part}\n{leaf}");
    }
    let ca = stdout_of(openssl(&["x509", "-noout", "-text", "-in"]).arg(out.join("ca.crt")));
    assert!(ca.contains("CA:TRUE, pathlen:0") && ca.contains("Certificate Sign"), "{ca}");

    let nine_days = 9 * 86_400;
    let short = scratch.0.join("short");
    stdout_of(issue(&short).args(["--days", "9"]));
    for (seconds, expected) in [(nine_days - 3600, true), (nine_days + 3600, false)] {
        let mut check = openssl(&["x509", "-noout", "-checkend", &seconds.to_string(), "-in"]);
        assert_eq!(run(check.arg(short.join("tls.crt"))).status.success(), expected, "{seconds} s");
    }

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(out.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn issuing_again_needs_force_and_keeps_trust_in_the_certificate_before() {
    let scratch = Scratch::new("again");
    let out = scratch.0.as_path();
    stdout_of(&mut issue(out));
    let read = |file: &str| fs::read_to_string(out.join(file)).unwrap();
    let first = ISSUED.map(read);

    let refused = run(&mut issue(out));
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(ISSUED.iter().any(|file| message.contains(file)), "{message}");
    assert!(message.contains("--force"), "{message}");
    assert_eq!(ISSUED.map(read), first, "nothing changed");

    let trusted = |leaf: &str| {
        let mut verify = openssl(&["verify", "-purpose", "sslserver", "-CAfile"]);
        run(verify.arg(out.join("ca.crt")).arg(out.join(leaf))).status.success()
    };
    fs::copy(out.join("tls.crt"), out.join("before.crt")).unwrap();
    for still_trusted in [true, false] {
        stdout_of(issue(out).arg("--force"));
        assert!(trusted("tls.crt"));
        assert_eq!(trusted("before.crt"), still_trusted, "the CA before is kept, the one before that is not");
    }
}

/// A kubectl that writes down how it was called, and fails when told to patch what `fail` names.
fn fake_kubectl(folder: &Path) -> PathBuf {
    let path = folder.join("kubectl");
    fs::write(
        &path,
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$*\" >>calls\n\
         case $1 in\npatch) case $(cat fail 2>/dev/null) in $2) exit 1 ;; esac ;;\ncreate) echo 'a Secret' ;;\n\
         apply) for file; do :; done && cat \"$file\" >>calls ;;\nesac\n",
    )
    .unwrap();
    stdout_of(Command::new("chmod").arg("+x").arg(&path));
    path
}

#[test]
fn kubectl_is_told_whom_to_trust_before_it_is_given_the_certificate() {
    let scratch = Scratch::new("kubectl");
    let out = scratch.0.join("out");
    let kubectl = fake_kubectl(&scratch.0);
    let calls = || fs::read_to_string(scratch.0.join("calls")).unwrap();

    stdout_of(issue(&out).arg("--kubectl").env("KUBECTL", &kubectl));
    let seen = calls();
    let [mutating, validating, create, apply, secret] = seen.lines().collect::<Vec<_>>()[..] else { panic!("{seen}") };
    for (kind, patch) in [("mutating", mutating), ("validating", validating)] {
        let start = format!("patch {kind}webhookconfiguration {} --type=strategic --patch-file ", names::APP);
        assert!(patch.starts_with(&start) && patch.ends_with(&format!("/out/ca-bundle-{kind}.yaml")), "{patch}");
    }
    assert!(create.starts_with(&format!("create secret tls {0}-tls --namespace {0} --cert", names::APP)), "{create}");
    assert!(create.ends_with("--dry-run=client -o yaml"), "{create}");
    assert!(apply.starts_with("apply --server-side"), "a client-side apply copies the key into an annotation: {apply}");
    assert_eq!(secret, "a Secret");

    for (calls_made, kind) in [(1, "mutatingwebhookconfiguration"), (2, "validatingwebhookconfiguration")] {
        fs::write(scratch.0.join("fail"), kind).unwrap();
        fs::write(scratch.0.join("calls"), "").unwrap();
        let output = run(issue(&out).args(["--force", "--kubectl"]).env("KUBECTL", &kubectl));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(message.contains("do not issue again") && message.contains("kubectl patch"), "{message}");
        assert_eq!(calls().lines().count(), calls_made, "no certificate that nobody trusts yet: {}", calls());
        assert_eq!(names_in(&out), BTreeSet::from(ISSUED.map(str::to_owned)));
    }
}

#[test]
fn a_refused_argument_leaves_nothing_behind() {
    let scratch = Scratch::new("refused");
    let table: [(&[&str], &str); 9] = [
        (&["--days", "0"], "--days '0'"),
        (&["--days", "3651"], "1 to 3650"),
        (&["--days", "1e2"], "1 to 3650"),
        (&["--namespace", "A"], "--namespace 'A'"),
        (&["--service", "a.b"], "--service 'a.b'"),
        (&["--san", "a,DNS:b"], "--san 'a,DNS:b'"),
        (&["--san", "1.2.3"], "bad ip address"),
        (&["--san"], "needs a value"),
        (&["--sans=x"], "unknown option"),
    ];
    for (arguments, expected) in table {
        let output = run(issue(&scratch.0).args(arguments));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && message.contains(expected), "{arguments:?}: {message}");
        assert_eq!(names_in(&scratch.0), BTreeSet::new(), "{arguments:?}");
    }
    let output = run(issue(&scratch.0).arg("--kubectl").env("KUBECTL", "no-such-kubectl"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-kubectl is not on PATH"));
    assert_eq!(names_in(&scratch.0), BTreeSet::new());
}

#[test]
fn the_issued_patches_give_every_webhook_the_ca_and_change_nothing_else() {
    let scratch = Scratch::new("patch");
    let out = scratch.0.join("overlay");
    stdout_of(&mut issue(&out));
    let kustomization = "resources: [../manifests/overlays/default]\n\
                         patches: [{path: ca-bundle-mutating.yaml}, {path: ca-bundle-validating.yaml}]\n";
    fs::write(out.join("kustomization.yaml"), kustomization).unwrap();

    let bundle = stdout_of(openssl(&["base64", "-A", "-in"]).arg(out.join("ca.crt")));
    let mut expected = Manifests::render("overlays/default");
    for webhook in expected.objects.iter_mut().filter_map(|object| object.get_mut("webhooks")?.as_array_mut()).flatten()
    {
        webhook["clientConfig"]["caBundle"] = json!(bundle.trim());
    }
    // kustomize wants relative paths.
    std::os::unix::fs::symlink(repository().join("manifests"), scratch.0.join("manifests")).unwrap();
    assert_eq!(Manifests::build(&out).unwrap(), expected);
}

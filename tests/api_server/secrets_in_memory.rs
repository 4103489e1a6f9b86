//! What of a Secret is left in the memory of a running process, at rest.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use test_support::{
    Cluster, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port, has_data},
    wait,
};

use crate::BINARY;

const TOKENS: [&str; 3] =
    ["glrt-canary-of-the-first-token", "glrt-canary-of-the-second-token", "glrt-canary-of-the-third-token"];
const NAMESPACES: usize = 10;

/// Copies of each text in what the process may write to; `None`: this machine does not let anybody look.
fn copies(pid: u32, texts: &[String]) -> Option<Vec<usize>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut counts = vec![0; texts.len()];
    let mut read = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if memory.seek(SeekFrom::Start(from)).is_err() || memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        read += bytes.len();
        for (count, text) in counts.iter_mut().zip(texts) {
            *count += memchr::memmem::find_iter(&bytes, text).count();
        }
    }
    (read > 0).then_some(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_token_little_is_left_at_rest() {
    let cluster = Cluster::start().await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    let config = "runnerNamespaces: {names: [gitlab-runner], selectors: [{matchLabels: {runner: 'yes'}}]}";
    let manifests = cluster.manifests().configured(config);
    manifests.without(&["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]).apply(&cluster.plane).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
    for index in 1..NAMESPACES {
        cluster.create_namespace(&format!("runner-{index}"), &[("runner", "yes")]).await;
    }
    let port = free_port();
    let binary = std::env::var("MEASURED_BINARY").unwrap_or_else(|_| BINARY.to_owned());
    let tool = cluster.tool(&binary).await.config(config).flag("--listen", &format!("127.0.0.1:{port}")).start().await;
    cluster.register_webhooks(port, "Fail").await;
    for token in TOKENS {
        // As it is often put there, with kubectl's copy of it in an annotation.
        let source = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": SOURCE_NAMESPACE},
            "data": {"runner-token": STANDARD.encode(token)}});
        cluster.plane.kubectl_with_stdin(&["apply", "-f", "-"], &source.to_string()).await.unwrap();
        for namespace in (1..NAMESPACES).map(|index| format!("runner-{index}")).chain([RUNNER_NAMESPACE.to_owned()]) {
            let is_it = |secret: &_| has_data(secret, &[("runner-token", token)]);
            let clone = cluster.secret_that("follows", &namespace, SECRET, is_it).await;
            assert!(!format!("{:?}", clone.metadata).contains("last-applied"), "and carries no copy of it");
        }
        // The gate reads both, too.
        wait::until("a pod is let in", async || cluster.try_pod().await.ok()).await;
    }
    tool.clones_in_state(SECRET, "synced", 10.0).await;
    let count = told(&tool);
    println!("copies of the former two tokens and of the current one, as they are and in base64: {count:?}");
    let Some(count) = count else { return eprintln!("SKIPPED: /proc/<pid>/mem cannot be read on this machine") };
    let plain: usize = count.iter().step_by(2).sum();
    let base64: usize = count.iter().skip(1).step_by(2).sum();
    // The block that was hashed last, on a stack.
    assert!(plain <= 2, "as they are: {count:?}");
    // What the client library and TLS leave in memory that they gave back: see docs/security.md.
    assert!(base64 <= 120, "in base64: {count:?}");
}

fn told(tool: &Tool) -> Option<Vec<usize>> {
    let texts: Vec<_> = TOKENS.iter().flat_map(|token| [(*token).to_owned(), STANDARD.encode(token)]).collect();
    copies(tool.pid(), &texts)
}

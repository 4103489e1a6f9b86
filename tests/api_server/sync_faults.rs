//! Faults: rights that are missing, an API server that is away, slow or cross, quotas, policies.
//! Each time the clone converges, nothing is deleted, and nothing runs hot.

use std::path::PathBuf;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use test_support::{
    Cluster, Fault, Manifests, Proxy, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data},
    wait,
};

use crate::{
    BINARY,
    mission::{TOKEN, followed, mission, rotate},
};

/// The shipped manifests, with this rule's verbs changed.
async fn grant(cluster: &Cluster, change: impl Fn(&mut Vec<Value>)) {
    let mut manifests = Manifests::render("overlays/local");
    manifests.objects.retain(|object| object["kind"] == "ClusterRole");
    for rules in manifests.objects.iter_mut().map(|role| role["rules"].as_array_mut().unwrap()) {
        for rule in rules.iter_mut() {
            change(rule["verbs"].as_array_mut().unwrap());
        }
        rules.retain(|rule| rule["verbs"] != json!([]));
    }
    manifests.apply(&cluster.plane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_verb_is_named_and_the_clone_heals_when_it_is_granted() {
    let cluster = mission().await;
    for (verb, tried) in [
        ("create", "create secrets/gitlab-gitlab-runner-secret in namespace gitlab-runner"),
        ("update", "update secrets/gitlab-gitlab-runner-secret in namespace gitlab-runner"),
        ("get", "get secrets/gitlab-gitlab-runner-secret in namespace gitlab"),
    ] {
        grant(&cluster, |verbs| verbs.retain(|granted| granted != verb)).await;
        let tool = cluster.tool(BINARY).await.start().await;
        rotate(&cluster, &format!("{verb}-token")).await;
        let line = tool.logged("the missing verb", |line| line["state"] == "forbidden").await;
        let detail = line["detail"].as_str().unwrap();
        assert!(detail.contains(tried) && detail.contains(&format!("cannot {verb} resource")), "{detail}");
        assert!(tool.get("/readyz").await.0 == 200, "admission goes on");

        grant(&cluster, |_| {}).await;
        followed(&cluster, &format!("{verb}-token")).await;
        assert!(tool.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_watch_it_stays_up_says_so_and_gets_ready_when_granted() {
    let cluster = mission().await;
    grant(&cluster, |verbs| verbs.retain(|verb| verb != "list" && verb != "watch")).await;
    let tool = cluster.tool(BINARY).await.spawn();
    for object in ["secrets/gitlab-gitlab-runner-secret", "secrets/gitlab-runner-certs", "namespaces/gitlab-runner"] {
        let tried = format!("list {object}");
        tool.logged(&tried, |line| line["reason"] == "forbidden" && line["detail"].as_str().unwrap().contains(&tried))
            .await;
    }
    let (code, report) = tool.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(report.contains("[-]watch namespaces/gitlab-runner: list namespaces/gitlab-runner: forbidden"), "{report}");
    assert_eq!(tool.get("/livez").await.0, 200);
    assert!(cluster.writes().await.is_empty());

    grant(&cluster, |_| {}).await;
    tool.ready().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_and_policy_are_told_in_the_api_servers_words() {
    let cluster = mission().await;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "no-secrets", "namespace": RUNNER_NAMESPACE},
        "spec": {"hard": {"count/secrets": "0"}},
    });
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-clones"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]},
            ]},
            "validations": [{"expression": "object.metadata.namespace != 'gitlab-runner'", "message": "not in this house"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-clones"},
        "spec": {"policyName": "no-clones", "validationActions": ["Deny"]},
    });
    let cases = [
        ("quota", vec![quota], "exceeded quota: no-secrets", "resourcequota/no-secrets"),
        ("denied", vec![policy, binding], "not in this house", "validatingadmissionpolicybinding/no-clones"),
    ];
    for (state, objects, words, cause) in cases {
        for object in objects {
            cluster.plane.kubectl_with_stdin(&["apply", "-f", "-"], &object.to_string()).await.unwrap();
        }
        refused(&cluster).await;
        let tool = cluster.tool(BINARY).await.start().await;
        let line = tool.logged(state, |line| line["state"] == state).await;
        assert!(line["detail"].as_str().unwrap().contains(words), "{line}");
        cluster.plane.kubectl(&["delete", "-n", RUNNER_NAMESPACE, cause]).await.unwrap();
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
        assert!(tool.stop().await.success());
        cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    }
}

/// Waits until the API server refuses a Secret in the runner namespace.
async fn refused(cluster: &Cluster) {
    let api = cluster.secrets(RUNNER_NAMESPACE);
    wait::until("the API server refuses", || async {
        let params = PatchParams::apply("probe").dry_run();
        let probe = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "probe"}});
        api.patch("probe", &params, &Patch::Apply(&probe)).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_goes_away_and_comes_back() {
    let cluster = mission().await;
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let clone = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();

    cluster.plane.stop_api_server().await;
    tool.logged("that watches fail", |line| line["reason"] == "unreachable").await;
    assert_eq!(tool.get("/readyz").await.0, 200, "admission goes on from memory");
    cluster.plane.start_api_server().await.unwrap();
    rotate(&cluster, "after-the-outage").await;
    followed(&cluster, "after-the-outage").await;

    let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(there.metadata.uid, clone.metadata.uid);
    assert!(cluster.writes().await.iter().all(|write| write.verb != "delete"));

    // It starts while the API server is away: it waits, and writes nothing that it does not know.
    assert!(tool.stop().await.success());
    cluster.plane.stop_api_server().await;
    let tool = cluster.tool_from(BINARY, &tool_kubeconfig(&cluster)).spawn();
    tool.logged("that it cannot list", |line| line["reason"] == "unreachable").await;
    assert_eq!(tool.get("/readyz").await.0, 503);
    cluster.plane.start_api_server().await.unwrap();
    tool.ready().await;
    rotate(&cluster, "after-the-start").await;
    followed(&cluster, "after-the-start").await;
}

/// The kubeconfig that the harness wrote for the shipped `ServiceAccount`, found again while no API
/// server can issue another.
fn tool_kubeconfig(cluster: &Cluster) -> PathBuf {
    let newest = std::fs::read_dir(cluster.plane.dir()).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name()?.to_str()?.to_owned();
        (name.contains("gitlab-runner-webhook") && name.contains("kubeconfig")).then_some(path)
    });
    newest.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("a kubeconfig was written")
}

/// A tool that talks to the API server through a proxy.
async fn behind_a_proxy(cluster: &Cluster) -> (Proxy, Tool) {
    let client = cluster.plane.service_account_client("gitlab-runner-webhook", "gitlab-runner-webhook").await.unwrap();
    let proxy = Proxy::start(client).await;
    let kubeconfig = cluster.plane.dir().join(format!("proxy-{}", wait::unique()));
    std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
    let tool = cluster.tool_from(BINARY, &kubeconfig).flag("--watch-timeout", "5").start().await;
    (proxy, tool)
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_reads_that_fail_are_tried_again_with_pauses() {
    let cluster = mission().await;
    let (proxy, tool) = behind_a_proxy(&cluster).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let faults = [
        ("PUT", "gitlab-runner/secrets", 409, "Conflict", 0),
        ("PUT", "gitlab-runner/secrets", 422, "Invalid", 0),
        ("PUT", "gitlab-runner/secrets", 429, "TooManyRequests", 1),
        ("PUT", "gitlab-runner/secrets", 500, "InternalError", 0),
        ("GET", "gitlab/secrets", 500, "InternalError", 0),
        ("GET", "gitlab/secrets", 429, "TooManyRequests", 1),
        ("GET", "gitlab/secrets", 504, "Timeout", 0),
    ];
    for (method, path, code, reason, retry_after) in faults {
        let (before, token) = (proxy.requests(), format!("{method}-{code}"));
        proxy.fail(Fault { method, path, code, reason, retry_after, times: 3 });
        rotate(&cluster, &token).await;
        followed(&cluster, &token).await;
        assert_eq!(proxy.faults_left(), 0);
        // Three failures, each with its read of the source, the success, and what watches ask anew.
        let asked = proxy.requests() - before;
        assert!(asked < 20, "{asked} requests for {method} {code}: hot");
    }
    // A few conflicts are another replica that was first; many in a row are said.
    let conflicts = |line: &serde_json::Value| line["state"] == "write-conflict";
    assert!(!tool.log_lines().iter().any(conflicts), "{}", tool.log_text());
    proxy.fail(Fault {
        method: "PUT",
        path: "gitlab-runner/secrets",
        code: 409,
        reason: "Conflict",
        retry_after: 0,
        times: 6,
    });
    rotate(&cluster, "GET-504-and-conflicts").await;
    tool.logged("that the writes conflict", conflicts).await;
    followed(&cluster, "GET-504-and-conflicts").await;
    // A create that fails the same way.
    proxy.fail(Fault {
        method: "PATCH",
        path: "gitlab-runner/secrets",
        code: 500,
        reason: "InternalError",
        retry_after: 0,
        times: 3,
    });
    cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    followed(&cluster, "GET-504-and-conflicts").await;
    assert!(!tool.log_text().contains("GET-504"), "no token in a log");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_expire_fail_or_fall_silent_are_opened_anew() {
    let cluster = mission().await;
    let (proxy, tool) = behind_a_proxy(&cluster).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let clone = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();

    for (code, reason) in [(410, "Expired"), (500, "InternalError"), (429, "TooManyRequests")] {
        proxy.fail(Fault { method: "WATCH", path: "/secrets", code, reason, retry_after: 0, times: 4 });
        wait::until("the faults are used up", || async { (proxy.faults_left() == 0).then_some(()) }).await;
        // Not the reason itself, which the log may name.
        let token = format!("token-after-{reason}");
        rotate(&cluster, &token).await;
        followed(&cluster, &token).await;
    }

    proxy.silence(Some("/secrets"));
    rotate(&cluster, "unheard").await;
    let edit = json!({"stringData": {"stray": "x"}});
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &edit).await;
    proxy.silence(None);
    followed(&cluster, "unheard").await;

    let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(there.metadata.uid, clone.metadata.uid, "never deleted");
    assert_eq!(tool.get("/livez").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_something_keeps_changing_is_repaired_ever_more_slowly() {
    let cluster = mission().await;
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let api = cluster.secrets(RUNNER_NAMESPACE);
    let fighter = tokio::spawn(async move {
        loop {
            let edit = Patch::Merge(json!({"stringData": {"runner-token": "theirs"}}));
            let _ = api.patch(SECRET, &PatchParams::default(), &edit).await;
        }
    });
    tool.logged("the contention", |line| line["state"] == "contended").await;
    fighter.abort();
    let _ = fighter.await;
    // The next repair may have to wait for a minute.
    wait::within(2 * wait::PATIENCE, "the clone is right in the end", || async {
        cluster.secret(RUNNER_NAMESPACE, SECRET).await.filter(|there| has_data(there, &TOKEN))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_in_between_unseen_is_not_written_over() {
    let cluster = mission().await;
    let client = cluster.plane.service_account_client("gitlab-runner-webhook", "gitlab-runner-webhook").await.unwrap();
    let proxy = Proxy::start(client).await;
    let kubeconfig = cluster.plane.dir().join("proxy");
    std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
    let config = format!("clones: [{{secret: {SECRET}, from: {SOURCE_NAMESPACE}, onForeignTarget: refuse}}]\n");
    // The first writes fail; meanwhile somebody else takes the clone's name, and no watch tells.
    let fault =
        Fault { method: "PATCH", path: "/secrets", code: 429, reason: "TooManyRequests", retry_after: 1, times: 1 };
    proxy.fail(fault);
    let tool = cluster.tool_from(BINARY, &kubeconfig).config(&config).flag("--watch-timeout", "5").spawn();
    wait::until("a create failed", || async { (proxy.faults_left() == 0).then_some(()) }).await;
    proxy.silence(Some("/secrets"));
    let foreign = cluster.put_secret(RUNNER_NAMESPACE, SECRET, &[("their-key", "their-value")]).await;
    wait::until("the create is refused", || async {
        let (_, page) = tool.get("/metrics").await;
        let refused = "action=\"create\",result=\"conflict\"";
        page.lines().any(|line| line.contains(refused) && !line.ends_with(" 0")).then_some(())
    })
    .await;
    proxy.silence(None);
    tool.logged("the conflict", |line| line["state"] == "conflict").await;
    let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(there.metadata.resource_version, foreign.metadata.resource_version);
}

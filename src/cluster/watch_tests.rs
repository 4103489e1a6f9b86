use std::{
    convert::Infallible,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{StreamExt as _, future::join_all};
use http::Response;
use hyper::body::Frame;
use k8s_openapi::api::core::v1::Secret;
use kube::client::Body;
use tokio::time;

use super::*;

/// An answer that says something and then goes on for ever, as a watch does; or ends.
struct Answer {
    text: Option<Bytes>,
    ends: bool,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.text.take() {
            Some(text) => Poll::Ready(Some(Ok(Frame::data(text)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// An API server that answers as it is told; an error means that it cannot be reached.
fn client(answer: impl Fn(&str) -> Result<Response<Answer>, String> + Send + Sync + 'static) -> WatchClient {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move { answer(&request.uri().to_string()).map_err(std::io::Error::other) }
    });
    WatchClient::new(kube::Client::new(service, "default"))
}

fn says(lines: &[String], ends: bool) -> Response<Answer> {
    Response::new(Answer { text: Some((lines.join("\n") + "\n").into()), ends })
}

fn event(kind: &str, name: &str, version: u64) -> String {
    format!(r#"{{"type":"{kind}","object":{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}}}"#)
}

fn list_ends(version: u64) -> String {
    let annotations = r#"{"k8s.io/initial-events-end":"true"}"#;
    format!(
        r#"{{"type":"BOOKMARK","object":{{"metadata":{{"resourceVersion":"{version}","annotations":{annotations}}}}}}}"#
    )
}

fn secrets(client: &WatchClient, what: &str) -> Pin<Box<dyn Stream<Item = Change<String>> + Send>> {
    let query = Query::of::<Secret>(None, what.to_owned()).named("s").large();
    Box::pin(watch(client, query, Duration::from_mins(1), |raw| Ok(raw.metadata.name.clone())))
}

fn told<T: std::fmt::Display>(change: &Change<T>) -> String {
    match change {
        Change::ListBegins => "begins".to_owned(),
        Change::ListEnds => "ends".to_owned(),
        Change::Listed(name) => format!("listed {name}"),
        Change::Applied(name) => format!("applied {name}"),
        Change::Deleted(name) => format!("deleted {name}"),
        Change::Failed(problem) => problem.reason.as_str().to_owned(),
    }
}

/// What a watch tells of an API server that gives these answers, one after the other, and asks for which.
async fn story(answers: Vec<Response<Answer>>, count: usize) -> (Vec<String>, Vec<String>) {
    let (answers, asked) = (Mutex::new(VecDeque::from(answers)), Arc::new(Mutex::new(Vec::new())));
    let asks = Arc::clone(&asked);
    let client = client(move |uri| {
        let ask = |key: &str| uri.split(['?', '&']).find_map(|part| part.strip_prefix(key)).map(str::to_owned);
        let is_list = ask("sendInitialEvents=").is_some();
        let version = ask("resourceVersion=").unwrap_or_default();
        asks.lock().unwrap().push(if is_list { "list".to_owned() } else { format!("from {version}") });
        answers.lock().unwrap().pop_front().ok_or_else(|| "away".to_owned())
    });
    let changes: Vec<_> = secrets(&client, "s").take(count).collect().await;
    let asked = asked.lock().unwrap().clone();
    (changes.iter().map(told).collect(), asked)
}

#[tokio::test(start_paused = true)]
async fn it_lists_follows_goes_on_where_it_was_and_lists_anew_after_a_410() {
    let listed = [event("ADDED", "a", 3), list_ends(7), event("MODIFIED", "a", 8), event("DELETED", "a", 9)];
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#.to_owned();
    let answers = vec![says(&listed, true), says(&[gone], true), says(&[list_ends(20)], false)];
    let (told, asked) = story(answers, 8).await;
    assert_eq!(told, ["begins", "listed a", "ends", "applied a", "deleted a", "expired", "begins", "ends"]);
    assert_eq!(asked, ["list", "from 9", "list"]);
}

#[tokio::test(start_paused = true)]
async fn half_a_list_is_none_and_an_outage_ends_with_a_list() {
    let listed = [event("ADDED", "a", 3), list_ends(7)];
    let unwell = r#"{"type":"ERROR","object":{"kind":"Status","code":500}}"#.to_owned();
    let answers = vec![says(&listed[..1], true), says(&listed, true), says(&[unwell], true)];
    let (told, asked) = story(answers, 8).await;
    let expected = ["begins", "listed a", "unreachable", "begins", "listed a", "ends", "server-error", "unreachable"];
    assert_eq!(told, expected);
    assert_eq!(asked, ["list", "list", "from 7", "list"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_shows_less_than_was_known_is_a_restored_store_and_all_list_anew() {
    let version = Arc::new(AtomicVersion::new(100));
    let current = Arc::clone(&version);
    let client = client(move |_| Ok(says(&[list_ends(current.load(Ordering::SeqCst))], false)));
    let mut silent = secrets(&client, "silent");
    assert_eq!([told(&silent.next().await.unwrap()), told(&silent.next().await.unwrap())], ["begins", "ends"]);
    version.store(90, Ordering::SeqCst);
    let mut other = secrets(&client, "other");
    assert_eq!([told(&other.next().await.unwrap()), told(&other.next().await.unwrap())], ["begins", "ends"]);
    assert_eq!([told(&silent.next().await.unwrap()), told(&silent.next().await.unwrap())], ["begins", "ends"]);
}

type AtomicVersion = std::sync::atomic::AtomicU64;

/// In simulated time: a hundred processes with eight watches each, and an API server that is away for a minute.
#[tokio::test(start_paused = true)]
async fn a_hundred_processes_find_an_api_server_that_is_back_without_a_stampede() {
    const PROCESSES: usize = 100;
    const WATCHES: usize = 8;
    const AWAY: u64 = 60;
    let begun = time::Instant::now();
    let attempts = Arc::new(Mutex::new(vec![0_usize; 70]));
    let process = || {
        let attempts = Arc::clone(&attempts);
        let client = client(move |_| {
            let second = begun.elapsed().as_secs();
            attempts.lock().unwrap()[usize::try_from(second).unwrap()] += 1;
            if second < AWAY { Err("connection refused".to_owned()) } else { Ok(says(&[list_ends(5)], false)) }
        });
        join_all((0..WATCHES).map(move |number| {
            let mut changes = secrets(&client, &number.to_string());
            async move {
                while !matches!(changes.next().await, Some(Change::ListEnds)) {}
                begun.elapsed()
            }
        }))
    };
    let whole = join_all((0..PROCESSES).map(|_| process())).await.into_iter().flatten().max().unwrap();
    let whole = whole.saturating_sub(Duration::from_secs(AWAY));
    let attempts = attempts.lock().unwrap();
    let (away, back) = (attempts[10..60].iter().max().unwrap(), attempts[60..].iter().sum::<usize>());
    println!(
        "{PROCESSES} processes: all whole after {whole:?}; attempts a second while away: {away}; once back: {back}"
    );
    assert!(whole < Duration::from_secs(2), "{whole:?}");
    assert!(*away <= 2 * PROCESSES, "{away} attempts in a second, for {} watches", PROCESSES * WATCHES);
    assert_eq!(back, PROCESSES * WATCHES, "each watch asks once");
}

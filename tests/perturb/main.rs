//! A story is played, then played again with one thing going wrong, at each point where one can: the end must be the
//! same. In the spirit of Sieve (Sun et al., OSDI 2022).
//!
//! `PERTURB=keep:crash-after-clone-write-3 cargo test --test perturb a_sample -- --nocapture` plays exactly that one; a
//! name that ends with `*` plays all that begin so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

mod arena;
mod orders;
mod perturbation;
mod story;
mod trace;
mod verdict;

use std::{collections::BTreeMap, sync::Mutex, time::Instant};

use arena::{Arena, SLOTS, Slot};
use futures::future::join_all;
use orders::Order;
use perturbation::Perturbation;
use story::Story;
use verdict::Outcome;

/// How many perturbations are played in a sample: from the fixed seed, and from a fresh one.
const SAMPLE: (usize, usize) = (24, 8);

/// A story and what goes wrong in it.
type Case = (Story, Perturbation);

fn name((story, perturbation): &Case) -> String {
    format!("{}:{perturbation}", format!("{story:?}").to_lowercase())
}

/// The reference of each story, and every case that follows from it.
async fn references(arena: &Arena) -> (BTreeMap<Story, Outcome>, Vec<Case>) {
    let (mut outcomes, mut cases) = (BTreeMap::new(), Vec::new());
    for story in [Story::Keep, Story::Delete] {
        let slot = Slot::new(0);
        let (outcome, points) =
            story::play(arena, &slot, story, None).await.unwrap_or_else(|problem| panic!("{problem}"));
        cases.extend(perturbation::all(&points).into_iter().map(|perturbation| (story, perturbation)));
        outcomes.insert(story, outcome);
    }
    (outcomes, cases)
}

/// Plays these, several at a time. Returns how many, what was wrong with them, and which were not perturbed after all.
async fn play(choose: impl FnOnce(Vec<Case>) -> Vec<Case>) {
    let started = Instant::now();
    let arena = Arena::start().await;
    let (references, cases) = references(&arena).await;
    let points = cases.len();
    let chosen = match std::env::var("PERTURB") {
        Ok(wanted) => cases.into_iter().filter(|case| matches(&name(case), &wanted)).collect(),
        Err(_) => choose(cases),
    };
    assert!(!chosen.is_empty(), "no perturbation has that name");
    let count = chosen.len();
    let queue = Mutex::new(chosen.into_iter());
    let found = Mutex::new(Vec::new());
    let unreached = Mutex::new(Vec::new());
    join_all((0..SLOTS).map(async |number| {
        let slot = Slot::new(number);
        loop {
            let Some(case) = queue.lock().expect("the queue").next() else { return };
            let began = Instant::now();
            match story::play(&arena, &slot, case.0, Some(case.1)).await {
                Ok((outcome, _)) => {
                    let divergences = outcome.divergences(&references[&case.0]);
                    if !divergences.is_empty() {
                        found.lock().expect("what was found").push((name(&case), divergences.join("\n")));
                    }
                    if !outcome.was_perturbed {
                        unreached.lock().expect("the unreached").push(name(&case));
                    }
                }
                Err(problem) => found.lock().expect("what was found").push((name(&case), problem)),
            }
            if std::env::var_os("PERTURB_TIMES").is_some() {
                println!("{:>7.2} s  {}", began.elapsed().as_secs_f64(), name(&case));
            }
        }
    }))
    .await;
    let (found, unreached) = (found.into_inner().expect("it"), unreached.into_inner().expect("it"));
    println!(
        "{count} of {points} perturbations in {} s: {} diverge, {} were not reached",
        started.elapsed().as_secs(),
        found.len(),
        unreached.len()
    );
    let report: Vec<_> = found.iter().map(|(name, what)| format!("PERTURB={name}\n{what}\n")).collect();
    assert!(found.is_empty(), "{}", report.join("\n"));
    // The order within one watch and one object is certain, so each point of the reference comes again.
    assert!(unreached.is_empty(), "never reached: {unreached:?}");
}

/// Plays these orders, several at a time.
async fn play_orders(choose: impl FnOnce(Vec<Order>) -> Vec<Order>) {
    let started = Instant::now();
    let arena = Arena::start().await;
    let orders = orders::all();
    let chosen = match std::env::var("PERTURB") {
        Ok(wanted) => orders.into_iter().filter(|order| matches(&orders::name(*order), &wanted)).collect(),
        Err(_) => choose(orders),
    };
    let count = chosen.len();
    let queue = Mutex::new(chosen.into_iter());
    let found = Mutex::new(Vec::new());
    join_all((0..SLOTS).map(async |number| {
        let stage = orders::Stage::new(&arena, Slot::new(number)).await;
        loop {
            let Some(order) = queue.lock().expect("the queue").next() else { break };
            if let Err(problem) = stage.play(&order).await {
                found.lock().expect("what was found").push(format!("PERTURB={}\n{problem}\n", orders::name(order)));
            }
        }
        stage.end().await;
    }))
    .await;
    let found = found.into_inner().expect("what was found");
    println!("{count} of 720 orders in {} s: {} went wrong", started.elapsed().as_secs(), found.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The fixed seed, and one that is new each time and printed.
fn sample<T: Copy + Ord>(all: &[T]) -> Vec<T> {
    let given = std::env::var("PERTURB_SEED").ok().and_then(|seed| seed.parse().ok());
    let fresh = given.unwrap_or_else(|| fastrand::u64(..));
    println!("PERTURB_SEED={fresh}");
    let of_seed = |seed: u64, count: usize| fastrand::Rng::with_seed(seed).choose_multiple(all.iter(), count);
    let mut chosen: Vec<_> = of_seed(11, SAMPLE.0).into_iter().chain(of_seed(fresh, SAMPLE.1)).copied().collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn matches(name: &str, wanted: &str) -> bool {
    wanted.strip_suffix('*').map_or(name == wanted, |prefix| name.starts_with(prefix))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_perturbations_ends_as_if_nothing_had_been() {
    play(|cases| sample(&cases)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_orders_leads_to_the_same_end() {
    play_orders(|orders| sample(&orders)).await;
}

/// `make perturb`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: takes minutes"]
async fn soak_perturb_at_every_point() {
    play(|cases| cases).await;
}

/// `make perturb`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: takes minutes"]
async fn soak_perturb_every_order() {
    play_orders(|orders| orders).await;
}

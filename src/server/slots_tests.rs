use tokio::time::{advance, timeout};

use super::*;

const GRACE: Duration = Duration::from_millis(250);

fn slots(connections: usize, strangers: usize) -> Arc<Slots> {
    let limits = Limits { connections, strangers, grace: GRACE, ..Limits::default() };
    Slots::new(&limits, Metrics::new())
}

async fn proven(slots: &Arc<Slots>, phase: Phase) -> Held {
    let held = slots.take().await;
    held.0.enter(phase);
    held.0.prove();
    held
}

async fn is_closed(held: &Held) -> bool {
    timeout(Duration::ZERO, held.0.closed()).await.is_ok()
}

async fn takes_at_once(slots: &Arc<Slots>) -> Option<Held> {
    timeout(Duration::ZERO, slots.take()).await.ok()
}

#[tokio::test(start_paused = true)]
async fn the_oldest_stranger_makes_room_once_it_had_its_time() {
    let slots = slots(8, 2);
    let oldest = slots.take().await;
    advance(Duration::from_millis(1)).await;
    let other = slots.take().await;
    assert!(takes_at_once(&slots).await.is_none(), "an honest client needs some time, too");
    advance(GRACE).await;
    // To send bytes does not make it younger.
    oldest.0.enter(Phase::Head);
    let _third = takes_at_once(&slots).await.unwrap();
    assert!(is_closed(&oldest).await && !is_closed(&other).await);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_whose_request_has_come_is_no_longer_waited_for() {
    let slots = slots(8, 1);
    let first = slots.take().await;
    let waiting = tokio::spawn({
        let slots = Arc::clone(&slots);
        async move { slots.take().await }
    });
    tokio::task::yield_now().await;
    first.0.enter(Phase::Working);
    let _second = timeout(Duration::from_millis(1), waiting).await.unwrap().unwrap();
    assert!(!is_closed(&first).await);
}

#[tokio::test(start_paused = true)]
async fn strangers_never_take_the_slots_of_the_proven() {
    let slots = slots(8, 4);
    let mut known = Vec::new();
    for _ in 0..4 {
        known.push(proven(&slots, Phase::Idle).await);
    }
    let mut strangers = Vec::new();
    for _ in 0..1_000 {
        advance(Duration::from_millis(100)).await;
        strangers.push(slots.take().await);
    }
    for held in &known {
        assert!(!is_closed(held).await);
    }
    assert_eq!(slots.taken().len(), 8);
    assert!(slots.metrics.encode().contains("shed_total{reason=\"strangers\"} 996"));
}

#[tokio::test(start_paused = true)]
async fn when_all_slots_are_taken_who_stalls_goes_before_who_is_idle_and_nobody_at_work_goes() {
    let slots = slots(4, 2);
    let idle = proven(&slots, Phase::Idle).await;
    advance(GRACE * 2).await;
    let stalled = proven(&slots, Phase::Body).await;
    let stranger = slots.take().await;
    let working = proven(&slots, Phase::Working).await;
    advance(GRACE).await;
    for next_to_go in [stranger, stalled, idle] {
        assert!(!is_closed(&next_to_go).await);
        let next = takes_at_once(&slots).await.unwrap();
        assert!(is_closed(&next_to_go).await);
        // Its task drops it a moment later: that frees nothing twice.
        drop(next_to_go);
        assert_eq!(slots.taken().len(), 4);
        next.0.enter(Phase::Working);
        std::mem::forget(next);
    }
    advance(GRACE * 100).await;
    assert!(takes_at_once(&slots).await.is_none());
    drop(working);
    assert!(takes_at_once(&slots).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_work_is_done_can_make_room_for_one_who_waits() {
    let slots = slots(1, 1);
    let working = proven(&slots, Phase::Working).await;
    let waiting = tokio::spawn({
        let slots = Arc::clone(&slots);
        async move { slots.take().await }
    });
    advance(GRACE * 10).await;
    assert!(!waiting.is_finished());
    working.0.enter(Phase::Idle);
    let _next = timeout(GRACE * 2, waiting).await.unwrap().unwrap();
    assert!(is_closed(&working).await);
}

use std::net::{IpAddr, Ipv4Addr};

use super::*;

const GRACE: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(1);

fn peer(number: u8) -> Peer {
    Peer::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)))
}

fn budget() -> Arc<Budget> {
    Budget::new(100, 60, 20, GRACE)
}

async fn held(budget: &Arc<Budget>, number: u8, bytes: usize) -> Held {
    let held = budget.holder(peer(number), false);
    held.grow(bytes, Duration::ZERO).await.unwrap();
    held
}

async fn leaves(held: &Held) -> bool {
    tokio::time::timeout(Duration::ZERO, held.must_leave()).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn one_address_has_its_share_and_the_others_the_rest() {
    let budget = budget();
    let first = held(&budget, 1, 60).await;
    first.is_whole();
    assert!(budget.holder(peer(1), false).grow(1, PATIENCE).await.is_err());
    let _second = held(&budget, 2, 40).await;
    assert!(budget.holder(peer(3), false).grow(1, PATIENCE).await.is_err());
    drop(first);
    let _third = held(&budget, 3, 60).await;
}

#[tokio::test(start_paused = true)]
async fn large_ones_leave_a_part_to_the_small() {
    let budget = budget();
    let large = budget.holder(peer(1), true);
    assert!(large.grow(41, Duration::ZERO).await.is_err());
    large.grow(40, Duration::ZERO).await.unwrap();
    let _small = held(&budget, 1, 20).await;
    let _other = held(&budget, 2, 40).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_of_who_holds_most_makes_room_and_a_whole_one_never_does() {
    let budget = budget();
    let (slow, whole) = (held(&budget, 1, 30).await, held(&budget, 1, 30).await);
    whole.is_whole();
    let others = held(&budget, 2, 40).await;
    let newcomer = budget.holder(peer(3), false);
    let served = async {
        assert!(tokio::time::timeout(GRACE / 2, slow.must_leave()).await.is_err(), "it has some time");
        slow.must_leave().await;
        drop(slow);
    };
    let (grown, ()) = tokio::join!(newcomer.grow(20, PATIENCE), served);
    grown.unwrap();
    assert!(!leaves(&whole).await && !leaves(&others).await);
    // It would have more than those who would have to leave.
    assert!(newcomer.grow(45, PATIENCE).await.is_err());
    assert!(!leaves(&whole).await && !leaves(&others).await);
}

#[tokio::test(start_paused = true)]
async fn addresses_take_turns() {
    let budget = budget();
    // The first has 60 and 40 wait; the second one comes last.
    let first = held(&budget, 1, 60).await;
    first.is_whole();
    let second = held(&budget, 2, 40).await;
    second.is_whole();
    let order = Mutex::new(Vec::new());
    let wait = async |number: u8| {
        let held = budget.holder(peer(number), false);
        held.is_whole();
        held.grow(40, PATIENCE).await.unwrap();
        order.lock().unwrap().push(number);
    };
    let free = async { drop(second) };
    tokio::join!(wait(2), wait(2), wait(3), free);
    assert_eq!(order.into_inner().unwrap(), [3, 2, 2], "who was served longest ago comes first");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_behind() {
    let budget = budget();
    drop(held(&budget, 1, 60).await);
    let waiting = budget.holder(peer(1), false);
    drop(tokio::time::timeout(Duration::ZERO, waiting.grow(61, PATIENCE)).await);
    drop(waiting);
    let state = budget.state();
    assert!(state.holders.is_empty() && state.last.is_empty());
}

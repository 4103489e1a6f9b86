use std::net::Ipv4Addr;

use tokio::{task::yield_now, time::advance};

use super::*;

const GRACE: Duration = Duration::from_millis(250);

fn peer(number: u8) -> Peer {
    Peer::from(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)))
}

fn connections(connections: usize, connections_of_one: usize) -> Arc<Connections> {
    let limits = Limits { connections, connections_of_one, grace: GRACE, grace_of_one: GRACE, ..Limits::default() };
    Connections::new(limits, Metrics::new())
}

impl Connections {
    fn open(self: &Arc<Self>, number: u8, phase: ConnectionPhase) -> Arc<Slot> {
        let slot = self.accept(peer(number)).unwrap();
        assert!(slot.waits_no_more(), "a place for {number}");
        slot.enter(ConnectionPhase::Working);
        slot.answered();
        slot.enter(phase);
        slot
    }

    fn stranger(self: &Arc<Self>, number: u8) -> Arc<Slot> {
        self.accept(peer(number)).unwrap()
    }
}

impl Slot {
    fn waits_no_more(&self) -> bool {
        self.phase() != ConnectionPhase::Waiting
    }

    fn is_evicted(&self) -> bool {
        self.connections.state().all.get(&self.id).is_some_and(|entry| entry.evicted)
    }
}

/// Lets those who wait look again.
async fn pass(connections: &Connections, time: Duration) {
    advance(time).await;
    connections.promote();
}

#[tokio::test(start_paused = true)]
async fn one_address_has_its_part_and_no_more_and_another_one_is_served_at_once() {
    let connections = connections(8, 2);
    let busy: Vec<_> = (0..2).map(|_| connections.open(1, ConnectionPhase::Working)).collect();
    let waiting = connections.stranger(1);
    pass(&connections, GRACE * 100).await;
    assert!(!waiting.waits_no_more(), "both of its own are at work");
    assert!(connections.stranger(2).waits_no_more());
    assert!(!busy[0].answered(), "asked to make room by its answer");
    drop(busy);
    assert!(waiting.waits_no_more() && waiting.is_served().await);
}

#[tokio::test(start_paused = true)]
async fn of_one_address_the_unestablished_make_room_then_the_idle_and_who_works_stays() {
    let connections = connections(8, 3);
    let working = connections.open(1, ConnectionPhase::Working);
    let idle = connections.open(1, ConnectionPhase::Idle);
    let unestablished = connections.stranger(1);
    let next = connections.stranger(1);
    advance(GRACE / 2).await;
    // To send bytes does not make it younger.
    unestablished.enter(ConnectionPhase::Head);
    pass(&connections, Duration::from_millis(124)).await;
    assert!(!next.waits_no_more(), "an honest client needs some time, too");
    pass(&connections, Duration::from_millis(1)).await;
    assert!(next.waits_no_more() && unestablished.is_evicted() && !idle.is_evicted());
    next.enter(ConnectionPhase::Working);
    let last = connections.stranger(1);
    assert!(last.waits_no_more() && idle.is_evicted() && !working.is_evicted());
    assert!(connections.metrics.encode().contains("shed_total{reason=\"connections\"} 2"));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_not_closed_the_moment_after_its_answer() {
    let connections = connections(8, 1);
    let slot = connections.open(1, ConnectionPhase::Working);
    let waiting = connections.stranger(1);
    pass(&connections, GRACE * 10).await;
    slot.enter(ConnectionPhase::Idle);
    pass(&connections, Duration::from_millis(249)).await;
    assert!(!slot.is_evicted(), "its client may have sent the next request");
    pass(&connections, Duration::from_millis(1)).await;
    assert!(slot.is_evicted() && waiting.waits_no_more());
}

#[tokio::test(start_paused = true)]
async fn when_all_places_are_taken_whoever_has_most_makes_room() {
    let connections = connections(8, 4);
    let mut taken: Vec<_> = (0..4).map(|_| connections.open(1, ConnectionPhase::Idle)).collect();
    taken.extend((0..3).map(|_| connections.open(2, ConnectionPhase::Idle)));
    taken.push(connections.open(3, ConnectionPhase::Idle));
    advance(GRACE).await;
    // 4, 3 and 1: three newcomers end at 2, 3, 1 and 2, and nobody who has less loses to one who has more.
    let newcomers = [connections.stranger(4), connections.stranger(4), connections.stranger(4)];
    let served = |number: u8| connections.state().served_of(number);
    assert_eq!([served(1), served(2), served(3), served(4)], [2, 3, 1, 2]);
    assert!(!newcomers[2].waits_no_more());
    assert!(!taken[7].is_evicted(), "the only one of its address");
}

impl ConnectionsState {
    fn served_of(&self, number: u8) -> usize {
        of(&count(self.served()), peer(number))
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_becomes_free_goes_to_the_address_that_is_served_least() {
    let connections = connections(4, 2);
    let mut taken: Vec<_> = [1, 1, 2, 2].map(|number| connections.open(number, ConnectionPhase::Working)).into();
    let first = connections.stranger(1);
    let second = connections.stranger(3);
    assert!(!first.waits_no_more() && !second.waits_no_more());
    drop(taken.pop());
    assert!(second.waits_no_more() && !first.waits_no_more());
}

/// The race that closed a connection on which a request had come in whole: it is idle when it is chosen, and works
/// when it hears of it.
#[tokio::test(start_paused = true)]
async fn a_request_that_comes_in_whole_after_its_connection_was_chosen_is_answered() {
    let connections = connections(8, 1);
    let chosen = connections.open(1, ConnectionPhase::Idle);
    advance(GRACE).await;
    let _next = connections.stranger(1);
    assert!(chosen.is_evicted());
    chosen.enter(ConnectionPhase::Working);
    assert!(timeout(GRACE * 10, chosen.must_leave()).await.is_err(), "nothing closes it");
    assert!(!chosen.answered(), "and its answer is the last");

    let idle = connections.open(2, ConnectionPhase::Idle);
    advance(GRACE).await;
    let _next = connections.stranger(2);
    assert!(timeout(Duration::ZERO, idle.must_leave()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_bounded_and_each_address_may_wait() {
    let limits = Limits {
        connections: 2,
        connections_of_one: 1,
        waiting: 4,
        waiting_of_one: 3,
        grace: GRACE,
        ..Limits::default()
    };
    let connections = Connections::new(limits, Metrics::new());
    let _working = [1, 2].map(|number| connections.open(number, ConnectionPhase::Working));
    let hostile: Vec<_> = (0..3).map(|_| connections.stranger(1)).collect();
    assert!(connections.accept(peer(1)).is_none());
    let others = [connections.stranger(2), connections.stranger(3)];
    assert!(!hostile[2].is_served().await, "the last one of the address that waits most");
    assert!(others.iter().all(|slot| slot.phase() == ConnectionPhase::Waiting));
    assert!(connections.metrics.encode().contains("shed_total{reason=\"waiting\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_looks_again_by_itself() {
    let connections = connections(8, 1);
    let _silent = connections.stranger(1);
    let waiting = connections.stranger(1);
    let served = tokio::spawn(async move { waiting.is_served().await });
    yield_now().await;
    assert!(timeout(GRACE * 3, served).await.unwrap().unwrap());
}

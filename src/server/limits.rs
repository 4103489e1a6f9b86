//! How long and how much: every number of the server, in one place.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What a client may cost. The default is what production runs with; tests shorten the timers.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the whole TLS handshake.
    pub handshake: Duration,
    /// From the handshake to the first byte of the first request: a client that connects has something to say.
    pub first_byte: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// From one request to the next. It must be longer than the 90 s for which an API server keeps an idle
    /// connection: at equal times 7 % of the calls failed, because one side closes while the other sends.
    pub idle: Duration,
    /// For the whole body, however many pieces it comes in.
    pub body: Duration,
    /// For a client to take an answer.
    pub answer: Duration,
    /// How long what is still sent is thrown away after an early answer. To close at once would reset the
    /// connection, and the client would see that and not the answer.
    pub linger: Duration,
    /// Connections that are served at a time.
    pub connections: usize,
    /// How many of them one address may have. An API server keeps at most 25 idle ones to a webhook.
    pub connections_of_one: usize,
    /// Connections that wait to be served. All together stay below the 1024 files that a process may have open where
    /// nobody says otherwise.
    pub waiting: usize,
    /// How many of those one address may have: what an API server opens in a burst.
    pub waiting_of_one: usize,
    /// For how long a connection that is idle or unestablished is safe from being closed for another address.
    pub grace: Duration,
    /// The same for another connection of its own address: in a burst, an API server is in its own way.
    pub grace_of_one: Duration,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's head, and of one read.
    pub buffer: usize,
    /// Longest review. A Pod that etcd can hold (1.5 MiB) may grow sixfold: Go escapes `<`, `>` and `&`.
    pub review: usize,
    /// Bytes of all reviews that are being read or answered.
    pub reviews: usize,
    /// How many of them one address may have.
    pub reviews_of_one: usize,
    /// The part of both that reviews above 1 MiB leave to the others.
    pub reviews_reserve: usize,
    /// What is taken for a review before any of it has come; the rest of what it announces is taken when this has come.
    pub first_piece: usize,
    /// Longest wait for room.
    pub room_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(5),
            idle: Duration::from_mins(3),
            body: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            linger: Duration::from_secs(2),
            connections: 256,
            connections_of_one: 64,
            waiting: 512,
            waiting_of_one: 256,
            grace: Duration::from_millis(250),
            grace_of_one: Duration::from_secs(2),
            headers: 64,
            buffer: 16 * KIB,
            review: 10 * MIB,
            reviews: 20 * MIB,
            reviews_of_one: 14 * MIB,
            reviews_reserve: 4 * MIB,
            first_piece: 64 * KIB,
            room_wait: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// For probes and scrapes.
    pub(super) fn of_probes() -> Self {
        Self { connections: 64, connections_of_one: 8, waiting: 64, waiting_of_one: 16, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_longer_than_the_api_server_keeps_a_connection() {
        assert!(Limits::default().idle > Duration::from_secs(130));
    }

    #[test]
    fn the_parts_make_the_whole() {
        let limits = Limits::default();
        assert!(limits.reviews_of_one - limits.reviews_reserve >= limits.review, "the longest fits when it is alone");
        assert!(limits.reviews_of_one < limits.reviews && limits.reviews_reserve < limits.reviews);
        // With what the program itself has (some 12 MiB), 256 connections, and what is parsed at a time: docs/security.md.
        assert_eq!(limits.reviews, 20 * MIB);
        for limits in [limits, Limits::of_probes()] {
            assert!(limits.connections_of_one * 4 <= limits.connections);
            assert!(limits.waiting_of_one * 2 <= limits.waiting);
        }
    }

    #[test]
    fn all_connections_are_fewer_than_the_files_that_a_process_may_have_open() {
        let of = |limits: Limits| limits.connections + limits.waiting;
        assert!(of(Limits::default()) + of(Limits::of_probes()) < 1000);
    }
}

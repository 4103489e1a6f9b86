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
    /// Connections in all. An API server keeps at most 25 idle ones to a webhook.
    pub connections: usize,
    /// How many of them may be waited for that never had a request answered. The others are the reserve of clients
    /// that did, such as API servers.
    pub strangers: usize,
    /// For how long a connection is safe from being closed to make room: time enough for an honest client.
    pub grace: Duration,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's head, and of one read.
    pub buffer: usize,
    /// Longest review. A Pod that etcd can hold (1.5 MiB) may grow sixfold: Go escapes `<`, `>` and `&`.
    pub review: usize,
    /// Longest review that always fits, whatever else is in flight: all connections together hold 16 MiB of these.
    pub small_review: usize,
    /// Bytes of all longer reviews in flight. Both together are 32 MiB.
    pub reviews: usize,
    /// The part of `reviews` that those above 1 MiB leave to the others.
    pub reviews_reserve: usize,
    /// Memory that one review of the usual kind takes when parsed; a larger one is parsed in a thread of its own.
    pub usual_tree: usize,
    /// Memory for all parsed reviews of the usual kind; the next one waits.
    pub usual_trees: usize,
    /// Memory for all larger parsed reviews. One that would take more than this alone is refused.
    pub large_trees: usize,
    /// Longest wait for that memory.
    pub tree_wait: Duration,
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
            strangers: 128,
            grace: Duration::from_millis(250),
            headers: 64,
            buffer: 16 * KIB,
            review: 10 * MIB,
            small_review: 64 * KIB,
            reviews: 16 * MIB,
            reviews_reserve: 4 * MIB,
            usual_tree: MIB,
            usual_trees: 8 * MIB,
            large_trees: 16 * MIB,
            tree_wait: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// For probes and scrapes.
    pub(super) fn of_probes() -> Self {
        Self { connections: 32, strangers: 16, ..Self::default() }
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
        assert_eq!(limits.connections * limits.small_review + limits.reviews, 32 * MIB);
        assert!(limits.reviews - limits.reviews_reserve >= limits.review, "the longest fits when it is alone");
        assert!(limits.usual_tree <= limits.usual_trees && limits.usual_tree < limits.large_trees);
        assert!(limits.strangers < limits.connections);
    }
}

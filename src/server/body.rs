//! Reading a review: its room is taken before it is read, and that of its parsed form before it is parsed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use axum::extract::Request;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{limits::Limits, tree::Tree};
use crate::admission::ReviewError;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A review that was read, and the room that it takes.
pub(super) struct Review {
    pub(super) body: Bytes,
    /// Whether to parse it takes long enough to hold up others on the same thread.
    pub(super) is_large: bool,
    pub(super) room: Room,
}

/// Room for one review. Given back when dropped.
pub(super) struct Room {
    _bytes: Taken,
    _tree: OwnedSemaphorePermit,
}

/// Why a review was not read to its end.
#[derive(Debug)]
pub(super) enum Unread {
    /// Something is wrong with it.
    Bad(ReviewError),
    /// There is no room now.
    Busy(&'static str),
    /// It would never fit.
    TooComplex {
        /// The limit in bytes.
        limit: usize,
    },
}

/// The memory that reviews may take together.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    limits: Arc<Limits>,
    /// Bytes of all bodies that are not small.
    bodies: Arc<AtomicUsize>,
    /// One permit is one KiB.
    usual_trees: Arc<Semaphore>,
    large_trees: Arc<Semaphore>,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        let lane = |bytes: usize| Arc::new(Semaphore::new(bytes / KIB));
        Self {
            bodies: Arc::default(),
            usual_trees: lane(limits.usual_trees),
            large_trees: lane(limits.large_trees),
            limits: Arc::new(limits),
        }
    }

    /// Reads the review of a request.
    pub(super) async fn read(&self, request: Request) -> Result<Review, Unread> {
        if !is_json(request.headers()) {
            return Err(Unread::Bad(ReviewError::ContentType));
        }
        let length = content_length(request.headers());
        let mut bytes = Taken { taken: 0, budget: self.clone() };
        // Both are said before anything is read.
        bytes.grow(length.unwrap_or(0))?;
        let read = timeout(self.limits.body, self.read_body(request, length, &mut bytes)).await;
        let seconds = self.limits.body.as_secs();
        let (body, memory) = read.unwrap_or(Err(Unread::Bad(ReviewError::TooSlow { seconds })))?;
        let is_large = memory > self.limits.usual_tree;
        let tree = self.tree(memory, is_large).await?;
        Ok(Review { body, is_large, room: Room { _bytes: bytes, _tree: tree } })
    }

    async fn read_body(
        &self,
        request: Request,
        length: Option<usize>,
        bytes: &mut Taken,
    ) -> Result<(Bytes, usize), Unread> {
        let mut pieces = request.into_body().into_data_stream();
        // Memory that is not written to is not resident.
        let (mut body, mut tree) = (Vec::with_capacity(length.unwrap_or(0)), Tree::default());
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| Unread::Bad(ReviewError::CutOff))?;
            let needed = body.len() + piece.len();
            if needed > body.capacity() {
                let capacity = needed.max(2 * body.capacity()).min(needed.max(self.limits.review));
                bytes.grow(capacity)?;
                body.reserve_exact(capacity - body.len());
            }
            body.extend_from_slice(&piece);
            tree.feed(&piece);
            if tree.memory() > self.limits.large_trees {
                return Err(Unread::TooComplex { limit: self.limits.large_trees });
            }
        }
        Ok((body.into(), tree.memory()))
    }

    /// Small reviews never queue behind large ones.
    async fn tree(&self, memory: usize, is_large: bool) -> Result<OwnedSemaphorePermit, Unread> {
        let lane = if is_large { &self.large_trees } else { &self.usual_trees };
        let permits = u32::try_from(memory.div_ceil(KIB)).unwrap_or(u32::MAX);
        match timeout(self.limits.tree_wait, Arc::clone(lane).acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Unread::Busy("parsing")),
        }
    }

    /// Up to where bodies may fill the budget when this one is among them.
    fn ceiling(&self, bytes: usize) -> usize {
        if bytes > MIB { self.limits.reviews - self.limits.reviews_reserve } else { self.limits.reviews }
    }
}

/// Bytes of one body, taken from the budget.
struct Taken {
    taken: usize,
    budget: Budget,
}

impl Taken {
    fn grow(&mut self, bytes: usize) -> Result<(), Unread> {
        let limits = &self.budget.limits;
        if bytes > limits.review {
            return Err(Unread::Bad(ReviewError::TooLarge { limit: limits.review }));
        }
        // The cap on connections is what bounds the small ones.
        if bytes <= limits.small_review {
            return Ok(());
        }
        let (more, ceiling) = (bytes - self.taken, self.budget.ceiling(bytes));
        let fits = |used: usize| Some(used + more).filter(|used| *used <= ceiling);
        self.budget.bodies.fetch_update(Relaxed, Relaxed, fits).map_err(|_| Unread::Busy("bodies"))?;
        self.taken = bytes;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.bodies.fetch_sub(self.taken, Relaxed);
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

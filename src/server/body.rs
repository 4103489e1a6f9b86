//! Reading a review: room is taken as it comes in.

use std::{pin::pin, sync::Arc};

use axum::extract::Request;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use tokio::time::timeout;

use super::{
    budget::{Budget, Full, Held},
    limits::Limits,
    peer::Peer,
};
use crate::admission::ReviewError;

const MIB: usize = 1024 * 1024;

/// A review that was read, and the room that it takes. What is parsed of it is borrowed from it, but for a bounded number of
/// elements.
pub(super) struct RawReview {
    pub(super) body: Bytes,
    /// Whether to parse it takes long enough to hold up others on the same thread.
    pub(super) is_large: bool,
    /// Given back when dropped.
    pub(super) room: Held,
}

/// Why a review was not read to its end.
#[derive(Debug)]
pub(super) enum Unread {
    /// Something is wrong with it.
    Bad(ReviewError),
    /// There is no room now.
    Busy(&'static str),
}

/// Reads reviews into the memory that they may take together.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    limits: Arc<Limits>,
    bodies: Arc<Budget>,
}

impl Reader {
    pub(super) fn new(limits: Limits) -> Self {
        let Limits { reviews, reviews_of_one, reviews_reserve, grace, .. } = limits;
        Self { bodies: Budget::new(reviews, reviews_of_one, reviews_reserve, grace), limits: Arc::new(limits) }
    }

    /// Reads the review of a request.
    pub(super) async fn read(&self, request: Request) -> Result<RawReview, Unread> {
        if !is_json(request.headers()) {
            return Err(Unread::Bad(ReviewError::ContentType));
        }
        let announced = content_length(request.headers());
        self.fits(announced.unwrap_or(0))?;
        let peer = request.extensions().get().copied().unwrap_or(Peer::LOCAL);
        let bytes = self.bodies.holder(peer, announced.is_none_or(|length| length > MIB));
        let read = {
            let mut read = pin!(timeout(self.limits.body, self.read_body(request, announced, &bytes)));
            tokio::select! {
                biased;
                read = &mut read => read,
                () = bytes.must_leave() => return Err(Unread::Busy("bodies")),
            }
        };
        let seconds = self.limits.body.as_secs();
        let body = read.unwrap_or(Err(Unread::Bad(ReviewError::TooSlow { seconds })))?;
        Ok(RawReview { is_large: body.len() > MIB, body, room: bytes })
    }

    async fn read_body(&self, request: Request, announced: Option<usize>, bytes: &Held) -> Result<Bytes, Unread> {
        let first = announced.unwrap_or_default().min(self.limits.first_piece);
        let mut pieces = request.into_body().into_data_stream();
        let mut body = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| Unread::Bad(ReviewError::CutOff))?;
            let needed = body.len() + piece.len();
            self.fits(needed)?;
            if needed > body.capacity() {
                // First a little, then all that is announced: who announces and sends nothing takes nothing.
                let capacity = match announced {
                    Some(announced) if needed > first => announced,
                    _ => first.max(2 * body.capacity()).min(self.limits.review),
                };
                let capacity = capacity.max(needed);
                bytes.grow(capacity, self.limits.room_wait).await.map_err(|Full| Unread::Busy("bodies"))?;
                body.reserve_exact(capacity - body.len());
            }
            body.extend_from_slice(&piece);
        }
        bytes.is_whole();
        Ok(body.into())
    }

    fn fits(&self, bytes: usize) -> Result<(), Unread> {
        let limit = self.limits.review;
        if bytes > limit { Err(Unread::Bad(ReviewError::TooLarge { limit })) } else { Ok(()) }
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

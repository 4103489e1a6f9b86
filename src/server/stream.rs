//! The timers that hyper lacks, around the bytes of one connection.
//!
//! hyper's own timer for heads counts the idle time before them, too, so it cannot be short. Here the clock of a head
//! starts with its first byte. What hyper has read beyond one request, a client that does not wait for answers, is
//! not seen here: its head counts from the next byte on, and to keep silent then is to be idle.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    connections::{ConnectionPhase, Slot},
    limits::Limits,
};

/// Bytes of one connection.
pub(super) struct Timed<S> {
    inner: S,
    slot: Arc<Slot>,
    first_byte: Duration,
    head: Duration,
    answer: Duration,
    linger: Duration,
    reading: DeadlineClock,
    writing: DeadlineClock,
    closing: Closing,
}

/// How far the end of a connection has come.
enum Closing {
    Saying,
    Lingering,
}

impl<S> Timed<S> {
    pub(super) fn new(inner: S, slot: Arc<Slot>, limits: &Limits) -> Self {
        let Limits { first_byte, head, answer, linger, .. } = *limits;
        let (reading, writing) = Default::default();
        Self { inner, slot, first_byte, head, answer, linger, reading, writing, closing: Closing::Saying }
    }
}

impl<S: AsyncWrite + Unpin> Timed<S> {
    /// The clock runs from the first byte that the client does not take until it has taken all.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match write(Pin::new(&mut self.inner), cx) {
            Poll::Pending => self.writing.expires(cx, self.answer).map(|()| Err(late("took the answer too slowly"))),
            done @ Poll::Ready(_) => done,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let phase = this.slot.phase();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if buf.filled().len() > before && matches!(phase, ConnectionPhase::Opening | ConnectionPhase::Idle) {
                    this.reading.stop();
                    this.slot.enter(ConnectionPhase::Head);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match phase {
                ConnectionPhase::Opening => {
                    this.reading.expires(cx, this.first_byte).map(|()| Err(late("sent nothing")))
                }
                ConnectionPhase::Head => {
                    this.reading.expires(cx, this.head).map(|()| Err(late("sent a head too slowly")))
                }
                ConnectionPhase::Waiting | ConnectionPhase::Body | ConnectionPhase::Working | ConnectionPhase::Idle => {
                    this.reading.stop();
                    Poll::Pending
                }
            },
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |inner, cx| inner.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |inner, cx| inner.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write(cx, AsyncWrite::poll_flush))?;
        self.writing.stop();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Closing::Saying = self.closing {
            ready!(self.write(cx, AsyncWrite::poll_shutdown))?;
            if !self.slot.is_unread() {
                return Poll::Ready(Ok(()));
            }
            self.closing = Closing::Lingering;
            self.slot.enter(ConnectionPhase::Body);
            self.reading.stop();
        }
        let this = &mut *self;
        let mut waste = [0; 4096];
        // Some at a time: other connections want this thread, too.
        for _ in 0..64 {
            let mut waste = ReadBuf::new(&mut waste);
            let read = Pin::new(&mut this.inner).poll_read(cx, &mut waste);
            let ended = matches!(&read, Poll::Ready(result) if result.is_err() || waste.filled().is_empty());
            if ended || this.reading.expires(cx, this.linger).is_ready() {
                return Poll::Ready(Ok(()));
            }
            ready!(read)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

fn late(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("the client {what}"))
}

/// Starts when it is first asked, and keeps its timer from one use to the next.
#[derive(Default)]
struct DeadlineClock {
    timer: Option<Pin<Box<Sleep>>>,
    runs: bool,
}

impl DeadlineClock {
    fn expires(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        if !self.runs {
            self.runs = true;
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer.as_mut().poll(cx)
    }

    fn stop(&mut self) {
        self.runs = false;
    }
}

//! Notices a client that does not read: its requests wait, and after a limit its connection ends.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::limited::{Limit, Limited};

/// A stream whose writes fail after they have not moved for this long.
#[derive(Debug)]
pub(super) struct StallLimit<I> {
    stream: I,
    limit: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    flow: Flow,
    limited: Arc<Limited>,
}

/// Whether a connection's writes move. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow(Arc<FlowState>);

#[derive(Debug, Default)]
struct FlowState {
    stopped: AtomicBool,
    moves: Notify,
}

impl Flow {
    /// Returns when nothing that was written waits for the client to read. Requests that come
    /// faster than their answers are read are so left where they are: in the client's buffers.
    pub(super) async fn moves(&self) {
        loop {
            let mut moves = pin!(self.0.moves.notified());
            moves.as_mut().enable();
            if !self.0.stopped.load(Ordering::Acquire) {
                return;
            }
            moves.await;
        }
    }

    fn set_stopped(&self, stopped: bool) {
        if self.0.stopped.swap(stopped, Ordering::AcqRel) && !stopped {
            self.0.moves.notify_waiters();
        }
    }
}

impl<I> StallLimit<I> {
    pub(super) fn new(stream: I, limit: Duration, limited: Arc<Limited>) -> Self {
        Self { stream, limit, stalled: None, flow: Flow::default(), limited }
    }

    pub(super) fn flow(&self) -> Flow {
        self.flow.clone()
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.flow.set_stopped(written.is_pending());
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.limited.count(Limit::Write);
                let text = format!("the client has read nothing for {limit:?}");
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for StallLimit<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for StallLimit<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, closed)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_write_that_is_not_read_fails() {
        let (mine, theirs) = tokio::io::duplex(16);
        let mut stream = StallLimit::new(mine, Duration::from_millis(20), Arc::default());
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn requests_wait_while_nothing_is_read() {
        let (mine, mut theirs) = tokio::io::duplex(16);
        let mut stream = StallLimit::new(mine, Duration::from_secs(3600), Arc::default());
        let flow = stream.flow();
        flow.moves().await;
        let writing = tokio::spawn(async move { stream.write_all(&[0; 64]).await });
        while !flow.0.stopped.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        let mut all = [0; 64];
        let read = tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut all);
        let (read, ()) = tokio::join!(read, flow.moves());
        assert!(read.is_ok() && writing.await.unwrap().is_ok());
    }
}

//! Runs the streams of an HTTP/2 connection, and resets those whose client reads nothing.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::limited::{Limit, Limited};

tokio::task_local! {
    /// Of the stream that a task runs.
    static PROGRESS: Progress;
}

/// When a stream's answer moved last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Mutex<Option<Instant>>>);

/// Starts a task for each stream. All end with their connection.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    /// Time that an answer may stand still because the client does not read.
    pub(super) write: Duration,
    /// Ends with the connection's place.
    pub(super) open: watch::Receiver<()>,
    pub(super) limited: Arc<Limited>,
}

impl Progress {
    /// Of the stream whose task this is.
    pub(super) fn of_stream() -> Option<Self> {
        PROGRESS.try_with(Clone::clone).ok()
    }

    /// A piece of the answer was taken.
    pub(super) fn moved(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// Returns once an answer has begun and has not moved for this long.
    async fn stands_still(&self, limit: Duration) {
        let mut wait = limit;
        loop {
            tokio::time::sleep(wait).await;
            let moved = *self.0.lock();
            let still = moved.map_or(Duration::ZERO, |moved| moved.elapsed());
            if still >= limit {
                return;
            }
            wait = limit - still;
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let Self { write, mut open, limited } = self.clone();
        let progress = Progress::default();
        tokio::spawn(async move {
            let run = PROGRESS.scope(progress.clone(), stream);
            tokio::select! {
                _ = run => {}
                // Dropped before its end, a stream is reset (CANCEL).
                () = progress.stands_still(write) => limited.count(Limit::Write),
                _ = open.changed() => {}
            }
        });
    }
}

//! Owns the life of a server's task: told to stop, it ends its connections first.

use std::future::Future;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server's task. Dropped, it stops soon; [`Self::stop`] also waits for that.
#[derive(Debug)]
pub(crate) struct Serving {
    told: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Resolves when the server shall stop.
pub(crate) type Stopped = oneshot::Receiver<()>;

impl Serving {
    pub(crate) fn spawn<F>(serve: impl FnOnce(Stopped) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (told, stopped) = oneshot::channel();
        Self { told, task: tokio::spawn(serve(stopped)) }
    }

    /// Returns once the listener is closed and every connection is dead.
    pub(crate) async fn stop(self) {
        drop(self.told);
        // A task that panicked is over too; the panic was printed where it happened.
        drop(self.task.await);
    }
}

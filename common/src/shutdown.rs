//! Owns the end of a program: a signal that every task can wait for.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Told when the program is to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Ends the program when told to or when dropped.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A pair that is told by hand.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

/// Told at the first SIGTERM, SIGINT or SIGQUIT. A second one ends the process at once, for an
/// operator who will not wait for connections to drain.
pub fn on_signals() -> std::io::Result<Shutdown> {
    let (trigger, shutdown) = channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    tokio::spawn(async move {
        for round in 0..2 {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = quit.recv() => "SIGQUIT",
            };
            if round == 1 {
                std::process::exit(1);
            }
            tracing::info!("{name}: ending once open connections are drained");
            trigger.fire();
        }
    });
    Ok(shutdown)
}

impl Trigger {
    /// Tells every [`Shutdown`].
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns when the program is to end.
    pub async fn wait(&mut self) {
        // An error means the trigger is gone: that too is the end.
        let _ = self.0.wait_for(|ended| *ended).await;
    }

    /// Whether it is to end already.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }
}

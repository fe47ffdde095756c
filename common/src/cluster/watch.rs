//! Keeps what a program knows of a kind of object current for the life of the program: lists the
//! objects, watches them, and lists them again after a failure.

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tracing::debug;

use super::one_line;
use super::outages::{Cause, Watched};
use super::pace::{Pace, spread};

/// The longest pause between two tries while the API server does not answer: as soon as it is back
/// it is asked.
const MOST: Duration = Duration::from_secs(5);
/// … while it answers and refuses, or grants the list and not the watch: somebody has to change a
/// right first, and thousands of exporters may be refused.
const MOST_REFUSED: Duration = Duration::from_secs(30);
/// An ordinary end of a watch costs no pause, but only once in this time.
const AGAIN: Duration = Duration::from_secs(10);

/// The step after an error of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The API server no longer has the changes since the last one that was seen. A matter of
    /// course: the objects are listed again.
    Expired,
    /// A watch that worked was cut. A matter of course: it is resumed.
    Cut,
    Failed(Cause),
}

/// Decides what an error is and how long to wait after it.
#[derive(Debug, Default)]
struct Pacing {
    pace: Pace,
    failed: Option<Cause>,
    expired: Option<Instant>,
    cut: Option<Instant>,
}

/// Passes every event, and the text of every failure, on to `on`. After a failure a whole list comes
/// first, so until its end `on` knows less than there is. Never returns.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    watched: Watched,
    mut on: impl FnMut(Result<Event<K>, String>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut pacing = Pacing::default();
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        let mut listed = false;
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        listed = true;
                        watched.works();
                    }
                    on(Ok(event));
                    continue;
                }
                Err(error) => error,
            };
            let (fault, pause) = pacing.judge(Fault::of(&error), listed, Instant::now());
            let reason = reason(&error);
            if let Fault::Failed(cause) = fault {
                watched.fails(cause, &reason);
                on(Err(reason));
            } else {
                debug!("{}: the watch ended, {fault:?}: {reason}", watched.what());
            }
            tokio::time::sleep(spread(pause)).await;
            if fault != Fault::Cut {
                break;
            }
        }
    }
}

// === impl Fault ===

impl Fault {
    fn of(error: &watcher::Error) -> Self {
        let status = match error {
            watcher::Error::WatchError(status)
            | watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status)) => status,
            watcher::Error::WatchFailed(_) => return Self::Cut,
            _ => return Self::Failed(Cause::NoAnswer),
        };
        if status.code == 410 { Self::Expired } else { Self::Failed(Cause::Refused(status.code)) }
    }
}

// === impl Pacing ===

impl Pacing {
    /// The fault that this one counts as, and the pause after it. `listed`: a list was complete since the one
    /// before.
    fn judge(&mut self, fault: Fault, listed: bool, now: Instant) -> (Fault, Duration) {
        let first = |last: &mut Option<Instant>| {
            last.replace(now).is_none_or(|at| now.saturating_duration_since(at) >= AGAIN)
        };
        let fault = match fault {
            Fault::Expired if first(&mut self.expired) => return (fault, Duration::ZERO),
            Fault::Cut if first(&mut self.cut) => return (fault, Duration::ZERO),
            // Something between here and the API server lets no watch through.
            Fault::Cut => Fault::Failed(Cause::NoAnswer),
            fault => fault,
        };
        if let Fault::Failed(cause) = fault
            && self.failed.replace(cause) != Some(cause)
        {
            // One cause's long pauses are not another one's.
            self.pace.reset();
        }
        let most = match fault {
            Fault::Failed(Cause::Refused(401 | 403 | 404 | 405)) => MOST_REFUSED,
            Fault::Failed(_) if listed => MOST_REFUSED,
            _ => MOST,
        };
        (fault, self.pace.after_failure(most, now))
    }
}

/// Why a list or a watch failed, without which of the two it was: that is the same reason.
fn reason(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => one_line(error),
        error => one_line(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: Fault = Fault::Failed(Cause::NoAnswer);
    const FORBIDDEN: Fault = Fault::Failed(Cause::Refused(403));

    /// The pauses in milliseconds after faults that follow one another at once.
    fn pauses(pacing: &mut Pacing, now: &mut Instant, faults: &[(Fault, bool)]) -> Vec<u128> {
        let mut pause = |(fault, listed): &(Fault, bool)| {
            let (_, pause) = pacing.judge(*fault, *listed, *now);
            *now += pause + Duration::from_millis(1);
            pause.as_millis()
        };
        faults.iter().map(&mut pause).collect()
    }

    #[test]
    fn an_expired_watch_is_listed_at_once_after_any_number_of_failures() {
        let (mut pacing, mut now) = (Pacing::default(), Instant::now());
        let away = pauses(&mut pacing, &mut now, &[(AWAY, false); 20]);
        assert_eq!(away.iter().max(), Some(&5000));
        assert_eq!(pauses(&mut pacing, &mut now, &[(Fault::Expired, true)]), [0]);
        // One that expires as soon as it is listed is no reason to list all the time.
        let again = pauses(&mut pacing, &mut now, &[(Fault::Expired, true); 3]);
        assert!(again.iter().all(|pause| *pause >= 250), "{again:?}");
    }

    #[test]
    fn a_refusal_while_the_api_server_starts_is_tried_again_soon_and_one_that_lasts_seldom() {
        let (mut pacing, mut now) = (Pacing::default(), Instant::now());
        pauses(&mut pacing, &mut now, &[(AWAY, false); 20]);
        let refused = pauses(&mut pacing, &mut now, &[(FORBIDDEN, false); 9]);
        assert_eq!((refused[0], refused[8]), (250, 30_000));
        // The list is granted, the watch is not.
        let refused = pauses(&mut pacing, &mut now, &[(FORBIDDEN, true); 2]);
        assert_eq!(refused, [30_000, 30_000]);
    }

    #[test]
    fn a_watch_that_is_cut_is_resumed_at_once_and_one_that_is_always_cut_fails() {
        let (mut pacing, mut now) = (Pacing::default(), Instant::now());
        for _ in 0..5 {
            assert_eq!(pacing.judge(Fault::Cut, true, now), (Fault::Cut, Duration::ZERO));
            now += AGAIN;
        }
        pacing.judge(Fault::Cut, true, now);
        let always = pauses(&mut pacing, &mut now, &[(Fault::Cut, true); 7]);
        assert_eq!(always, [250, 500, 1000, 2000, 4000, 8000, 16_000]);
    }
}

//! Chooses what a mean is made of: the exporter's own sums of the last seconds, which are there
//! with its first page, or the adapter's readings.

use std::time::{Duration, Instant};

use super::Began;
use crate::source::history::{History, Mean};
use crate::source::recent::{Latest, Recent};
use crate::source::store::Holding;

/// The exporter's sums must cover as much of the window as the adapter's readings, but for this part
/// of it: an exporter that has just restarted knows less. A page may be a second old.
pub(super) const NEARLY: u32 = 60;
/// Containers that ran beside each other are observed for at least this part of the time for which
/// their device is.
const PARALLEL: f64 = 0.9;
/// For the rounding of what is printed, seconds.
const ROUNDING: f64 = 0.001;
/// Sums may hold what is so much older than their window: the longest that a scrape takes, the second that
/// an exporter waits between two readings, and the 14 s that a driver keeps and an exporter catches up with.
const PAGE_AGE: Duration = Duration::from_secs(25);

/// A mean over a window, and where it is from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windowed {
    pub(super) mean: Mean,
    /// Of the exporter's own sums.
    pub(super) recent: bool,
}

/// Whether the sums are of a pod or of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The pod's use.
    Pod,
    /// The device's use, whoever used it.
    Device,
}

/// The mean over `window`: `own` gives that of the adapter's readings. Most of the time nobody needs it.
pub(super) fn windowed(
    latest: Option<Latest>,
    history: Option<&History>,
    window: Duration,
    own: impl FnOnce() -> Option<Mean>,
) -> Option<Windowed> {
    let newest = |latest: &Latest| history.and_then(History::fresh).is_none_or(|fresh| latest.at >= fresh);
    let recent = latest.filter(|latest| latest.recent.window == window && newest(latest));
    let of_sums = |Latest { recent, at }: Latest| {
        let oldest = at.checked_sub(window).unwrap_or(at);
        let mean = Mean { value: recent.mean(), covered: recent.observed, oldest, at };
        Some(Windowed { mean, recent: true })
    };
    let enough = |covered: f64| covered - (window / NEARLY).as_secs_f64();
    let covers = |covered: f64| recent.filter(|latest| latest.recent.observed >= enough(covered));
    if let Some(recent) = covers(window.as_secs_f64()) {
        return of_sums(recent);
    }
    let own = own();
    // More than the window is what a driver caught up with.
    match covers(own.map_or(0.0, |own| own.covered.min(window.as_secs_f64()))) {
        Some(recent) => of_sums(recent),
        None => own.map(|mean| Windowed { mean, recent: false }),
    }
}

/// The sums, if no other pod of the same name has a part in them. `not_before`: only what was
/// received since is the pod's; `began`: when the pod did.
pub(super) fn of_this_pod(
    latest: Option<Latest>,
    of: Of,
    holding: &Holding,
    not_before: Option<Instant>,
    began: Began,
) -> Option<Latest> {
    latest.filter(|Latest { recent, at }| {
        let begins = at.checked_sub(recent.window + PAGE_AGE);
        let since = |limit: Instant| begins.is_some_and(|begins| begins >= limit);
        // Another pod was seen to have it: what was counted since is this one's.
        let counted = holding.counted() + ROUNDING >= recent.observed;
        if let Some(limit) = not_before {
            return since(limit) && (counted || !holding.succeeded());
        }
        if holding.succeeded() {
            return counted;
        }
        // The exporter begins a pod's sums again when it learns its UID.
        if of == Of::Pod && holding.is_named() {
            return true;
        }
        match began {
            Began::NotYet => false,
            Began::BeforeAll => true,
            Began::At(began) => since(began),
        }
    })
}

/// The sums of a pod's containers on one device as one. Those of several containers add up only if
/// each is of all the time for which the device is known (`known`, seconds): otherwise they may be of
/// one container under two names, one after the other.
pub(super) fn together(containers: &[Latest], known: Option<f64>) -> Option<Latest> {
    let newest = containers.iter().max_by_key(|latest| latest.at)?;
    let Latest { recent, at } = *newest;
    // A container is used for a while after the last page that has it, until the next one lacks it.
    let begins = at.checked_sub(2 * recent.window);
    let in_window = |latest: &&Latest| begins.is_none_or(|begins| latest.at > begins);
    if containers.iter().filter(in_window).count() == 1 {
        return Some(*newest);
    }
    let least = known? * PARALLEL;
    let mut active = 0.0;
    for other in containers.iter().filter(in_window) {
        let alike = (other.recent.observed - recent.observed).abs() <= recent.observed / f64::from(NEARLY);
        if other.at != at || other.recent.window != recent.window || !alike || recent.observed < least {
            return None;
        }
        active += other.recent.active;
    }
    let recent = Recent::new(recent.window, active.min(recent.observed), recent.observed)?;
    Some(Latest { recent, at })
}

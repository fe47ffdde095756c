//! Joins the series that a pod has on one device under several container labels into one series
//! per family, so that the pod has one value per device whatever its labels are.
//!
//! An exporter learns the names of containers late, and prints a pod's use without a container
//! while it cannot tell containers apart. At every moment the labels of a page are parts of the
//! pod's use that exclude each other; between two pages with different labels lies a gap.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::history::{History, Reading};
use super::page;
use super::store::{Holding, Round};
use crate::metric::{FamilyId, MEMORY_USED, USE};
use crate::uid::Uid;

/// A pod's series on a device for which more than one container label is known.
#[derive(Debug)]
pub struct Joined {
    pub(super) device: Arc<str>,
    /// The last pod that the exporter named for it.
    uid: Option<Uid>,
    /// Some of what is kept came without a UID: it belongs to the pod that ran at that time.
    undated: bool,
    series: Vec<JoinedSeries>,
}

#[derive(Debug)]
struct JoinedSeries {
    family: FamilyId,
    /// Hash of the container labels that the newest reading is made of.
    labels: u64,
    history: History,
}

// === impl Joined ===

impl Joined {
    /// Goes on from the series of the only label known so far.
    pub(super) fn from_only(device: &Arc<str>, known: Option<(&str, &Holding)>) -> Self {
        let mut joined = Self { device: Arc::clone(device), uid: None, undated: false, series: Vec::new() };
        if let Some((container, holding)) = known {
            joined.uid = holding.uid().cloned();
            joined.undated = holding.is_undated();
            let labels = hash([container].into_iter());
            joined.series = holding
                .series()
                .map(|(family, history)| JoinedSeries { family, labels, history: history.clone() })
                .collect();
        }
        joined
    }

    /// The next reading of a family begins a new piece, because it measures something else than the last
    /// one.
    pub(super) fn interrupt(&mut self, family: FamilyId) {
        let of_family = self.series.iter_mut().filter(|series| series.family == family);
        of_family.for_each(|series| series.history.interrupt());
    }

    /// Adds the readings of one page: those of all labels that it has for the pod on the device,
    /// sorted by container. Gives whether they are of another pod of the same name than those before.
    pub(super) fn push(&mut self, holdings: &[page::Holding], round: &Round<'_>) -> bool {
        let mut named = holdings.iter().filter_map(|holding| holding.pod_uid.as_deref());
        let uid = named.next();
        if named.any(|other| Some(other) != uid) {
            // Two pods of one name: which of them a label without a UID belongs to is unknown.
            self.series.clear();
            return false;
        }
        let mut another = false;
        match (uid, &self.uid) {
            (Some(uid), Some(known)) if *known != *uid => {
                self.series.clear();
                self.undated = false;
                self.uid = Some(uid.into());
                another = true;
            }
            (Some(uid), None) => self.uid = Some(uid.into()),
            (Some(_), Some(_)) => {}
            (None, _) => self.undated |= holdings.iter().any(|holding| !holding.readings.is_empty()),
        }
        let mut families: Vec<FamilyId> =
            holdings.iter().flat_map(|holding| &holding.readings).map(|(family, _)| *family).collect();
        families.sort_unstable();
        families.dedup();
        for family in families {
            let of_family = |holding: &page::Holding| {
                holding.readings.iter().find(|(id, _)| *id == family).map(|(_, reading)| *reading)
            };
            let parts: Vec<(&str, Reading)> = holdings
                .iter()
                .filter_map(|holding| Some((holding.container.as_str(), of_family(holding)?)))
                .collect();
            let labels = hash(parts.iter().map(|(container, _)| *container));
            let additive = round.native && matches!(family, USE | MEMORY_USED);
            let Some(reading) = combine(parts.into_iter().map(|(_, reading)| reading), additive) else {
                continue;
            };
            let at = self.series.iter().position(|known| known.family == family).unwrap_or_else(|| {
                self.series.push(JoinedSeries { family, labels, history: History::default() });
                self.series.len() - 1
            });
            let series = &mut self.series[at];
            if series.labels != labels {
                series.history.interrupt();
                series.labels = labels;
            }
            series.history.push(round.at, round.scrape, reading, round.span);
        }
        another
    }

    /// Whether what is kept may be of the pod with this UID.
    pub fn may_be_of(&self, uid: &Uid) -> bool {
        self.uid.as_ref().is_none_or(|known| known == uid)
    }

    /// Whether time alone tells which pod some of it belongs to.
    pub fn is_undated(&self) -> bool {
        self.undated || self.uid.is_none()
    }

    /// The history of a family, if any of the labels ever had it.
    pub fn history(&self, family: FamilyId) -> Option<&History> {
        self.series.iter().find(|series| series.family == family).map(|series| &series.history)
    }

    /// Seconds without a gap for which anything was reported, since it began or the pod's UID changed.
    pub fn covered(&self) -> f64 {
        self.series.iter().map(|series| series.history.covered()).fold(0.0, f64::max)
    }

    pub(super) fn len(&self) -> usize {
        self.series.len()
    }
}

/// The value of all labels together: the sum of parts, or the mean of values that each label repeats.
/// `None` without a reading, and of readings of two kinds.
fn combine(mut readings: impl Iterator<Item = Reading>, additive: bool) -> Option<Reading> {
    let first = readings.next()?;
    let mut count = 1.0;
    let mut all = first;
    for reading in readings {
        count += 1.0;
        all = match (all, reading) {
            // Each counts the whole device's observed time: between two pages they grow alike.
            (Reading::Share { sum, weight }, Reading::Share { sum: more, .. }) if additive => {
                Reading::Share { sum: sum + more, weight }
            }
            (Reading::Share { sum, weight }, Reading::Share { .. }) => Reading::Share { sum, weight },
            (Reading::Gauge(sum), Reading::Gauge(more)) => Reading::Gauge(sum + more),
            (Reading::Rate(sum), Reading::Rate(more)) => Reading::Rate(sum + more),
            _ => return None,
        };
    }
    Some(match all {
        Reading::Gauge(sum) if !additive => Reading::Gauge(sum / count),
        Reading::Rate(sum) if !additive => Reading::Rate(sum / count),
        all => all,
    })
}

fn hash<'a>(containers: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    containers.for_each(|container| container.hash(&mut hasher));
    hasher.finish()
}

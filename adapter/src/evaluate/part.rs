//! Finds the part of a device that a pod was given, by which its use is divided.

use std::fmt;

use super::Mine;
use crate::cluster::GpuGrant;
use crate::cluster::gpu_grant::{Cards, Fraction, Malformed, Size};
use crate::source::store::ReportedPart;
use crate::uid::Uid;

/// The part of a device that a pod was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldPart {
    /// Of one, at most 1.
    Known {
        part: f64,
        source: PartSource,
    },
    Unknown(UnknownPart),
}

/// Where the size of a part comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartSource {
    /// `podgauge_gpu_allocation` of the newest page.
    Exporter,
    /// … of an earlier page, for the same pod: the newest one does not know the size.
    EarlierPage,
    /// This annotation of the pod.
    Annotation(&'static str),
    /// There is no allocation: the use is compared with the whole device.
    WholeDevice,
}

/// Why the size of a part is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownPart {
    /// The exporter knows that there is an allocation, and not how large it is.
    NotReported,
    /// This annotation states memory, and the page lacks the memory of the device.
    DeviceMemory(&'static str),
    /// This annotation states memory in a unit that it does not name.
    MemoryUnit(&'static str),
    /// This annotation states a part, and cannot be read.
    Unreadable(&'static str),
}

/// A pod on a device, with everything that its part follows from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder<'a> {
    /// UUID, with `/GI` for a MIG instance.
    pub(super) device: &'a str,
    /// MiB.
    pub(super) memory_total: Option<f64>,
    /// The pod's containers on the device.
    pub(super) holdings: &'a [Mine<'a>],
    pub(super) uid: &'a Uid,
    pub(super) grant: Option<&'a GpuGrant>,
}

impl Holder<'_> {
    /// The exporter's allocation comes first, then the pod's annotations.
    pub(super) fn part(&self) -> HeldPart {
        // The newest page comes before earlier ones.
        let newest = self.reported(|mine| mine.holding.present);
        match newest.or_else(|| self.reported(|_| true)) {
            Some(known @ HeldPart::Known { .. }) => known,
            Some(unknown) => self.annotated().unwrap_or(unknown),
            None => self.annotated().unwrap_or_else(|| match self.unreadable() {
                Some(annotation) => HeldPart::Unknown(UnknownPart::Unreadable(annotation)),
                None => HeldPart::Known { part: 1.0, source: PartSource::WholeDevice },
            }),
        }
    }

    /// The parts of some of the containers together; `None` without an allocation. One unknown part
    /// makes the sum unknown.
    fn reported(&self, counts: impl Fn(&Mine<'_>) -> bool) -> Option<HeldPart> {
        let mut sum: Option<f64> = None;
        let mut source = PartSource::Exporter;
        for mine in self.holdings.iter().filter(|mine| counts(mine)) {
            match (mine.holding.known_part(self.uid), mine.holding.part) {
                (Some(part), reported) => {
                    *sum.get_or_insert(0.0) += part;
                    if !matches!(reported, ReportedPart::Size(_)) {
                        source = PartSource::EarlierPage;
                    }
                }
                (None, ReportedPart::Unknown) => return Some(HeldPart::Unknown(UnknownPart::NotReported)),
                (None, ReportedPart::Unallocated | ReportedPart::Size(_)) => {}
            }
        }
        // Two containers may be given the same device, or the same replica of it.
        sum.map(|sum| HeldPart::Known { part: sum.min(1.0), source })
    }

    /// The part by the pod's annotations; `None` if they give none of this device.
    fn annotated(&self) -> Option<HeldPart> {
        let grant = self.grant?;
        let by_card = grant.cards.as_ref().and_then(|cards| self.of_cards(cards));
        by_card.or_else(|| grant.fraction.as_ref().and_then(|fraction| self.of_fraction(fraction)))
    }

    /// An annotation that states a part and cannot be read.
    fn unreadable(&self) -> Option<&'static str> {
        let mut ignored = self.grant?.ignored.iter();
        ignored.find(|ignored| ignored.reason != Malformed::Second).map(|ignored| ignored.annotation)
    }

    fn of_cards(&self, cards: &Cards) -> Option<HeldPart> {
        let source = PartSource::Annotation(cards.annotation);
        if let Some((gpu, _)) = self.device.split_once('/') {
            let whole = cards.of(gpu).any(|card| card.instance);
            return whole.then_some(HeldPart::Known { part: 1.0, source });
        }
        let mut sum: Option<f64> = None;
        for card in cards.of(self.device).filter(|card| !card.instance) {
            match self.size(card.size, cards.annotation) {
                Ok(part) => *sum.get_or_insert(0.0) += part,
                Err(unknown) => return Some(HeldPart::Unknown(unknown)),
            }
        }
        sum.map(|sum| HeldPart::Known { part: sum.min(1.0), source })
    }

    /// A fraction is of the device that its container uses.
    fn of_fraction(&self, fraction: &Fraction) -> Option<HeldPart> {
        let uses = |mine: &Mine<'_>| mine.container.is_empty() || *mine.container == *fraction.container;
        if !fraction.container.is_empty() && !self.holdings.iter().any(uses) {
            return None;
        }
        Some(match self.size(fraction.size, fraction.annotation) {
            Ok(part) => {
                HeldPart::Known { part: part.min(1.0), source: PartSource::Annotation(fraction.annotation) }
            }
            Err(unknown) => HeldPart::Unknown(unknown),
        })
    }

    fn size(&self, size: Size, annotation: &'static str) -> Result<f64, UnknownPart> {
        match size {
            Size::Part(part) => Ok(part),
            Size::Mib(mib) => match self.memory_total.filter(|total| *total > 0.0) {
                // No memory at all is no size.
                Some(total) if mib > 0.0 => Ok(mib / total),
                _ => Err(UnknownPart::DeviceMemory(annotation)),
            },
            Size::UnknownUnit => Err(UnknownPart::MemoryUnit(annotation)),
        }
    }
}

impl fmt::Display for PartSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exporter => f.write_str("exporter"),
            Self::EarlierPage => f.write_str("exporter, earlier"),
            Self::Annotation(annotation) => write!(f, "annotation {annotation}"),
            Self::WholeDevice => f.write_str("no allocation: the whole device"),
        }
    }
}

impl fmt::Display for UnknownPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReported => f.write_str("its exporter does not know the size"),
            Self::DeviceMemory(annotation) => {
                write!(f, "{annotation} states memory, and its exporter does not report the device's memory")
            }
            Self::Unreadable(annotation) => {
                write!(f, "{annotation} cannot be read, and its exporter reports no allocation")
            }
            Self::MemoryUnit(annotation) => {
                write!(f, "{annotation} states memory in a unit of its own, and no cores")
            }
        }
    }
}

//! Decides what of an exporter's earlier pages is kept, and for how long.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::joined::Joined;
use super::page::{DEVICE_TEXT, HOLDING_SERIES, Room};
use super::store::{DeviceState, ExporterState, Holding, Placed, PodSeries};
use crate::uid::Uid;

/// How long a pod is remembered that the exporter no longer reports: the exporter itself remembers
/// as long.
pub(super) const RETENTION: Duration = Duration::from_secs(600);
/// Most series kept of one exporter, of all its pages, however few exporters there are: of 16,384
/// holdings, twice what one page may have.
const MAX_SERIES: usize = 16_384 * HOLDING_SERIES;
/// Most bytes of names kept of one exporter.
const MAX_TEXT: usize = 8 << 20;

impl ExporterState {
    /// How much is kept.
    fn count(&self) -> Room {
        let mut used = Room::default();
        for (namespace, pods) in &self.namespaces {
            for (name, pod) in pods {
                used.series += pod.joined.iter().map(Joined::len).sum::<usize>();
                for placed in &pod.holdings {
                    let size = size(namespace, name, placed);
                    used.series += size.series;
                    used.text += size.text;
                }
            }
        }
        for (key, device) in &self.devices {
            used.series += device.series.len();
            used.text += text(key, device);
        }
        used
    }

    /// Forgets what was not seen for long, and of the rest what there is no room for.
    pub(super) fn forget(&mut self, now: Instant, room: Room) {
        let recent = |seen: Instant| now.saturating_duration_since(seen) < RETENTION;
        self.namespaces.retain(|_, pods| {
            pods.retain(|_, pod| {
                pod.forget(recent);
                !pod.holdings.is_empty()
            });
            !pods.is_empty()
        });
        if self.devices.values().any(|device| !recent(device.seen)) {
            let pods = self.namespaces.values().flat_map(|pods| pods.values());
            let held: HashSet<&Arc<str>> =
                pods.flat_map(|pod| &pod.holdings).map(|((device, _), _)| device).collect();
            self.devices.retain(|key, device| recent(device.seen) || held.contains(key));
        }
        let room = Room { series: room.series.min(MAX_SERIES), text: room.text.min(MAX_TEXT) };
        self.used = self.count();
        if self.used.series > room.series || self.used.text > room.text {
            let mut excess = Room {
                series: self.used.series.saturating_sub(room.series),
                text: self.used.text.saturating_sub(room.text),
            };
            self.evict_holdings(&mut excess);
            self.evict_devices(&mut excess, now);
            self.used = self.count();
        }
    }

    /// Gives up holdings that the newest page lacks: those of pods that it lacks first, then the
    /// longest unseen.
    fn evict_holdings(&mut self, excess: &mut Room) {
        let mut unseen: Vec<((bool, Instant), Room)> = Vec::new();
        for (namespace, pods) in &self.namespaces {
            for (name, pod) in pods {
                let present = pod.is_present();
                let gone = pod.holdings.iter().filter(|(_, holding)| !holding.present);
                unseen.extend(gone.map(|placed| ((present, placed.1.seen), size(namespace, name, placed))));
            }
        }
        unseen.sort_unstable_by_key(|(order, _)| *order);
        let Some(last) = excess.cover(unseen.into_iter()) else { return };
        self.namespaces.retain(|_, pods| {
            pods.retain(|_, pod| {
                let present = pod.is_present();
                let stays = |holding: &Holding| holding.present || (present, holding.seen) > last;
                pod.incomplete |= pod.needs(|holding| !stays(holding));
                pod.retain(stays);
                !pod.holdings.is_empty()
            });
            !pods.is_empty()
        });
    }

    /// Gives up devices that the newest page lacks, the longest unseen first.
    fn evict_devices(&mut self, excess: &mut Room, now: Instant) {
        let gone = self.devices.iter().filter(|(_, device)| device.seen != now);
        let mut gone: Vec<(Instant, Room)> = gone
            .map(|(key, device)| (device.seen, Room { series: device.series.len(), text: text(key, device) }))
            .collect();
        gone.sort_unstable_by_key(|(seen, _)| *seen);
        if let Some(last) = excess.cover(gone.into_iter()) {
            self.devices.retain(|_, device| device.seen > last || device.seen == now);
        }
    }
}

impl Room {
    /// Takes from the excess what the first ones need; the last one that was taken.
    fn cover<T: Copy>(&mut self, parts: impl Iterator<Item = (T, Self)>) -> Option<T> {
        let mut last = None;
        for (part, size) in parts {
            if self.series == 0 && self.text == 0 {
                break;
            }
            self.series = self.series.saturating_sub(size.series);
            self.text = self.text.saturating_sub(size.text);
            last = Some(part);
        }
        last
    }
}

impl PodSeries {
    fn is_present(&self) -> bool {
        self.holdings.iter().any(|(_, holding)| holding.present)
    }

    /// Whether the pod may still have one of these: it was allocated to the pod that the newest page
    /// has. Others are labels of before, or of another pod of that name.
    fn needs(&self, these: impl Fn(&Holding) -> bool) -> bool {
        let holdings = || self.holdings.iter().map(|(_, holding)| holding);
        let may_be_its = |gone: &Holding| {
            !self.is_present() || holdings().any(|holding| holding.present && holding.uid == gone.uid)
        };
        holdings().any(|holding| holding.allocated && these(holding) && may_be_its(holding))
    }

    /// Keeps what was seen lately, and what was allocated to a pod of which anything was.
    fn forget(&mut self, recent: impl Fn(Instant) -> bool) {
        if self.holdings.iter().all(|(_, holding)| recent(holding.seen)) {
            return;
        }
        let alive = self.holdings.iter().filter(|(_, holding)| recent(holding.seen));
        let alive: HashSet<Option<Uid>> = alive.map(|(_, holding)| holding.uid.clone()).collect();
        self.retain(|holding| recent(holding.seen) || holding.allocated && alive.contains(&holding.uid));
    }

    fn retain(&mut self, keep: impl Fn(&Holding) -> bool) {
        self.holdings.retain(|(_, holding)| keep(holding));
        let holdings = &self.holdings;
        let count = |device: &str| holdings.iter().filter(|((known, _), _)| **known == *device).count();
        self.joined.retain(|joined| count(&joined.device) > 1);
    }
}

/// The part of the budget that a holding takes.
fn size(namespace: &str, name: &str, ((_, container), holding): &Placed) -> Room {
    let Holding { uid, series, .. } = holding;
    Room {
        series: series.len().max(HOLDING_SERIES),
        text: namespace.len() + name.len() + container.len() + uid.as_ref().map_or(0, Uid::text_bytes),
    }
}

fn text(key: &str, device: &DeviceState) -> usize {
    key.len()
        + device.labels.bytes()
        + device.unavailable.as_ref().map_or(0, |reason| reason.len())
        + DEVICE_TEXT
}

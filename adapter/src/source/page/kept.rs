//! Keeps what is of use of a page while it is read, within its limits.

use std::hash::BuildHasher as _;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::cut::{Cut, DEVICE_TEXT, HOLDING_SERIES, Limit, Room};
use super::label_sets::{LabelSets, Meaning, Place};
use super::said::Said;
use super::sample::Repeated;
use super::spare::{MOST as SPARE, Spare};
use super::{Device, Holding, MAX_DEVICES, MAX_HOLDINGS, Page};
use crate::map::Map;
use crate::metric::{Family, FamilyId, GpuFamily, MEMORY_USED};

/// Holdings of a device that are looked for one by one.
const FEW: usize = 8;

/// The part of a page that is kept so far.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) page: Page,
    pub(super) scratch: Box<Scratch>,
    /// Containers of all devices.
    pub(super) holdings: usize,
    used: Room,
    room: Room,
    /// A label `vgpu` was seen.
    pub(super) vgpu: bool,
}

/// Memory that reading a page needs, and the next page may use again.
#[derive(Debug, Default)]
pub struct Scratch {
    sets: LabelSets,
    /// By the hash of their keys.
    devices: Map<u64, usize>,
    /// The holdings of a device after the first [`FEW`], by the hash of their names.
    further: Map<u64, usize>,
    hasher: RandomState,
    /// The beginning of the line that the last piece ended in.
    pub(super) begun: Vec<u8>,
    /// The name in the line before.
    pub(super) name: String,
    spare: Spare,
    /// An empty list of devices, with room.
    devices_spare: Vec<Device>,
}

/// Most holdings of a device, and most devices, that a scratch has room for when it waits.
const USUAL: usize = 1024;

impl Scratch {
    /// Takes the memory of a page that nobody reads any more.
    pub fn recycle(&mut self, mut page: Page) {
        self.spare.take(&mut page);
        if page.devices.capacity() <= SPARE {
            self.devices_spare = page.devices;
        }
    }

    /// Forgets the page, and what only a large one needs.
    fn clear(&mut self) {
        self.sets.clear();
        self.devices.clear();
        self.further.clear();
        self.devices.shrink_to(USUAL);
        self.further.shrink_to(USUAL);
        self.begun.clear();
        self.name.clear();
    }
}

impl Kept {
    pub(super) fn new(room: Room, mut scratch: Box<Scratch>) -> Self {
        scratch.clear();
        let devices = std::mem::take(&mut scratch.devices_spare);
        let (page, used) = (Page { devices, ..Page::default() }, Room::default());
        Self { page, scratch, holdings: 0, used, room, vgpu: false }
    }

    pub(super) fn used(&self) -> Room {
        self.used
    }

    pub(super) fn limit(&mut self, room: Room) {
        self.room = room;
    }

    /// Keeps a sample whose labels came before; false if they did not.
    pub(super) fn again(&mut self, labels: &str, family: &Family, value: f64) -> bool {
        // The reason is in a label.
        if family.says == Some(GpuFamily::Unavailable) {
            return false;
        }
        let Some(meaning) = self.scratch.sets.find(labels) else { return false };
        match family.measured(value) {
            Some(value) => self.keep(meaning, family, value),
            None => self.page.dropped += 1,
        }
        true
    }

    /// Keeps a sample with new labels, and gives what they mean; `None` if that is not known yet.
    pub(super) fn sample(&mut self, said: &Said<'_>, family: &Family, value: f64) -> Option<Meaning> {
        // A device or container begins with a value.
        let Some(value) = family.measured(value) else {
            self.page.dropped += 1;
            return None;
        };
        if family.says == Some(GpuFamily::Started) {
            self.page.started = Some(value);
            return None;
        }
        let meaning = Meaning {
            place: self.place(said),
            copy: said.is_copy(),
            vgpu: said.is_replica(),
            window: said.window(),
        };
        self.keep(meaning, family, value);
        if let (Some(GpuFamily::Unavailable), Place::Of(device, _)) = (family.says, meaning.place)
            && value > 0.0
        {
            let reason = said.reason().unwrap_or("no reason given");
            self.page.devices[device].unavailable = Some(reason.to_owned());
        }
        Some(meaning)
    }

    /// The text of labels that may come again.
    pub(super) fn remember(&mut self, labels: &str, meaning: Option<Meaning>) {
        if let Some(meaning) = meaning {
            self.scratch.sets.remember(labels, meaning);
        }
    }

    fn keep(&mut self, meaning: Meaning, family: &Family, value: f64) {
        self.vgpu |= meaning.vgpu;
        let (device, holding) = match meaning.place {
            Place::Nowhere => return,
            Place::Dropped => {
                self.page.dropped += 1;
                return;
            }
            Place::Of(device, holding) => (device, holding),
        };
        if let Some(at) = holding {
            self.page.devices[device].holdings[at].replica |= meaning.vgpu;
        }
        if let Some(says) = family.says {
            self.say(says, family.newer, (device, holding), meaning.window, value);
        }
        if let Some(kept) = family.kept {
            self.series(kept, family.newer, (device, holding), meaning.copy, value);
        }
    }

    fn say(
        &mut self,
        says: GpuFamily,
        newer: bool,
        (device, holding): (usize, Option<usize>),
        window: Option<Duration>,
        value: f64,
    ) {
        let device = &mut self.page.devices[device];
        let place = match holding {
            Some(at) => {
                let holding = &mut device.holdings[at];
                holding.part_unknown |= says == GpuFamily::PartUnknown && value > 0.0;
                match holding.place(says, window) {
                    Some(place) => Some(place),
                    None => device.place(says, newer, window),
                }
            }
            None if says == GpuFamily::Observed => Some(&mut device.observed),
            None => device.place(says, newer, window),
        };
        let Some(place) = place else { return };
        // NaN means two that differ: no page has it, because it is no measurement.
        let differs = |known: f64| known.to_bits() != value.to_bits();
        *place = Some(if place.is_some_and(differs) { f64::NAN } else { value });
    }

    fn series(
        &mut self,
        family: FamilyId,
        newer: bool,
        (device, holding): (usize, Option<usize>),
        copy: bool,
        value: f64,
    ) {
        if family == MEMORY_USED {
            self.page.devices[device].memory[usize::from(newer)].add_used(value, holding.is_some());
        }
        let samples = match holding {
            Some(at) => &mut self.page.devices[device].holdings[at].samples,
            None => &mut self.page.devices[device].samples,
        };
        if let Some(known) = samples.iter_mut().find(|known| known.family == family && known.newer == newer) {
            return known.add(value, copy);
        }
        // A holding has paid for its first ones.
        let further = usize::from(holding.is_some() && samples.len() >= HOLDING_SERIES);
        if self.used.series + further <= self.room.series {
            self.used.series += further;
            samples.push(Repeated::new(family, newer, value, copy));
            return;
        }
        self.page.dropped += 1;
        if let Some(at) = holding {
            let Holding { namespace, pod, .. } = &self.page.devices[device].holdings[at];
            let cut = self.page.cut.get_or_insert_with(|| Cut::new(Limit::Series));
            cut.pod(namespace, pod);
        }
    }

    /// Of which device and container the sample is. Both are kept from their first sample on.
    fn place(&mut self, said: &Said<'_>) -> Place {
        let Some(key) = said.device_key() else { return Place::Nowhere };
        if said.too_long {
            return Place::Dropped;
        }
        let owner = said.owner();
        let device = match self.device(&key, said) {
            Ok(device) => device,
            Err(limit) => {
                let cut = self.refuse(limit);
                cut.devices = true;
                if let Some((namespace, pod, _)) = owner {
                    cut.pod(namespace, pod);
                }
                return Place::Dropped;
            }
        };
        let Some(owner) = owner else { return Place::Of(device, None) };
        match self.holding(device, owner, said.pod_uid()) {
            Ok(holding) => Place::Of(device, Some(holding)),
            Err(limit) => {
                self.page.devices[device].incomplete = true;
                self.refuse(limit).pod(owner.0, owner.1);
                Place::Dropped
            }
        }
    }

    fn device(&mut self, key: &str, said: &Said<'_>) -> Result<usize, Limit> {
        let hash = self.scratch.hasher.hash_one(key);
        let same = |at: &usize| self.page.devices[*at].key == key;
        if let Some(at) = self.scratch.devices.get(&hash).copied().filter(same) {
            return Ok(at);
        }
        if self.page.devices.len() >= MAX_DEVICES {
            return Err(Limit::Devices);
        }
        let labels = said.device_labels();
        self.room_for(key.len() + labels.bytes() + DEVICE_TEXT)?;
        let at = self.page.devices.len();
        self.scratch.devices.insert(hash, at);
        let key = self.scratch.spare.text(key);
        self.page.devices.push(Device { key, labels, ..self.scratch.spare.device() });
        Ok(at)
    }

    fn holding(
        &mut self,
        device: usize,
        owner @ (namespace, pod, container): (&str, &str, &str),
        uid: Option<&str>,
    ) -> Result<usize, Limit> {
        let hash = self.scratch.hasher.hash_one((device, owner));
        let at = match self.find(device, owner, hash) {
            Some(at) => at,
            None if self.holdings >= MAX_HOLDINGS => return Err(Limit::Holdings),
            None if self.used.series + HOLDING_SERIES > self.room.series => return Err(Limit::Series),
            None => {
                self.room_for(namespace.len() + pod.len() + container.len())?;
                self.used.series += HOLDING_SERIES;
                self.holdings += 1;
                let spare = &mut self.scratch.spare;
                let [namespace, pod, container] = [namespace, pod, container].map(|name| spare.text(name));
                let holding = Holding { namespace, pod, container, ..spare.holding() };
                let holdings = &mut self.page.devices[device].holdings;
                let at = holdings.len();
                if at == 0 {
                    // Most devices have one.
                    holdings.reserve_exact(1);
                }
                if at >= FEW {
                    self.scratch.further.insert(hash, at);
                }
                holdings.push(holding);
                at
            }
        };
        if let Some(uid) = uid {
            let known = self.page.devices[device].holdings[at].pod_uid.as_deref();
            let other = known.is_some_and(|known| known != uid);
            if known.is_none() {
                self.room_for(uid.len())?;
            }
            let holding = &mut self.page.devices[device].holdings[at];
            holding.two_pods |= other;
            holding.pod_uid.get_or_insert_with(|| self.scratch.spare.text(uid));
        }
        Ok(at)
    }

    fn find(&self, device: usize, owner: (&str, &str, &str), hash: u64) -> Option<usize> {
        let holdings = &self.page.devices[device].holdings;
        let same = |known: &Holding| {
            (known.namespace.as_str(), known.pod.as_str(), known.container.as_str()) == owner
        };
        let found = holdings.iter().take(FEW).position(same);
        found.or_else(|| self.scratch.further.get(&hash).copied().filter(|at| same(&holdings[*at])))
    }

    fn room_for(&mut self, text: usize) -> Result<(), Limit> {
        if self.used.text + text > self.room.text {
            return Err(Limit::Text);
        }
        self.used.text += text;
        Ok(())
    }

    /// Notes that a limit keeps something out.
    fn refuse(&mut self, limit: Limit) -> &mut Cut {
        self.page.cut.get_or_insert_with(|| Cut::new(limit))
    }
}

// === impl Device ===

impl Device {
    /// Where what a family says of the device is kept; `None` for other families.
    fn place(&mut self, says: GpuFamily, newer: bool, window: Option<Duration>) -> Option<&mut Option<f64>> {
        match says {
            GpuFamily::DeviceActive => Some(&mut self.active),
            GpuFamily::DeviceUtilization => Some(&mut self.utilization),
            GpuFamily::Owners => Some(&mut self.owners),
            GpuFamily::RecentDeviceActive => Some(&mut self.recent_sums.of(window?)?.active),
            GpuFamily::RecentDeviceObserved => Some(&mut self.recent_sums.of(window?)?.observed),
            _ => self.memory[usize::from(newer)].place(says),
        }
    }
}

// === impl Holding ===

impl Holding {
    /// Where what a family says of the container is kept; `None` for other families.
    fn place(&mut self, says: GpuFamily, window: Option<Duration>) -> Option<&mut Option<f64>> {
        match says {
            GpuFamily::Active => Some(&mut self.active),
            GpuFamily::Observed => Some(&mut self.observed),
            GpuFamily::Allocation => Some(&mut self.allocation),
            GpuFamily::RecentActive => Some(&mut self.recent_sums.of(window?)?.active),
            GpuFamily::RecentObserved => Some(&mut self.recent_sums.of(window?)?.observed),
            _ => None,
        }
    }
}

//! Memory of a page that was read, for the next one: allocating it for each page would cost a quarter of
//! reading.

use super::{Device, Holding, Page};

/// Most parts of one kind that are kept.
pub(super) const MOST: usize = 256;

/// Parts of pages with nothing in them but room.
#[derive(Debug, Default)]
pub(super) struct Spare {
    devices: Vec<Device>,
    holdings: Vec<Holding>,
    texts: Vec<String>,
}

impl Spare {
    /// Takes the parts of a page that nobody reads any more.
    pub(super) fn take(&mut self, page: &mut Page) {
        for mut device in page.devices.drain(..) {
            for mut holding in device.holdings.drain(..) {
                let Holding { namespace, pod, container, pod_uid, .. } = &mut holding;
                let uid = pod_uid.take().unwrap_or_default();
                [namespace, pod, container]
                    .map(std::mem::take)
                    .into_iter()
                    .for_each(|text| self.take_text(text));
                self.take_text(uid);
                if self.holdings.len() < MOST {
                    self.holdings.push(holding.emptied());
                }
            }
            self.take_text(std::mem::take(&mut device.key));
            if self.devices.len() < MOST {
                self.devices.push(device.emptied());
            }
        }
    }

    fn take_text(&mut self, mut text: String) {
        if text.capacity() > 0 && self.texts.len() < 4 * MOST {
            text.clear();
            self.texts.push(text);
        }
    }

    /// A copy of the text.
    pub(super) fn text(&mut self, text: &str) -> String {
        let mut copy = self.texts.pop().unwrap_or_default();
        copy.push_str(text);
        copy
    }

    /// A device without anything.
    pub(super) fn device(&mut self) -> Device {
        self.devices.pop().unwrap_or_default()
    }

    /// A holding without anything.
    pub(super) fn holding(&mut self) -> Holding {
        self.holdings.pop().unwrap_or_default()
    }
}

impl Device {
    fn emptied(self) -> Self {
        let Self { holdings, readings, samples, .. } = self;
        let (holdings, readings, samples) = (emptied(holdings), emptied(readings), emptied(samples));
        Self { holdings, readings, samples, ..Self::default() }
    }
}

impl Holding {
    fn emptied(self) -> Self {
        let Self { readings, samples, .. } = self;
        Self { readings: emptied(readings), samples: emptied(samples), ..Self::default() }
    }
}

/// What has grown large is given back.
fn emptied<T>(mut all: Vec<T>) -> Vec<T> {
    all.clear();
    if all.capacity() > 64 { Vec::new() } else { all }
}

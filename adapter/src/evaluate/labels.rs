//! Lists the labels and values of devices, for a selector that matches none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cluster::Selector;
use crate::source::labels::selectable;
use crate::source::store::DeviceState;

/// Most values of one label in a text, the others are counted; and most unknown keys.
const MAX_VALUES: usize = 4;
/// Most values of one label that are counted.
const MAX_COUNTED: usize = 1000;
/// Longest value or key in a text, characters. `GPU-` and 36 digits have 40.
const MAX_CHARS: usize = 64;

/// Labels of devices with their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceLabels {
    /// Keys of the selector that no device has.
    unknown: BTreeSet<Box<str>>,
    values: BTreeMap<&'static str, BTreeSet<Box<str>>>,
}

impl DeviceLabels {
    /// Those of devices that a selector asks for, as a selector can hold them; all labels if it asks
    /// for one that none has.
    pub(super) fn of<'a>(selector: &Selector, devices: impl Iterator<Item = &'a DeviceState>) -> Self {
        let mut all = Self::default();
        for (name, value) in devices.flat_map(|device| device.labels().iter()) {
            all.add(name, &selectable(value));
        }
        let keys: BTreeSet<&str> =
            selector.requirements().iter().map(|requirement| requirement.key.as_str()).collect();
        all.unknown =
            keys.iter().filter(|key| !all.values.contains_key(*key)).map(|key| (*key).into()).collect();
        if all.unknown.is_empty() {
            all.values.retain(|name, _| keys.contains(name));
        }
        all
    }

    /// Takes in what is known of further devices.
    pub(super) fn merge(&mut self, other: &Self) {
        for (name, value) in
            other.values.iter().flat_map(|(name, values)| values.iter().map(move |v| (name, v)))
        {
            self.add(name, value);
        }
        self.unknown.extend(other.unknown.iter().cloned());
        self.unknown.retain(|key| !self.values.contains_key(&**key));
    }

    fn add(&mut self, name: &'static str, value: &str) {
        let values = self.values.entry(name).or_default();
        if values.len() < MAX_COUNTED && !values.contains(value) {
            values.insert(value.into());
        }
    }
}

impl fmt::Display for DeviceLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().take(MAX_CHARS).collect::<String>();
        for key in self.unknown.iter().take(MAX_VALUES) {
            write!(f, "no device has the label {}, ", short(key))?;
        }
        if self.values.is_empty() {
            return f.write_str("its devices have no labels");
        }
        f.write_str("there is ")?;
        for (at, (name, values)) in self.values.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{name}=")?;
            for (at, value) in values.iter().take(MAX_VALUES).enumerate() {
                if at > 0 {
                    f.write_str("|")?;
                }
                f.write_str(&short(value))?;
            }
            if let Some(more @ 1..) = values.len().checked_sub(MAX_VALUES) {
                write!(f, " and {more} more")?;
            }
        }
        Ok(())
    }
}

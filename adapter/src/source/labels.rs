//! Owns the labels that tell devices apart, as pages spell them and as they are kept: in one text
//! per device, because there are ten thousand devices.

use std::borrow::Cow;

use podgauge_common::exposition::parse::Sample;

/// The label with the GPU's model.
pub const MODEL_NAME: &str = "modelName";

/// Their names, and the older or other spellings of them.
const NAMES: [(&str, &[&str]); 8] = [
    ("gpu", &["gpu"]),
    ("UUID", &["UUID", "uuid"]),
    ("pci_bus_id", &["pci_bus_id"]),
    ("device", &["device"]),
    (MODEL_NAME, &[MODEL_NAME]),
    ("GPU_I_PROFILE", &["GPU_I_PROFILE"]),
    ("GPU_I_ID", &["GPU_I_ID"]),
    ("hostname", &["hostname", "Hostname"]),
];

/// A device's labels, for `metricLabelSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// All values, one after the other.
    text: Box<str>,
    /// Where each ends. A label that is not there has no length, as Prometheus has it.
    ends: [u32; NAMES.len()],
}

impl Labels {
    /// Those of the device that a sample speaks of.
    pub fn of(sample: &Sample<'_>) -> Self {
        let mut text = String::new();
        let ends = NAMES.map(|(_, spellings)| {
            text.extend(spellings.iter().find_map(|label| sample.label(label)));
            text.len() as u32
        });
        Self { text: text.into(), ends }
    }

    /// The value of a label, if the device has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = NAMES.iter().position(|(known, _)| *known == name)?;
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.text.get(begin as usize..self.ends[at] as usize).filter(|value| !value.is_empty())
    }

    /// Names and values of those that it has.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        NAMES.iter().filter_map(|(name, _)| Some((*name, self.get(name)?)))
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// A value as a label selector can hold it: each run of blanks is a `-`, as exporters with
/// `--replace-blanks-in-model-name` print it.
pub fn selectable(value: &str) -> Cow<'_, str> {
    if !value.contains(char::is_whitespace) {
        return value.into();
    }
    value.split_whitespace().collect::<Vec<_>>().join("-").into()
}

#[cfg(test)]
mod tests {
    use podgauge_common::exposition::parse;

    use super::*;

    #[test]
    fn a_selector_writes_blanks_as_hyphens() {
        assert_eq!(selectable("NVIDIA H100  80GB HBM3"), "NVIDIA-H100-80GB-HBM3");
        assert_eq!(selectable("NVIDIA-H100-80GB-HBM3"), "NVIDIA-H100-80GB-HBM3");
    }

    #[test]
    fn each_label_is_found_under_its_name() {
        let line = "m{uuid=\"GPU-a\",Hostname=\"n\",gpu=\"0\",device=\"\",pod=\"p\"} 1";
        let sample = parse::samples(line).next().unwrap().unwrap();
        let labels = Labels::of(&sample);
        let all: Vec<_> = labels.iter().collect();
        assert_eq!(all, [("gpu", "0"), ("UUID", "GPU-a"), ("hostname", "n")]);
        assert_eq!((labels.get("device"), labels.get("pod"), labels.get("GPU_I_ID")), (None, None, None));
    }
}

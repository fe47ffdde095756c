//! Owns the labels that tell devices apart, as pages spell them and as they are kept: in one text
//! per device, because there are ten thousand devices.

use std::borrow::Cow;

/// The label with the GPU's model.
pub const MODEL_NAME: &str = "modelName";

/// Their names.
const NAMES: [&str; 8] =
    ["gpu", "UUID", "pci_bus_id", "device", MODEL_NAME, "GPU_I_PROFILE", "GPU_I_ID", "hostname"];

/// A device's labels, for `metricLabelSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// All values, one after the other.
    text: Box<str>,
    /// Where each ends. A label that is not there has no length, as Prometheus has it.
    ends: [u16; NAMES.len()],
}

impl Labels {
    /// Those that are found; what is beyond 64 KiB in all is not. A page's labels are much shorter.
    pub fn of<'s>(find: impl Fn(&str) -> Option<&'s str>) -> Self {
        let mut end = 0u16;
        let found = NAMES.map(|name| {
            let value = find(name).unwrap_or_default();
            let fits = u16::try_from(value.len()).ok().and_then(|length| end.checked_add(length));
            end = fits.unwrap_or(end);
            if fits.is_some() { (value, end) } else { ("", end) }
        });
        let ends = found.map(|(_, end)| end);
        let found = found.map(|(value, _)| value);
        Self { text: found.concat().into(), ends }
    }

    /// The value of a label, if the device has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = NAMES.iter().position(|known| *known == name)?;
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.text.get(usize::from(begin)..usize::from(self.ends[at])).filter(|value| !value.is_empty())
    }

    /// Names and values of those that it has.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        NAMES.iter().filter_map(|name| Some((*name, self.get(name)?)))
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
    use super::*;

    #[test]
    fn a_selector_writes_blanks_as_hyphens() {
        assert_eq!(selectable("NVIDIA H100  80GB HBM3"), "NVIDIA-H100-80GB-HBM3");
        assert_eq!(selectable("NVIDIA-H100-80GB-HBM3"), "NVIDIA-H100-80GB-HBM3");
    }

    #[test]
    fn each_label_is_found_under_its_name() {
        let labels = Labels::of(|name| match name {
            "gpu" => Some("0"),
            "UUID" => Some("GPU-a"),
            "hostname" => Some("n"),
            _ => None,
        });
        let all: Vec<_> = labels.iter().collect();
        assert_eq!(all, [("gpu", "0"), ("UUID", "GPU-a"), ("hostname", "n")]);
        assert_eq!((labels.get("device"), labels.get("pod"), labels.get("GPU_I_ID")), (None, None, None));
        assert_eq!(labels.bytes(), 7);
    }
}

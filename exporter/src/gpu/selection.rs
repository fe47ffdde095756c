//! Owns which GPUs are served: `-d f`, `g[:ids]`, `i[:ids]`, as dcgm-exporter writes it.

use std::collections::BTreeSet;
use std::str::FromStr;

/// Largest id that may be named: more GPUs or instances than any node has.
const LARGEST_ID: u32 = 4095;

/// Which GPUs and MIG instances are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceSelection {
    /// As it was written, for messages.
    text: String,
    /// `f`: a GPU without MIG as itself, one with MIG as its instances.
    flex: bool,
    gpus: Ids,
    instances: Ids,
}

/// Some ids of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ids {
    None,
    All,
    Some(BTreeSet<u32>),
}

// === impl DeviceSelection ===

impl DeviceSelection {
    /// Whether the GPU with this NVML index is served as a whole.
    pub(crate) fn serves_gpu(&self, gpu: u32) -> bool {
        self.flex || self.gpus.has(gpu)
    }

    /// Whether MIG instances are named, of which nothing is served yet.
    pub(crate) fn names_instances(&self) -> bool {
        self.instances != Ids::None
    }

    /// The first GPU that is named and that a node with so many GPUs does not have.
    pub(crate) fn unknown_gpu(&self, gpus: u32) -> Option<String> {
        let Ids::Some(ids) = &self.gpus else { return None };
        let unknown = ids.iter().find(|id| **id >= gpus)?;
        Some(format!(
            "--devices {}: there is no GPU {unknown}; this node has {gpus}, counted from 0",
            self.text
        ))
    }
}

impl Default for DeviceSelection {
    fn default() -> Self {
        Self { text: "f".to_owned(), flex: true, gpus: Ids::None, instances: Ids::None }
    }
}

impl FromStr for DeviceSelection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut selection =
            Self { text: text.to_owned(), flex: false, gpus: Ids::None, instances: Ids::None };
        for part in text.split('+') {
            let (kind, ids) = part.split_once(':').map_or((part, None), |(kind, ids)| (kind, Some(ids)));
            let ids = || ids.map_or(Ok(Ids::All), Ids::parse);
            match kind {
                "f" if part == "f" => selection.flex = true,
                "g" if selection.gpus == Ids::None => selection.gpus = ids()?,
                "i" if selection.instances == Ids::None => selection.instances = ids()?,
                _ => {
                    return Err(format!(
                        "{part:?} does not select devices: write f, g, g:0,2-4, i or i:0,2-4, each once, joined by +"
                    ));
                }
            }
        }
        Ok(selection)
    }
}

// === impl Ids ===

impl Ids {
    fn parse(text: &str) -> Result<Self, String> {
        let mut ids = BTreeSet::new();
        for range in text.split(',') {
            let wrong = || format!("{range:?} is no id or range of ids: write it like 0,2-4");
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            let (from, to): (u32, u32) =
                (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
            if from > to {
                return Err(wrong());
            }
            if to > LARGEST_ID {
                return Err(format!("{to} is no id: the largest is {LARGEST_ID}"));
            }
            ids.extend(from..=to);
        }
        Ok(Self::Some(ids))
    }

    /// Whether this id is one of them.
    pub(crate) fn has(&self, id: u32) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(ids) => ids.contains(&id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_as_dcgm_exporter_writes_them() {
        let served = |text: &str| -> Vec<u32> {
            let selection: DeviceSelection = text.parse().unwrap();
            (0..6).filter(|gpu| selection.serves_gpu(*gpu)).collect()
        };
        assert_eq!(served("f"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(served("g"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(served("g:0,2-4"), [0, 2, 3, 4]);
        assert_eq!(served("g:1+i:7"), [1]);
        assert_eq!(served("i"), Vec::<u32>::new());
        assert!("g:1+i:7".parse::<DeviceSelection>().unwrap().names_instances());
        for wrong in ["", "x", "f:1", "g:", "g:4-2", "g:1,,2", "g:0-99999", "g+g", "g:1;2"] {
            assert!(wrong.parse::<DeviceSelection>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        let selection: DeviceSelection = "g:0,5-7".parse().unwrap();
        assert_eq!(selection.unknown_gpu(8), None);
        assert!(selection.unknown_gpu(6).unwrap().contains("no GPU 6"));
    }
}

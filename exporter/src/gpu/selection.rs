//! Owns which GPUs and MIG instances are served: `-d f`, `g[:ids]`, `i[:ids]`, as dcgm-exporter
//! writes it.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::MigInstance;

/// Largest id that may be named: more GPUs or instances than any node has.
const LARGEST_ID: u32 = 4095;
/// Numbers of instances that each GPU has for itself, as DCGM gives them.
const NUMBERS_OF_A_GPU: u32 = 8;

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
enum Ids {
    None,
    All,
    Some(BTreeSet<u32>),
}

// === impl DeviceSelection ===

impl DeviceSelection {
    /// Whether anything of the GPU with this NVML index can be served.
    pub(super) fn concerns(&self, gpu: u32) -> bool {
        let instances = match &self.instances {
            Ids::None => false,
            Ids::All => true,
            Ids::Some(ids) => ids.iter().any(|id| id / NUMBERS_OF_A_GPU == gpu),
        };
        self.flex || self.gpus.has(gpu) || instances
    }

    /// Whether the GPU as a whole is served; `is_cut`: it has MIG instances.
    pub(super) fn serves_gpu(&self, gpu: u32, is_cut: bool) -> bool {
        self.gpus.has(gpu) || (self.flex && !is_cut)
    }

    /// Which of a GPU's instances are served, in their order.
    pub(super) fn serves_instances(&self, gpu: u32, instances: &[&MigInstance]) -> Vec<bool> {
        numbers(gpu, instances)
            .into_iter()
            .map(|number| self.flex || number.map_or(self.instances == Ids::All, |n| self.instances.has(n)))
            .collect()
    }

    /// Whether no device of the node is left out.
    pub(crate) fn serves_everything(&self) -> bool {
        self.flex
    }

    /// Whether instances are all that is served.
    pub(super) fn is_of_instances_alone(&self) -> bool {
        !self.flex && self.gpus == Ids::None
    }

    /// The first instance that is named and that no GPU has. `counts` are those of each GPU that
    /// could be asked, by its index.
    pub(super) fn unknown_instance(&self, counts: &[(u32, usize)], gpus: u32) -> Option<String> {
        let Ids::Some(ids) = &self.instances else { return None };
        let (id, has) = ids.iter().find_map(|id| {
            let (gpu, place) = (id / NUMBERS_OF_A_GPU, (id % NUMBERS_OF_A_GPU) as usize);
            if gpu >= gpus {
                return Some((id, format!("this node has {gpus} GPUs, counted from 0")));
            }
            let (_, count) = counts.iter().find(|(of, count)| *of == gpu && place >= *count)?;
            Some((id, format!("GPU {gpu} has {count}, numbered from {}", gpu * NUMBERS_OF_A_GPU)))
        })?;
        Some(format!("--devices {}: there is no MIG instance {id}; {has}", self.text))
    }

    /// The first GPU that is named and that a node with so many GPUs does not have.
    pub(super) fn unknown_gpu(&self, gpus: u32) -> Option<String> {
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
            Self { text: text.trim().to_owned(), flex: false, gpus: Ids::None, instances: Ids::None };
        for part in text.split('+').map(str::trim) {
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

/// The numbers by which a GPU's instances are named on the whole node: 8 × the GPU's index and up,
/// smaller instances before larger ones, those with media engines (`+me`) last, else by id. `None`
/// for one that has no place among 8.
fn numbers(gpu: u32, instances: &[&MigInstance]) -> Vec<Option<u32>> {
    let size = |instance: &MigInstance| -> u32 {
        instance.profile.split_once('g').and_then(|(slices, _)| slices.parse().ok()).unwrap_or(u32::MAX)
    };
    let mut order: Vec<usize> = (0..instances.len()).collect();
    order.sort_by_key(|at| (instances[*at].profile.contains('+'), size(instances[*at]), instances[*at].gi));
    let mut numbers = vec![None; instances.len()];
    for (at, place) in order.into_iter().zip(0..NUMBERS_OF_A_GPU) {
        numbers[at] = Some(gpu * NUMBERS_OF_A_GPU + place);
    }
    numbers
}

// === impl Ids ===

impl Ids {
    fn parse(text: &str) -> Result<Self, String> {
        let mut ids = BTreeSet::new();
        for range in text.split(',').map(str::trim) {
            let wrong = || format!("{range:?} is not an id or a range of ids: write it like 0,2-4");
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            let id = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
            let (from, to) = (id(from)?, id(to)?);
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
    fn has(&self, id: u32) -> bool {
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
            (0..6).filter(|gpu| selection.serves_gpu(*gpu, false)).collect()
        };
        assert_eq!(served("f"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(served("g"), [0, 1, 2, 3, 4, 5]);
        assert_eq!(served("g:0,2-4"), [0, 2, 3, 4]);
        assert_eq!(served(" g: 0, 2 - 4 \n"), [0, 2, 3, 4]);
        assert_eq!(served("g:1+i:7"), [1]);
        assert_eq!(served("i"), Vec::<u32>::new());
        for wrong in ["", "x", "f:1", "g:", "g:4-2", "g:1,,2", "g:0-99999", "g+g", "g:1;2"] {
            assert!(wrong.parse::<DeviceSelection>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn instances_are_numbered_through_the_node() {
        let instance =
            |gi, profile: &str| MigInstance { profile: profile.into(), ..MigInstance::of_test(gi, vec![]) };
        let cut = [
            instance(2, "3g.40gb"),
            instance(7, "1g.10gb+me"),
            instance(9, "1g.10gb"),
            instance(8, "1g.10gb"),
        ];
        let cut: Vec<&MigInstance> = cut.iter().collect();
        assert_eq!(numbers(1, &cut), [Some(10), Some(11), Some(9), Some(8)]);
        let served = |text: &str, gpu| -> Vec<u32> {
            let selection: DeviceSelection = text.parse().unwrap();
            let served = selection.serves_instances(gpu, &cut);
            cut.iter().zip(served).filter(|(_, served)| *served).map(|(instance, _)| instance.gi).collect()
        };
        assert_eq!(served("f", 1), [2, 7, 9, 8]);
        assert_eq!(served("i", 1), [2, 7, 9, 8]);
        assert!(served("g", 1).is_empty());
        assert_eq!(served("i:8,10", 1), [2, 8]);
        assert!(served("i:8,10", 0).is_empty());
        assert_eq!(served("g:0+i:0", 0), [8]);
        let concerned = |text: &str| -> Vec<u32> {
            (0..4).filter(|gpu| text.parse::<DeviceSelection>().unwrap().concerns(*gpu)).collect()
        };
        assert_eq!(
            (concerned("i:8,24"), concerned("i"), concerned("g:2+i:0")),
            (vec![1, 3], vec![0, 1, 2, 3], vec![0, 2])
        );
        let cut_whole = |text: &str| text.parse::<DeviceSelection>().unwrap().serves_gpu(1, true);
        assert_eq!(
            [cut_whole("f"), cut_whole("g"), cut_whole("i"), cut_whole("g:1+i")],
            [false, true, false, true]
        );
    }

    #[test]
    fn an_instance_that_is_not_there_is_named() {
        let selection: DeviceSelection = "i:0,9,16".parse().unwrap();
        let unknown = |counts: &[(u32, usize)], gpus| selection.unknown_instance(counts, gpus);
        assert_eq!(unknown(&[(0, 1), (1, 2), (2, 1)], 3), None);
        assert!(
            unknown(&[(0, 1), (1, 1)], 3)
                .unwrap()
                .ends_with("no MIG instance 9; GPU 1 has 1, numbered from 8")
        );
        assert!(unknown(&[(0, 1), (1, 2)], 2).unwrap().contains("no MIG instance 16; this node has 2 GPUs"));
        // A GPU that could not be asked is no mistake of whoever wrote it.
        assert_eq!(unknown(&[], 3), None);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        let selection: DeviceSelection = "g:0,5-7".parse().unwrap();
        assert_eq!(selection.unknown_gpu(8), None);
        assert!(selection.unknown_gpu(6).unwrap().contains("no GPU 6"));
    }
}

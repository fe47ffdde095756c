//! Owns the scenario file: reads it again when it changes, and keeps the last good one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::recording::Recording;
use crate::scenario::{Scenario, ScenarioError};

/// The file is looked at no more often than this, µs.
const CHECK_EVERY_US: i64 = 50_000;
/// A file younger than this is read again at each look: its next change may leave size and
/// timestamp as they are, µs.
const FRESH_US: i64 = 2_000_000;

/// A good scenario and the recordings its GPUs replay.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) scenario: Arc<Scenario>,
    /// By GPU index.
    pub(crate) recordings: Vec<Option<Arc<Recording>>>,
}

/// A watched scenario file.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    checked_us: i64,
    stamp: Option<Stamp>,
    good: Arc<Scenario>,
    /// The last complaint, so that each is made once.
    complaint: Option<String>,
}

/// What tells one state of a file from another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified_us: i64,
    length: u64,
    inode: u64,
}

// === impl Watch ===

impl Watch {
    /// Reads the file for the first time.
    pub(crate) fn open(path: PathBuf, now_us: i64) -> Result<(Self, Loaded), ScenarioError> {
        // Before the content: a change in between is then seen at the next look.
        let stamp = stamp(&path).ok();
        let loaded = load(&path)?;
        let good = loaded.scenario.clone();
        Ok((Self { path, checked_us: now_us, stamp, good, complaint: None }, loaded))
    }

    /// The scenario if the file has changed, and when: not before the last look.
    pub(crate) fn poll(&mut self, now_us: i64) -> Option<(Loaded, i64)> {
        if (now_us - self.checked_us).abs() < CHECK_EVERY_US {
            return None;
        }
        let looked_us = std::mem::replace(&mut self.checked_us, now_us);
        let stamp = match stamp(&self.path) {
            Ok(stamp) => stamp,
            Err(error) => {
                self.complain(format!("cannot read scenario {}: {error}", self.path.display()));
                self.stamp = None;
                return None;
            }
        };
        let modified_us = stamp.modified_us;
        if self.stamp.as_ref() == Some(&stamp) && now_us - modified_us > FRESH_US {
            return None;
        }
        self.stamp = Some(stamp);
        match load(&self.path) {
            Ok(loaded) => {
                self.complaint = None;
                if loaded.scenario == self.good {
                    return None;
                }
                self.good = loaded.scenario.clone();
                Some((loaded, modified_us.clamp(looked_us.min(now_us), now_us)))
            }
            Err(error) => {
                self.complain(error.to_string());
                None
            }
        }
    }

    fn complain(&mut self, complaint: String) {
        if self.complaint.as_ref() != Some(&complaint) {
            eprintln!("podgauge-sim-nvml: {complaint}; keeping the last good scenario");
            self.complaint = Some(complaint);
        }
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Stamp { modified_us: modified.as_micros() as i64, length: metadata.len(), inode: metadata.ino() })
}

fn load(path: &Path) -> Result<Loaded, ScenarioError> {
    let scenario = Scenario::read(path)?;
    let recordings = scenario
        .gpus
        .iter()
        .map(|gpu| gpu.replay.as_ref().map(|replay| Recording::read(&replay.file, &replay.run)).transpose())
        .map(|recording| recording.map(|recording| recording.map(Arc::new)))
        .collect::<Result<_, String>>()
        .map_err(|message| ScenarioError::Invalid { path: path.to_owned(), message })?;
    Ok(Loaded { scenario: Arc::new(scenario), recordings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_up_and_a_bad_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scenario.yaml");
        std::fs::write(&path, "gpus: [{}]").unwrap();
        let start = stamp(&path).unwrap().modified_us;
        let (mut watch, loaded) = Watch::open(path.clone(), start).unwrap();
        assert_eq!(loaded.scenario.gpus.len(), 1);
        assert!(watch.poll(start + CHECK_EVERY_US).is_none());

        // Same length, and for all a coarse clock knows the same time.
        std::fs::write(&path, "gpus: [ ]\n").unwrap();
        assert!(watch.poll(start + CHECK_EVERY_US + 1).is_none(), "looked again too soon");
        let (loaded, changed) = watch.poll(start + 3 * CHECK_EVERY_US).unwrap();
        assert!(loaded.scenario.gpus.is_empty());
        assert!((start + CHECK_EVERY_US..=start + 3 * CHECK_EVERY_US).contains(&changed));

        std::fs::write(&path, "gpus: [{uuid: ").unwrap();
        assert!(watch.poll(start + 5 * CHECK_EVERY_US).is_none());
        assert!(watch.complaint.is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(watch.poll(start + 7 * CHECK_EVERY_US).is_none());
        std::fs::write(&path, "gpus: [{}, {}]").unwrap();
        assert_eq!(watch.poll(start + 9 * CHECK_EVERY_US).unwrap().0.scenario.gpus.len(), 2);
        assert_eq!(watch.complaint, None);
    }
}

//! Owns the recordings of a real GPU's 200 ms slots, read from JSON and played once.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

/// Largest recording read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// One run of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// In order of time, at least one.
    slots: Vec<RecordedSlot>,
}

/// One 200 ms slot of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedSlot {
    /// When it ended, in microseconds since the start of the replay.
    pub offset_us: i64,
    /// The device's utilization in it.
    pub percent: u32,
    /// Whom NVML credited with it, if the recording says.
    pub pid: Option<u32>,
}

#[derive(Deserialize)]
struct File {
    runs: Vec<Run>,
}

/// Either shape; other keys of a run are the recording's own notes.
#[derive(Deserialize)]
struct Run {
    load: String,
    /// `[µs since the run began, percent]`.
    utilization_sample_buffer: Option<Vec<(i64, u32)>>,
    /// `[pid, epoch µs, percent]`.
    samples: Option<Vec<(u32, i64, u32)>>,
}

impl Recording {
    /// Reads one run, by its `load`. The error says which file and why.
    pub fn read(path: &Path, run: &str) -> Result<Self, String> {
        let fail = |why: String| format!("replay {} run {run:?}: {why}", path.display());
        let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
        if size > MAX_BYTES {
            return Err(fail(format!("{size} bytes, the limit is {MAX_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        Self::parse(&text, run).map_err(fail)
    }

    fn parse(text: &str, name: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Some(run) = file.runs.iter().find(|run| run.load == name) else {
            let names: Vec<&str> = file.runs.iter().map(|run| run.load.as_str()).collect();
            return Err(format!("no such run; the file has {names:?}"));
        };
        let slots: Vec<RecordedSlot> = match (&run.utilization_sample_buffer, &run.samples) {
            (Some(buffer), _) => buffer
                .iter()
                .map(|&(offset_us, percent)| RecordedSlot { offset_us, percent, pid: None })
                .collect(),
            (None, Some(samples)) => {
                let first = samples.first().map_or(0, |(_, at, _)| *at);
                samples
                    .iter()
                    .map(|&(pid, at, percent)| RecordedSlot {
                        offset_us: at - first,
                        percent,
                        pid: Some(pid),
                    })
                    .collect()
            }
            (None, None) => return Err("neither utilization_sample_buffer nor samples in it".into()),
        };
        if slots.is_empty() {
            return Err("it has no slots".into());
        }
        if !slots.is_sorted_by(|a, b| a.offset_us < b.offset_us) {
            return Err("its timestamps do not rise".into());
        }
        if let Some(slot) = slots.iter().find(|slot| slot.percent > 100) {
            return Err(format!("a slot of {} percent", slot.percent));
        }
        Ok(Self { slots })
    }

    /// Its slots in order of time, at least one.
    pub fn slots(&self) -> &[RecordedSlot] {
        &self.slots
    }

    /// Whom it credits.
    pub fn pids(&self) -> BTreeSet<u32> {
        self.slots.iter().filter_map(|slot| slot.pid).collect()
    }

    /// When its last slot ended, in microseconds since the start of the replay.
    pub fn end_us(&self) -> i64 {
        self.slots.last().map_or(0, |slot| slot.offset_us)
    }

    /// The plain mean of its slots, in percent.
    pub fn mean(&self) -> f64 {
        self.slots.iter().map(|slot| f64::from(slot.percent)).sum::<f64>() / self.slots.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read_by_run() {
        let both = r#"{"about": "x", "runs": [
            {"load": "a", "utilization_sample_buffer": [[91707, 0], [290321, 40]]},
            {"load": "b", "samples": [[480, 1795277919232070, 34], [481, 1795277919432532, 59]]}]}"#;
        let a = Recording::parse(both, "a").unwrap();
        assert_eq!(a.slots()[0].offset_us, 91707);
        assert_eq!((a.mean(), a.pids().len()), (20.0, 0));
        let b = Recording::parse(both, "b").unwrap();
        assert_eq!(b.slots()[1], RecordedSlot { offset_us: 200_462, percent: 59, pid: Some(481) });
        assert_eq!(b.slots()[0].offset_us, 0);
        assert!(Recording::parse(both, "c").unwrap_err().contains(r#"["a", "b"]"#));
    }

    #[test]
    fn a_recording_out_of_order_or_out_of_range_is_refused() {
        for (bad, why) in [
            (r#"[[200, 1], [100, 1]]"#, "do not rise"),
            (r#"[[100, 101]]"#, "101 percent"),
            ("[]", "no slots"),
        ] {
            let text = format!(r#"{{"runs": [{{"load": "a", "utilization_sample_buffer": {bad}}}]}}"#);
            assert!(Recording::parse(&text, "a").unwrap_err().contains(why));
        }
    }
}

//! Owns the names behind UIDs and container ids, read off the node's log folders:
//! `<namespace>_<name>_<uid>/` and `<pod>_<namespace>_<container>-<id>.log`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// An unknown UID or id makes a folder be read again, but not more often than this.
const READ_AGAIN: Duration = Duration::from_millis(500);
/// Most entries that are kept of a folder: ten thousand pods are more than any node has.
const MAX_ENTRIES: usize = 10_000;

/// Names by UID and by container id.
#[derive(Debug)]
pub(crate) struct PodNames {
    /// UID to namespace and name.
    pods: Folder<(String, String)>,
    /// Container id to namespace, pod and container.
    containers: Folder<(String, String, String)>,
}

/// The answer of a folder that is not read for every question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name<'a, T> {
    Known(&'a T),
    /// The folder was read just now and has no such entry.
    Missing,
    /// The folder as it was a moment ago has no such entry; it is too soon to read it again.
    Undecided,
}

#[derive(Debug)]
struct Folder<T> {
    path: PathBuf,
    /// What is unknown without it, for the log.
    without: &'static str,
    parse: fn(&str) -> Option<(&str, T)>,
    known: HashMap<String, T>,
    read_at: Option<Instant>,
    failing: bool,
}

// === impl PodNames ===

impl PodNames {
    pub(crate) fn new(pod_logs: PathBuf, container_logs: PathBuf) -> Self {
        Self {
            pods: Folder::new(
                pod_logs,
                "pods of GPU processes are unknown until it can be read (mount it, or see --path.pod-logs)",
                pod_folder,
            ),
            containers: Folder::new(
                container_logs,
                "containers of GPU processes are known by allocations alone until it can be read (mount it, or see --path.container-logs)",
                container_log,
            ),
        }
    }

    /// Namespace and name of the pod with this UID.
    pub(crate) fn pod(&mut self, uid: &str, now: Instant) -> Name<'_, (String, String)> {
        self.pods.get(uid, now)
    }

    /// Namespace, pod and container behind a container's id.
    pub(crate) fn container(&mut self, id: &str, now: Instant) -> Option<&(String, String, String)> {
        match self.containers.get(id, now) {
            Name::Known(names) => Some(names),
            Name::Missing | Name::Undecided => None,
        }
    }
}

// === impl Folder ===

impl<T> Folder<T> {
    fn new(path: PathBuf, without: &'static str, parse: fn(&str) -> Option<(&str, T)>) -> Self {
        Self { path, without, parse, known: HashMap::new(), read_at: None, failing: false }
    }

    fn get(&mut self, key: &str, now: Instant) -> Name<'_, T> {
        let is_due = self.read_at.is_none_or(|at| now.saturating_duration_since(at) >= READ_AGAIN);
        if !self.known.contains_key(key) && is_due {
            self.read_at = Some(now);
            self.read();
        }
        match self.known.get(key) {
            Some(known) => Name::Known(known),
            None if is_due || self.read_at == Some(now) => Name::Missing,
            None => Name::Undecided,
        }
    }

    fn read(&mut self) {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("{}: {error}; {}", self.path.display(), self.without);
                }
                return;
            }
        };
        self.failing = false;
        self.known.clear();
        for entry in entries.flatten().take(MAX_ENTRIES) {
            let name = entry.file_name();
            if let Some((key, value)) = name.to_str().and_then(self.parse) {
                self.known.insert(key.to_owned(), value);
            }
        }
    }
}

/// Kubernetes names hold no underscore, so the parts are certain.
fn pod_folder(name: &str) -> Option<(&str, (String, String))> {
    let parts: Vec<&str> = name.split('_').collect();
    let [namespace, pod, uid] = parts[..] else { return None };
    (!uid.is_empty()).then(|| (uid, (namespace.to_owned(), pod.to_owned())))
}

fn container_log(name: &str) -> Option<(&str, (String, String, String))> {
    let parts: Vec<&str> = name.strip_suffix(".log")?.split('_').collect();
    let [pod, namespace, container] = parts[..] else { return None };
    let (container, id) = container.rsplit_once('-')?;
    Some((id, (namespace.to_owned(), pod.to_owned(), container.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_also_when_they_come_later() {
        let root = tempfile::tempdir().unwrap();
        let mut names = PodNames::new(root.path().join("pods"), root.path().join("containers"));
        let start = Instant::now();
        assert_eq!(names.pod("u-1", start), Name::Missing);
        std::fs::create_dir_all(root.path().join("pods/ml_train-0_u-1")).unwrap();
        std::fs::create_dir(root.path().join("containers")).unwrap();
        std::fs::write(root.path().join("containers/train-0_ml_side-car-abc123.log"), "").unwrap();
        let soon = start + READ_AGAIN / 2;
        assert_eq!(names.pod("u-1", soon), Name::Undecided, "not read again at once");
        let later = start + READ_AGAIN;
        assert_eq!(names.pod("u-1", later), Name::Known(&("ml".into(), "train-0".into())));
        assert_eq!(
            names.container("abc123", later),
            Some(&("ml".into(), "train-0".into(), "side-car".into()))
        );
    }
}

//! Owns the UIDs of pods, read off the folder names of their logs: `<namespace>_<name>_<uid>`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// UIDs by namespace and name. Of two pods that had one name, the newer folder counts.
#[derive(Debug)]
pub(crate) struct PodUids {
    folder: PathBuf,
    uids: HashMap<(String, String), (String, SystemTime)>,
    failing: bool,
}

impl PodUids {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, uids: HashMap::new(), failing: false }
    }

    /// Reads the folder anew. If it cannot be read no UID is known, which is said once.
    pub(crate) fn refresh(&mut self) {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        "{}: {error}; pod UIDs are unknown until it can be read (mount it, or see --path.pod-logs)",
                        self.folder.display()
                    );
                }
                self.uids.clear();
                return;
            }
        };
        self.failing = false;
        let mut newest: HashMap<(String, String), (SystemTime, String)> = HashMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some((namespace, pod, uid)) = name.to_str().and_then(split) else { continue };
            let modified = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let known =
                newest.entry((namespace.to_owned(), pod.to_owned())).or_insert((modified, uid.to_owned()));
            if modified > known.0 {
                *known = (modified, uid.to_owned());
            }
        }
        self.uids = newest.into_iter().map(|(key, (modified, uid))| (key, (uid, modified))).collect();
    }

    /// The pod's UID, and when its folder was last written to.
    pub(crate) fn get(&self, namespace: &str, pod: &str) -> Option<(String, SystemTime)> {
        self.uids.get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }

    /// Namespace and name of the pod with this UID.
    pub(crate) fn pod(&self, uid: &str) -> Option<&(String, String)> {
        self.uids.iter().find(|(_, (known, _))| known == uid).map(|(name, _)| name)
    }
}

/// Kubernetes names hold no underscore, so the parts are certain.
fn split(folder: &str) -> Option<(&str, &str, &str)> {
    let mut parts = folder.split('_');
    let parts = (parts.next()?, parts.next()?, parts.next()?, parts.next());
    match parts {
        (namespace, pod, uid, None) if !uid.is_empty() => Some((namespace, pod, uid)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_folder_of_a_name_counts() {
        let root = tempfile::tempdir().unwrap();
        let mut uids = PodUids::new(root.path().to_owned());
        let make = |name: &str, age_s| {
            let path = root.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let modified = SystemTime::now() - std::time::Duration::from_secs(age_s);
            std::fs::File::open(&path).unwrap().set_modified(modified).unwrap();
        };
        make("ml_train-0_old", 100);
        make("ml_train-0_new", 1);
        make("ml_train-0_older", 200);
        make("not-a-pod", 1);
        uids.refresh();
        assert_eq!(uids.get("ml", "train-0").map(|(uid, _)| uid).as_deref(), Some("new"));
        assert_eq!(uids.get("ml", "other"), None);
    }
}

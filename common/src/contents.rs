//! Owns noticing that files hold something else than before, by reading them.
//!
//! Projected volumes (ConfigMaps, Secrets) are exchanged by a symlink: no watch of the file itself
//! sees that, and its time of change may be older than the last one's.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::time::Duration;

/// Files and what they held when they were looked at last.
#[derive(Debug, Clone)]
pub struct Contents {
    paths: Vec<PathBuf>,
    /// `None`: it could not be read.
    seen: Vec<Option<u64>>,
}

impl Contents {
    /// Takes what the files hold now as known. Make it before the files are read for use, or a
    /// change between the two goes unnoticed.
    pub fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let seen = look(&paths);
        Self { paths, seen }
    }

    /// The files.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Whether a file holds something else than when this was asked last, or can be read no more,
    /// or again.
    pub fn changed(&mut self) -> bool {
        let now = look(&self.paths);
        now != std::mem::replace(&mut self.seen, now.clone())
    }

    /// Returns once a file has changed, looking this often.
    pub async fn change(&mut self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            if self.changed() {
                return;
            }
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<u64>> {
    paths
        .iter()
        .map(|path| {
            let mut hasher = DefaultHasher::new();
            std::fs::read(path).ok()?.hash(&mut hasher);
            Some(hasher.finish())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_symlink_and_a_missing_file_are_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "1").unwrap();
        std::fs::write(path("b"), "2").unwrap();
        std::os::unix::fs::symlink(path("a"), path("data")).unwrap();
        let mut contents = Contents::of([path("data")]);
        assert!(!contents.changed());
        std::os::unix::fs::symlink(path("b"), path("next")).unwrap();
        std::fs::rename(path("next"), path("data")).unwrap();
        assert!(contents.changed());
        assert!(!contents.changed());
        std::fs::remove_file(path("b")).unwrap();
        assert!(contents.changed());
        std::fs::write(path("b"), "2").unwrap();
        assert!(contents.changed());
    }
}

//! Owns the following of a scenario file: every simulated server reads it again when it changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podgauge_sim_nvml::scenario::{Scenario, ScenarioError};
use tokio::sync::watch;

/// How often the file's content is compared. Content, not time stamps: two writes within one
/// tick of the file system's clock are still two scenarios.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Reads the scenario and follows the file until every receiver is gone.
///
/// A file that becomes unreadable or invalid is logged once, and the last good scenario stands.
/// Must be called within a tokio runtime.
///
/// # Errors
/// The first reading's: no file, or no valid scenario in it.
pub fn follow(path: &Path) -> Result<watch::Receiver<Arc<Scenario>>, ScenarioError> {
    let mut seen = text(path)?;
    let scenario = Scenario::read(path)?;
    let (changed, receiver) = watch::channel(Arc::new(scenario));
    let path = path.to_owned();
    tokio::spawn(async move {
        let mut broken: Option<String> = None;
        loop {
            tokio::select! {
                () = changed.closed() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match text(&path) {
                Ok(text) if text == seen => {}
                Ok(text) => match Scenario::read(&path) {
                    Ok(scenario) => {
                        tracing::info!(scenario = %path.display(), "scenario read again");
                        seen = text;
                        broken = None;
                        changed.send_replace(Arc::new(scenario));
                    }
                    Err(error) => complain(&mut broken, &error),
                },
                Err(error) => complain(&mut broken, &error),
            }
        }
    });
    Ok(receiver)
}

fn complain(broken: &mut Option<String>, error: &ScenarioError) {
    let text = error.to_string();
    if broken.as_ref() != Some(&text) {
        tracing::warn!("{text}; the last good scenario stays in force until the file is mended");
        *broken = Some(text);
    }
}

fn text(path: &Path) -> Result<String, ScenarioError> {
    std::fs::read_to_string(path).map_err(|source| ScenarioError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_changed_file_is_seen_also_after_it_was_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scenario.yaml");
        std::fs::write(&path, "node: one\n").unwrap();
        let mut receiver = follow(&path).unwrap();
        assert_eq!(receiver.borrow().node, "one");

        std::fs::write(&path, "node: [\n").unwrap();
        std::fs::write(&path, "node: two\n").unwrap();
        receiver.wait_for(|scenario| scenario.node == "two").await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let error = follow(Path::new("/nonexistent/scenario.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/scenario.yaml"), "{error}");
    }
}

//! Python packages in virtual environments of their own under `target/`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::lacking::{OFFLINE, leave_out};

/// The python3 of an environment that has this package, installed if it is missing. `None` if it cannot
/// be installed and `PODGAUGE_TESTS_OFFLINE` is set; without that the test fails, with the reason.
pub fn environment(package: &str) -> Option<PathBuf> {
    match install(package) {
        Ok(python) => Some(python),
        Err(reason) => {
            leave_out(OFFLINE, &reason);
            None
        }
    }
}

fn install(package: &str) -> Result<PathBuf, String> {
    let name = package.split('=').next().unwrap_or(package);
    let folder = crate::checkout("target").join(format!("{name}-environment"));
    let python = folder.join("bin/python3");
    let run = |command: &mut Command| -> Result<(), String> {
        let output =
            command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {}", text.trim().lines().last().unwrap_or("it failed without a word")))
    };
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let installed = folder.join("installed");
    if std::fs::read_to_string(&installed).ok().as_deref() != Some(package) {
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--timeout", "20", package]))?;
        std::fs::write(installed, package).map_err(|error| error.to_string())?;
    }
    Ok(python)
}

//! nvitop-exporter on the same simulated GPUs, from PyPI in a virtual environment under target/.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::process::{Program, Programs, free_address};

/// What is installed: the version that was compared when this was written.
const PACKAGE: &str = "nvitop-exporter==1.7.2";

/// A running nvitop-exporter.
#[derive(Debug)]
pub(crate) struct Nvitop {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
}

impl Nvitop {
    /// Installs it if needed, and starts it on a scenario. An error says what is missing.
    pub(crate) fn start(programs: &Programs, scenario: &Path, folder: &Path) -> anyhow::Result<Self> {
        let python = environment(programs)?;
        // It looks for the driver's library by its usual name alone.
        let libraries = folder.join("nvitop-libraries");
        std::fs::create_dir_all(&libraries)?;
        std::os::unix::fs::symlink(
            std::fs::canonicalize(&programs.nvml_library)?,
            libraries.join("libnvidia-ml.so.1"),
        )?;
        let address = free_address()?;
        let mut command = Command::new(python);
        command
            .args(["-m", "nvitop_exporter", "--bind-address", "127.0.0.1", "--interval", "1"])
            .args(["--port", &address.port().to_string()])
            .env("LD_LIBRARY_PATH", libraries)
            .env("PODGAUGE_SIM_SCENARIO", scenario);
        Ok(Self { program: Program::start("nvitop-exporter", command)?, address })
    }

    pub(crate) const fn package() -> &'static str {
        PACKAGE
    }
}

/// The environment's python, with the package in it.
fn environment(programs: &Programs) -> anyhow::Result<PathBuf> {
    let target = programs.exporter.parent().and_then(Path::parent).context("no target folder")?;
    let folder = target.join("nvitop-environment");
    let python = folder.join("bin/python3");
    let run = |command: &mut Command| -> anyhow::Result<()> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.trim().lines().last().unwrap_or("it failed without a word"))
    };
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).context("python3 -m venv")?;
    }
    let installed = folder.join("installed");
    if std::fs::read_to_string(&installed).ok().as_deref() != Some(PACKAGE) {
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--timeout", "20", PACKAGE]))
            .with_context(|| format!("pip install {PACKAGE}"))?;
        std::fs::write(installed, PACKAGE)?;
    }
    Ok(python)
}

//! The measured programs as processes, and what the kernel says of them.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;

/// File name of the simulated driver library.
pub(crate) const SIMULATED_LIBRARY: &str = "libpodgauge_sim_nvml.so";
/// Clock ticks per second in /proc/<pid>/stat, which Linux gives to programs on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// Where the release programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) exporter: PathBuf,
    pub(crate) adapter: PathBuf,
    pub(crate) nvml_library: PathBuf,
}

/// A running program. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
}

/// Resident memory, MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// What is the process's own: heap and stacks.
    pub(crate) anonymous: f64,
    /// What is mapped from files: the program and its libraries.
    pub(crate) file: f64,
}

impl Programs {
    pub(crate) fn find(folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => folder,
            None => {
                std::env::current_exe()?.parent().map(Path::to_owned).context("this program has no folder")?
            }
        };
        let find = |name: &str| {
            let path = folder.join(name);
            if path.exists() {
                return Ok(path);
            }
            bail!("{} is not built: run `make bench`", path.display())
        };
        Ok(Self {
            exporter: find("podgauge-exporter")?,
            adapter: find("podgauge-adapter")?,
            nvml_library: find(SIMULATED_LIBRARY)?,
        })
    }
}

impl Program {
    /// Starts it; stderr is read as it comes.
    pub(crate) fn start(name: &str, mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let log = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock();
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Asks until the answer is there. An error names the program and shows the end of its log.
    pub(crate) fn wait<T>(
        &mut self,
        limit: Duration,
        pause: Duration,
        what: &str,
        mut ask: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = ask() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, self.log_tail());
            }
            if start.elapsed() > limit {
                bail!("waited {limit:?} for {what} of {}: {}", self.name, self.log_tail());
            }
            std::thread::sleep(pause);
        }
    }

    /// The rest of the first line of the log after a text, once it is there.
    pub(crate) fn logged(&mut self, text: &str) -> anyhow::Result<String> {
        let log = Arc::clone(&self.log);
        self.wait(Duration::from_secs(20), Duration::from_millis(5), text, || {
            let log = log.lock();
            log.lines().find_map(|line| Some(line.split_once(text)?.1.to_owned()))
        })
    }

    /// CPU time used so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
        let fields = stat.rsplit_once(')').context("no name")?.1.split_whitespace();
        let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        Ok(Duration::from_secs_f64(ticks.iter().sum::<f64>() / TICKS_PER_SECOND))
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let mib = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            let kib: f64 = line.split_whitespace().next().context("no value")?.parse()?;
            Ok(kib / 1024.0)
        };
        Ok(Memory { resident: mib("VmRSS:")?, anonymous: mib("RssAnon:")?, file: mib("RssFile:")? })
    }

    /// Resident MiB of a file that the process has mapped.
    pub(crate) fn mapped(&self, file_name: &str) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/smaps", self.child.id());
        let smaps = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let mut is_of_file = false;
        let mut kib = 0.0;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("Rss:") if is_of_file => kib += words.next().context("no value")?.parse::<f64>()?,
                // A mapping's first line begins with its addresses and ends with its file.
                Some(first) if !first.ends_with(':') => is_of_file = line.ends_with(file_name),
                _ => {}
            }
        }
        Ok(kib / 1024.0)
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log.lock();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A loopback address that was free a moment ago, for a program that must be told its port.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

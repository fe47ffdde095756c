//! The shipped programs as processes: started, watched through their logs, ended.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use http::HeaderMap;
use parking_lot::Mutex;

use crate::page::Page;
use crate::wait::until;
use crate::{built, client};

/// A running program. Ended when dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
    /// Reads stderr until its end.
    reader: JoinHandle<()>,
}

/// A running podgauge-exporter.
#[derive(Debug)]
pub struct Exporter {
    pub program: Program,
    /// Where it serves, `127.0.0.1:<port>`.
    pub address: String,
}

impl Program {
    /// Starts it; stderr is read as it comes.
    pub fn start(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let writer = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = writer.lock();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { name: name.to_owned(), child, log, reader }
    }

    pub fn log(&self) -> String {
        self.log.lock().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// KiB that a line of its /proc/PID/status reports, such as `VmRSS:`.
    pub fn memory_kib(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
        found.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits until the log holds a text, and gives the line from it on.
    pub async fn logged(&mut self, text: &str) -> String {
        until(&format!("{} to log {text:?}", self.name), || {
            let ended = self.exit_status();
            let log = self.log();
            let found = log.lines().find_map(|line| Some(line[line.find(text)?..].to_owned()));
            if let (None, Some(status)) = (&found, ended) {
                panic!("{} ended with {status}:\n{log}", self.name);
            }
            async move { found.ok_or(log) }
        })
        .await
    }

    /// Waits until the log holds a text so many times. Panics if it holds it more often: the log comes
    /// a moment after what it tells of.
    pub async fn logs(&self, text: &str, times: usize) {
        assert!(times > 0, "see has_not_logged");
        until(&format!("{} to log {text:?} {times} times", self.name), || async {
            if self.count_logged(text) >= times { Ok(()) } else { Err(self.log()) }
        })
        .await;
        assert_eq!(self.count_logged(text), times, "{text:?}: {}", self.log());
    }

    /// Panics if the log holds a text. To be asked after the log told of something later.
    pub fn has_not_logged(&self, text: &str) {
        assert!(!self.log().contains(text), "{text:?}: {}", self.log());
    }

    /// How often a text stands in the log.
    pub fn count_logged(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Sends a signal by number.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: kill(2) with the id of our own child, which has not been waited for.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "kill {pid}");
    }

    /// How it ended, once the log holds its last line.
    fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap().filter(|_| self.reader.is_finished())
    }

    /// Waits for its end. From then on the log is complete.
    pub async fn ended(&mut self) -> ExitStatus {
        until(&format!("{} to end", self.name), || {
            let status = self.exit_status();
            let log = self.log();
            async move { status.ok_or(log) }
        })
        .await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
    }
}

/// Takes away what the machine's own environment would change: a program's settings, and proxies on the
/// way to the simulated API server.
pub fn without_this_machines_settings(command: &mut Command) {
    let ours = ["RUST_LOG", "NODE_NAME", "POD_NAME", "POD_NAMESPACE", "KUBECONFIG"];
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    for name in ours.into_iter().chain(proxies) {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("DCGM_") || name.starts_with("NVIDIA_")) {
            command.env_remove(name);
        }
    }
}

impl Exporter {
    /// Starts the exporter on a free port, with these arguments.
    pub async fn start(configure: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(built("podgauge-exporter"));
        without_this_machines_settings(&mut command);
        command.args(["-a", "127.0.0.1:0"]);
        configure(&mut command);
        let mut program = Program::start("podgauge-exporter", command);
        let line = program.logged("serving on ").await;
        let address = line["serving on ".len()..].split(',').next().unwrap().to_owned();
        Self { program, address }
    }

    /// One scrape.
    pub async fn page(&self) -> Page {
        let response = self.get("/metrics").await;
        assert_eq!(response.status(), 200);
        Page::parse(String::from_utf8(response.into_body().to_vec()).unwrap())
    }

    pub async fn get(&self, path: &str) -> http::Response<bytes::Bytes> {
        client::get(&self.address, path, &HeaderMap::new()).await.unwrap()
    }

    /// Scrapes until the page shows what is wanted.
    pub async fn until<T>(&self, what: &str, ask: impl Fn(&Page) -> Result<T, String>) -> T {
        until(what, || {
            let page = self.page();
            let ask = &ask;
            async move { ask(&page.await) }
        })
        .await
    }

    /// Waits for `/ready` to answer with this status, and gives its body.
    pub async fn ready(&self, status: u16) -> String {
        until(&format!("/ready to answer {status}"), || async {
            let response = self.get("/ready").await;
            let body = String::from_utf8_lossy(response.body()).into_owned();
            if response.status() == status { Ok(body) } else { Err(body) }
        })
        .await
    }

    /// Waits until `/ready` is 503 for a reason that has all these words.
    pub async fn unready(&self, words: &[&str]) -> String {
        until(&format!("/ready to say {words:?}"), || async {
            let reason = self.ready(503).await;
            if words.iter().all(|word| reason.contains(word)) { Ok(reason) } else { Err(reason) }
        })
        .await
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// A tool that `make tools` provides or the machine has.
pub fn tool(name: &str) -> Command {
    let unpacked = crate::checkout("target/tools/bin").join(name);
    Command::new(if unpacked.exists() { unpacked } else { Path::new(name).to_owned() })
}

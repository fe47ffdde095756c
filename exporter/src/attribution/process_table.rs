//! Owns what is known of processes: whose a pid is, by `/proc/<pid>` and the log folders' names.
//! Asked by the NVML thread alone.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroup::{self, Place};
use super::pod_names::PodNames;
use super::{Owner, Unavailable, Whose};

/// What names the host's PID namespace. Only a member of it is told of all GPU processes.
const HOST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// The first letters of the MPS server's name: the kernel keeps 15.
const MPS_SERVER: &str = "nvidia-cuda-mps";
/// Longest file of `/proc/<pid>` that is read, bytes.
const MAX_FILE: u64 = 16 * 1024;
/// Most pids that are remembered.
const MAX_PIDS: usize = 8192;
/// A pid that nobody asked for in so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

/// Whose pids are.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    procfs: PathBuf,
    names: PodNames,
    known: HashMap<u32, Known>,
    /// Whether the last look at the namespace found another than the host's; logged once.
    foreign: bool,
    unreadable_logged: bool,
}

#[derive(Debug)]
struct Known {
    /// Clock ticks since boot at which it started: another one is another process.
    started: u64,
    whose: Whose,
    asked_at: Instant,
}

// === impl ProcessTable ===

impl ProcessTable {
    pub(crate) fn new(procfs: PathBuf, names: PodNames) -> Self {
        Self { procfs, names, known: HashMap::new(), foreign: false, unreadable_logged: false }
    }

    /// Why no pid can be attributed here; `None` if they can.
    pub(crate) fn unavailable(&mut self) -> Option<Unavailable> {
        let link = self.procfs.join("self/ns/pid");
        let found = std::fs::read_link(&link);
        let is_host = found.as_ref().is_ok_and(|target| target.as_os_str() == HOST_PID_NAMESPACE);
        if !is_host && !self.foreign {
            tracing::warn!(
                "{} is {}, not the host's {HOST_PID_NAMESPACE}: NVML hides other namespaces' processes, so shared GPUs are not divided among pods (set hostPID: true, or see --path.procfs)",
                link.display(),
                found.map_or_else(|error| error.to_string(), |target| target.display().to_string()),
            );
        }
        self.foreign = !is_host;
        self.foreign.then_some(Unavailable::NoHostPidNamespace)
    }

    /// Whose a process is. Second: whether this is news.
    pub(crate) fn look_up(&mut self, pid: u32, now: Instant) -> (Whose, bool) {
        let folder = self.procfs.join(pid.to_string());
        let Some((comm, started)) = stat(&folder.join("stat")) else {
            // It ended; what is known of it stands for what it used before.
            return match self.known.get_mut(&pid) {
                Some(known) => {
                    known.asked_at = now;
                    (known.whose.clone(), false)
                }
                None => (Whose::Unknown, false),
            };
        };
        let before = self.known.get(&pid).filter(|known| known.started == started).map(|known| &known.whose);
        if let Some(whose) = before.filter(|whose| **whose != Whose::Unknown && !lacks_container(whose)) {
            let whose = whose.clone();
            self.keep(pid, started, whose.clone(), now);
            return (whose, false);
        }
        let is_news = before.is_none();
        let whose = if comm == MPS_SERVER { Whose::MpsServer } else { self.by_cgroup(&folder, now) };
        self.keep(pid, started, whose.clone(), now);
        (whose, is_news)
    }

    /// What was known of a pid when it was last looked up, without looking again; a pid that never
    /// was is looked up.
    pub(crate) fn whose(&mut self, pid: u32, now: Instant) -> Whose {
        match self.known.get(&pid) {
            Some(known) => known.whose.clone(),
            None => self.look_up(pid, now).0,
        }
    }

    /// Drops pids that are long gone.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.known.retain(|_, known| now.saturating_duration_since(known.asked_at) < FORGOTTEN_AFTER);
    }

    fn keep(&mut self, pid: u32, started: u64, whose: Whose, now: Instant) {
        if self.known.len() < MAX_PIDS || self.known.contains_key(&pid) {
            self.known.insert(pid, Known { started, whose, asked_at: now });
        }
    }

    fn by_cgroup(&mut self, folder: &Path, now: Instant) -> Whose {
        let path = folder.join("cgroup");
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound
                    && !std::mem::replace(&mut self.unreadable_logged, true)
                {
                    tracing::warn!("{}: {error}; its process's use is given to no pod", path.display());
                }
                return Whose::Unknown;
            }
        };
        let (uid, id) = match cgroup::place(&text) {
            Place::Pod { uid, container } => (uid, container),
            Place::Outside => return Whose::Outside,
            Place::Unclear => return Whose::Unknown,
        };
        let by_id = id.and_then(|id| self.names.container(&id, now)).cloned();
        let by_uid = self.names.pod(&uid, now).cloned();
        let owner = match (by_uid, by_id) {
            (Some((namespace, pod)), Some((_, _, container))) | (None, Some((namespace, pod, container))) => {
                Owner { namespace, pod, container }
            }
            (Some((namespace, pod)), None) => Owner { namespace, pod, container: String::new() },
            (None, None) => return Whose::Unknown,
        };
        Whose::Pod { owner: Arc::new(owner), uid: uid.into() }
    }
}

/// The kubelet makes the link to a container's log a moment after the container: asked again.
fn lacks_container(whose: &Whose) -> bool {
    matches!(whose, Whose::Pod { owner, .. } if owner.container.is_empty())
}

/// Name and start time of a process.
fn stat(path: &Path) -> Option<(String, u64)> {
    let text = read(path).ok()?;
    // The name may hold blanks and parentheses: the last one closes it.
    let (head, rest) = text.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    // Field 22 of the line; the first after the name is field 3.
    let started = rest.split_whitespace().nth(22 - 3)?.parse().ok()?;
    Some((comm, started))
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f2e4a60-1111-4222-8333-444455556666";

    struct Host(tempfile::TempDir);

    impl Host {
        fn process(&self, pid: u32, comm: &str, started: u64, cgroup: &str) {
            let folder = self.0.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&folder).unwrap();
            let zeros = " 0".repeat(17);
            std::fs::write(folder.join("stat"), format!("{pid} ({comm}) S 1{zeros} {started} 0\n")).unwrap();
            std::fs::write(folder.join("cgroup"), cgroup).unwrap();
        }

        fn table(&self) -> ProcessTable {
            let names = PodNames::new(self.0.path().join("pods"), self.0.path().join("containers"));
            ProcessTable::new(self.0.path().join("proc"), names)
        }
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let host = Host(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(host.0.path().join(format!("pods/ml_train_{UID}"))).unwrap();
        let mut table = host.table();
        let now = Instant::now();
        host.process(7, "a) (b", 100, &format!("0::/kubepods/pod{UID}/{}", "ab".repeat(32)));
        let (whose, news) = table.look_up(7, now);
        let Whose::Pod { owner, uid } = whose.clone() else { panic!("{whose:?}") };
        assert_eq!((owner.pod.as_str(), owner.container.as_str(), &*uid, news), ("train", "", UID, true));
        host.process(7, "x", 200, "0::/system.slice/x.service");
        assert_eq!(table.look_up(7, now), (Whose::Outside, true));
        // A process that ended keeps its owner for the slots it leaves behind.
        std::fs::remove_dir_all(host.0.path().join("proc/7")).unwrap();
        assert_eq!(table.look_up(7, now), (Whose::Outside, false));
        assert_eq!(table.look_up(8, now), (Whose::Unknown, false));
        table.forget(now + FORGOTTEN_AFTER);
        assert_eq!(table.look_up(7, now), (Whose::Unknown, false));
    }

    #[test]
    fn the_mps_server_is_nobodys_and_the_namespace_must_be_the_hosts() {
        let host = Host(tempfile::tempdir().unwrap());
        host.process(9, "nvidia-cuda-mps", 1, &format!("0::/kubepods/pod{UID}/x"));
        let mut table = host.table();
        assert_eq!(table.look_up(9, Instant::now()).0, Whose::MpsServer);
        assert_eq!(table.unavailable(), Some(Unavailable::NoHostPidNamespace));
        let ns = host.0.path().join("proc/self/ns");
        std::fs::create_dir_all(&ns).unwrap();
        std::os::unix::fs::symlink(HOST_PID_NAMESPACE, ns.join("pid")).unwrap();
        assert_eq!(table.unavailable(), None);
        // A pod whose name nothing tells is not known.
        host.process(10, "python3", 1, &format!("0::/kubepods/pod{UID}/x"));
        assert_eq!(table.look_up(10, Instant::now()).0, Whose::Unknown);
    }
}
